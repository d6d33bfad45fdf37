"""Optuna's own suite for samplers, on `AdditiveBO`."""

from collections.abc import Callable

import pytest
from optuna.testing.pytest_samplers import (
    BasicSamplerTestCase,
    RelativeSamplerTestCase,
    SingleOnlySamplerTestCase,
)

import hyperopt_dl as hd


class TestThatStarts(BasicSamplerTestCase, RelativeSamplerTestCase, SingleOnlySamplerTestCase):
    """Every trial of the suite is a quasi-random start."""

    @pytest.fixture
    def sampler(self) -> Callable[[], hd.AdditiveBO]:
        return lambda: hd.AdditiveBO(n_startup=100, seed=0)


@pytest.mark.slow
class TestThatModels(BasicSamplerTestCase, RelativeSamplerTestCase, SingleOnlySamplerTestCase):
    """Every trial but the first comes from the model."""

    @pytest.fixture
    def sampler(self) -> Callable[[], hd.AdditiveBO]:
        return lambda: hd.AdditiveBO(n_startup=0, seed=0)


@pytest.mark.slow
class TestThatPlans(BasicSamplerTestCase, RelativeSamplerTestCase, SingleOnlySamplerTestCase):
    """Batches of three, by determinantal point processes."""

    @pytest.fixture
    def sampler(self) -> Callable[[], hd.AdditiveBO]:
        return lambda: hd.AdditiveBO(batch=3, strategy="dpp", n_startup=1, seed=0)

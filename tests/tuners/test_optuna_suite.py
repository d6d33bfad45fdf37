"""Optuna's own suite for samplers."""

from collections.abc import Callable, Sequence

import optuna
import pytest
from optuna.testing.pytest_samplers import (
    BasicSamplerTestCase,
    RelativeSamplerTestCase,
    SingleOnlySamplerTestCase,
)
from optuna.trial import FrozenTrial, TrialState

import hyperopt_dl as hd


class TestHypergradientThatStarts(
    BasicSamplerTestCase, RelativeSamplerTestCase, SingleOnlySamplerTestCase
):
    """The objectives of the suite have no hypergradient: every trial is a start."""

    @pytest.fixture
    def sampler(self) -> Callable[[], hd.Hypergradient]:
        return lambda: hd.Hypergradient(seed=0)


class Moving(hd.Hypergradient):
    """A sampler that takes any objective to rise in everything, by one per unit."""

    def after_trial(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        state: TrialState,
        values: Sequence[float] | None,
    ) -> None:
        slopes = dict.fromkeys(trial.params, 1.0)
        study._storage.set_trial_user_attr(trial._trial_id, "hypergradient", slopes)
        super().after_trial(study, trial, state, values)


class TestHypergradientThatMoves(
    BasicSamplerTestCase, RelativeSamplerTestCase, SingleOnlySamplerTestCase
):
    """With a hypergradient every trial but the first is a move."""

    @pytest.fixture
    def sampler(self) -> Callable[[], hd.Hypergradient]:
        return lambda: Moving(lr=0.1, seed=0)

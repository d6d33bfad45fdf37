"""The contract on reverse mode in every setting and on forward mode, and ``hypergradient``."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hyperopt_dl.errors import TrainingError
from hyperopt_dl.hypergrad import Auto, Estimator, Forward, Reverse, hypergradient
from hyperopt_dl.training import Training
from tests.contracts.estimator import EstimatorContract, assert_same_answer
from tests.problems import Quadratic

SETTINGS: dict[str, dict[str, Any]] = {
    "auto": {},
    "activations": {"memory": "activations"},
    "all": {"memory": "all"},
    "sqrt": {"memory": "sqrt"},
    "1": {"memory": 1},
    "3": {"memory": 3},
    "bytes": {"memory": "1 KiB"},
    "last of all": {"last": 1000},
}


class TestReverse(EstimatorContract):
    @pytest.fixture(params=SETTINGS, ids=lambda name: str(name).replace(" ", "_"))
    def estimator(self, request: pytest.FixtureRequest) -> Estimator:
        return Reverse(**SETTINGS[request.param])


class TestReverseWithSpill(EstimatorContract):
    @pytest.fixture
    def estimator(self, tmp_path: Path) -> Estimator:
        return Reverse(memory="100 B", spill=tmp_path)


class TestForward(EstimatorContract):
    @pytest.fixture
    def estimator(self) -> Estimator:
        return Forward()


class TestAuto(EstimatorContract):
    @pytest.fixture
    def estimator(self) -> Estimator:
        return Auto()


class Recorder:
    """An estimator that answers with what it was asked."""

    def __init__(self) -> None:
        self.asked: list[Any] = []

    def __len__(self) -> int:
        return len(self.asked)

    def __call__(
        self,
        training: Training,
        hparams: Mapping[str, Any],
        *,
        seed: int,
        device: torch.device | str,
        observe: Any = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        self.asked.append((training, hparams, seed, device))
        return torch.tensor(1.0), {"lr": torch.tensor(2.0)}


def test_an_estimator_of_ones_own_is_asked_once_and_its_answer_returned() -> None:
    estimator, training, hparams = Recorder(), Quadratic(), {"lr": 0.1}
    value, gradient = hypergradient(
        training, hparams, estimator=estimator, seed=4, device=torch.device("cpu")
    )
    assert (float(value), float(gradient["lr"])) == (1.0, 2.0)
    assert estimator.asked == [(training, hparams, 4, torch.device("cpu"))]


def test_reverse_mode_and_seed_0_are_the_default() -> None:
    training = Quadratic(noise=0.3)
    found = hypergradient(training, {"lr": 0.1})
    assert_same_answer(
        found, hypergradient(training, {"lr": 0.1}, estimator=Reverse(), seed=0, device="cpu")
    )
    torch.testing.assert_close(found[1]["lr"], training.exact_gradient(0.1))


class NoLoss:
    """A Training but for its loss."""

    steps, init, step = 3, Quadratic().init, Quadratic().step


def test_the_error_for_what_is_no_training_names_what_is_missing() -> None:
    with pytest.raises(TrainingError, match=r"got a NoLoss, which has no loss\."):
        hypergradient(NoLoss(), {"lr": 0.1})  # type: ignore[arg-type]

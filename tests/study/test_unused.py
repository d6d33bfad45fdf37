"""A dimension that nothing reads is tuned, but not without a word."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import hyperopt_dl as hd
from hyperopt_dl.optimizers import SGD, ClipNorm, Schedule

X = torch.linspace(-1, 1, 6).unsqueeze(1)
SPACE = hd.Space(lr=hd.Float(0.01, 0.1), typo=hd.Float(0, 1), width=hd.Int(1, 3))


def training(**changes: Any) -> hd.Supervised:
    given: dict[str, Any] = {
        "model": nn.Linear(1, 1),
        "loss": nn.functional.mse_loss,
        "optimizer": SGD(lr="lr"),
        "train": (X, X),
        "validation": (X, X),
        "steps": 2,
    }
    return hd.Supervised(**{**given, **changes})


def read_all(output: Tensor, target: Tensor, hp: hd.HParams) -> Any:
    return (output - target).square().mean() * (1 + hp["typo"] + hp["width"])


def messages(workload: Any, space: hd.Space = SPACE) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        hd.Study(space, seed=0).optimize(workload, n_trials=1, progress=False)
    return [str(warning.message) for warning in caught]


def test_what_no_part_reads_is_named_once_for_a_call() -> None:
    (message,) = messages(training())
    assert "reads the hyperparameter(s) ['typo', 'width']: they are tuned without" in message


def test_the_warning_points_at_the_call_of_optimize() -> None:
    with pytest.warns(UserWarning, match="No part of the training reads") as caught:
        hd.Study(SPACE, seed=0).optimize(training(), n_trials=1, progress=False)
    assert Path(caught[0].filename) == Path(__file__)


@pytest.mark.parametrize(
    "changes",
    [
        {"model": lambda hp: nn.Linear(1, 1)},
        {"loss": read_all},
        {"validation_loss": read_all},
        {"optimizer": SGD(lr=Schedule("lr", lambda t, hp: hp["typo"] * hp["width"]))},
        {"optimizer": SGD(lr="lr", groups={"bias": {"lr": Schedule(1, lambda t, hp: hp["typo"])}})},
        {"optimizer": ClipNorm(SGD(lr=Schedule("lr", lambda t, hp: hp["typo"])), 1.0)},
    ],
)
def test_where_it_cannot_be_known_nothing_is_said(changes: dict[str, Any]) -> None:
    assert messages(training(**changes)) == []


def test_of_a_training_that_declares_nothing_nothing_is_said() -> None:
    class Own:
        steps = 1

        def init(self, hparams: hd.HParams, *, seed: int, device: Any) -> hd.State:
            return {"w": torch.zeros(())}

        def step(self, state: hd.State, hparams: hd.HParams, t: int) -> hd.State:
            return {"w": state["w"] + hparams["lr"]}

        def loss(self, state: hd.State, hparams: hd.HParams) -> Tensor:
            return state["w"]

    assert messages(Own()) == []


def test_what_is_named_anywhere_is_not_named_in_a_warning() -> None:
    tune = {"lr": hd.Float(1e-3, 1.0, log=True)}
    everything = training(
        optimizer=ClipNorm(SGD(lr="lr", groups={"bias": {"momentum": "m"}}), "c"),
        init_scale="s",
        online=hd.online.Forward(tune, hyper_lr="h", every=1),
    )
    names = {name: hd.Float(0.1, 0.2) for name in ("lr", "m", "c", "s", "h", "typo")}
    (message,) = messages(everything, hd.Space(names))
    assert "['typo']" in message

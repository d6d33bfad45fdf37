"""An unranked estimator gives the same numbers, and notes them as estimates."""

from typing import Any

import pytest
import torch
from torch import nn

import hyperopt_dl as hd
from hyperopt_dl.hypergrad.estimator import Learner
from studies.shared.unranked import Unranked, UnrankedTelescoping

TRAINING = hd.Supervised(
    model=nn.Linear(2, 2),
    loss=nn.functional.cross_entropy,
    optimizer=hd.optimizers.SGD(lr="lr"),
    train=(torch.eye(2), torch.tensor([0, 1])),
    validation=(torch.ones(2, 2), torch.tensor([0, 1])),
    steps=4,
)


@pytest.mark.parametrize("estimator", [hd.hypergrad.Reverse(), hd.hypergrad.Telescoping()])
def test_the_numbers_are_those_of_the_estimator(estimator: Any) -> None:
    notes: list[Any] = []
    value, gradient = Unranked(estimator)(
        TRAINING, {"lr": 0.1}, seed=1, device="cpu", note=notes.append
    )
    expected, derivative = estimator(TRAINING, {"lr": 0.1}, seed=1, device="cpu")
    assert value == expected
    assert gradient == derivative
    assert [note["exact"] for note in notes] == [False]


def test_telescoping_learns_on() -> None:
    unranked = UnrankedTelescoping(hd.hypergrad.Telescoping())
    assert isinstance(unranked, Learner)
    assert not isinstance(Unranked(hd.hypergrad.Reverse()), Learner)
    notes: list[Any] = []
    plan = unranked.next_plan(notes, [])
    assert plan == {"do": "calibrate"}
    unranked(TRAINING, {"lr": 0.1}, seed=1, device="cpu", note=notes.append, plan=plan)
    assert unranked.next_plan(notes, [])["do"] == "draw"

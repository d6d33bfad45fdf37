"""Schedules: what a factor may be, and at which step it is asked."""

import functools
import math
from typing import Any

import pytest
import torch

from hyperopt_dl.errors import TrainingError
from hyperopt_dl.optimizers import SGD, Schedule
from hyperopt_dl.optimizers.resolve import resolve
from tests.optimizers.twins import LAYOUT, start, wave


def lr_at(schedule: Schedule, t: int, **hparams: Any) -> Any:
    return resolve(SGD(lr=schedule), hparams, t, LAYOUT, start())["lr"]


def test_the_value_is_multiplied_by_the_factor_of_the_absolute_step() -> None:
    schedule = Schedule("lr", lambda t: 1 / (1 + t))
    found = [lr_at(schedule, t, lr=0.6) for t in (0, 1, 500)]
    assert found == pytest.approx([0.6, 0.3, 0.6 / 501], rel=1e-15)


def test_a_factor_of_two_arguments_sees_the_hyperparameters() -> None:
    knots = [torch.tensor(2.0), torch.tensor(5.0)]
    schedule = Schedule(0.1, lambda t, hparams: hparams[f"knot{t}"])
    found = [float(lr_at(schedule, t, knot0=knots[0], knot1=knots[1])) for t in (0, 1)]
    assert found == pytest.approx([0.2, 0.5])


def with_default(t: int, scale: float = 3.0) -> float:
    return scale * t


def with_hparams_and_default(t: int, hparams: Any, *rest: Any, scale: float = 3.0) -> float:
    return float(hparams["a"]) * scale * t


@pytest.mark.parametrize(
    ("factor", "expected"),
    [
        (with_default, 6.0),
        (with_hparams_and_default, 30.0),
        (functools.partial(with_default, scale=2.0), 4.0),
        (functools.partial(with_hparams_and_default, scale=1.0), 10.0),
        (math.sqrt, math.sqrt(2.0)),
    ],
)
def test_defaults_do_not_count_as_required(factor: Any, expected: float) -> None:
    assert lr_at(Schedule(1.0, factor), 2, a=5.0) == pytest.approx(expected)


def keyword_only(t: int, *, scale: float) -> float:
    return scale * t


@pytest.mark.parametrize(
    "factor",
    [lambda: 1.0, lambda t=0: 1.0, lambda a, b, c: 1.0, keyword_only, lambda *a: 1.0, 0.5, max],
    ids=["none", "optional", "three", "keyword", "variadic", "number", "builtin"],
)
def test_any_other_factor_is_refused(factor: Any) -> None:
    with pytest.raises(TrainingError, match=r"one required positional parameter, \(t\), or two"):
        Schedule(0.1, factor)


@pytest.mark.parametrize("bad", [None, float("nan"), float("inf"), torch.tensor(1.0)])
def test_a_value_that_is_no_number_and_no_name_is_refused(bad: Any) -> None:
    with pytest.raises(TrainingError, match="Schedule needs a finite number or the name"):
        Schedule(bad, wave)


@pytest.mark.parametrize(
    ("result", "got"), [(None, "got None"), (torch.ones(3), r"got shape \(3,\)"), ("x", "got 'x'")]
)
def test_a_factor_that_returns_no_number_is_refused_when_it_does(result: Any, got: str) -> None:
    schedule = Schedule(0.1, lambda t: result)
    with pytest.raises(TrainingError, match=f"must return a number or a 0-dim tensor, {got} at"):
        lr_at(schedule, 7)


def test_schedules_compare_by_value_and_factor() -> None:
    assert Schedule("lr", wave) == Schedule("lr", wave)
    assert Schedule("lr", wave) != Schedule(0.1, wave)
    assert Schedule("lr", wave) != Schedule("lr", math.sqrt)
    assert repr(Schedule("lr", wave)).startswith("Schedule(value='lr', factor=<function wave")

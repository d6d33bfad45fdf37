"""Hypergradients of trials in the coordinates of the cube."""

import math
from datetime import datetime
from typing import Any

import pytest
import torch
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial
from torch import Tensor

import hyperopt_dl as hd
from hyperopt_dl.tuners.cube import Cube
from hyperopt_dl.tuners.gradients import gradients_of
from hyperopt_dl.tuners.observations import Observations, observe

SPACE = hd.Space(
    rate=hd.Float(1e-4, 2.0, log=True),
    momentum=hd.Float(-1.0, 3.0),
    grid=hd.Float(0.0, 1.0, step=0.25),
    width=hd.Int(1, 9),
    kind=hd.Categorical(["a", "b"]),
)
PARAMS: dict[str, Any] = {"rate": 0.03, "momentum": 0.5, "grid": 0.25, "width": 3, "kind": "b"}
GRADIENT = {"rate": 2.0, "momentum": -0.5}


def cube() -> Cube:
    distributions: dict[str, BaseDistribution] = SPACE.distributions()
    return Cube(dict(sorted(distributions.items())))


def trial(
    gradient: Any = None,
    state: TrialState = TrialState.COMPLETE,
    value: float = 1.0,
    **params: Any,
) -> FrozenTrial:
    made = create_trial(
        state=state,
        value=value if state == TrialState.COMPLETE else None,
        params={**PARAMS, **params},
        distributions=SPACE.distributions(),
        user_attrs={} if gradient is None else {"hypergradient": gradient},
        intermediate_values={0: value} if state == TrialState.PRUNED else {},
    )
    made.datetime_complete = datetime(2026, 1, 1)
    return made


def row(gradients: Tensor, i: int = 0) -> dict[str, float]:
    return dict(zip(cube().names, gradients[i].tolist(), strict=True))


@pytest.mark.parametrize("params", [{}, {"rate": 1e-4, "momentum": 3.0}, {"rate": 1.7}])
def test_the_stretch_is_the_derivative_of_the_map_from_the_cube(params: dict[str, float]) -> None:
    found = row(cube().stretch([{**PARAMS, **params}]))
    for name in ("rate", "momentum"):
        dimension = SPACE[name]
        assert isinstance(dimension, hd.Float)
        u = dimension.to_unit({**PARAMS, **params}[name]).requires_grad_()
        (expected,) = torch.autograd.grad(dimension.from_unit(u), u)
        assert found[name] == pytest.approx(float(expected), rel=1e-12)
    assert all(math.isnan(found[name]) for name in ("grid", "width", "kind"))


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_gradient_is_pulled_back_to_the_cube(sign: float) -> None:
    found = row(gradients_of([trial(), trial(GRADIENT)], cube(), sign=sign), 1)
    assert found["rate"] == pytest.approx(sign * 2.0 * 0.03 * math.log(2.0 / 1e-4))
    assert found["momentum"] == pytest.approx(sign * -0.5 * 4.0)
    assert all(math.isnan(found[name]) for name in ("grid", "width", "kind"))


def test_a_trial_without_a_gradient_has_none() -> None:
    assert bool(gradients_of([trial()], cube(), sign=1.0).isnan().all())
    assert gradients_of([], cube(), sign=1.0).shape == (0, 5)


def observed(*trials: FrozenTrial) -> Observations:
    for number, made in enumerate(trials):
        made.number = number
    return observe(trials, cube(), sign=1.0, running=())


def test_observations_have_the_gradient_of_each_loss() -> None:
    observations = observed(trial(), trial(GRADIENT), trial({"rate": 1.0}))
    assert observations.gradients.isfinite().sum(-1).tolist() == [0, 2, 1]
    assert observations.unusable == 0


@pytest.mark.parametrize("derivative", [None, math.nan, math.inf, "artifact", 1e308])
def test_a_derivative_that_is_no_finite_number_is_dropped_and_counted(derivative: Any) -> None:
    momentum = {"rate": 1.0, "momentum": derivative}
    observations = observed(trial(momentum, value=2.0), trial())
    assert observations.gradients.isfinite().sum() == 1
    assert observations.unusable == 1


@pytest.mark.parametrize("state", [TrialState.FAIL, TrialState.PRUNED])
def test_the_gradient_of_a_failed_or_pruned_trial_is_dropped_and_counted(
    state: TrialState,
) -> None:
    observations = observed(trial(GRADIENT, state), trial(GRADIENT))
    assert observations.gradients.isfinite().sum() == 2
    assert observations.unusable == 2


def test_names_that_are_no_dimension_count_for_nothing() -> None:
    observations = observed(trial({"elsewhere": 1.0, "rate": 1.0}))
    assert observations.gradients.isfinite().sum() == 1
    assert observations.unusable == 0

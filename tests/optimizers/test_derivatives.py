"""The derivative of an unrolled run in every numeric option, against finite differences."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from hyperopt_dl.optimizers import (
    SGD,
    Adagrad,
    Adam,
    AdamW,
    Optimizer,
    RMSprop,
    Schedule,
)
from tests.optimizers.twins import TWINS, Twin, outer_loss, start, train

STEPS = 6


def value(optimizer: Optimizer, hparams: Mapping[str, float | Tensor], steps: int) -> Tensor:
    return outer_loss(train(optimizer, hparams, steps, start())[0])


def derivative(
    optimizer: Optimizer, hparams: Mapping[str, float], name: str, steps: int = STEPS
) -> float:
    tensors = {k: torch.tensor(x, dtype=torch.double) for k, x in hparams.items()}
    tensors[name].requires_grad_()
    (slope,) = torch.autograd.grad(value(optimizer, tensors, steps), tensors[name])
    return slope.item()


def central_difference(
    optimizer: Optimizer, hparams: Mapping[str, float], name: str, steps: int = STEPS
) -> float:
    h = 1e-5
    up, down = ({**hparams, name: hparams[name] + sign * h} for sign in (1, -1))
    return (value(optimizer, up, steps) - value(optimizer, down, steps)).item() / (2 * h)


CASES = [
    pytest.param(row, flags, name, id="-".join([row.name, *flags, name]))
    for row in TWINS
    for flags in row.flags
    for name in row.interior
]


@pytest.mark.parametrize(("row", "flags", "name"), CASES)
def test_every_option_has_its_derivative(row: Twin, flags: Mapping[str, Any], name: str) -> None:
    optimizer = row.build({option: option for option in row.interior}, **flags)
    expected = central_difference(optimizer, row.interior, name)
    assert abs(expected) > 1e-4
    assert derivative(optimizer, row.interior, name) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("row", "flags", "name"), CASES)
def test_every_option_of_a_group_has_its_derivative(
    row: Twin, flags: Mapping[str, Any], name: str
) -> None:
    optimizer = row.build(row.interior, groups={"*.bias": {name: "here"}}, **flags)
    hparams = {"here": 0.9 * row.interior[name]}
    expected = central_difference(optimizer, hparams, "here")
    assert abs(expected) > 1e-6
    assert derivative(optimizer, hparams, "here") == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("row", TWINS, ids=lambda row: row.name)
def test_one_name_in_two_groups_adds_both_derivatives(row: Twin) -> None:
    groups = {"body.*": {"lr": "lr"}, "head.bias": {"lr": "lr"}}
    both = row.build(row.interior, groups=groups)
    parts = {"body.*": {"lr": "lr/body"}, "head.bias": {"lr": "lr/head"}}
    apart = row.build(row.interior, groups=parts)
    split = {"lr/body": 0.04, "lr/head": 0.04}
    expected = sum(derivative(apart, split, name) for name in split)
    assert derivative(both, {"lr": 0.04}, "lr") == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("steps", [1, 2, 7])
@pytest.mark.parametrize("name", ["lr", "weight_decay"])
@pytest.mark.parametrize("nesterov", [False, True])
def test_the_first_momentum_buffer_keeps_its_graph(nesterov: bool, name: str, steps: int) -> None:
    optimizer = SGD(lr="lr", momentum=0.9, weight_decay="weight_decay", nesterov=nesterov)
    hparams = {"lr": 0.03, "weight_decay": 0.2}
    expected = central_difference(optimizer, hparams, name, steps)
    assert derivative(optimizer, hparams, name, steps) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("name", ["momentum", "weight_decay"])
@pytest.mark.parametrize(
    "optimizer",
    [
        SGD(lr=0.05, momentum="momentum", weight_decay="weight_decay"),
        RMSprop(lr=0.05, eps=0.1, momentum="momentum", weight_decay="weight_decay"),
    ],
    ids=["SGD", "RMSprop"],
)
def test_an_option_at_0_still_has_its_derivative(optimizer: Optimizer, name: str) -> None:
    hparams = {"momentum": 0.0, "weight_decay": 0.0}
    expected = central_difference(optimizer, hparams, name)
    assert abs(expected) > 1e-3
    assert derivative(optimizer, hparams, name) == pytest.approx(expected, rel=1e-6)


def test_a_dampened_momentum_at_0_has_the_derivative_at_fixed_dampening_0() -> None:
    dampened = SGD(lr=0.05, momentum="momentum", dampening=0.4)
    plain = SGD(lr=0.05, momentum="momentum")
    expected = central_difference(plain, {"momentum": 0.0}, "momentum")
    assert derivative(dampened, {"momentum": 0.0}, "momentum") == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("steps", [1, 2, 3])
@pytest.mark.parametrize(
    "optimizer",
    [
        Adam(lr=0.2, eps=0.1),
        Adam(lr=0.2, eps=0.1, amsgrad=True),
        AdamW(lr=0.2, eps=0.1, weight_decay=0.0),
        RMSprop(lr=0.2, eps=0.1),
        RMSprop(lr=0.2, eps=0.1, centered=True),
        Adagrad(lr=0.2, eps=0.1),
    ],
    ids=["Adam", "amsgrad", "AdamW", "RMSprop", "centered", "Adagrad"],
)
def test_at_a_second_moment_of_0_the_derivative_is_the_closed_form(
    optimizer: Optimizer, steps: int
) -> None:
    """With a gradient h, each of T steps is ``-lr h / (c_t |h| + eps)``: slope -T lr / eps at 0."""

    def loss(params: Tensor, t: int) -> Tensor:
        return (h * params).sum()

    h = torch.zeros((), dtype=torch.double, requires_grad=True)
    params, slots = train(optimizer, {"h": h}, steps, start(), loss)
    second = {"exp_avg_sq", "square_avg", "sum"} & slots.keys()
    assert all(bool((slots[name] == 0).all()) and slots[name].requires_grad for name in second)
    (slope,) = torch.autograd.grad(params[0], h)
    assert float(slope) == pytest.approx(-steps * 0.2 / 0.1, rel=1e-12)


@pytest.mark.parametrize("row", [row for row in TWINS if row.name != "SGD"], ids=lambda r: r.name)
def test_a_coordinate_without_gradient_leaves_the_other_derivatives_right(row: Twin) -> None:
    """A dead coordinate (its gradient is exactly 0, within the graph) must not make a NaN."""

    def loss(params: Tensor, t: int) -> Tensor:
        return (torch.sin(params[1:] + t) * params[1:]).sum() + 0.0 * params[0] ** 2

    def final(lr: float | Tensor) -> Tensor:
        return outer_loss(train(optimizer, {"lr": lr}, STEPS, start(), loss)[0])

    optimizer = row.build({**row.interior, "lr": "lr", "weight_decay": 0.0, "eps": 1e-8})
    lr = torch.tensor(0.05, dtype=torch.double, requires_grad=True)
    (slope,) = torch.autograd.grad(final(lr), lr)
    h = 1e-6
    expected = (final(0.05 + h) - final(0.05 - h)).item() / (2 * h)
    assert float(slope) == pytest.approx(expected, rel=1e-5)


def test_a_schedule_of_hyperparameters_is_differentiated_in_them() -> None:
    optimizer = SGD(lr=Schedule("lr", lambda t, hparams: hparams["decay"] ** t), momentum=0.5)
    hparams = {"lr": 0.1, "decay": 0.8}
    for name in hparams:
        expected = central_difference(optimizer, hparams, name)
        assert derivative(optimizer, hparams, name) == pytest.approx(expected, rel=1e-6)


def test_a_float32_run_hands_a_float64_hyperparameter_its_derivative() -> None:
    lr = torch.tensor(0.05, dtype=torch.double, requires_grad=True)
    optimizer = Adam(lr="lr", eps=0.05, groups={"*.bias": {"lr": 0.01}})
    params, _ = train(optimizer, {"lr": lr}, STEPS, start(torch.float32))
    (slope,) = torch.autograd.grad(outer_loss(params), lr)
    assert slope.dtype == torch.double
    assert float(slope) == pytest.approx(derivative(optimizer, {"lr": 0.05}, "lr"), rel=1e-4)

"""One row a twin, and the small inner problem on which all of them run."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from hyperopt_dl.optimizers import SGD, Adagrad, Adam, AdamW, Optimizer, RMSprop
from hyperopt_dl.optimizers.resolve import resolve

LAYOUT = (("body.weight", 4), ("body.bias", 2), ("head.weight", 3), ("head.bias", 1))
ENTRIES = 10


@dataclass(frozen=True)
class Twin:
    """What the tests know about one twin."""

    twin: Callable[..., Optimizer]
    reference: Callable[..., torch.optim.Optimizer]
    interior: Mapping[str, float]
    """A point inside the range of every numeric option, where all of them matter."""
    modes: tuple[Mapping[str, Any], ...]
    """Settings whose trajectories differ from those of the defaults."""
    flags: tuple[Mapping[str, Any], ...] = ({},)
    """Switches that may be combined with every numeric option."""
    fixed: Mapping[str, float] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return str(getattr(self.twin, "__name__"))  # noqa: B009 — a Callable has no __name__ for mypy

    def build(self, options: Mapping[str, Any], **settings: Any) -> Optimizer:
        """The twin with internal options, so `beta1` and `beta2` instead of `betas`."""
        return self.twin(**public(options), **{**self.fixed, **settings})


def public(options: Mapping[str, Any]) -> dict[str, Any]:
    """Internal names to the arguments of the constructors."""
    arguments = dict(options)
    if "beta1" in arguments:
        arguments["betas"] = (arguments.pop("beta1"), arguments.pop("beta2"))
    return arguments


_ADAM: dict[str, float] = {
    "lr": 0.05,
    "beta1": 0.8,
    "beta2": 0.9,
    "eps": 0.05,
    "weight_decay": 0.1,
}
_ADAM_MODES: tuple[Mapping[str, Any], ...] = (
    {},
    {"lr": 0.03},
    {"betas": (0.7, 0.95)},
    {"betas": (0.0, 0.9)},
    {"eps": 1e-2},
    {"weight_decay": 0.2},
    {"weight_decay": 0.0},
    {"amsgrad": True, "betas": (0.5, 0.6)},
    {"maximize": True, "weight_decay": 0.1},
    {"amsgrad": True, "maximize": True, "betas": (0.8, 0.7), "weight_decay": 0.1, "lr": 0.02},
)

TWINS = (
    Twin(
        SGD,
        torch.optim.SGD,
        {"lr": 0.05, "momentum": 0.7, "dampening": 0.3, "weight_decay": 0.1},
        (
            {},
            {"lr": 0.05},
            {"lr": 0.02, "momentum": 0.9},
            {"lr": 0.02, "momentum": 0.9, "dampening": 0.4},
            {"lr": 0.05, "dampening": 0.4},
            {"lr": 0.05, "weight_decay": 0.3},
            {"lr": 0.02, "momentum": 0.8, "nesterov": True, "weight_decay": 0.1},
            {"lr": 0.01, "maximize": True, "weight_decay": 0.3},
            {"lr": 0.01, "momentum": 0.6, "dampening": 0.2, "maximize": True, "weight_decay": 0.1},
        ),
    ),
    Twin(Adam, torch.optim.Adam, _ADAM, _ADAM_MODES, ({}, {"amsgrad": True})),
    Twin(AdamW, torch.optim.AdamW, _ADAM, _ADAM_MODES, ({}, {"amsgrad": True})),
    Twin(
        RMSprop,
        torch.optim.RMSprop,
        {"lr": 0.03, "alpha": 0.8, "eps": 0.05, "weight_decay": 0.1, "momentum": 0.6},
        (
            {},
            {"alpha": 0.9},
            {"eps": 1e-2},
            {"weight_decay": 0.2},
            {"momentum": 0.8, "lr": 3e-3},
            {"centered": True, "eps": 1e-3},
            {"maximize": True, "weight_decay": 0.1},
            {"centered": True, "momentum": 0.5, "maximize": True, "weight_decay": 0.1, "eps": 0.1},
        ),
        ({}, {"centered": True}),
    ),
    Twin(
        Adagrad,
        torch.optim.Adagrad,
        {"lr": 0.1, "lr_decay": 0.2, "weight_decay": 0.1, "eps": 0.05},
        (
            {},
            {"lr": 0.1},
            {"lr": 0.1, "lr_decay": 0.3},
            {"weight_decay": 0.2},
            {"initial_accumulator_value": 0.7, "lr": 0.1},
            {"eps": 0.1},
            {"maximize": True, "weight_decay": 0.1, "lr_decay": 0.1, "lr": 0.1},
        ),
    ),
)


def start(dtype: torch.dtype = torch.double) -> Tensor:
    """The first parameters, of both signs and several magnitudes."""
    return torch.linspace(-1.3, 1.7, ENTRIES, dtype=torch.double).pow(3).to(dtype)


def inner_loss(params: Tensor, t: int) -> Tensor:
    """Nonlinear and different at every step: gradients change their sign and magnitude."""
    i = torch.arange(ENTRIES, dtype=torch.double)
    amplitude = (0.02 * (1 + i) ** 2).to(params.dtype)
    phase = (i + 1.9 * t).to(params.dtype)
    neighbours = (params[1:] * params[:-1]).sum()
    return (amplitude * torch.sin(2 * params + phase)).sum() + 0.3 * neighbours


def outer_loss(params: Tensor) -> Tensor:
    """What the derivatives are taken of."""
    return (params * torch.cos(params + 0.3)).sum()


def train(
    optimizer: Optimizer,
    hparams: Mapping[str, float | Tensor],
    steps: int,
    params: Tensor,
    loss: Callable[[Tensor, int], Tensor] = inner_loss,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Run the twin, recording the graph if a hyperparameter asks for it."""
    record = any(isinstance(h, Tensor) and h.requires_grad for h in hparams.values())
    params = params if params.requires_grad else params.clone().requires_grad_()
    slots = optimizer.slots(params)
    for t in range(steps):
        (grad,) = torch.autograd.grad(loss(params, t), params, create_graph=record)
        options = resolve(optimizer, hparams, t, LAYOUT, params)
        with torch.set_grad_enabled(record):
            params, slots = optimizer.update(params, grad, slots, options, t)
        params = params if record else params.requires_grad_()
    return params, slots


def wave(t: int) -> float:
    """A schedule that rises and falls."""
    return 0.6 + 0.4 * math.cos(0.7 * t)

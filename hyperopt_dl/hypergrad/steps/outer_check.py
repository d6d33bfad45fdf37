"""Whether the gradient of the outer loss is one, by difference quotients.

A hypergradient takes the outer loss E for the loss that its gradient belongs to: what is detached
in it, or leaves torch and comes back, has no part in the gradient and moves the value all the same.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hyperopt_dl.errors import TrainingError
from hyperopt_dl.hypergrad.steps.held_out import HeldOut
from hyperopt_dl.hypergrad.steps.leaves import Gathered
from hyperopt_dl.network import Network
from hyperopt_dl.recorded_inputs import value_with_graph
from hyperopt_dl.state_entries import unpack
from hyperopt_dl.supervised import Supervised
from hyperopt_dl.training import State

EXAMPLES = 64
"""Validation examples that the loss is looked at on."""
_LENGTHS = {torch.float64: (1e-6, 1e-5, 1e-4), torch.float32: (1e-3, 1e-2, 1e-1)}
_TOLERANCES = {torch.float64: 1e-4, torch.float32: 0.05}


def check_outer_loss(
    training: Supervised, network: Network, gathered: Gathered, state: State, moving: Sequence[str]
) -> None:
    """Raise unless E changes along its gradient as the gradient says.

    Costs one gradient and a few evaluations on some of the validation examples.

    Args:
        training: The training.
        network: The structure of its model.
        gathered: The hyperparameters.
        state: A state.
        moving: Its entries beside the parameters that have a derivative.

    Raises:
        TrainingError: It does not.
    """
    held_out = HeldOut(training, min(EXAMPLES, training.held_out(None).size))
    with held_out.draws(state, 0):
        batch = held_out.batch(state, 0)
    names = ["params", *moving]
    leaves = {name: state[name].detach().clone().requires_grad_() for name in names}
    own = {name: leaf.detach().clone().requires_grad_() for name, leaf in gathered.leaves.items()}

    def value(entries: State, hparams: dict[str, Tensor]) -> Tensor:
        given: dict[str, Any] = {**gathered.hparams, **hparams}
        there = {**state, **entries}
        with held_out.draws(state, 0):
            return value_with_graph(
                network, there, given, lambda hp: training.outer_loss(network, batch, hp)
            )

    def plain(h: float, along: list[Tensor]) -> float:
        points = [each.detach() + h * z for each, z in zip(inputs, along, strict=True)]
        entries = dict(zip(leaves, points, strict=False))
        hparams = {**gathered.hparams, **dict(zip(own, points[len(leaves) :], strict=True))}
        weights = unpack({**state, **entries})
        with torch.no_grad(), held_out.draws(state, 0), network.holding(weights, training=False):
            return float(training.outer_loss(network, batch, hparams))

    inputs = [*leaves.values(), *own.values()]
    with torch.enable_grad():
        E = value(leaves, own)
    if not E.requires_grad:
        return  # the run says what is wrong
    e = torch.autograd.grad(E, inputs, allow_unused=True)
    parts = [
        torch.zeros_like(x) if part is None else part for x, part in zip(inputs, e, strict=True)
    ]
    along = [_as_long_as(x, part) for x, part in zip(inputs, parts, strict=True)]
    slope = sum(float((p * z).real.double().sum()) for p, z in zip(parts, along, strict=True))
    if not (math.isfinite(slope) and slope > 0):
        return
    eps, errors = torch.finfo(E.dtype).eps, []
    for h in _LENGTHS.get(E.dtype, (0.1, 0.3)):
        quotient = (plain(h, along) - plain(-h, along)) / (2 * h)
        noise = 4 * eps * abs(float(E.detach())) / h
        errors.append((abs(quotient - slope) - noise) / max(abs(quotient), slope))
        if errors[-1] <= _TOLERANCES.get(E.dtype, 0.3):
            return
    raise TrainingError(
        f"The gradient of the validation loss must be that of its value, but beside difference "
        f"quotients it is off by {min(errors):.1%}. Likely sources: a detach(), a no_grad() or an "
        f"autograd.Function of your own in the loss or the model, or values that leave torch and "
        f"come back, such as .item(). Leave them out, or give a differentiable validation_loss."
    )


def _as_long_as(x: Tensor, direction: Tensor) -> Tensor:
    """Return the direction in the length of x."""
    size = float(x.detach().abs().square().mean().sqrt()) if x.numel() else 0.0
    length = float(direction.abs().square().mean().sqrt()) if direction.numel() else 0.0
    return direction * ((size or 1.0) / length if length > 0 else 0.0)

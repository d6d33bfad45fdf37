"""The outer loss in the middle of a run, and its derivative along tangents of the state.

Letters: s the state, x the parameters of a ``Supervised``; Z = ds/du, a row for each of the m
coordinates u; λ the hyperparameters; E the outer loss, e its gradient; ``h = e Z + ∂E/∂λ dλ/du``.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from hyperopt_dl.errors import TrainingError
from hyperopt_dl.hypergrad.pushes.push import SplitPush, Tangents, WholePush, inner, vectors
from hyperopt_dl.hypergrad.steps.held_out import HeldOut
from hyperopt_dl.hypergrad.steps.step_loss import StepLoss
from hyperopt_dl.training import State


class Seen(NamedTuple):
    """What a look has seen: E, h ``[m]`` in double, and e by parts."""

    value: Tensor
    h: Tensor
    e: list[Tensor]


def look_of(push: WholePush, *, batch_size: int | None, compile: bool) -> "WholeLook | SplitLook":  # noqa: A002
    """Return what looks at the run that ``push`` makes, after a step.

    Args:
        push: The steps of the run.
        batch_size: Validation examples a look, ``None`` for all.
        compile: Whether the gradient of E is compiled.

    Raises:
        TrainingError: A batch size for a training that does not say what its examples are.
    """
    if isinstance(push, SplitPush):
        return SplitLook(push, batch_size, compile=compile)
    if batch_size is not None:
        raise TrainingError(
            f"batch_size is for a Supervised, got batch_size={batch_size} for a training whose "
            f"loss is looked at as a whole. Leave it out."
        )
    return WholeLook(push)


class WholeLook:
    """A look at the loss of any training, by autograd.

    Args:
        push: The steps of the run.

    Attributes:
        reached: The hyperparameters that E itself has been seen to depend on.
    """

    def __init__(self, push: WholePush) -> None:
        self._run, self._directions = push.run, push.directions
        self.reached: frozenset[str] = frozenset()

    def __call__(self, state: State, Z: Tangents, t: int) -> Seen:  # noqa: ARG002
        """Return E, h and e of s[t + 1] and Z[t + 1]."""
        value, e, direct = self._run.gradient_of_loss(state)
        self.reached |= direct.keys()
        h = torch.zeros(self._directions.m, dtype=torch.double)
        for name in e.keys() & Z.keys():
            h += inner(Z[name], e[name]).to(h.device)
        for k in range(self._directions.m):
            for name, along in self._directions[k].items():
                if name in direct:
                    h[k] += float((direct[name] * along).sum())
        return Seen(value, h, [*e.values()])


class SplitLook:
    """A look at the validation loss of a ``Supervised``, whose gradient is traced and replayed.

    Args:
        push: The steps of the run.
        batch_size: Validation examples a look, shuffled by the run's seed; ``None`` for all.
        compile: Whether the gradient is compiled.

    Raises:
        TrainingError: The batch size does not fit.

    Attributes:
        reached: The hyperparameters that E itself depends on.
    """

    def __init__(self, push: SplitPush, batch_size: int | None, *, compile: bool) -> None:  # noqa: A002
        held_out, state = HeldOut(push.training, batch_size), push.run.initial()
        self._directions = push.directions
        gathered = push.run.gathered
        self._moving = push.moving
        self._loss = StepLoss(
            held_out, gathered, state, compile=compile, forward=True, moves_by=push.moving
        )
        self.reached = frozenset(self._loss.used)

    def __call__(self, state: State, Z: Tangents, t: int) -> Seen:
        """Return E, h and e of s[t + 1] and Z[t + 1]."""
        g, (value, *_) = self._loss.call("gradient", state, t)
        x, used = state["params"], len(self._loss.used)
        e, *parts = g.split([len(x), *self._loss.sizes])
        with torch.no_grad():
            h = (Z["params"] @ e).double()
            if used:
                matrix = self._directions.matrix(self._loss.used, e).double()
                h += matrix @ torch.cat(parts[:used]).double()
            for name, part in zip(self._moving, parts[used:], strict=True):
                h += vectors(Z[name]).double() @ part.double()
        return Seen(value, h, [e])

"""The loss of a step of a ``Supervised``, as a function of the parameters and of tensors.

In forward mode the loss is a function of ``x̃ = (x, δ, β, s)`` at δ = β = s = 0: λ + δ stands in
the place of the hyperparameters λ that it reads, b + β in that of the buffers that move, and
``s·b'`` is added to it, b' the buffers after the step. Its gradient in s is then b', and the
product of its second derivative with ``(z, e, ḃ, 0)`` begins with the tangent of the gradient along
all three and ends with that of b'.

Letters: x the p parameters; λ hyperparameters; b moving buffers (and frozen parameters that a step
writes into).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from hyperopt_dl.batches import Batch
from hyperopt_dl.hypergrad.traces.eager import Made, Tensors, split_like
from hyperopt_dl.nested import with_tensors
from hyperopt_dl.network import Network
from hyperopt_dl.recorded_step import (
    Extra,
    check_value,
    plain_gradient,
    record_step,
    writes_into,
)
from hyperopt_dl.second_derivatives.first_pass import FirstPass
from hyperopt_dl.second_derivatives.substitutes import Substitutes
from hyperopt_dl.training import HParams
from hyperopt_dl.weights import Weights, flat

R = TypeVar("R")


class Computed(Protocol):
    """A training, or its validation data, whose loss a module computes."""

    evaluates: bool
    """Whether the module is in evaluation mode."""

    def inner_loss(self, network: Network, batch: Batch, hparams: HParams) -> Tensor:
        """Return the loss on a batch, by the weights that the module holds."""


class ModuleLoss:
    """The loss as ``traces.eager.Loss`` says.

    ``tensors`` are frozen parameters, buffers, the tensors of a batch (inputs, target, which
    examples) and the hyperparameters that may have a derivative.

    Args:
        training: Computes it.
        network: The module.
        weights: Names the frozen parameters and buffers.
        hparams: All hyperparameters.
        leaves: The names of those that are among ``tensors``.
        used: Those of them that the loss depends on.
        moves_by: The frozen parameters and buffers that have a derivative before the step.
        moving: Those that have one after it.
        forward: Whether it is a function of x̃; its value then comes first in aux.

    Attributes:
        moved: Where in aux stands what has a derivative.
        batch: A batch of the structure that a call has, with what is no tensor in it.
        missed: For each trainable parameter, whether the last step that was made did not reach it.
    """

    def __init__(
        self,
        training: Computed,
        network: Network,
        weights: Weights,
        hparams: Mapping[str, Any],
        leaves: Sequence[str],
        *,
        used: Sequence[str] = (),
        moves_by: Sequence[str] = (),
        moving: Sequence[str] = (),
        forward: bool = False,
    ) -> None:
        self._training, self._network = training, network
        self._frozen, self._buffers = list(weights.frozen), list(weights.buffers)
        self._hparams, self._leaves = dict(hparams), list(leaves)
        self._used, self._moves_by, self._moving = list(used), list(moves_by), list(moving)
        self._forward = forward
        self._p = sum(size for _, size in network.layout)
        names = [*self._frozen, *self._buffers]
        self.moved: Sequence[int] = () if forward else [names.index(name) for name in moving]
        self.missed: Sequence[bool] = [False] * len(network.params)
        self.batch: Batch = Batch((), torch.empty(0), torch.empty(0))

    def gradient(self, x: Tensor, tensors: Tensors) -> tuple[Tensor, Tensors]:
        """Return g and aux as a plain loop makes them."""
        if self._forward and len(x) > self._p:
            made = self.record(x, tensors, ())
            return flat(made.graph.g), made.aux
        weights, batch, hparams = self._parts(tuple(t.detach() for t in tensors), x[self._p :])
        network, evaluates = self._network, self._training.evaluates
        weights = weights._replace(params=x[: self._p])
        with torch.enable_grad(), network.holding(weights, training=not evaluates) as held:
            value = self._training.inner_loss(network, batch, hparams)
            check_value(value)
            parts, self.missed = plain_gradient(value, held.params)
            if name := held.written():
                raise writes_into(name)
            return flat(parts), self._aux(value, network.after())

    def record(self, x: Tensor, tensors: Tensors, wrt: Sequence[int]) -> Made:
        """Make the step with its graph, in which the tensors of ``wrt`` are leaves."""
        given = tuple(t.detach().requires_grad_(i in wrt) for i, t in enumerate(tensors))
        more = x[self._p :].detach().requires_grad_()
        weights, batch, hparams = self._parts(given, more)
        network = self._network
        step = record_step(
            network,
            weights,
            [*network.unflatten(x[: self._p].detach()).values()],
            lambda: self._training.inner_loss(network, batch, hparams),
            moved=() if self._forward else self._moving,
            c=[given[i] for i in wrt],
            extra=Extra([more], lambda value, after: self._total(value, after, more))
            if len(more)
            else None,
            training=not self._training.evaluates,
        )
        self.missed = step.graph.missed[: len(network.params)]
        return Made(step.graph, self._aux(step.value, step.after), step.value)

    def stand_in(
        self,
        x: Tensor,
        tensors: Tensors,
        body: Callable[[Tensor, Tensors, Tensors], R],
        first: FirstPass,
    ) -> R:
        """Call ``body`` with the value, aux and b as functions of x and tensors, to be traced."""
        x, more = x[: self._p], x[self._p :]
        weights, batch, hparams = self._parts(tensors, more)
        network = self._network

        def inside() -> R:
            with Substitutes(first, tracing=True, written=network.now().values()):
                value = self._training.inner_loss(network, batch, hparams)
            after = network.after()
            others = {**after.frozen, **after.buffers}
            b = () if self._forward else tuple(others[name] for name in self._moving)
            return body(self._total(value, after, more), self._aux(value, after), b)

        return network.standing_in(
            weights._replace(params=x), inside, first, training=not self._training.evaluates
        )

    def _parts(self, tensors: Tensors, more: Tensor) -> tuple[Weights, Batch, dict[str, Any]]:
        """Return what the tensors are: weights but for the parameters, a batch, hyperparameters."""
        parts = iter(tensors)
        frozen = {name: next(parts) for name in self._frozen}
        buffers = {name: next(parts) for name in self._buffers}
        batch = Batch(*with_tensors(tuple(self.batch), parts))
        own = {name: next(parts) for name in self._leaves}
        if self._forward and len(more):
            shifts = iter(self._shifts(more, own, {**frozen, **buffers}))
            own |= {name: own[name] + next(shifts).to(own[name].dtype) for name in self._used}
            for name in self._moves_by:
                part = frozen if name in frozen else buffers
                part[name] = part[name] + next(shifts)
        return Weights(torch.empty(0), frozen, buffers), batch, {**self._hparams, **own}

    def _shifts(
        self, more: Tensor, own: Mapping[str, Tensor], others: Mapping[str, Tensor]
    ) -> list[Tensor]:
        """Return δ and β, in the shapes of what they are added to."""
        shapes = [*(own[name] for name in self._used), *(others[name] for name in self._moves_by)]
        size = sum(each.numel() for each in shapes)
        return split_like(more[:size], shapes)

    def _total(self, value: Tensor, after: Weights, more: Tensor) -> Tensor:
        """Return the value, in forward mode with ``s·b'``."""
        if not (self._forward and self._moving):
            return value
        others = {**after.frozen, **after.buffers}
        b = flat([others[name] for name in self._moving])
        return value + (more[len(more) - len(b) :] * b).sum()

    def _aux(self, value: Tensor, after: Weights) -> Tensors:
        others = (*after.frozen.values(), *after.buffers.values())
        first = (value,) if self._forward else ()
        return tuple(each.detach() for each in (*first, *others))

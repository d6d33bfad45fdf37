"""The loss of a ``Supervised`` along a run, and the choice of its derivatives.

The loss of step t is a function of the parameters and of everything else that it reads: frozen
parameters, buffers, the batch, hyperparameters. Its derivatives are traced once and replayed
(``hypergrad.traces.traced``), or, in a run too short for a trace, taken by autograd.

Reverse mode differentiates the loss in x. Forward mode also needs how g moves with the
hyperparameters λ inside the loss: there the loss is a function of ``x̃ = (x, δ)``, with λ + δ in the
place of λ at δ = 0. With ``ũ = (z, e)`` the Hessian product ``H̃ũ`` then begins with
``Hz + (∂g/∂λ) e``, the derivative of g along both, in one pull; and g has ``∂ℓ/∂λ`` behind it.

Letters: x the p parameters; λ the hyperparameters that the loss reads, of q entries; ℓ the loss on
a batch; g its gradient; H its Hessian; t the step.
"""

from collections.abc import Hashable, Sequence
from typing import Any

import torch
from torch import Tensor

from hyperopt_dl.batches import Batch
from hyperopt_dl.hypergrad.steps.held_out import HeldOut
from hyperopt_dl.hypergrad.steps.leaves import Gathered
from hyperopt_dl.hypergrad.traces.agreement import Example
from hyperopt_dl.hypergrad.traces.eager import Eager, Loss, Tensors
from hyperopt_dl.hypergrad.traces.graphs import Graphs
from hyperopt_dl.hypergrad.traces.traced import Traced, checked, choose
from hyperopt_dl.network import Weights
from hyperopt_dl.seeds import derive
from hyperopt_dl.supervised import Supervised, unpack
from hyperopt_dl.training import State

PROBES = 3
"""How many inputs, different in everything, a trace is compared on before it is believed."""
KEPT_TRACES = 16
"""Sets of structural hyperparameters whose traces are kept for a network."""
TRACED_FROM = 50
"""Steps from which on a run is worth a trace, which costs as much as some dozens of them."""


class StepLoss:
    """The training loss of one run, or its validation loss, and the derivatives.

    Args:
        training: The training, or its validation data.
        gathered: Its hyperparameters.
        state: The state before step 0.
        compile: Whether the graphs of the loss are compiled, however short the run.
        forward: Whether the loss is for forward mode: a function of x̃, whose value comes with its
            gradient, before the buffers.

    Attributes:
        network: The structure that the state belongs to.
        used: The hyperparameters with a derivative that the loss itself depends on.
        sizes: Their numbers of entries.
        key: What two runs of a network share where the same traces serve both.
    """

    def __init__(
        self,
        training: Supervised | HeldOut,
        gathered: Gathered,
        state: State,
        *,
        compile: bool = False,  # noqa: A002
        forward: bool = False,
    ) -> None:
        self._training = training
        self._gathered = gathered
        self.network = training.network(state, gathered.hparams)
        self._read_only = False
        self.used = self._used_by_the_loss(state)
        self.sizes = [gathered.leaves[name].numel() for name in self.used]
        self._forward = forward
        self._shifted = forward and bool(self.used)
        self.key = self._key_of(compile)
        self._derivatives = self._choose(state, compile)
        self._read_only = self._only_reads(state)

    def call(self, name: str, state: State, t: int, *more: Tensor) -> Any:
        """Call one of the derivatives at a step, on its batch and its stream of random numbers."""
        training, x = self._training, self.at(state["params"])
        if not training.in_memory:  # to look at an example may draw, and comes first
            with training.draws(state, t):
                return getattr(self._derivatives, name)(x, self.tensors(state, t), *more)
        tensors = self.tensors(state, t)
        derivatives = self._derivatives.at(x, tensors)
        if not derivatives.draws:
            return getattr(derivatives, name)(x, tensors, *more)
        with training.draws(state, t):
            return getattr(derivatives, name)(x, tensors, *more)

    def is_pure(self, state: State) -> bool:
        """Return whether a step is known to draw nothing and to write into nothing."""
        if not self._read_only:
            return False
        return not self._derivatives.at(self.at(state["params"]), self.tensors(state, 0)).draws

    def graphs(self, x: Tensor, tensors: tuple[Tensor, ...]) -> Graphs | None:
        """Return the graphs for parameters and ``tensors``; ``None`` where there is no trace."""
        found = self._derivatives.at(self.at(x), tensors)
        return found if isinstance(found, Graphs) else None

    def at(self, x: Tensor) -> Tensor:
        """Return what the loss is differentiated at: x, or x̃."""
        return torch.cat([x, x.new_zeros(sum(self.sizes))]) if self._shifted else x

    def tensors(self, state: State, t: int) -> tuple[Tensor, ...]:
        """Return everything but the parameters that the loss of step t may depend on."""
        weights = unpack(state)
        batch = self._training.batch(state, t, shared=self._read_only)
        return (
            *weights.frozen.values(),
            *weights.buffers.values(),
            *batch.inputs,
            batch.target,
            batch.examples,
            *self._gathered.leaves.values(),  # also those that have no derivative: they may be read
        )

    def _loss(self, state: State, width: int) -> Loss:
        """Return the training loss as a function of x and of ``width`` tensors of ``tensors``.

        For forward mode, as a function of x̃, with its value before the buffers.
        """
        frozen, buffers = (tuple(part) for part in unpack(state)[1:])
        leaves, hparams = tuple(self._gathered.leaves), self._gathered.hparams
        training, network = self._training, self.network
        inputs = width - len(frozen) - len(buffers) - 2 - len(leaves)

        def loss(x: Tensor, tensors: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
            parts = iter(tensors)
            weights = Weights(
                x, {name: next(parts) for name in frozen}, {name: next(parts) for name in buffers}
            )
            batch = Batch(tuple(next(parts) for _ in range(inputs)), next(parts), next(parts))
            given = {**hparams, **{name: next(parts) for name in leaves}}
            value, after = training.inner_loss(network, weights, batch, given)
            return value, (*([value] if self._forward else []), *after.values())

        return shifted(loss, self._wrt(width), self.sizes) if self._shifted else loss

    def _wrt(self, width: int) -> list[int]:
        """Return where among ``width`` tensors the hyperparameters stand that the loss uses."""
        leaves = tuple(self._gathered.leaves)
        return [width - len(leaves) + leaves.index(name) for name in self.used]

    def _used_by_the_loss(self, state: State) -> tuple[str, ...]:
        """Return the hyperparameters that the training loss itself depends on."""
        training, leaves = self._training, self._gathered.leaves
        with torch.enable_grad(), training.draws(state, 0):
            weights = unpack(state)._replace(params=state["params"].detach().requires_grad_())
            batch = training.batch(state, 0)
            value, _ = training.inner_loss(self.network, weights, batch, self._gathered.hparams)
        if not value.requires_grad:
            return ()  # the first gradient says what is wrong
        found = torch.autograd.grad(value, [*leaves.values()], allow_unused=True)
        return tuple(n for n, part in zip(leaves, found, strict=True) if part is not None)

    def _choose(self, state: State, compiled: bool) -> Eager | Traced:
        """Return the derivatives of the loss; they are traced once for all runs of a structure."""
        known = self.network.derived
        if self.key not in known:
            given = self._function(state)
            if self._training.steps < TRACED_FROM and not compiled:
                if ("checked", self.key) in known:
                    return Eager(**given)
                known["checked", self.key] = True
                return checked(example=self._example(state, 0), seed=0, **given)
            examples = [self._example(state, t) for t in range(PROBES)]
            if len(known) >= KEPT_TRACES:
                known.clear()
            known[self.key] = choose(
                examples=examples, seeds=range(PROBES), compile=compiled, **given
            )
        derivatives: Eager | Traced = known[self.key]
        return derivatives

    def _function(self, state: State) -> dict[str, Any]:
        """Return the loss as ``Eager`` takes it."""
        with self._training.draws(state, 0):
            width = len(self.tensors(state, 0))
        wrt = [] if self._shifted else self._wrt(width)
        loss = self._loss(state, width)
        return {"loss": loss, "wrt": wrt, "recurrent": self.network.recurrent}

    def _key_of(self, compiled: bool) -> Hashable:
        """Return what two runs of a network must share to have the same traces."""
        leaves = tuple(self._gathered.leaves)
        structure = {n: _whole(v) for n, v in self._gathered.hparams.items() if n not in leaves}
        kind = type(self._training), self._forward
        return compiled, kind, self.used, leaves, repr(sorted(structure.items()))

    def _only_reads(self, state: State) -> bool:
        """Return whether the step is known to leave the batch that it is given as it is."""
        if not self._training.in_memory:
            return False
        return not self._derivatives.at(self.at(state["params"]), self.tensors(state, 0)).writes

    def _example(self, state: State, t: int) -> Example:
        """Return an input of the derivatives that differs from those of other t in everything."""
        scale = 1 + 0.03 * t
        with self._training.draws(state, t):
            given = self.tensors(state, t)
        x, *tensors = (
            value.detach() * scale if value.is_floating_point() else value.clone()
            for value in (self.at(state["params"]), *given)
        )
        generator = torch.Generator().manual_seed(derive(0, "probe", t))
        u = torch.randn(x.shape, generator=generator, dtype=x.dtype).to(x.device)
        return x, tuple(tensors), u


def shifted(loss: Loss, wrt: Sequence[int], sizes: Sequence[int]) -> Loss:
    """Return ``loss(x, tensors)`` as a function of ``(x̃, tensors)``, x̃ = (x, δ).

    Args:
        loss: The loss.
        wrt: Which of ``tensors`` the parts of δ are added to.
        sizes: The numbers of entries of these.
    """

    def of_both(both: Tensor, tensors: Tensors) -> tuple[Tensor, Tensors]:
        x, *deltas = torch.split(both, [len(both) - sum(sizes), *sizes])
        moved = list(tensors)
        for i, delta in zip(wrt, deltas, strict=True):
            moved[i] = moved[i] + delta.to(moved[i].dtype).view(moved[i].shape)
        return loss(x, tuple(moved))

    return of_both


def _whole(value: Any) -> Any:
    """Return what prints in full: of a long array or tensor, ``repr`` leaves entries out."""
    return (value.dtype, value.tolist()) if hasattr(value, "tolist") else value

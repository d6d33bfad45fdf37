"""The derivative of a step of ``Supervised``, split at the gradient.

A step is ``g = ∇ℓ(x)`` followed by the optimizer's rule ``(x, z, g, λ) -> (x', z')``. The adjoint
passes back through the rule, a few vector operations, and gives u, the adjoint of g; the Hessian
product ``Hu`` and the mixed products ``u ∂g/∂λ`` are all that is left of the network. Their graphs
are traced once and replayed (``hypergrad.traced``).

Letters: x the p parameters; z the optimizer's slots; ℓ the training loss on a batch; g its
gradient; H its Hessian; u the adjoint of g; λ the hyperparameters.
"""

from collections.abc import Hashable, Mapping, Set
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hyperopt_dl.batches import Batch
from hyperopt_dl.hypergrad.adjoints import Pulled, Step, adjoint_of
from hyperopt_dl.hypergrad.agreement import Example
from hyperopt_dl.hypergrad.eager import Eager, Loss, Saved, saved_bytes
from hyperopt_dl.hypergrad.run_options import Options, RunOptions
from hyperopt_dl.hypergrad.snapshots import size_of
from hyperopt_dl.hypergrad.traced import Traced, checked, choose
from hyperopt_dl.hypergrad.whole_step import Adjoint, WholeStep
from hyperopt_dl.network import Weights
from hyperopt_dl.seeds import derive
from hyperopt_dl.supervised import SLOT, Supervised, slots_of, unpack
from hyperopt_dl.training import State

PROBES = 3
"""How many inputs, different in everything, a trace is compared on before it is believed."""
KEPT_TRACES = 16
"""Sets of structural hyperparameters whose traces are kept for a network."""
TRACED_FROM = 50
"""Steps from which on a run is worth a trace, which costs as much as some dozens of them."""


class Recorded(NamedTuple):
    """One step: what the rule's adjoint, its options and the Hessian product need."""

    step: Step
    options: Options
    saved: Saved


class SplitStep(WholeStep):
    """The steps of one run of a ``Supervised``, with their derivatives.

    Args:
        training: The training.
        hparams: Its hyperparameters, of which those that are floating are differentiated.
        seed: Seed of the run.
        device: Device of the run.
        compile: Whether the graphs of the loss are compiled, however short the run.
    """

    def __init__(
        self,
        training: Supervised,
        hparams: Mapping[str, Any],
        *,
        seed: int,
        device: torch.device,
        compile: bool = False,  # noqa: A002
    ) -> None:
        super().__init__(training, hparams, seed=seed, device=device)
        self._supervised = training
        state = self.initial()
        self._network = training.network(state, self.gathered.hparams)
        self._rule = adjoint_of(training.optimizer)
        self._options = RunOptions(
            training.optimizer, self._network.layout, state["params"], self.gathered
        )
        self._shared = False
        self._used = self._used_by_the_loss(state)
        self._derivatives = self._choose(state, compile)
        self._shared = self._only_reads(state)

    def advance(self, state: State, t: int) -> State:
        """Return s[t + 1], without a graph."""
        g, buffers = self._call("gradient", state, t)
        return self._update(state, g, buffers, self._options.at(t), t)

    def record(self, state: State, t: int) -> tuple[State, Any]:
        """Return s[t + 1], and what the adjoints of the rule and of the gradient need."""
        g, buffers, saved = self._call("linearize", state, t)
        options = self._options.at(t)
        after = self._update(state, g, buffers, options, t)
        g = g if self._rule.reads_g else g.new_empty(0)  # a record may be kept for long
        return after, Recorded(self._step(state, g, after, options, t), options, saved)

    def pull(self, recorded: Any, adjoint: Adjoint) -> Adjoint:
        """Return α[t] = α[t + 1] A, and gather α[t + 1] B."""
        step, options, saved = recorded
        pulled = self._pull_rule(step, options, adjoint)
        return self._joined(pulled, saved.pull(pulled.u))

    def pull_between(self, state: State, after: State, t: int, adjoint: Adjoint) -> Adjoint:
        """Return α[t] from s[t] and s[t + 1], without g where the rule's adjoint can do so."""
        options = self._options.at(t)
        if self._rule.reads_g:
            g, _, saved = self._call("linearize", state, t)
            step = self._step(state, g, after, options, t)
            return self.pull(Recorded(step, options, saved), adjoint)
        step = self._step(state, state["params"].new_empty(0), after, options, t)
        pulled = self._pull_rule(step, options, adjoint)
        return self._joined(pulled, self._call("product", state, t, pulled.u))

    def gradient(self, used: Set[str]) -> dict[str, Tensor]:
        """Return dE/dλ by name, of all that has been pulled back."""
        self._options.finish()
        return super().gradient(used)

    def recorded_bytes(self) -> int:
        """Return the bytes that one more recorded step keeps: activations, and a state."""
        start = self.initial()
        before, first = self.record(start, 0)
        after, second = self.record(before, 1)
        held = [*start.values(), *before.values(), *first.saved.tensors()]  # data that all share
        state = size_of(start, before, after) - size_of(start, before)
        return saved_bytes(second.saved, [*held, *after.values()]) + state

    def _call(self, name: str, state: State, t: int, *more: Tensor) -> Any:
        """Call one of the derivatives at a step, on its batch and its stream of random numbers."""
        training, x = self._supervised, state["params"]
        if not training.in_memory:  # to look at an example may draw, and comes first
            with training.draws(state, t):
                return getattr(self._derivatives, name)(x, self._tensors(state, t), *more)
        tensors = self._tensors(state, t)
        derivatives = self._derivatives.at(x, tensors)
        if not derivatives.draws:
            return getattr(derivatives, name)(x, tensors, *more)
        with training.draws(state, t):
            return getattr(derivatives, name)(x, tensors, *more)

    def _update(
        self, state: State, g: Tensor, buffers: tuple[Tensor, ...], options: Options, t: int
    ) -> State:
        named = dict(zip(unpack(state).buffers, buffers, strict=True)) if buffers else {}
        with torch.no_grad():
            return self._supervised.update(state, g, named, options.plain, t)

    def _step(self, state: State, g: Tensor, after: State, options: Options, t: int) -> Step:
        slots = slots_of(state), slots_of(after)
        return Step(state["params"], slots[0], g, slots[1], options.plain, options.wanted, t)

    def _pull_rule(self, step: Step, options: Options, adjoint: Adjoint) -> Pulled:
        x_bar = adjoint["params"] if "params" in adjoint else torch.zeros_like(step.x)
        pulled = self._rule(step, x_bar, slots_of(adjoint))
        self._options.add(options, pulled.options)
        return pulled

    def _joined(self, pulled: Pulled, products: tuple[Tensor, tuple[Tensor, ...]]) -> Adjoint:
        """Return the adjoint of the state, by the rule and by the gradient."""
        Hu, mixed = products
        for name, product in zip(self._used, mixed, strict=True):
            self.gathered.add(name, product)
        slots = {SLOT + name: value for name, value in pulled.slots.items()}
        return {"params": pulled.x + Hu, **slots}

    def _tensors(self, state: State, t: int) -> tuple[Tensor, ...]:
        """Return everything but the parameters that the loss of step t may depend on."""
        weights = unpack(state)
        batch = self._supervised.batch(state, t, shared=self._shared)
        return (
            *weights.frozen.values(),
            *weights.buffers.values(),
            *batch.inputs,
            batch.target,
            batch.examples,
            *self.gathered.leaves.values(),  # also those that have no derivative: they may be read
        )

    def _loss(self, state: State, width: int) -> Loss:
        """Return the training loss as a function of x and of ``width`` tensors of ``_tensors``."""
        frozen, buffers = (tuple(part) for part in unpack(state)[1:])
        leaves, hparams = tuple(self.gathered.leaves), self.gathered.hparams
        training, network = self._supervised, self._network
        inputs = width - len(frozen) - len(buffers) - 2 - len(leaves)

        def loss(x: Tensor, tensors: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
            parts = iter(tensors)
            weights = Weights(
                x, {name: next(parts) for name in frozen}, {name: next(parts) for name in buffers}
            )
            batch = Batch(tuple(next(parts) for _ in range(inputs)), next(parts), next(parts))
            given = {**hparams, **{name: next(parts) for name in leaves}}
            value, after = training.inner_loss(network, weights, batch, given)
            return value, tuple(after[name] for name in buffers)

        return loss

    def _used_by_the_loss(self, state: State) -> tuple[str, ...]:
        """Return the hyperparameters that the training loss itself depends on."""
        training, leaves = self._supervised, self.gathered.leaves
        with torch.enable_grad(), training.draws(state, 0):
            weights = unpack(state)._replace(params=state["params"].detach().requires_grad_())
            batch = training.batch(state, 0)
            value, _ = training.inner_loss(self._network, weights, batch, self.gathered.hparams)
        if not value.requires_grad:
            return ()  # the first gradient says what is wrong
        found = torch.autograd.grad(value, [*leaves.values()], allow_unused=True)
        return tuple(n for n, part in zip(leaves, found, strict=True) if part is not None)

    def _choose(self, state: State, compiled: bool) -> Eager | Traced:
        """Return the derivatives of the loss; they are traced once for all runs of a structure."""
        leaves = tuple(self.gathered.leaves)
        structure = {n: _whole(v) for n, v in self.gathered.hparams.items() if n not in leaves}
        key: Hashable = (compiled, self._used, leaves, repr(sorted(structure.items())))
        known = self._network.derived
        if key not in known:
            with self._supervised.draws(state, 0):
                width = len(self._tensors(state, 0))
            loss, recurrent = self._loss(state, width), self._network.recurrent
            wrt = [width - len(leaves) + leaves.index(name) for name in self._used]
            if self._supervised.steps < TRACED_FROM and not compiled:
                if ("checked", key) in known:
                    return Eager(loss, wrt=wrt, recurrent=recurrent)
                known["checked", key] = True
                return checked(loss, self._example(state, 0), 0, wrt=wrt, recurrent=recurrent)
            examples = [self._example(state, t) for t in range(PROBES)]
            if len(known) >= KEPT_TRACES:
                known.clear()
            known[key] = choose(
                loss, examples, range(PROBES), wrt=wrt, recurrent=recurrent, compile=compiled
            )
        derivatives: Eager | Traced = known[key]
        return derivatives

    def _only_reads(self, state: State) -> bool:
        """Return whether the step is known to leave the batch that it is given as it is."""
        if not self._supervised.in_memory:
            return False
        return not self._derivatives.at(state["params"], self._tensors(state, 0)).writes

    def _example(self, state: State, t: int) -> Example:
        """Return an input of the derivatives that differs from those of other t in everything."""
        scale = 1 + 0.03 * t
        with self._supervised.draws(state, t):
            given = self._tensors(state, t)
        x, *tensors = (
            value.detach() * scale if value.is_floating_point() else value.clone()
            for value in (state["params"], *given)
        )
        generator = torch.Generator().manual_seed(derive(0, "probe", t))
        u = torch.randn(x.shape, generator=generator, dtype=x.dtype).to(x.device)
        return x, tuple(tensors), u


def _whole(value: Any) -> Any:
    """Return what prints in full: of a long array or tensor, ``repr`` leaves entries out."""
    return (value.dtype, value.tolist()) if hasattr(value, "tolist") else value

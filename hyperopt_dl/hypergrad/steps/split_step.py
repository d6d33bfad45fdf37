"""The derivative of a step of ``Supervised``, split at the gradient.

A step is ``g = ∇ℓ(x)``, with new buffers b', followed by the optimizer's rule ``(x, z, g, λ) ->
(x', z')``. The adjoint passes back through the rule, a few vector operations, and gives u, the
adjoint of g; the Hessian product ``Hu`` and the mixed products ``u ∂g/∂λ``, to which the adjoint of
b' adds a term, are all that is left of the network (``hypergrad.step_loss``).

Letters: x the p parameters; z the optimizer's slots; ℓ the training loss on a batch; g its
gradient; H its Hessian; u the adjoint of g; λ the hyperparameters; b buffers that move.
"""

from collections.abc import Mapping, Sequence, Set
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hyperopt_dl.hypergrad.closed_forms.adjoints import (
    Pulled,
    Step,
    adjoint_of,
    pulled_in_turns,
)
from hyperopt_dl.hypergrad.memory import size_of
from hyperopt_dl.hypergrad.steps.run_options import Options, RunOptions
from hyperopt_dl.hypergrad.steps.step_loss import StepLoss
from hyperopt_dl.hypergrad.steps.whole_step import Adjoint, WholeStep
from hyperopt_dl.hypergrad.traces.eager import Saved, saved_bytes
from hyperopt_dl.optimizers.turns import Turn, turns_of
from hyperopt_dl.state_entries import SKIPPED, SLOT, slots_of
from hyperopt_dl.supervised import Supervised
from hyperopt_dl.training import State
from hyperopt_dl.weights import flat


class Recorded(NamedTuple):
    """One step: what the rule's adjoint, its options and the Hessian product need."""

    step: Step
    turns: Sequence[Turn] | None
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
        self._loss = StepLoss(training, self.gathered, state, compile=compile)
        self._rule = adjoint_of(training.optimizer)
        layout = self._loss.network.layout
        self._options = RunOptions(training.optimizer, layout, state["params"], self.gathered)

    def advance(self, state: State, t: int) -> State:
        """Return s[t + 1], without a graph."""
        g, others = self._loss.call("gradient", state, t)
        return self._update(state, g, others, self._options.at(t), t)

    def record(self, state: State, t: int) -> tuple[State, Any]:
        """Return s[t + 1], and what the adjoints of the rule and of the gradient need."""
        g, others, saved = self._loss.call("linearize", state, t)
        options = self._options.at(t)
        after = self._update(state, g, others, options, t)
        g = g if self._rule.reads_g else g.new_empty(0)  # a record may be kept for long
        step, turns = self._step(state, g, after, options, t)
        return after, Recorded(step, turns, options, saved)

    def pull(self, recorded: Any, adjoint: Adjoint) -> Adjoint:
        """Return α[t] = α[t + 1] A, and gather α[t + 1] B."""
        step, turns, options, saved = recorded
        pulled = self._pull_rule(step, turns, options, adjoint)
        return self._joined(pulled, saved.pull(self._with_bars(pulled.u, adjoint)))

    def pull_between(self, state: State, after: State, t: int, adjoint: Adjoint) -> Adjoint:
        """Return α[t] from s[t] and s[t + 1], without g where the rule's adjoint can do so."""
        options = self._options.at(t)
        if self._rule.reads_g:
            g, _, saved = self._loss.call("linearize", state, t)
            step, turns = self._step(state, g, after, options, t)
            return self.pull(Recorded(step, turns, options, saved), adjoint)
        step, turns = self._step(state, state["params"].new_empty(0), after, options, t)
        pulled = self._pull_rule(step, turns, options, adjoint)
        u = self._with_bars(pulled.u, adjoint)
        return self._joined(pulled, self._loss.call("product", state, t, u))

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

    def _update(
        self, state: State, g: Tensor, others: tuple[Tensor, ...], options: Options, t: int
    ) -> State:
        named = self._loss.named(state, others) if others else {}
        with torch.no_grad():
            return self._supervised.update(
                self._loss.network, state, g, named, options.plain, t, self._loss.missed
            )

    def _step(
        self, state: State, g: Tensor, after: State, options: Options, t: int
    ) -> tuple[Step, Sequence[Turn] | None]:
        x, slots = state["params"], (slots_of(state), slots_of(after))
        sizes = self._loss.network.sizes
        turns = turns_of(state[SKIPPED], after[SKIPPED], t, sizes, x.device)
        return Step(x, slots[0], g, slots[1], options.plain, options.wanted, t), turns

    def _pull_rule(
        self, step: Step, turns: Sequence[Turn] | None, options: Options, adjoint: Adjoint
    ) -> Pulled:
        x_bar = adjoint["params"] if "params" in adjoint else torch.zeros_like(step.x)
        pulled = pulled_in_turns(self._rule, step, turns, x_bar, slots_of(adjoint))
        self._options.add(options, pulled.options)
        return pulled

    def _with_bars(self, u: Tensor, adjoint: Adjoint) -> Tensor:
        """Return ũ: u, then the adjoints of what moves beside the parameters."""
        if not self._loss.moving:
            return u
        bars = (adjoint.get(name) for name in self._loss.moving)
        sizes = self._loss.sizes[len(self._loss.used) :]
        parts = [
            u.new_zeros(size) if bar is None else flat([bar]).to(u.dtype)
            for bar, size in zip(bars, sizes, strict=False)
        ]
        return torch.cat([u, *parts])

    def _joined(self, pulled: Pulled, products: tuple[Tensor, tuple[Tensor, ...]]) -> Adjoint:
        """Return the adjoint of the state, by the rule and by the gradient."""
        Hu, mixed = products
        for name, product in zip(self._loss.used, mixed, strict=False):
            self.gathered.add(name, product)
        slots = {SLOT + name: value for name, value in pulled.slots.items()}
        moving = zip(self._loss.moving, mixed[len(self._loss.used) :], strict=True)
        return {"params": pulled.x + Hu, **slots, **dict(moving)}

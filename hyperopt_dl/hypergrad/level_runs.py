"""The runs of a training to some of its steps, and the gradients of the losses there.

Letters: T[n] the steps of a level; E[n], G[n] the outer loss after so many steps and its gradient;
c[n] weights.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hyperopt_dl.errors import TrainingError
from hyperopt_dl.hypergrad.reverse import Reverse, steps_of
from hyperopt_dl.hypergrad.sweep import WeightedLosses, sweep
from hyperopt_dl.hypergrad.whole_step import WholeStep
from hyperopt_dl.training import State, Training, rollout


class Pulled(NamedTuple):
    """A weighted sum of losses, its gradient, and what they took."""

    value: Tensor
    gradient: dict[str, Tensor]
    losses: dict[int, float]
    """E[n] by T[n]."""
    final: State
    """The state after the last step that was run."""
    steps: int
    """Steps, forward and back, those that were run again included."""


@dataclass(frozen=True)
class LevelRuns:
    """Runs of a training to some of its steps.

    Args:
        training: The dynamical system.
        hparams: Its hyperparameters.
        reverse: How a run is differentiated.
        seed: Seed of all runs.
        device: Their device.
        separate: Whether each level is a run of ``training.with_steps(T[n])``, in place of a state
            of the run of ``training``.
    """

    training: Training
    hparams: Mapping[str, Any]
    reverse: Reverse
    seed: int
    device: torch.device
    separate: bool = False

    def sum_of(self, weights: Mapping[int, float]) -> Pulled:
        """Return ``Σ c[n] E[n]`` and ``Σ c[n] G[n]``, for c[n] by T[n]: one run, one sweep back."""
        if not self.separate:
            return self._pulled(self.training, [weights])[0]
        parts = [self._pulled(self._with_steps(t), [{t: c}])[0] for t, c in sorted(weights.items())]
        names = parts[0].gradient
        return Pulled(
            _total([part.value for part in parts]),
            {name: _total([part.gradient[name] for part in parts]) for name in names},
            {t: loss for part in parts for t, loss in part.losses.items()},
            parts[-1].final,
            sum(part.steps for part in parts),
        )

    def each_of(self, levels: Sequence[int]) -> list[Pulled]:
        """Return E[n] and G[n] of ascending levels: one run, and a sweep back from each of them.

        The sweeps go side by side, so that a state is restored, or computed again, once for all.
        """
        if not self.separate:
            return self._pulled(self.training, [{t: 1.0} for t in levels])
        return [self._pulled(self._with_steps(t), [{t: 1.0}])[0] for t in levels]

    def evaluate(self) -> tuple[State, Tensor]:
        """Return the state after all steps and the loss there, without a derivative."""
        with torch.no_grad():
            final = rollout(self.training, self.hparams, seed=self.seed, device=self.device)
            return final, self.training.loss(final, self.hparams)

    def _pulled(self, training: Training, sums: Sequence[Mapping[int, float]]) -> list[Pulled]:
        """Run once, and pull back each sum; the last one has the longest run."""
        longest = sums[-1]
        losses = [
            WeightedLosses(self._steps_of(training, check=weights is longest), weights)
            for weights in sums
        ]
        T = max(longest)
        plan = self.reverse.plan(losses[-1].run, T)
        swept = sweep(plan, T, losses[::-1])
        return [
            Pulled(
                loss.value(),
                loss.run.gradient(self._used(training, weights)),
                {t: float(value) for t, value in loss.losses.items()},
                swept.final,
                loss.pulled + (swept.forward if weights is longest else 0),
            )
            for loss, weights in zip(losses, sums, strict=True)
        ]

    def _used(self, training: Training, weights: Mapping[int, float]) -> frozenset[str]:
        """Return which hyperparameters may have the derivative 0: all of them in a shorter run."""
        if max(weights) < self.training.steps:
            return frozenset(self.hparams)
        used: frozenset[str] = getattr(training, "hparams", frozenset())
        return used

    def _steps_of(self, training: Training, *, check: bool) -> WholeStep:
        return steps_of(
            training,
            self.hparams,
            seed=self.seed,
            device=self.device,
            compile=self.reverse.compile,
            check=check,
        )

    def _with_steps(self, steps: int) -> Training:
        if steps == self.training.steps:
            return self.training
        make = getattr(self.training, "with_steps", None)
        if make is None:
            raise TrainingError(
                f"Telescoping(separate=True) needs a training with a method with_steps(steps), "
                f"which returns the same problem with another number of steps; "
                f"{type(self.training).__name__} has none. Write it, or leave separate out."
            )
        other: Training = make(steps)
        if other.steps != steps:
            raise TrainingError(
                f"with_steps({steps}) must return a training of so many steps, got {other.steps}."
            )
        return other


def _total(terms: Sequence[Tensor]) -> Tensor:
    return sum(terms[1:], start=terms[0])

"""The runs of a training to some of its steps, and the gradients of the losses there.

Letters: T[n] the steps of a level; E[n], G[n] the outer loss after so many steps and its gradient;
c[n] weights.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hyperopt_dl.errors import TrainingError
from hyperopt_dl.hypergrad.forward import Forward, check_room, tangents_of
from hyperopt_dl.hypergrad.reverse import Reverse, steps_of
from hyperopt_dl.hypergrad.steps.whole_step import WholeStep
from hyperopt_dl.hypergrad.sweeps.sweep import WeightedLosses, sweep
from hyperopt_dl.training import State, Training, rollout


class Pulled(NamedTuple):
    """A weighted sum of losses, its gradient, and what they took."""

    value: Tensor
    gradient: dict[str, Tensor]
    losses: dict[int, float]
    """E[n] by T[n]."""
    gradients: dict[int, dict[str, Tensor]]
    """G[n] by T[n], of the levels whose gradient is known by itself."""
    final: State
    """The state after the last step that was run."""
    steps: int
    """Steps, forward and back, those that were run again included; each is counted in one part."""


@dataclass(frozen=True)
class LevelRuns:
    """Runs of a training to some of its steps.

    Args:
        training: The dynamical system.
        hparams: Its hyperparameters.
        mode: How a run is differentiated.
        seed: Seed of all runs.
        device: Their device.
        separate: Whether each level is a run of ``training.with_steps(T[n])``, in place of a state
            of the run of ``training``.
    """

    training: Training
    hparams: Mapping[str, Any]
    mode: Reverse | Forward
    seed: int
    device: torch.device
    separate: bool = False

    def sum_of(self, weights: Mapping[int, float], along: Sequence[int] = ()) -> Pulled:
        """Return ``Σ c[n] E[n]`` and ``Σ c[n] G[n]``, for c[n] by T[n]: one run, one sweep back.

        In forward mode there is no sweep, and each G[n] is known by itself: so those of levels that
        the run passes ``along`` its way are returned too.
        """
        if isinstance(self.mode, Reverse) and not self.separate:
            return self._pulled(self.mode, self.training, [weights])[0]
        passed = () if self.separate else (t for t in along if t < max(weights))
        return _weighted(self.each_of(sorted({*weights, *passed})), weights)

    def each_of(self, levels: Sequence[int]) -> list[Pulled]:
        """Return E[n] and G[n] of ascending levels: one run, and a sweep back from each of them.

        The sweeps go side by side, so that a state is restored, or computed again, once for all. In
        forward mode there are none.
        """
        if self.separate:
            return [self._each(self._with_steps(t), [t])[0] for t in levels]
        return self._each(self.training, levels)

    def evaluate(self) -> tuple[State, Tensor]:
        """Return the state after all steps and the loss there, without a derivative."""
        with torch.no_grad():
            final = rollout(self.training, self.hparams, seed=self.seed, device=self.device)
            return final, self.training.loss(final, self.hparams)

    def _each(self, training: Training, levels: Sequence[int]) -> list[Pulled]:
        if isinstance(self.mode, Forward):
            return self._pushed(self.mode, training, levels)
        return self._pulled(self.mode, training, [{t: 1.0} for t in levels])

    def _pushed(self, mode: Forward, training: Training, levels: Sequence[int]) -> list[Pulled]:
        """Run once, with tangents, and read each level on the way."""
        tangents = tangents_of(
            training, self.hparams, seed=self.seed, device=self.device, compile=mode.compile
        )
        check_room(tangents)
        (state, Z), found = tangents.initial(), list[tuple[Tensor, dict[str, Tensor]]]()
        steps = [*pairwise((0, *levels))]
        for first, stop in steps:
            for t in range(first, stop):
                state, Z, *_ = tangents.push(state, Z, t)
            value = tangents.finish(state, Z)
            found.append((value, tangents.run.gradient(self._used(training, stop))))
            tangents.run.gathered.forget()
        return [
            Pulled(value, gradient, {t: float(value)}, {t: gradient}, state, t - first)
            for (first, t), (value, gradient) in zip(steps, found, strict=True)
        ]

    def _pulled(
        self, mode: Reverse, training: Training, sums: Sequence[Mapping[int, float]]
    ) -> list[Pulled]:
        """Run once, and pull back each sum; the last one has the longest run."""
        longest = sums[-1]
        losses = [
            WeightedLosses(self._steps_of(mode, training, check=weights is longest), weights)
            for weights in sums
        ]
        T = max(longest)
        plan = mode.plan(losses[-1].run, T)
        swept = sweep(plan, T, losses[::-1])
        found = []
        for loss, weights in zip(losses, sums, strict=True):
            gradient = loss.run.gradient(self._used(training, max(weights)))
            alone = {t: gradient for t, c in weights.items() if len(weights) == c == 1}
            values = {t: float(value) for t, value in loss.losses.items()}
            steps = loss.pulled + (swept.forward if weights is longest else 0)
            found.append(Pulled(loss.value(), gradient, values, alone, swept.final, steps))
        return found

    def _used(self, training: Training, steps: int) -> frozenset[str]:
        """Return which hyperparameters may have the derivative 0: all of them in a shorter run."""
        if steps < self.training.steps:
            return frozenset(self.hparams)
        used: frozenset[str] = getattr(training, "hparams", frozenset())
        return used

    def _steps_of(self, mode: Reverse, training: Training, *, check: bool) -> WholeStep:
        return steps_of(
            training,
            self.hparams,
            seed=self.seed,
            device=self.device,
            compile=mode.compile,
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


def _weighted(parts: Sequence[Pulled], weights: Mapping[int, float]) -> Pulled:
    """Return the weighted sum of parts that are known by themselves, the longest run last."""
    losses = {t: loss for part in parts for t, loss in part.losses.items()}
    gradients = {t: gradient for part in parts for t, gradient in part.gradients.items()}
    values = {t: part.value for part in parts for t in part.losses}
    levels = sorted(weights)
    gradient = {
        name: _total([weights[t] * gradients[t][name] for t in levels])
        for name in gradients[levels[0]]
    }
    value = _total([weights[t] * values[t] for t in levels])
    steps = sum(part.steps for part in parts)
    return Pulled(value, gradient, losses, gradients, parts[-1].final, steps)


def _total(terms: Sequence[Tensor]) -> Tensor:
    return sum(terms[1:], start=terms[0])

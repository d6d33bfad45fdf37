"""One run forward and one sweep back, for any weighted sum of losses along the run.

Letters: s[t] the state before step t; E the outer loss; c[t] the weight of E(s[t]); α[t] the
adjoint of s[t], the derivative of ``Σ c[r] E(s[r])`` over r >= t. A sweep is linear in what it
starts from, so where it passes a state that has a weight, c[t] ∇E(s[t]) is added to α[t], and
goes back with it. Reverse mode is the case of one weight 1 at the last state.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor

from hyperopt_dl.hypergrad.steps.whole_step import Adjoint, WholeStep
from hyperopt_dl.hypergrad.sweeps import trajectory
from hyperopt_dl.hypergrad.sweeps.snapshots import Snapshots
from hyperopt_dl.training import State


@dataclass(frozen=True)
class Plan:
    """What a sweep does: its schedule, where snapshots live, and whether records are kept."""

    actions: Iterable[trajectory.Action]
    snapshots: Snapshots
    recording: bool = False
    text: str = ""


class Swept(NamedTuple):
    """Where a sweep has been."""

    final: State
    """The state after the last step, from which the last loss was read."""
    forward: int
    """Steps that were run forward, those that were run again included."""
    back: int
    """Steps that an adjoint was pulled back through, of all sums together."""


class WeightedLosses:
    """A weighted sum of the losses along a run, as it is pulled back; ``run`` gathers its dE/dλ.

    Args:
        run: The steps, and where the derivative adds up.
        weights: c[t] by t.

    Attributes:
        losses: E(s[t]) by t, of the states that have a weight and have been passed.
        pulled: How many steps have been gone back through.
    """

    def __init__(self, run: WholeStep, weights: Mapping[int, float]) -> None:
        self.run = run
        self.losses: dict[int, Tensor] = {}
        self.pulled = 0
        self._weights = weights
        self._adjoint: Adjoint = {}

    def value(self) -> Tensor:
        """Return the sum, 0-dim."""
        terms = [self._weights[t] * loss for t, loss in sorted(self.losses.items())]
        return sum(terms[1:], start=terms[0])

    def inject(self, state: State, t: int) -> None:
        """Add the loss of s[t], where it has a weight."""
        if t not in self._weights:
            return
        self.losses[t], found = self.run.pull_loss(state, self._weights[t])
        for name, term in found.items():
            before = self._adjoint.get(name)
            self._adjoint[name] = term if before is None else before + term

    def pull(self, record: Any | None, state: State, after: State, t: int) -> None:
        """Go back through step t: by its record, else from s[t] and s[t + 1]."""
        if not self.losses:  # the sweep has not come to the first of them yet
            return
        self.pulled += 1
        if record is not None:
            self._adjoint = self.run.pull(record, self._adjoint)
        else:
            self._adjoint = self.run.pull_between(state, after, t, self._adjoint)

    def pull_initial(self) -> None:
        """Go back into s[0]."""
        self.run.pull_initial(self._adjoint)


def sweep(plan: Plan, steps: int, sums: Sequence[WeightedLosses], *, start: int = 0) -> Swept:
    """Carry out a plan and pull back sums of losses, each by a ``WholeStep`` of its own.

    The first of them runs the steps forward; the others share its states. A step back is made by
    every sum that has a loss after it.

    Args:
        plan: What is kept on the way through the steps.
        steps: The steps that are run, T.
        sums: The sums, with weights at 1, ..., T.
        start: The first step that is differentiated, as in the plan.

    Returns:
        The last state, and the steps that were made; what a plan is made from does not count.
    """
    with plan.snapshots:
        final, forward = _carry_out(plan, steps, sums)
    if start == 0:
        for each in sums:
            each.pull_initial()
    return Swept(final, forward, sum(each.pulled for each in sums))


def _carry_out(plan: Plan, steps: int, sums: Sequence[WeightedLosses]) -> tuple[State, int]:
    run, snapshots, records = sums[0].run, plan.snapshots, dict[int, Any]()
    state = after = final = run.initial()
    forward = 0
    for action in plan.actions:
        match action:
            case trajectory.Record(t) if plan.recording:
                state, records[t] = run.record(state, t)
                forward += 1
            case trajectory.Record(t):
                state = run.advance(state, t)
                forward += 1
            case trajectory.Store(t):
                snapshots.put(t, state)
            case trajectory.Restore(t):
                state = snapshots.get(t)
            case trajectory.Free(t):
                snapshots.free(t)
            case trajectory.Advance(first, stop):
                for t in range(first, stop):
                    state = run.advance(state, t)
                forward += stop - first
            case trajectory.Final():
                final = after = state
                for each in sums:
                    each.inject(state, steps)
            case trajectory.Reverse(t):
                record = records.pop(t, None)
                for each in sums:
                    each.pull(record if each is sums[0] else None, state, after, t)
                    each.inject(state, t)
                after = state
    return final, forward

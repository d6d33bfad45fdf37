"""When to store, free and recompute the states of a run that is differentiated in reverse.

A reverse sweep needs the state before every step, last step first. A schedule lists the actions
that provide them, apart from what the states are and where they are kept: some states are stored on
the way to the loss, and the steps between two of them are run again on the way back.

Letters: T the steps; t a step, and the state before it, so that the loss is taken at state T;
l the links of a chain still to be differentiated, where the loss is a link as each step is;
s the snapshots free for it, the one of its first state among them; r how often a link is passed;
β(s, r) = C(s + r, s) the longest chain that s snapshots reverse while passing no link more than
r times (Griewank 1992; Griewank & Walther 2000, Algorithm 799 "revolve").
"""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

from hyperopt_dl.errors import TrainingError


@dataclass(frozen=True, slots=True)
class Store:
    """Keep the current state, the one before step ``t``, as snapshot ``t``."""

    t: int


@dataclass(frozen=True, slots=True)
class Advance:
    """Run the steps ``start, ..., stop - 1`` from the current state, without a graph."""

    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Record:
    """Run step ``t`` from the current state; nothing runs it again but ``Reverse(t)``.

    So its graph may be kept till then, which spares that run.
    """

    t: int


@dataclass(frozen=True, slots=True)
class Final:
    """Take the loss and its gradient: the current state is the one after the last step."""


@dataclass(frozen=True, slots=True)
class Restore:
    """Make snapshot ``t`` the current state."""

    t: int


@dataclass(frozen=True, slots=True)
class Free:
    """Forget snapshot ``t``; the current state stays."""

    t: int


@dataclass(frozen=True, slots=True)
class Reverse:
    """Pull the adjoint back through step ``t``: by its record, or from the current state."""

    t: int


Action: TypeAlias = Store | Advance | Record | Final | Restore | Free | Reverse


class Cost(NamedTuple):
    """What a schedule takes, beside the one run of each differentiated step with its graph."""

    forward_steps: int
    """Steps that are run forward, the first pass included."""
    snapshots: int
    """The most snapshots alive at a time; the current state comes on top."""


def keep_all(steps: int, *, start: int = 0) -> Iterator[Action]:
    """Return the schedule that stores every state on the way: no step is run again.

    Args:
        steps: The number of steps T of the run.
        start: The first step that is differentiated, for a sweep over the last ``steps - start``
            alone. The steps before it are run once and never stored.

    Returns:
        The actions, once and lazily. T forward steps and ``steps - start`` snapshots.

    Raises:
        TrainingError: Not ``0 <= start < steps``.
    """
    _check_span("keep_all", steps, start)
    return binomial(steps, steps - start, start=start)


def square_root(steps: int, *, start: int = 0, weight: float = 1.0) -> Iterator[Action]:
    """Return the schedule of segments of ``k = ceil(sqrt((steps - start) / weight))`` steps.

    The first pass stores where segments begin, and every state of the last one. Each other segment
    is run again once, storing its states. ``binomial`` with as many snapshots runs at most as many
    steps.

    Args:
        steps: The number of steps T of the run.
        start: The first step that is differentiated.
        weight: What is kept of each step of a segment, in states: more than 1 where records are.

    Returns:
        The actions, once and lazily. At most ``k - 1 + ceil((steps - start) / k)`` snapshots, and
        no step is run forward more than twice.

    Raises:
        TrainingError: Not ``0 <= start < steps``.
    """
    _check_span("square_root", steps, start)
    k = max(1, math.ceil(math.sqrt((steps - start) / weight)))

    def spacing(stack: list[int], link: int) -> int:
        base = stack[-1]
        return k if (base - start) % k == 0 and link > base + k else 1

    return _sweep(steps, start, spacing)


def binomial(steps: int, slots: int, *, start: int = 0) -> Iterator[Action]:
    """Return the schedule that runs the fewest steps with at most ``slots`` snapshots.

    With r the smallest number for which ``steps - start + 1 <= C(slots + r, slots)`` (the one is
    the loss, which ends the chain), no step is run more than r times without its graph: r = 3 is
    enough for 1770 steps with 20 snapshots, and r = 4 for 10625.

    Args:
        steps: The number of steps T of the run.
        slots: The most snapshots alive at a time, that of the first state among them.
        start: The first step that is differentiated.

    Returns:
        The actions, once and lazily, in O(slots) memory. For ``start = 0`` the forward steps are
        ``r (T + 1) - C(slots + r, r - 1)``, the minimum of all schedules (Griewank 1992).

    Raises:
        TrainingError: Not ``0 <= start < steps``, or ``slots`` below 1.
    """
    _check_span("binomial", steps, start)
    if slots < 1:
        raise TrainingError(
            f"binomial needs slots >= 1 (snapshots), got {slots}. One snapshot, that of the first "
            f"state, is the least that a reverse sweep starts from."
        )

    def spacing(stack: list[int], link: int) -> int:
        return _first_part(link - stack[-1] + 1, slots - len(stack) + 1)

    return _sweep(steps, start, spacing)


def for_budget(
    steps: int, state_bytes: int, budget_bytes: int, *, start: int = 0
) -> Iterator[Action]:
    """Return the schedule that runs the fewest steps within a budget of bytes.

    That is ``binomial`` with as many snapshots as fit: every state where there is room for T + 1,
    and never more steps than ``square_root`` where that fits.

    Args:
        steps: The number of steps T of the run.
        state_bytes: Bytes of one state; parts that all states share count for nothing.
        budget_bytes: Bytes for the snapshots and the current state. The graph of one step, and
            what the steps themselves need for a moment, come on top.
        start: The first step that is differentiated.

    Raises:
        TrainingError: Not ``0 <= start < steps``, or no room for two states.
    """
    _check_span("for_budget", steps, start)
    slots = budget_bytes // max(state_bytes, 1) - 1
    if slots < 1:
        raise TrainingError(
            f"A reverse sweep needs room for 2 states of {state_bytes} bytes, one snapshot and the "
            f"current state, got a budget of {budget_bytes} bytes. Raise it to "
            f"{2 * state_bytes} or more, keep the snapshots on disk, or differentiate forward."
        )
    return binomial(steps, slots, start=start)


def cost(schedule: Iterable[Action]) -> Cost:
    """Walk a schedule, which uses an iterator up, and return what it takes."""
    forward = alive = most = 0
    for action in schedule:
        match action:
            case Advance(start, stop):
                forward += stop - start
            case Record():
                forward += 1
            case Store():
                alive += 1
                most = max(most, alive)
            case Free():
                alive -= 1
    return Cost(forward, most)


def _check_span(name: str, steps: int, start: int) -> None:
    if steps < 1:
        raise TrainingError(
            f"{name} needs steps >= 1, got {steps}. A run of no step has only a loss to "
            f"differentiate."
        )
    if not 0 <= start < steps:
        raise TrainingError(
            f"{name} needs 0 <= start < steps, got start={start}, steps={steps}. The last K steps "
            f"are those from start = steps - K."
        )


def _sweep(steps: int, start: int, spacing: Callable[[list[int], int], int]) -> Iterator[Action]:
    """Reverse the links ``steps`` (the loss), ``steps - 1, ..., start``, each from its own state.

    The snapshots are a stack with the latest state on top. On the way from there to the next link
    to reverse, ``spacing(stack, link)`` says how many steps ahead the next snapshot lies.
    """
    if start > 0:
        yield Advance(0, start)
    yield Store(start)
    stack = [start]
    for link in range(steps, start - 1, -1):
        current = stack[-1]
        if link < steps:
            yield Restore(current)
        while current < link:
            ahead = current + spacing(stack, link)
            # One step from a snapshot to the next state of interest: both ends stay known.
            yield Record(current) if ahead == current + 1 else Advance(current, ahead)
            current = ahead
            if current < link:
                yield Store(current)
                stack.append(current)
        if stack[-1] == link:
            yield Free(stack.pop())
        yield Reverse(link) if link < steps else Final()


def _first_part(l: int, s: int) -> int:  # noqa: E741
    """Return how many of l links lie before the next snapshot, for s snapshots with the first's.

    With r the smallest for which l <= β(s, r), a split is optimal where the first part is within
    β(s, r - 2) .. β(s, r - 1) and the rest, which has one snapshot less, within
    β(s - 1, r - 1) .. β(s - 1, r). This one also stores the fewest states (Algorithm 799).
    """
    if s == 1:
        return l - 1
    r, longest = 1, s + 1
    while longest < l:
        r += 1
        longest = longest * (s + r) // r
    rest = math.comb(s + r - 2, r - 1) + math.comb(s + r - 3, r - 1)
    return min(math.comb(s + r - 1, s), max(1, math.comb(s + r - 2, s), l - rest))

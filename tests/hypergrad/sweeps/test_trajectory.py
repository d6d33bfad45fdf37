"""Schedules against an interpreter that checks every action, and against the proven optimum."""

import heapq
import itertools
import math
import tracemalloc
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache, partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hyperopt_dl.errors import TrainingError
from hyperopt_dl.hypergrad.sweeps.trajectory import (
    Action,
    Advance,
    Cost,
    Final,
    Free,
    Record,
    Restore,
    Reverse,
    Store,
    binomial,
    cost,
    for_budget,
    keep_all,
    square_root,
)

SCHEDULES: dict[str, Callable[..., Iterator[Action]]] = {
    "keep_all": keep_all,
    "square_root": square_root,
    "binomial_1": partial(binomial, slots=1),
    "binomial_2": partial(binomial, slots=2),
    "binomial_5": partial(binomial, slots=5),
    "binomial_40": partial(binomial, slots=40),
    "for_budget": partial(for_budget, state_bytes=8, budget_bytes=64),
}
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES.keys())


@dataclass
class Walk:
    """What happens to a run under a schedule; every action must be possible where it stands."""

    runs: list[int]
    """How often each step was run forward."""
    recorded: set[int] = field(default_factory=set)
    """Steps whose record is waiting."""
    reversed: list[int] = field(default_factory=list)
    most_stored: int = 0
    stores: int = 0
    losses: int = 0


def walk(actions: Iterable[Action], steps: int) -> Walk:
    seen = Walk([0] * steps)
    current: int | None = 0
    stored: set[int] = set()
    for action in actions:
        match action:
            case Store(t):
                assert t == current
                assert t not in stored
                stored.add(t)
                seen.stores += 1
                seen.most_stored = max(seen.most_stored, len(stored))
            case Advance(start, stop):
                assert current == start < stop <= steps
                assert seen.recorded.isdisjoint(range(start, stop))
                for t in range(start, stop):
                    seen.runs[t] += 1
                current = stop
            case Record(t):
                assert current == t
                assert t in stored
                assert t not in seen.recorded
                seen.recorded.add(t)
                seen.runs[t] += 1
                current = t + 1
            case Final():
                assert current == steps
                assert not seen.reversed
                seen.losses += 1
            case Restore(t):
                assert t in stored
                current = t
            case Free(t):
                stored.remove(t)
            case Reverse(t):
                assert current == t
                assert seen.losses == 1
                seen.recorded.discard(t)
                seen.reversed.append(t)
    assert not stored
    assert not seen.recorded
    assert seen.losses == 1
    return seen


def repetitions(links: int, slots: int) -> int:
    return next(r for r in itertools.count() if links <= math.comb(slots + r, slots))


@cache
def cheapest(links: int, slots: int) -> tuple[float, int]:
    """The fewest forward steps of any split into two chains, then the fewest snapshots stored."""
    if links == 1:
        return 0, 0
    if slots == 0:
        return math.inf, 0
    splits = []
    for m in range(1, links):
        rest, first = cheapest(links - m, slots - 1), cheapest(m, slots)
        stores = 0 if links - m == 1 else 1 + rest[1]
        splits.append((m + rest[0] + first[0], stores + first[1]))
    return min(splits)


def shortest_path(steps: int, slots: int) -> int:
    """The fewest forward steps of any legal order of actions at all, by Dijkstra's algorithm."""
    Node = tuple[int, frozenset[int], int]
    queue: list[tuple[int, int, Node]] = [(0, 0, (0, frozenset(), steps))]
    ticket = itertools.count(1)
    done: set[Node] = set()
    while True:
        price, _, node = heapq.heappop(queue)
        if node in done:
            continue
        done.add(node)
        current, stored, link = node
        if link < 0:
            return price
        moves = [(0, (t, stored, link)) for t in stored]
        moves += [(0, (current, stored - {t}, link)) for t in stored]
        if len(stored) < slots:
            moves.append((0, (current, stored | {current}, link)))
        if current < steps:
            moves.append((1, (current + 1, stored, link)))
        if current == link:
            moves.append((0, (current, stored, link - 1)))
        for step, reached in moves:
            heapq.heappush(queue, (price + step, next(ticket), reached))


@every_schedule
@pytest.mark.parametrize(("steps", "start"), [(1, 0), (2, 0), (7, 0), (7, 6), (50, 17), (81, 0)])
def test_steps_are_reversed_last_to_first_each_from_its_own_state(
    schedule: Callable[..., Iterator[Action]], steps: int, start: int
) -> None:
    seen = walk(schedule(steps, start=start), steps)
    assert seen.reversed == list(range(steps - 1, start - 1, -1))


@every_schedule
def test_steps_before_the_start_are_run_once_and_not_stored(
    schedule: Callable[..., Iterator[Action]],
) -> None:
    actions = list(schedule(30, start=12))
    assert walk(actions, 30).runs[:12] == [1] * 12
    assert min(action.t for action in actions if isinstance(action, Store)) == 12


@settings(deadline=None)
@given(st.data())
def test_a_later_start_is_the_schedule_of_a_shorter_run(data: st.DataObject) -> None:
    steps = data.draw(st.integers(1, 60))
    start = data.draw(st.integers(0, 60))
    schedule = data.draw(st.sampled_from(list(SCHEDULES.values())))
    whole = walk(schedule(steps), steps)
    shifted = walk(schedule(steps + start, start=start), steps + start)
    assert shifted.runs == [1] * start + whole.runs
    assert shifted.most_stored == whole.most_stored


@pytest.mark.parametrize("steps", [1, 2, 9, 100])
def test_keep_all_runs_no_step_again(steps: int) -> None:
    seen = walk(keep_all(steps), steps)
    assert seen.runs == [1] * steps
    assert seen.most_stored == steps


@pytest.mark.parametrize("steps", range(1, 102))
def test_square_root_runs_each_step_at_most_twice_with_twice_the_root_of_states(steps: int) -> None:
    seen = walk(square_root(steps), steps)
    k = math.ceil(math.sqrt(steps))
    assert max(seen.runs) <= 2
    assert seen.most_stored <= 2 * k - 1
    last_segment = (steps - 1) // k * k
    assert seen.runs[last_segment:] == [1] * (steps - last_segment)


@pytest.mark.parametrize("weight", [1.0, 1.7, 4.0, 1000.0])
@pytest.mark.parametrize("steps", [1, 2, 40, 101])
def test_what_weighs_more_is_kept_of_shorter_segments(steps: int, weight: float) -> None:
    seen = walk(square_root(steps, weight=weight), steps)
    k = math.ceil(math.sqrt(steps / weight))
    assert max(seen.runs) <= 2
    assert seen.most_stored <= k - 1 + math.ceil(steps / k)
    recorded = [a.t for a in square_root(steps, weight=weight) if isinstance(a, Record)]
    bases = range(0, steps, k)
    alive = len(bases) + weight * max(sum(b <= t < b + k for t in recorded) for b in bases)
    assert alive <= 2 * math.sqrt(steps * weight) + weight + 1


@pytest.mark.parametrize("slots", range(1, 7))
@pytest.mark.parametrize("steps", range(1, 41))
def test_binomial_runs_and_stores_as_little_as_dynamic_programming(steps: int, slots: int) -> None:
    seen = walk(binomial(steps, slots), steps)
    assert (sum(seen.runs), seen.stores - 1) == cheapest(steps + 1, slots)
    assert seen.most_stored <= slots


@pytest.mark.parametrize("slots", [1, 2, 3, 4])
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5, 6])
def test_no_legal_order_of_actions_runs_fewer_steps_than_binomial(steps: int, slots: int) -> None:
    assert cost(binomial(steps, slots)).forward_steps == shortest_path(steps, slots)


@settings(deadline=None)
@given(st.integers(1, 400), st.integers(1, 40))
def test_binomial_meets_the_bounds_of_griewank(steps: int, slots: int) -> None:
    seen = walk(binomial(steps, slots), steps)
    r = repetitions(steps + 1, slots)
    assert seen.most_stored <= slots
    assert max(seen.runs) == r
    assert sum(seen.runs) == r * (steps + 1) - math.comb(slots + r, r - 1)


@pytest.mark.parametrize(("slots", "r"), [(10, 3), (20, 3), (20, 4), (50, 2)])
def test_the_longest_run_of_a_repetition_number_is_the_binomial(slots: int, r: int) -> None:
    longest = math.comb(slots + r, slots) - 1
    assert max(walk(binomial(longest, slots), longest).runs) == r
    assert max(walk(binomial(longest + 1, slots), longest + 1).runs) == r + 1


def test_a_long_run_is_scheduled_lazily_in_flat_memory() -> None:
    tracemalloc.start()
    try:
        spent = cost(binomial(100_000, 20))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert spent == Cost(6 * 100_001 - math.comb(26, 5), 20)
    assert peak < 50_000


def test_cost_counts_forward_steps_and_snapshots() -> None:
    schedule: list[Action] = [Advance(0, 3), Store(3), Advance(3, 5), Store(5), Free(5), Final()]
    assert cost(schedule) == Cost(forward_steps=5, snapshots=2)
    assert cost([Store(0), Record(0), Final()]) == Cost(forward_steps=1, snapshots=1)


@pytest.mark.parametrize(
    ("budget", "snapshots"), [(808, 100), (807, 99), (160, 19), (80, 9), (23, 1), (16, 1)]
)
def test_the_snapshots_and_the_current_state_fit_the_budget(budget: int, snapshots: int) -> None:
    schedule = list(for_budget(100, state_bytes=8, budget_bytes=budget))
    assert schedule == list(binomial(100, snapshots))
    assert 8 * (cost(schedule).snapshots + 1) <= budget


def test_room_for_every_state_means_that_all_are_kept() -> None:
    assert list(for_budget(9, 8, 80)) == list(keep_all(9)) == list(for_budget(9, 8, 10**12))


@pytest.mark.parametrize("steps", [1, 5, 30, 100, 1000])
def test_a_budget_is_spent_no_worse_than_square_root_would(steps: int) -> None:
    plain = cost(square_root(steps))
    assert cost(for_budget(steps, 1, plain.snapshots + 1)).forward_steps <= plain.forward_steps


@every_schedule
@pytest.mark.parametrize(("steps", "start"), [(0, 0), (-3, 0), (5, 5), (5, -1)])
def test_an_empty_span_is_refused_at_once(
    schedule: Callable[..., Iterator[Action]], steps: int, start: int
) -> None:
    with pytest.raises(TrainingError, match=rf"needs .*{steps if steps < 1 else start}"):
        schedule(steps, start=start)


def test_a_schedule_without_a_snapshot_is_refused() -> None:
    with pytest.raises(TrainingError, match=r"slots >= 1 .*got 0"):
        binomial(10, 0)


def test_a_budget_below_two_states_names_the_least_that_works() -> None:
    with pytest.raises(TrainingError, match=r"got a budget of 1999 bytes. Raise it to 2000"):
        for_budget(10, state_bytes=1000, budget_bytes=1999)

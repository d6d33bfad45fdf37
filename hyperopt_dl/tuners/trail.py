"""A chain as the trials of a study show it: who belongs to it, and how they went."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import optuna
from optuna.trial import FrozenTrial, TrialState

from hyperopt_dl.tuners.chain import alive
from hyperopt_dl.tuners.record import is_exact, note_of, recorded
from hyperopt_dl.tuners.setback import is_setback

PLACES = "hypergradient:"
"""The study attribute ``PLACES + trial number`` holds that trial's chain and position."""


class Place(NamedTuple):
    """The chain that a trial belongs to, and its position there; position 0 begins it anew."""

    chain: int
    position: int


def read_places(study: optuna.Study) -> dict[int, Place]:
    """Return the places of a study's trials, by number."""
    return {
        int(key.removeprefix(PLACES)): Place(*place)
        for key, place in study.user_attrs.items()
        if key.startswith(PLACES)
    }


def write_place(study: optuna.Study, number: int, place: Place) -> None:
    """Record a trial's place. A sampler cannot write to its trial, so the study holds it."""
    study.set_user_attr(f"{PLACES}{number}", list(place))


def trail_of(
    trials: Sequence[FrozenTrial], places: Mapping[int, Place], chain: int, before: int
) -> list[FrozenTrial]:
    """Return the finished trials of a chain since it last began, up to a trial, in order.

    A trial that an interrupt has cut off says nothing of its point, and is left out.
    """
    own = [t for t in trials if t.number < before and t.number in places]
    own = [t for t in own if places[t.number].chain == chain]
    begun = max((t.number for t in own if places[t.number].position == 0), default=0)
    finished = [t for t in own if t.number >= begun and t.state.is_finished()]
    return [t for t in finished if t.user_attrs.get("failure") != "interrupted"]


def can_move(trail: Sequence[FrozenTrial], good: Sequence[FrozenTrial]) -> bool:
    """Return whether a chain can go on: it moves, and it has not failed too often."""
    complete = [trial for trial in trail if trial.state == TrialState.COMPLETE]
    numbers = {trial.number for trial in good}
    return all(recorded(trial.user_attrs) for trial in complete) and alive(
        [trial if trial.number in numbers else None for trial in trail]
    )


def good_of(
    trail: Sequence[FrozenTrial],
    predicted: Callable[[FrozenTrial, FrozenTrial], float],
    *,
    sign: float,
) -> list[FrozenTrial]:
    """Return the trials that a descent follows: with a finite gradient, and no setback.

    Where a range has changed, losses are compared anew. Only losses after all steps are compared,
    not estimates of them.

    Args:
        trail: The finished trials of a chain, in order.
        predicted: Returns the change of the loss from one trial to another, by their gradients.
        sign: 1 to go down, -1 to go up.
    """
    good: list[FrozenTrial] = []
    last: FrozenTrial | None = None  # that was compared
    losses: list[float] = []
    changes: list[float] = []
    for trial in filter(_is_complete, trail):
        if good and trial.distributions != good[-1].distributions:
            last, losses, changes = None, [], []
        if is_exact(note_of(trial)):
            all_losses = [*losses, sign * _value(trial)]
            all_changes = changes if last is None else [*changes, predicted(last, trial)]
            if is_setback(all_losses, all_changes):
                continue
            last, losses, changes = trial, all_losses, all_changes
        good.append(trial)
    return good


def latest(
    trail: Sequence[FrozenTrial],
    good: Sequence[FrozenTrial],
    like: Callable[[FrozenTrial], bool],
) -> list[FrozenTrial]:
    """Return the end of a trail in which all good trials are alike.

    Where a range has changed, or what has a derivative, a descent begins in the new coordinates.
    """
    other = {trial.number for trial in good if not like(trial)}
    begun = [i for i, trial in enumerate(trail) if trial.number in other]
    return list(trail[max(begun, default=-1) + 1 :])


def _is_complete(trial: FrozenTrial) -> bool:
    """Return whether a trial is complete with a gradient that is finite."""
    gradient = recorded(trial.user_attrs)
    complete = trial.state == TrialState.COMPLETE
    return complete and bool(gradient) and None not in (gradient or {}).values()


def _value(trial: FrozenTrial) -> float:
    return float("inf") if trial.value is None else trial.value

"""A chain as the trials of a study show it: who belongs to it, what they gave, where they were."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import optuna
import torch
from optuna.distributions import FloatDistribution
from optuna.trial import FrozenTrial, TrialState

from hyperopt_dl.space import Float
from hyperopt_dl.tuners.chain import Visit, alive
from hyperopt_dl.tuners.record import RECORD, recorded

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


def can_move(trail: Sequence[FrozenTrial]) -> bool:
    """Return whether a chain can go on: it moves, and it has not failed too often."""
    complete = [trial for trial in trail if trial.state == TrialState.COMPLETE]
    return all(recorded(trial.user_attrs) for trial in complete) and alive(
        [trial if is_good(trial) else None for trial in trail]
    )


def is_good(trial: FrozenTrial) -> bool:
    """Return whether a trial is complete with a gradient that is finite."""
    gradient = recorded(trial.user_attrs)
    complete = trial.state == TrialState.COMPLETE
    return complete and bool(gradient) and None not in (gradient or {}).values()


def moving(trial: FrozenTrial) -> dict[str, Float]:
    """Return the dimensions that move: the continuous ones that the gradient of a trial names."""
    gradient = recorded(trial.user_attrs) or {}
    return {
        name: Float(d.low, d.high, log=d.log)
        for name, d in sorted(trial.distributions.items())
        if isinstance(d, FloatDistribution) and d.step is None and name in gradient
    }


def visits_of(
    trail: Sequence[FrozenTrial], dims: Mapping[str, Float], *, sign: float
) -> list[Visit | None]:
    """Return what the trials of a chain gave, in the unit cube of ``dims``; ``None`` is a failure.

    The trials before and up to the last one with other dimensions are left out: where a range has
    changed, a descent begins in the new cube.

    Args:
        trail: The trials, in order.
        dims: The d dimensions that move.
        sign: 1 to go down, -1 to go up.
    """
    changed = [i for i, trial in enumerate(trail) if is_good(trial) and moving(trial) != dims]
    trail = trail[max(changed, default=-1) + 1 :]
    good = [trial for trial in trail if is_good(trial)]
    visits = iter(_in_the_cube(good, dims, sign))
    return [next(visits) if is_good(trial) else None for trial in trail]


def _in_the_cube(
    trials: Sequence[FrozenTrial], dims: Mapping[str, Float], sign: float
) -> list[Visit]:
    """Return points u and gradients dE/du = dE/dλ · dλ/du, all trials at once."""
    points, gradients = [], []
    for name, dimension in dims.items():
        with torch.enable_grad():
            u = torch.stack([dimension.to_unit(trial.params[name]) for trial in trials])
            u = u.detach().requires_grad_()
            (derivative,) = torch.autograd.grad(dimension.from_unit(u).sum(), u)
        natural = [trial.user_attrs[RECORD][name] for trial in trials]
        points.append(u.detach())
        gradients.append(sign * derivative * torch.tensor(natural, dtype=torch.double))
    columns = torch.stack(points, 1), torch.stack(gradients, 1)
    return [Visit(point, gradient) for point, gradient in zip(*columns, strict=True)]

"""What is known of the distances between levels: before any run, and from what runs measure.

Letters as in ``weights`` and ``moments``.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from hyperopt_dl.hypergrad.telescope.moments import costs, step_factor
from hyperopt_dl.hypergrad.telescope.optimum import among, best_distribution, best_levels, floored
from hyperopt_dl.hypergrad.telescope.weights import Array, Scheme

DECAY = 0.9
"""How much of the average of squared distances stays when all are measured anew (section 5)."""


class Odds(NamedTuple):
    """What a draw is made from."""

    levels: tuple[int, ...]
    q: Array
    factor: float
    """What a step along a draw is to be shortened by."""


def prior(scheme: Scheme, levels: Sequence[int], *, separate: bool) -> Odds:
    """Return the odds of all levels where each is taken to add as much as any other."""
    place = np.arange(len(levels) + 1, dtype=np.float64)
    D = np.abs(place[:, None] - place[None])
    q = floored(best_distribution(scheme, D, costs(scheme, levels, separate=separate)))
    return Odds(tuple(levels), q, 1.0)


def learned(scheme: Scheme, levels: Sequence[int], D: Array, *, separate: bool) -> Odds:
    """Return the best odds for squared distances ``[J + 1, J + 1]`` of all levels."""

    def cost(places: Sequence[int]) -> Array:
        return costs(scheme, [levels[place] for place in places], separate=separate)

    kept, q = best_levels(scheme, D, cost)
    q = floored(q)
    factor = step_factor(scheme, q, among(D, kept))
    return Odds(tuple(levels[place] for place in kept), q, factor)


class Measured(NamedTuple):
    """Squared distances of some levels, as one trial has measured them."""

    places: tuple[int, ...]
    """Which levels, ascending."""
    D: Array
    """``[k + 1, k + 1]``, those of the gradient 0 first."""


def average(history: Sequence[Measured], levels: int) -> Array:
    """Return the average of what has been measured, pair by pair ``[J + 1, J + 1]``.

    What was measured weighs 0.9 for each time that all levels have been measured since. So a pair
    that most draws measure is averaged over as long a time as one that is measured rarely, and a
    descent on which gradients shrink does not seem to have small differences below only.

    Args:
        history: What trials have measured, oldest first; at least one has measured all levels.
        levels: How many there are, J.
    """
    total, weight = np.zeros((2, levels + 1, levels + 1))
    for places, D in history:
        if len(places) == levels:
            total, weight = DECAY * total, DECAY * weight
        index = np.ix_(*2 * ([0, *(place + 1 for place in places)],))
        total[index] += D
        weight[index] += 1
    return np.asarray(total / weight)


def squared_distances(G: Array) -> Array:
    """Return D ``[J + 1, J + 1]`` of gradients ``[J, d]``; not finite where they are not."""
    rows = np.vstack([np.zeros(G.shape[1]), G])
    with np.errstate(over="ignore", invalid="ignore"):
        return np.array([[np.square(b - a).sum() for b in rows] for a in rows])

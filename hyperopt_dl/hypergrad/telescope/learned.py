"""What is known of the distances between levels: before any run, and from calibrations.

Letters as in ``weights`` and ``moments``.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from hyperopt_dl.hypergrad.telescope.moments import costs, step_factor
from hyperopt_dl.hypergrad.telescope.optimum import among, best_distribution, best_levels, floored
from hyperopt_dl.hypergrad.telescope.weights import Array, Scheme

DECAY = 0.9
"""How much of the average of squared distances stays when a calibration comes in (section 5)."""


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


def average(history: Sequence[Array]) -> Array:
    """Return the moving average of measured distances, oldest first, free of its start at 0."""
    mean = np.zeros_like(history[0])
    for D in history:
        mean = DECAY * mean + (1 - DECAY) * D
    return mean / (1 - DECAY ** len(history))


def squared_distances(G: Array) -> Array:
    """Return D ``[J + 1, J + 1]`` of gradients ``[J, d]``; not finite where they are not."""
    rows = np.vstack([np.zeros(G.shape[1]), G])
    with np.errstate(over="ignore", invalid="ignore"):
        return np.array([[np.square(b - a).sum() for b in rows] for a in rows])

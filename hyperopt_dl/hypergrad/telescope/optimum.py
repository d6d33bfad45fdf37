"""The distribution, and the levels, for which expected cost times second moment is least.

Letters as in ``weights`` and ``moments``. By Cauchy and Schwarz (Beatson & Adams 2019, section 4)
``E[C] E‖Ĝ‖²`` is least for

    single sample     q[n] ∝ sqrt(V[n] / C[n])
    Russian roulette  Q[n] ∝ sqrt(V[n] / (C[n] - C[n-1])), where that does not increase with n.

Where it does, neighbours share one Q: in ``u = 1 / Q`` the problem is convex, whatever the sign of
V, and pooling adjacent violators solves it (Barlow et al. 1972).
"""

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from hyperopt_dl.hypergrad.telescope.moments import variances, work
from hyperopt_dl.hypergrad.telescope.weights import Array, Scheme

FLOOR = 0.2
"""The part of the draws that goes to all levels alike: one run says little of rare differences.

It costs a few percent where the distances are known, and saves more where one run has shown them.
"""


def best_distribution(scheme: Scheme, D: Array, C: Array) -> Array:
    """Return the q ``[J]`` that minimises ``E[C] E‖Ĝ‖²``.

    A level that adds nothing to the second moment gets the probability 0: see ``floored``.
    """
    V = variances(scheme, D)
    weight: Array
    if scheme == "single_sample":
        weight = np.sqrt(V / C)
    else:
        step = np.diff(C, prepend=0.0)
        Q = np.sqrt(np.maximum(_non_increasing(V / step, step), 0.0))
        weight = Q - np.append(Q[1:], 0.0)
    total = weight.sum()
    if not total > 0:  # all gradients are 0
        return np.asarray(np.eye(len(V))[-1])
    return np.asarray(weight / total)


def floored(q: Array) -> Array:
    """Return a distribution that leaves every level some chance, so that every draw is unbiased."""
    return (1 - FLOOR) * q + FLOOR / len(q)


def best_levels(
    scheme: Scheme, D: Array, cost: Callable[[Sequence[int]], Array]
) -> tuple[list[int], Array]:
    """Return which levels to draw from, and their best distribution.

    The search is greedy, both ways (section 5): from all levels, the one is left out without which
    the work is least, while it sinks; from the last one alone, the one is taken in. The better end
    of the two is returned, without levels that would never be drawn. The last level always stays,
    for it is what is estimated.

    Args:
        scheme: How increments are weighted.
        D: The squared distances of all levels.
        cost: Returns C of some of the levels, given by their places, ascending.

    Returns:
        The places of the levels that are kept, and q.
    """
    last = len(D) - 2

    def value(places: Iterable[int]) -> float:
        kept = sorted(places)
        part, C = among(D, kept), cost(kept)
        return work(scheme, best_distribution(scheme, part, C), part, C)

    def down(places: frozenset[int]) -> list[frozenset[int]]:
        return [places - {n} for n in sorted(places - {last})]

    def up(places: frozenset[int]) -> list[frozenset[int]]:
        return [places | {n} for n in range(last) if n not in places]

    ends = [
        _descend(frozenset(range(last + 1)), down, value),
        _descend(frozenset({last}), up, value),
    ]
    kept = sorted(min(ends, key=value))
    q = best_distribution(scheme, among(D, kept), cost(kept))
    drawn = [n for n, chance in zip(kept, q, strict=True) if chance > 0 or n == last]
    return drawn, best_distribution(scheme, among(D, drawn), cost(drawn))


def among(D: Array, places: Sequence[int]) -> Array:
    """Return the squared distances among some of the levels."""
    index = [0, *(place + 1 for place in places)]
    return D[np.ix_(index, index)]


def _descend(
    places: frozenset[int],
    neighbours: Callable[[frozenset[int]], list[frozenset[int]]],
    value: Callable[[Iterable[int]], float],
) -> frozenset[int]:
    """Move to the best neighbour while that is an improvement."""
    here = value(places)
    while candidates := neighbours(places):
        there = min(candidates, key=value)
        if not value(there) < here:
            break
        places, here = there, value(there)
    return places


def _non_increasing(r: Array, weight: Array) -> Array:
    """Return the non-increasing sequence nearest to r ``[J]`` in weighted squares."""
    blocks: list[tuple[float, float, int]] = []  # mean, weight, length
    for mean, w in zip(r.tolist(), weight.tolist(), strict=True):
        block = (mean, w, 1)
        while blocks and blocks[-1][0] < block[0]:
            m, v, k = blocks.pop()
            total = v + block[1]
            block = ((m * v + block[0] * block[1]) / total, total, k + block[2])
        blocks.append(block)
    return np.repeat([mean for mean, _, _ in blocks], [k for _, _, k in blocks])

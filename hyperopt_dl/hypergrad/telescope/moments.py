"""What a distribution over the levels costs, and how far its draws scatter.

Letters as in ``weights``; D ``[J + 1, J + 1]`` the squared distances of the gradients, those of the
gradient 0 below level 0 first: ``D[i, j] = ‖G[j-1] - G[i-1]‖²``; V[n] what level n adds to the
second moment; C[N] the cost of drawing level N.
"""

from collections.abc import Sequence

import numpy as np

from hyperopt_dl.hypergrad.telescope.weights import Array, Scheme, survival


def variances(scheme: Scheme, D: Array) -> Array:
    """Return V ``[J]``, with which ``E‖Ĝ‖² = Σ V[n] / q[n]``, or ``/ Q[n]`` for roulette.

    For a single sample that is ``‖G[n] - G[n-1]‖²``. For roulette it is
    ``‖G[H] - G[n-1]‖² - ‖G[H] - G[n]‖²``: exact, where the paper's ``‖G[n] - G[n-1]‖²`` takes
    increments to be uncorrelated. It may be negative; its sums to the end never are.
    """
    if scheme == "single_sample":
        return np.diagonal(D, 1).copy()
    return np.asarray(D[:-1, -1] - D[1:, -1])


def second_moment(scheme: Scheme, q: Array, D: Array) -> float:
    """Return ``E‖Ĝ‖²`` over the draws of a distribution ``[J]``; infinite where one is needed."""
    V = variances(scheme, D)
    chance = q if scheme == "single_sample" else survival(q)
    some = V != 0
    with np.errstate(divide="ignore"):
        return float((V[some] / chance[some]).sum())


def costs(scheme: Scheme, levels: Sequence[int], *, separate: bool = False) -> Array:
    """Return C ``[J]`` in steps, forward and adjoint, without those that are computed again.

    One run to T[N] and one sweep back give a draw of either scheme: ``C = 2 T[N]``. With
    ``separate`` runs, each gradient that the draw needs has its own.
    """
    own: Array = 2.0 * np.asarray(levels, dtype=np.float64)
    if not separate:
        return own
    if scheme == "single_sample":
        return np.asarray(own + np.concatenate([[0.0], own[:-1]]))
    return np.asarray(np.cumsum(own))


def expected_cost(q: Array, C: Array) -> float:
    """Return ``E[C]``, in the unit of C."""
    return float(q @ C)


def work(scheme: Scheme, q: Array, D: Array, C: Array) -> float:
    """Return ``E[C] E‖Ĝ‖²``: what descent pays for its progress, up to a factor (section 4)."""
    return expected_cost(q, C) * second_moment(scheme, q, D)


def step_factor(scheme: Scheme, q: Array, D: Array) -> float:
    """Return ``‖G[H]‖² / E‖Ĝ‖²``, at most 1.

    A step along ``Ĝ`` promises the most decrease of a smooth loss at so many times the length that
    is best along ``G[H]``. It is also the number a for which ``a Ĝ`` lies nearest to ``G[H]`` in
    mean square.
    """
    moment = second_moment(scheme, q, D)
    return float(D[0, -1]) / moment if moment > 0 else 1.0

"""Which levels there are, and what each gradient counts in a draw.

Letters: T[n] the steps of level n = 0, ..., J - 1, ascending, the last one the horizon H; G[n] the
gradient of the outer loss after T[n] steps, and 0 below level 0; N the level that is drawn; q[N]
its probability; ``Q[n] = P(N >= n)``. A draw estimates G[H] by a telescoping sum (Beatson & Adams
2019, section 3) ::

    Ĝ(N) = Σ_{n <= N} W(n, N) (G[n] - G[n - 1]) = Σ_n c[N, n] G[n],  c[N, n] = W(n, N) - W(n + 1, N)

    single sample     W(n, N) = 1{n = N} / q[N]
    Russian roulette  W(n, N) = 1{n <= N} / Q[n]

which is unbiased because ``Σ_N q[N] W(n, N) = 1`` for every n.
"""

from collections.abc import Sequence
from typing import Literal, TypeAlias, get_args

import numpy as np
import numpy.typing as npt

from hyperopt_dl.errors import TrainingError

Scheme: TypeAlias = Literal["single_sample", "russian_roulette"]
Array: TypeAlias = npt.NDArray[np.float64]
SCHEMES: tuple[str, ...] = get_args(Scheme)


def ladder(steps: int) -> tuple[int, ...]:
    """Return the levels ``..., T / 4, T / 2, T`` down to 1 step, rounded up."""
    levels = [steps]
    while levels[-1] > 1:
        levels.append((levels[-1] + 1) // 2)
    return tuple(reversed(levels))


def survival(q: Array) -> Array:
    """Return ``Q[n] = P(N >= n)`` of a distribution ``[J]``, summed from its small end."""
    return np.cumsum(q[::-1])[::-1]


def coefficients(scheme: Scheme, q: Array) -> Array:
    """Return c ``[J, J]``: row N holds what each G[n] counts where level N is drawn.

    The row of a level that is never drawn is 0.

    Args:
        scheme: How increments are weighted.
        q: The probabilities ``[J]`` of the levels.

    Raises:
        TrainingError: With these no draw is unbiased.
    """
    check_distribution(scheme, q)
    J = len(q)
    if scheme == "single_sample":
        W = np.diag(1 / q)
    else:
        W = np.triu(np.repeat(1 / survival(q)[:, None], J, axis=1))  # n, N
        W[:, q == 0] = 0
    return (W - np.vstack([W[1:], np.zeros(J)])).T


def draw(q: Array, u: float) -> int:
    """Return the level that a number ``0 <= u < 1`` draws; never one of probability 0."""
    ends = np.cumsum(q)
    return int(np.searchsorted(ends, u * ends[-1], side="right"))


def check_distribution(scheme: Scheme, q: Array) -> None:
    """Check that a draw is unbiased.

    Raises:
        TrainingError: Something is no probability, or a level has none that needs one.
    """
    if not (len(q) and np.isfinite(q).all() and (q >= 0).all() and abs(q.sum() - 1) < 1e-9):
        raise TrainingError(
            f"The probabilities of the levels must be at least 0 and sum to 1, got {q.tolist()}."
        )
    needed = q if scheme == "single_sample" else q[-1:]
    if not (needed > 0).all():
        which = "every level" if scheme == "single_sample" else "the last level"
        raise TrainingError(
            f"A draw is unbiased only if {which} can be drawn, got the probabilities {q.tolist()}."
        )


def check_levels(levels: Sequence[int], steps: int) -> tuple[int, ...]:
    """Return the levels of a run of so many steps: those given, and the last step.

    Raises:
        TrainingError: They are not whole numbers of steps that ascend from 1 to ``steps``.
    """
    whole = all(type(level) is int for level in levels)
    own = tuple(levels[:-1] if levels and levels[-1] == steps else levels)
    if not whole or any(a >= b for a, b in zip((0, *own), (*own, steps), strict=True)):
        raise TrainingError(
            f"levels must be whole numbers of steps that ascend between 1 and the {steps} of the "
            f"training, got {tuple(levels)}. Leave them out for a doubling ladder."
        )
    return (*own, steps)

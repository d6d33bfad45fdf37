"""How far the coordinates move for a hypergradient: Adam for noise, a clip and a trust region.

A learning rate can be wrong by orders of magnitude, and its hypergradient with it: far too low, it
is tiny, and close to divergence it is huge. Adam's quotient r = m / sqrt(v) takes the magnitude
away and leaves the sign and its steadiness: r is near ±1 where the hypergradients agree, and about
a quarter where they are noise. A move is ``hyper_lr * r * |r|``: as long as ``hyper_lr`` in the
first case, whatever the loss is, while in the second Adam's ``hyper_lr * r`` would walk at random.

Letters: h hypergradient in the coordinates, m and v its first and second moment, t moves so far.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

BETA1, BETA2, EPS = 0.9, 0.99, 1e-12


class Moments(NamedTuple):
    """Adam's state: the number of moves so far, and two moments a coordinate."""

    t: int
    m: tuple[float, ...]
    v: tuple[float, ...]


def at_rest(m: int) -> Moments:
    """Return the state before the first move of ``m`` coordinates."""
    return Moments(0, (0.0,) * m, (0.0,) * m)


def next_move(
    moments: Moments, h: Sequence[float], *, hyper_lr: float, clip: float, trust: float
) -> tuple[tuple[float, ...], Moments]:
    """Return by how much each coordinate moves, and the moments after it.

    Args:
        moments: As from `at_rest` or the call before.
        h: The hypergradient, one finite number a coordinate.
        hyper_lr: The length of a move along steady hypergradients, in units of the coordinates.
        clip: The largest Euclidean norm of h that counts; a longer one is shortened to it.
        trust: The largest move of a coordinate.
    """
    norm = math.hypot(*h)
    h = [component * min(1.0, clip / norm) for component in h] if norm > 0 else list(h)
    t = moments.t + 1
    m = tuple(BETA1 * old + (1 - BETA1) * new for old, new in zip(moments.m, h, strict=True))
    v = tuple(BETA2 * old + (1 - BETA2) * new**2 for old, new in zip(moments.v, h, strict=True))
    c1, c2 = 1 - BETA1**t, 1 - BETA2**t
    ratios = ((a / c1) / (math.sqrt(b / c2) + EPS) for a, b in zip(m, v, strict=True))
    steps = (-hyper_lr * r * min(abs(r), 1.0) for r in ratios)
    return tuple(min(max(step, -trust), trust) for step in steps), Moments(t, m, v)

"""When a descent has lost what it had won, where losses are noisy.

Every trial has a seed of its own, so two losses differ by the luck of batches and initial weights
too. Gradients tell how much: along a step they predict the change of the loss by the trapezoid rule
``(g[k] + g[k+1]) / 2 · (u[k+1] - u[k])``, into which the luck of the two losses does not enter.

Letters: u[k] the points of a descent, ``[d]``; g[k] the gradient there; E[k] the loss, of a seed of
its own; p[k] the change from E[k] to E[k+1] that is predicted; r[k] what else the loss has changed,
``E[k+1] - E[k] - p[k]``; ``s² = mean r²``.
"""

import math
from collections.abc import Sequence
from itertools import pairwise

from hyperopt_dl.tuners.chain import Visit

RARE = (31.82, 6.96, 4.54, 3.75, 3.36, 3.14, 3.00, 2.90, 2.82, 2.76)
"""Student's t that is exceeded once in a hundred times, for 1, 2, ..., 10 degrees of freedom."""


def predicted_change(before: Visit, after: Visit) -> float:
    """Return by how much the loss changes between two visits, by their gradients."""
    step, slope = after.point - before.point, (before.gradient + after.gradient) / 2
    return float(slope @ step)


def is_setback(losses: Sequence[float], predicted: Sequence[float]) -> bool:
    """Return whether the last of some losses has lost all that a descent had won.

    That is where it lies above every loss on the way to the lowest one, and that is not luck: the
    gradients on the way from the highest of these predict a rise as well, or it is a greater one
    than luck explains. A run that has become unstable is such a case; its gradient says little
    about the way back, and may say nothing of the rise.

    Near instability a gradient may be a thousand times too large. Where a prediction is more than
    twice what the losses so far have differed, the change that was seen stands in for it.

    Args:
        losses: E ``[n + 1]`` of the visits in order, and of the next one. The first may be the
            lowest before that: then nothing has been won, and nothing is a setback.
        predicted: p ``[n]``, the change from each to the one after it.
    """
    *before, last = losses
    if not before:
        return False
    won = before[: before.index(min(before)) + 1]
    highest = won.index(max(won))
    if len(won) == 1 or not last > won[highest]:
        return False
    most = 2 * (max(before) - min(before))
    seen = [b - a for a, b in pairwise(losses)]
    steps = [(p, c, abs(p) <= most) for p, c in zip(predicted, seen, strict=True)]
    rises = [p if trusted else c for p, c, trusted in steps]
    residuals = [c - p for p, c, trusted in steps[:-1] if trusted]
    return sum(rises[highest:]) > 0 or last - won[highest] > luck(residuals)


def luck(residuals: Sequence[float]) -> float:
    """Return by how much a loss changes by luck, exceeded once in a hundred times.

    It is s times a quantile of Student's t: while little is known of luck, it may be great. Without
    any r it is infinite.
    """
    n = len(residuals)
    if not n:
        return math.inf
    return RARE[min(n, len(RARE)) - 1] * math.hypot(*residuals) / math.sqrt(n)

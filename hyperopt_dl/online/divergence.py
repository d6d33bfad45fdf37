"""The signs that a training run is lost, so that it must go back and on with lower rates.

Letters: h hypergradient in the coordinates.
"""

import math
import sys
from collections.abc import Sequence

from torch import Tensor

CHAOS = 100.0
"""The hypergradient, in multiples of the validation loss, beyond which it is not believed."""
DEAD = 0.5
"""The part of the entries of the first gradient that must still be other than 0."""


def exploded(loss: float, first: float | None, explosion: float) -> bool:
    """Say whether a loss is not finite or above ``explosion`` times the first training loss."""
    return not math.isfinite(loss) or (first is not None and loss > explosion * first)


def chaotic(loss: float, h: Sequence[float], explosion: float) -> bool:
    """Say whether one percent of a hyperparameter would double the loss: no slope to follow.

    With an infinite ``explosion``, for losses whose size says nothing, only whether h is finite.
    """
    limit = CHAOS * abs(loss) if math.isfinite(explosion) else sys.float_info.max
    return not math.hypot(*h) <= limit


def alive(gradients: Sequence[Tensor | None]) -> float:
    """Return the part of the entries that are not exactly 0: few are, where units are dead."""
    found = [part for part in gradients if part is not None]
    nonzero = sum(int(part.count_nonzero()) for part in found)
    return nonzero / max(1, sum(part.numel() for part in found))

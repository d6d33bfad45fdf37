"""How long a gradient may be beside those before it in its descent.

Where training is about to become unstable, a hypergradient can be a thousand times as long as it
was a step before, at almost the same loss, and its direction means little. An optimizer with a
memory, such as Adam, would then go by it for many steps. So a gradient is shortened to a multiple
of the median length before it, as AutoClip does with a percentile (Seetharaman, Wichern, Pardo and
Le Roux 2020). A median cares little for the few that explode, and it follows a descent whose
gradients grow for good.

Letters: g a gradient ``[d]``; l[k] the lengths of those before it, as they were; c how many times
their median it may be long.
"""

import statistics
from collections.abc import Sequence

from torch import Tensor

EXACT = 2.0
"""c where gradients are those of whole runs."""
ESTIMATED = 10.0
"""c where gradients are draws, of which a rare one is long in order that their mean be right.

Draws that are chosen well are as long as the square root of their cost (``Telescoping``), so one
that costs a hundred times as much as most others is not shortened.
"""


def clipped(gradient: Tensor, lengths: Sequence[float], most: float) -> Tensor:
    """Return a gradient no longer than a multiple of the median length of those before it.

    Args:
        gradient: g ``[d]``.
        lengths: l, in any order. Those of 0 say nothing; where there are no others, g stays.
        most: c.
    """
    known = [length for length in lengths if length > 0]
    length = float(gradient.norm())
    if not known or length <= (limit := most * statistics.median(known)):
        return gradient
    return gradient * (limit / length)

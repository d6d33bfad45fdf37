"""Which of the known derivatives a posterior is given: as many as its cost allows.

A posterior of n values and r derivatives costs (n + r)³, and D derivatives come with every value.
What matters is the function near its best points, and what has just been learned; so points take
turns, the best by value and the latest, until the budget is used up. A point brings all of its
derivatives, since a flat direction is news as well; where not all fit, its largest.

A point with a derivative above ``STEEPEST`` brings none. There the run stood on a cliff, where
training begins to diverge: its derivatives are right, and say nothing of the function at the scale
of a search. Left in, a few of them would make all derivatives look noisy.
"""

import torch
from torch import Tensor

from hyperopt_dl.gp.derivatives import Derivatives

STEEPEST = 30.0
"""In standardised values per unit of the cube: the losses' deviation within a thirtieth of it."""


def choose(x: Tensor, values: Tensor, gradients: Tensor, *, budget: int) -> Derivatives | None:
    """Return up to `budget` derivatives, without noise; ``None`` where there are none.

    Args:
        x: A ``n x D`` tensor of points, in the order in which they were observed.
        values: ``[n]``, standardised; large is good.
        gradients: ``[n, D]``, their derivatives per unit of the cube, NaN where one is not known.
        budget: The most derivatives.
    """
    steep = (gradients.abs() > STEEPEST).any(-1, keepdim=True)
    known = gradients.isfinite() & ~steep
    chosen: list[tuple[int, int]] = []
    for i in _in_turns(values, known.any(-1)):
        sizes = torch.where(known[i], gradients[i].abs(), -1.0)
        order = sizes.argsort(descending=True, stable=True)[: int(known[i].sum())]
        chosen += [(i, d) for d in order[: budget - len(chosen)].tolist()]
    if not chosen:
        return None
    rows, dimension = torch.tensor(chosen, device=x.device).unbind(-1)
    points, point = torch.unique(rows, return_inverse=True)
    derivatives = gradients[rows, dimension]
    return Derivatives(x[points], point, dimension, derivatives, torch.zeros_like(derivatives))


def _in_turns(values: Tensor, known: Tensor) -> list[int]:
    """Return the points of which something is known: the best, the latest, the next best, ..."""
    candidates = known.nonzero().squeeze(-1)
    best = candidates[values[candidates].argsort(descending=True, stable=True)].tolist()
    latest = candidates.flip(0).tolist()
    both = [i for pair in zip(best, latest, strict=True) for i in pair]
    return list(dict.fromkeys(both))

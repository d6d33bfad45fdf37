"""The arithmetic of descent chains: which chain moves next, and where to.

Everything is a function of what the finished trials of a chain have shown; nothing is remembered
between calls. Points lie in the unit cube of the ``d`` dimensions that move, gradients are in loss
per unit of the cube.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor

Optimizer: TypeAlias = Literal["adam", "sgd"] | Callable[..., torch.optim.Optimizer]
"""A name, or a factory ``optimizer(list of tensors, lr=...)`` such as ``torch.optim.RMSprop``."""
NAMED: Mapping[str, Callable[..., torch.optim.Optimizer]] = {
    "adam": torch.optim.Adam,
    "sgd": torch.optim.SGD,
}
MOST_FAILURES = 10
"""Failures in a row that end a chain: its step is then a thousandth of what it was."""


class Visit(NamedTuple):
    """A trial that has a gradient: its point and its gradient, both ``[d]`` and float64."""

    point: Tensor
    gradient: Tensor


def alive(trail: Sequence[Any | None]) -> bool:
    """Return whether a chain can move on from its trail.

    Args:
        trail: What the chain's trials gave, in order; ``None`` is a failure.

    Returns:
        False before the first good trial, and after ``MOST_FAILURES`` failures in a row.
    """
    recent = trail[-MOST_FAILURES:]
    return any(visit is not None for visit in recent)


def next_point(trail: Sequence[Visit | None], optimizer: Optimizer, *, lr: float) -> Tensor:
    """Return the point ``[d]`` that a chain tries next.

    The optimizer of torch is stepped once for each visit, at the visit's point and along its
    gradient, so moments are those of one descent over the whole chain. The result is
    ``clamp(point + 2**-failures * step)``: ``point`` is the last visit's, ``step`` the optimizer's
    there, ``failures`` the number of failures in the chain so far. So a failure goes back to the
    last good point with half the step, and the step stays that small.

    Args:
        trail: What the chain's trials gave, in order; ``None`` is a failure. At least one visit.
        optimizer: Turns gradients into steps.
        lr: The optimizer's learning rate, in units of the cube.
    """
    visits = [visit for visit in trail if visit is not None]
    x = torch.nn.Parameter(visits[0].point.clone())
    make = NAMED[optimizer] if isinstance(optimizer, str) else optimizer
    descent = make([x], lr=lr)
    for point, gradient in visits:
        with torch.no_grad():
            x.copy_(point)
        x.grad = gradient.clone()
        descent.step()
    step = x.detach() - visits[-1].point
    failures = len(trail) - len(visits)
    return (visits[-1].point + 0.5**failures * step).clamp(0, 1)


def turn(last: Mapping[int, int], busy: Collection[int], chains: int) -> int:
    """Return the chain that the next trial belongs to.

    The chains take turns. A chain whose last trial still runs cannot move; where that holds for all
    of them, the trial goes to a spare chain, an old one before a new one.

    Args:
        last: The number of the last trial of each chain that has one.
        busy: The chains with a running trial.
        chains: How many chains are wanted; spare ones are numbered from here.
    """
    free = [chain for chain in range(chains) if chain not in busy]
    free = free or [chain for chain in last if chain not in busy]
    if not free:
        return max([chains - 1, *last]) + 1
    return min(free, key=lambda chain: (last.get(chain, -1), chain))

"""The arithmetic of descent chains: which chain moves next, and where to.

Everything is a function of what the finished trials of a chain have shown. Points are the ``d``
coordinates of what moves (see ``moving.py``), gradients are in loss per unit of the coordinate.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor

from hyperopt_dl.tuners.clipping import EXACT, clipped

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


class Descent:
    """A torch optimizer that has been stepped at every visit of a chain.

    It is stepped at the visit's point and along its gradient, so moments are those of one descent
    over the whole chain; a gradient that is far longer than those before it is shortened. Following
    the visits one by one, today or after a restart, gives the same bits: what it holds is a memo of
    a fold.

    Args:
        optimizer: Turns gradients into steps.
        lr: The optimizer's learning rate, in units of the coordinates.
        first: The visit that the chain begins with.
        most: How many times the median length before it a gradient may be long.
    """

    def __init__(
        self, optimizer: Optimizer, lr: float, first: Visit, *, most: float = EXACT
    ) -> None:
        make = NAMED[optimizer] if isinstance(optimizer, str) else optimizer
        self._x = torch.nn.Parameter(first.point.clone())
        self._optimizer = make([self._x], lr=lr)
        self._point = first.point
        self._most = most
        self._lengths: list[float] = []
        self.follow(first)

    def follow(self, visit: Visit) -> None:
        """Step at the next visit."""
        with torch.no_grad():
            self._x.copy_(visit.point)
        self._x.grad = clipped(visit.gradient, self._lengths, self._most).clone()
        self._optimizer.step()
        self._point = visit.point
        self._lengths.append(float(visit.gradient.norm()))

    def ahead(self, failures: int) -> Tensor:
        """Return the point ``[d]`` that comes next; it may lie outside of the space.

        It is ``point + 2**-failures * step``: ``point`` is the last visit's, ``step`` the
        optimizer's there, ``failures`` the number of failures in the chain so far. So a failure
        goes back to the last good point with half the step, and the step stays that small.
        """
        return self._point + 0.5**failures * (self._x.detach() - self._point)


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

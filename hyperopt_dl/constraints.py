"""Convex sets that an `Array` can be held to, each with its exact Euclidean projection.

A constraint is always taken together with the box of its Array: `project` returns the nearest point
of ``{x in set, low <= x_i <= high}``, not first of the one and then of the other. All of them come
down to one equation in one unknown, the shift τ of a continuous quadratic knapsack problem,

    sum_i clip(v_i - τ, lower_i, upper_i) = total,

whose left side is piecewise linear and falls in τ. It is solved by bisection over its sorted
breakpoints, then in closed form on the one linear piece that is left: O(N log N) time, exact up to
rounding.

Sources: Duchi et al., "Efficient Projections onto the l1-Ball for Learning in High Dimensions",
ICML 2008 (simplex and l1 ball); Kiwiel, "Breakpoint searching algorithms for the continuous
quadratic knapsack problem", Math. Program. 112, 2008 (with bounds).
"""

import math
from dataclasses import dataclass
from numbers import Real
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from hyperopt_dl.errors import SpaceError


@runtime_checkable
class Constraint(Protocol):
    """A closed convex set of tensors. Anything with these two methods will do."""

    def project(self, x: Tensor, low: float, high: float) -> Tensor:
        """Return the point of the set, within ``low <= x_i <= high``, that is nearest to `x`.

        Args:
            x: a floating tensor of the Array's shape; it is not written to.
            low: lower bound of every entry; may be ``-inf``.
            high: upper bound of every entry; may be ``inf``.

        Returns:
            A tensor of `x`'s shape, dtype and device, outside the autograd graph.
        """
        ...

    def check(self, shape: tuple[int, ...], low: float, high: float) -> None:
        """Raise `SpaceError` if no tensor of this shape and box can be in the set."""
        ...


def simplex(total: float = 1.0) -> "Simplex":
    """Hold the entries to ``x_i >= 0`` and ``sum x = total``, with ``total > 0``."""
    return Simplex(total)


def sum_at_most(total: float) -> "SumAtMost":
    """Hold the sum of all entries to at most `total`."""
    return SumAtMost(total)


def l1_ball(radius: float) -> "L1Ball":
    """Hold the sum of the absolute values of all entries to at most ``radius > 0``."""
    return L1Ball(radius)


def nonnegative_symmetric(sum_at_most: float | None = None) -> "NonNegativeSymmetric":
    """Hold a square matrix to ``X = X^T`` and ``X_ij >= 0``.

    Args:
        sum_at_most: a bound > 0 on the sum of all entries, both triangles counted; None for none.
    """
    return NonNegativeSymmetric(sum_at_most)


@torch.no_grad()
def project_box(x: Tensor, low: float, high: float) -> Tensor:
    """Return `x` with every entry moved to the nearest point of ``[low, high]``."""
    return x.clamp(low, high)


@dataclass(frozen=True)
class Simplex:
    """``{x : x_i >= 0, sum x = total}``; see `simplex`."""

    total: float = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "total", _positive("simplex", "total", self.total))

    @torch.no_grad()
    def project(self, x: Tensor, low: float, high: float) -> Tensor:
        """Return the nearest point of the simplex within the box."""
        v, lower, upper = x.double(), max(low, 0.0), high
        return _knapsack(v, _full(v, lower), _full(v, upper), self.total).to(x.dtype)

    def check(self, shape: tuple[int, ...], low: float, high: float) -> None:
        """Raise `SpaceError` unless ``N max(low, 0) <= total <= N high`` for the N entries."""
        n = math.prod(shape)
        _must_meet_box(f"simplex(total={self.total})", n, max(low, 0.0), self.total)
        if _exceeds(self.total, n * high if high > 0 else 0.0):
            raise SpaceError(
                f"simplex(total={self.total}) needs {n} entries that can reach the total, got "
                f"high={high}, so they sum to {n * max(high, 0.0)} at most. Raise high to at least "
                f"{self.total / n}, or lower the total."
            )


@dataclass(frozen=True)
class SumAtMost:
    """``{x : sum x <= total}``; see `sum_at_most`."""

    total: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "total", _finite("sum_at_most", "total", self.total))

    @torch.no_grad()
    def project(self, x: Tensor, low: float, high: float) -> Tensor:
        """Return the nearest point of the half-space within the box."""
        v = x.double()
        return _capped(v, _full(v, low), _full(v, high), self.total).to(x.dtype)

    def check(self, shape: tuple[int, ...], low: float, high: float) -> None:
        """Raise `SpaceError` unless ``N low <= total`` for the N entries."""
        del high  # it cannot empty a set that is only bounded above
        _must_meet_box(f"sum_at_most({self.total})", math.prod(shape), low, self.total)


@dataclass(frozen=True)
class L1Ball:
    """``{x : sum |x_i| <= radius}``; see `l1_ball`."""

    radius: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "radius", _positive("l1_ball", "radius", self.radius))

    @torch.no_grad()
    def project(self, x: Tensor, low: float, high: float) -> Tensor:
        """Return the nearest point of the ball within the box.

        The nearest point never changes an entry's side of zero unless the box does, so with that
        side divided out it is a knapsack in the absolute values.
        """
        v = x.double()
        positive = (v >= 0) & (high >= 0) if low < 0 else torch.ones_like(v, dtype=torch.bool)
        sign = torch.where(positive, _full(v, 1.0), _full(v, -1.0))
        lower = torch.where(positive, _full(v, max(low, 0.0)), _full(v, max(-high, 0.0)))
        upper = torch.where(positive, _full(v, high), _full(v, -low))
        return (sign * _capped(sign * v, lower, upper, self.radius)).to(x.dtype)

    def check(self, shape: tuple[int, ...], low: float, high: float) -> None:
        """Raise `SpaceError` unless the point of the box nearest to zero lies in the ball."""
        nearest = max(low, -high, 0.0)
        _must_meet_box(f"l1_ball({self.radius})", math.prod(shape), nearest, self.radius)


@dataclass(frozen=True)
class NonNegativeSymmetric:
    """``{X : X = X^T, X_ij >= 0, sum X <= sum_at_most}``; see `nonnegative_symmetric`."""

    sum_at_most: float | None = None

    def __post_init__(self) -> None:
        if self.sum_at_most is not None:
            total = _positive("nonnegative_symmetric", "sum_at_most", self.sum_at_most)
            object.__setattr__(self, "sum_at_most", total)

    @torch.no_grad()
    def project(self, x: Tensor, low: float, high: float) -> Tensor:
        """Return the nearest matrix of the set within the box.

        Averaging with the transpose projects on the symmetric matrices. The other conditions are
        indifferent to transposition, so projecting the average on them keeps it symmetric, and by
        Pythagoras the two steps together are the projection on both.
        """
        v, lower = x.double(), max(low, 0.0)
        v = (v + v.mT) / 2
        if self.sum_at_most is None:
            return v.clamp(lower, high).to(x.dtype)
        return _capped(v, _full(v, lower), _full(v, high), self.sum_at_most).to(x.dtype)

    def check(self, shape: tuple[int, ...], low: float, high: float) -> None:
        """Raise `SpaceError` unless the shape is square and the set meets the box."""
        if len(shape) != 2 or shape[0] != shape[1]:
            raise SpaceError(
                f"nonnegative_symmetric needs a square matrix, got shape {shape}. "
                f"Use Array((n, n), ...), or another constraint."
            )
        if high < 0:
            raise SpaceError(
                f"nonnegative_symmetric needs high >= 0, got high={high}. Raise high, or leave "
                f"the constraint out."
            )
        if self.sum_at_most is not None:
            name = f"nonnegative_symmetric(sum_at_most={self.sum_at_most})"
            _must_meet_box(name, math.prod(shape), max(low, 0.0), self.sum_at_most)


def _capped(v: Tensor, lower: Tensor, upper: Tensor, total: float) -> Tensor:
    """Project on ``{lower <= x <= upper, sum x <= total}``."""
    x = v.clamp(lower, upper)
    return x if bool(x.sum() <= total) else _knapsack(v, lower, upper, total)


def _knapsack(v: Tensor, lower: Tensor, upper: Tensor, total: float) -> Tensor:
    """Project on ``{lower <= x <= upper, sum x = total}``, which must not be empty.

    Args:
        v: float64, any shape. An entry that is not finite has no nearest point: all become NaN.
        lower: of `v`'s shape; may hold ``-inf``.
        upper: of `v`'s shape; may hold ``inf``.
        total: the sum to reach.
    """
    if not bool(v.isfinite().all()):
        return torch.full_like(v, math.nan)
    enters, leaves = v - upper, v - lower  # x_i moves for τ between the two
    breaks = torch.cat([enters.reshape(-1), leaves.reshape(-1)])
    breaks = breaks[breaks.isfinite()].sort().values
    # Bisection keeps: sum at breaks[left] >= total > sum at breaks[right], the ends being ∓inf.
    left, right = -1, breaks.numel()
    while right - left > 1:
        middle = (left + right) // 2
        if bool((v - breaks[middle]).clamp(lower, upper).sum() >= total):
            left = middle
        else:
            right = middle
    start = float(breaks[left]) if left >= 0 else -math.inf
    stop = float(breaks[right]) if right < breaks.numel() else math.inf
    free = (enters <= start) & (leaves >= stop)
    bound = torch.where(leaves <= start, lower, upper).masked_fill(free, 0.0)
    count = int(free.sum())
    if count == 0:  # the total is the sum of the bounds themselves
        return bound
    # Twice, since v - τ cancels when v is far from the set: the second τ repairs what it lost.
    x = v
    for _ in range(2):
        tau = (torch.where(free, x, bound).sum() - total) / count
        x = torch.where(free, x - tau, bound)
    return x.clamp(lower, upper)


def _full(v: Tensor, bound: float) -> Tensor:
    return torch.full_like(v, bound)


def _exceeds(a: float, b: float) -> bool:
    """Say whether ``a > b`` by more than the rounding of a product."""
    return a > b and not math.isclose(a, b, rel_tol=1e-12)


def _must_meet_box(name: str, n: int, least: float, total: float) -> None:
    """Refuse a bound that the smallest point of the box already breaks."""
    if _exceeds(n * least, total):
        raise SpaceError(
            f"{name} needs a box that it meets, got {n} entries that are each at least {least} "
            f"in size, which sum to {n * least}. Widen the box, or raise the bound."
        )


def _finite(name: str, argument: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
        raise SpaceError(
            f"{name} needs a finite number as {argument}, got {value!r}. Pass a float."
        )
    return float(value)


def _positive(name: str, argument: str, value: float) -> float:
    number = _finite(name, argument, value)
    if number <= 0:
        raise SpaceError(
            f"{name} needs {argument} > 0, got {argument}={value}. A set with nothing but one "
            f"point in it needs no tuning: pass a positive number, or leave the Array out."
        )
    return number

"""Maps between the unit interval and the values of one dimension, as functions of tensors.

`u` is a coordinate of the unit cube. An interval maps affinely, or affinely in its logarithm, and
keeps the autograd graph. A list of K values maps to K cells of equal width, value k at the centre
``(k + 1/2) / K`` of its cell.
"""

import math

import torch
from torch import Tensor

from hyperopt_dl.errors import SpaceError


def interval_from_unit(u: Tensor, low: float, high: float) -> Tensor:
    """Map [0, 1] affinely onto [low, high]; 0 and 1 give the ends exactly."""
    width = high - low
    return torch.where(u < 0.5, low + u * width, high - (1 - u) * width)


def interval_to_unit(x: Tensor, low: float, high: float) -> Tensor:
    """Invert `interval_from_unit`; an interval of one point maps to the centre, 1/2."""
    if low == high:
        return x * 0 + 0.5
    return (x - low) / (high - low)


def log_interval_from_unit(u: Tensor, low: float, high: float) -> Tensor:
    """Map [0, 1] onto [low, high] so that log x is affine in u; 0 and 1 give the ends exactly."""
    width = math.log(high) - math.log(low)
    # Each half starts from its own end: exp(log(high)) need not be high. The exponents are clamped
    # to their half, since the branch that is not taken could overflow and spoil the derivative.
    rise = torch.exp(u.clamp(max=0.5) * width)
    fall = torch.exp((u.clamp(min=0.5) - 1) * width)
    return torch.where(u < 0.5, low * rise, high * fall)


def log_interval_to_unit(x: Tensor, low: float, high: float) -> Tensor:
    """Invert `log_interval_from_unit`; an interval of one point maps to the centre, 1/2."""
    return interval_to_unit(torch.log(x), math.log(low), math.log(high))


def clamp_straight_through(x: Tensor, low: float, high: float) -> Tensor:
    """Clamp to [low, high] exactly, with derivative 1 everywhere.

    A value that rounding, or a step of an optimizer, has put just outside comes back to the bound
    without losing its gradient, so the next step can still leave the bound.
    """
    return x.clamp(low, high).detach() + (x - x.detach())


def cell_from_unit(u: Tensor, cells: int) -> Tensor:
    """Return the number, in 0 .. cells - 1, of the cell that holds `u`, as a floating tensor."""
    return torch.floor(u.detach().double() * cells).clamp(0, cells - 1)


def cell_to_unit(cell: int, cells: int) -> Tensor:
    """Return the centre of a cell, a 0-dim float64 tensor."""
    return torch.tensor((cell + 0.5) / cells, dtype=torch.float64)


def coordinate(u: float | Tensor) -> Tensor:
    """Return `u` as a floating tensor; a number becomes a 0-dim float64 tensor.

    Raises:
        SpaceError: if `u` is a tensor of another kind.
    """
    u = u if isinstance(u, Tensor) else torch.tensor(u, dtype=torch.float64)
    if not u.is_floating_point():
        raise SpaceError(f"A unit coordinate must be floating, got {u.dtype}. Pass u.double().")
    return u


def one_coordinate(u: float | Tensor) -> Tensor:
    """Return `u` as a 0-dim float64 tensor outside the graph.

    Raises:
        SpaceError: if `u` is NaN, or not exactly one number.
    """
    u = coordinate(u).detach().double()
    if u.numel() != 1 or bool(u.isnan().any()):
        raise SpaceError(
            f"A unit coordinate must be one number, got {u.tolist()}. Pass the numbers one by one, "
            f"and none that is NaN."
        )
    return u.reshape(())

"""The scalar hyperparameters that are numbers: `Float` and `Int`.

Each is a frozen value that knows three things: which numbers it contains, its map to one coordinate
of the unit cube and back, and the Optuna distribution that says the same. `init`, where a search
starts, is no part of the distribution. Everything that is wrong with a dimension is a `SpaceError`
when it is made.
"""

import math
import sys
from dataclasses import MISSING, dataclass, field, fields
from decimal import Decimal
from numbers import Integral, Real
from typing import TypeGuard

import numpy as np
import torch
from optuna.distributions import FloatDistribution, IntDistribution
from torch import Tensor

from hyperopt_dl.errors import SpaceError
from hyperopt_dl.space.unit import (
    cell_from_unit,
    cell_to_unit,
    clamp_straight_through,
    coordinate,
    interval_from_unit,
    interval_to_unit,
    log_interval_from_unit,
    log_interval_to_unit,
    one_coordinate,
)

_MOST_STEPS = 1e7  # a finer grid drowns in the rounding of low + k * step, in Optuna too
_LARGEST_INT = 2**40  # beyond it neighbours have one and the same log coordinate
_GRID_TOLERANCE = 1e-8  # in steps; Optuna's


@dataclass(frozen=True, repr=False)
class Float:
    """A real number in [low, high].

    Attributes:
        low: the smallest value.
        high: the largest value, >= low.
        log: search log(value) evenly; needs low > 0.
        step: keep to ``low + k * step``; must divide high - low, and excludes `log`.
        init: the value in `Space.defaults`, which `Study.enqueue` can run first; None for no such.

    Raises:
        SpaceError: if these do not describe a set of numbers.
    """

    low: float
    high: float
    log: bool = field(default=False, kw_only=True)
    step: float | None = field(default=None, kw_only=True)
    init: float | None = field(default=None, kw_only=True)
    size = 1

    def __post_init__(self) -> None:
        for name in ("low", "high", "step", "init"):
            value = getattr(self, name)
            if value is not None or name in ("low", "high"):
                object.__setattr__(self, name, _finite_float(name, value))
        object.__setattr__(self, "log", _flag("Float", self.log))
        if self.low > self.high:
            raise SpaceError(_order("Float", self.low, self.high))
        if not math.isfinite(self.high - self.low):
            raise SpaceError(
                f"Float needs a width high - low that is a finite double, got low={self.low}, "
                f"high={self.high}. Narrow the interval."
            )
        if self.log and self.low <= 0:
            raise SpaceError(
                f"Float(log=True) needs low > 0, got low={self.low}. Use log=False, or start at a "
                f"small positive number."
            )
        if self.log and self.step is not None:
            raise SpaceError(
                f"Float takes log=True or a step, not both, got step={self.step}. Leave one out."
            )
        if self.step is not None:
            _check_step(self.low, self.high, self.step)
        if self.init is not None and not self.contains(self.init):
            raise SpaceError(_init_outside(self, self.init))

    def __repr__(self) -> str:
        return _call(self)

    @property
    def distribution(self) -> FloatDistribution:
        """The Optuna distribution over the same values."""
        return FloatDistribution(self.low, self.high, log=self.log, step=self.step)

    @property
    def differentiable(self) -> bool:
        """Whether the unit map carries gradients, which it does only without a step."""
        return self.step is None

    def contains(self, value: object) -> bool:
        """Say whether `value` is a number (or 0-dim tensor) of this dimension, in its own dtype."""
        tolerance = _GRID_TOLERANCE
        if isinstance(value, Tensor):  # compared as a tensor, so float32(0.3) is in Float(0, 0.3)
            if value.numel() != 1 or value.dtype == torch.bool or value.is_complex():
                return False
            inside = bool((self.low <= value.detach()) & (value.detach() <= self.high))
            if value.is_floating_point() and self.step is not None:
                largest = max(abs(self.low), abs(self.high))
                tolerance = max(tolerance, torch.finfo(value.dtype).eps * largest / self.step)
            value = value.item()
        else:
            value = value.item() if isinstance(value, np.generic) else value
            inside = _is_real(value) and self.low <= value <= self.high
        if self.step is None or not inside or not _is_real(value):
            return inside
        k = (float(value) - self.low) / self.step
        return abs(k - round(k)) < tolerance

    def to_unit(self, value: float | Tensor) -> Tensor:
        """Return the unit coordinate of a value.

        Args:
            value: a number of this dimension, or a 0-dim tensor, whose graph is kept.

        Returns:
            A 0-dim float64 tensor in [0, 1].

        Raises:
            SpaceError: if the value lies outside.
        """
        if not self.contains(value):
            raise SpaceError(_outside(self, value))
        if self.step is not None:
            return cell_to_unit(round((float(value) - self.low) / self.step), self._cells)
        x = torch.as_tensor(value, dtype=torch.float64).reshape(())
        inverse = log_interval_to_unit if self.log else interval_to_unit
        return clamp_straight_through(inverse(x, self.low, self.high), 0.0, 1.0)

    def from_unit(self, u: float | Tensor) -> Tensor:
        """Return the value at a unit coordinate.

        Args:
            u: a tensor of any shape, mapped elementwise, or a number, taken as float64. What lies
                outside [0, 1] is taken as the nearer end.

        Returns:
            A tensor of `u`'s shape, dtype and device with entries in [low, high] (both rounded to
            that dtype). Without a step it is differentiable in `u`, also at and beyond the ends.
        """
        u = coordinate(u)
        if self.step is not None:
            value = self.low + cell_from_unit(u, self._cells) * self.step
            return value.clamp(self.low, self.high).to(u.dtype)
        u = clamp_straight_through(u, 0.0, 1.0)
        onto = log_interval_from_unit if self.log else interval_from_unit
        return clamp_straight_through(onto(u, self.low, self.high), self.low, self.high)

    @property
    def _cells(self) -> int:
        assert self.step is not None
        return round((self.high - self.low) / self.step) + 1


@dataclass(frozen=True, repr=False)
class Int:
    """A whole number in [low, high].

    Attributes:
        low: the smallest value.
        high: the largest value, >= low.
        log: search log(value) evenly; needs low >= 1.
        step: keep to ``low + k * step``; must divide high - low, and be 1 with `log`.
        init: the value in `Space.defaults`, which `Study.enqueue` can run first; None for no such.

    Raises:
        SpaceError: if these do not describe a set of whole numbers, or go beyond 2**40.
    """

    low: int
    high: int
    log: bool = field(default=False, kw_only=True)
    step: int = field(default=1, kw_only=True)
    init: int | None = field(default=None, kw_only=True)
    size = 1
    differentiable = False

    def __post_init__(self) -> None:
        for name in ("low", "high", "step", "init"):
            value = getattr(self, name)
            if value is not None or name != "init":
                object.__setattr__(self, name, _whole(name, value))
        object.__setattr__(self, "log", _flag("Int", self.log))
        if self.low > self.high:
            raise SpaceError(_order("Int", self.low, self.high))
        if max(-self.low, self.high) > _LARGEST_INT:
            raise SpaceError(
                f"Int needs bounds within ±2**40, got low={self.low}, high={self.high}: beyond, "
                f"the unit cube cannot tell neighbours apart. Use Float, or a larger unit."
            )
        if self.log and self.low < 1:
            raise SpaceError(
                f"Int(log=True) needs low >= 1, got low={self.low}. Use log=False, or start at 1."
            )
        if self.step <= 0:
            raise SpaceError(f"Int needs step > 0, got step={self.step}. Leave it out for 1.")
        if self.log and self.step != 1:
            raise SpaceError(
                f"Int takes log=True or a step other than 1, not both, got step={self.step}. "
                f"Leave one out."
            )
        if (self.high - self.low) % self.step != 0:
            nearest = self.high - (self.high - self.low) % self.step
            raise SpaceError(_not_divisible("Int", self.low, self.high, self.step, nearest))
        if self.init is not None and not self.contains(self.init):
            raise SpaceError(_init_outside(self, self.init))

    def __repr__(self) -> str:
        return _call(self)

    @property
    def distribution(self) -> IntDistribution:
        """The Optuna distribution over the same values."""
        return IntDistribution(self.low, self.high, log=self.log, step=self.step)

    def contains(self, value: object) -> bool:
        """Say whether `value` is an integer (or 0-dim integer tensor) of this dimension."""
        if isinstance(value, Tensor) and value.numel() == 1:
            value = value.item()
        if not _is_whole(value):
            return False
        return self.low <= value <= self.high and (value - self.low) % self.step == 0

    def to_unit(self, value: int | Tensor) -> Tensor:
        """Return the unit coordinate of a value, a 0-dim float64 tensor in (0, 1).

        Raises:
            SpaceError: if the value lies outside.
        """
        if not self.contains(value):
            raise SpaceError(_outside(self, value))
        number = int(value)
        if self.log:
            x = torch.tensor(number, dtype=torch.float64)
            return log_interval_to_unit(x, self.low - 0.5, self.high + 0.5)
        return cell_to_unit((number - self.low) // self.step, self._cells)

    def from_unit(self, u: float | Tensor) -> int:
        """Return the value whose cell holds the unit coordinate `u`, one number.

        With `log` the cells are those of Optuna: of [log(low - 1/2), log(high + 1/2)], rounded.

        Raises:
            SpaceError: if `u` is NaN, or more than one number.
        """
        u = one_coordinate(u)
        if not self.log:
            return self.low + int(cell_from_unit(u, self._cells)) * self.step
        x = log_interval_from_unit(u.clamp(0, 1), self.low - 0.5, self.high + 0.5)
        return min(max(round(float(x)), self.low), self.high)

    @property
    def _cells(self) -> int:
        return (self.high - self.low) // self.step + 1


def _call(dimension: Float | Int) -> str:
    """Write a dimension as the call that makes it, without the arguments left at their default."""
    written = []
    for item in fields(dimension):
        value = getattr(dimension, item.name)
        if item.default is MISSING:
            written.append(repr(value))
        elif value != item.default:
            written.append(f"{item.name}={value!r}")
    return f"{type(dimension).__name__}({', '.join(written)})"


def _is_real(value: object) -> TypeGuard[float]:
    return isinstance(value, Real) and not isinstance(value, bool)


def _is_whole(value: object) -> TypeGuard[int]:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _finite_float(name: str, value: object) -> float:
    value = value.item() if isinstance(value, np.generic) else value
    if not _is_real(value) or not abs(value) <= sys.float_info.max:
        raise SpaceError(
            f"Float needs a finite number as {name}, got {name}={value!r}. Pass a float; an "
            f"unbounded hyperparameter is an Array."
        )
    return float(value)


def _whole(name: str, value: object) -> int:
    if not _is_whole(value):
        raise SpaceError(
            f"Int needs a whole number as {name}, got {name}={value!r}. Pass an int, or use Float."
        )
    return int(value)


def _flag(kind: str, value: object) -> bool:
    if not isinstance(value, (bool, np.bool_)):
        raise SpaceError(f"{kind} needs log=True or log=False, got log={value!r}.")
    return bool(value)


def _check_step(low: float, high: float, step: float) -> None:
    if step <= 0:
        raise SpaceError(
            f"Float needs step > 0, got step={step}. Leave it out for a continuous interval."
        )
    if max(abs(low), abs(high), high - low) / step > _MOST_STEPS:
        raise SpaceError(
            f"Float needs a step of at least 1e-7 times the bounds and the width, got "
            f"low={low}, high={high}, step={step}. Leave the step out: it is as good as continuous."
        )
    # In decimals, as Optuna does it: 0.3 is three steps of 0.1 although its double is not.
    start, end, pace = Decimal(str(low)), Decimal(str(high)), Decimal(str(step))
    if rest := (end - start) % pace:
        raise SpaceError(_not_divisible("Float", low, high, step, float(end - rest)))


def _order(kind: str, low: float, high: float) -> str:
    return f"{kind} needs low <= high, got low={low}, high={high}. Swap them."


def _not_divisible(kind: str, low: float, high: float, step: float, nearest: float) -> str:
    return (
        f"{kind} needs a step that divides high - low, got low={low}, high={high}, step={step}. "
        f"Use high={nearest}, or another step."
    )


def _init_outside(dimension: object, init: object) -> str:
    return f"init must be a value of the dimension, got {dimension!r}. Change init={init!r}."


def _outside(dimension: object, value: object) -> str:
    return f"{value!r} is not a value of {dimension!r}. Pass one that is, or widen the dimension."

"""The hyperparameter that is a tensor: `Array`.

Weights of training examples, learning rates of every layer, a matrix of task relations: what only a
hypergradient can tune. Optuna has no distribution for it, and its values are files, not parameters.
"""

import math
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from numbers import Real
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hyperopt_dl.constraints import Constraint, project_box
from hyperopt_dl.errors import SpaceError
from hyperopt_dl.space.unit import coordinate, interval_from_unit, interval_to_unit

Entries: TypeAlias = float | Tensor | NDArray[Any] | Sequence["Entries"]

_TOLERANCE = 1e-6  # relative; a value that was computed in float32 still satisfies its constraint
_LONGEST_INIT = 64  # entries that a repr writes out


@dataclass(frozen=True, repr=False)
class Array:
    """A real tensor with ``low <= x_i <= high``, and perhaps a constraint on the entries together.

    Its unit coordinates are its entries in row-major order: mapped affinely to [0, 1] if both
    bounds are finite, and left as they are (so not confined to [0, 1]) if one is infinite: without
    finite bounds there is no natural unit but its own.

    Attributes:
        shape: the tensor's shape, a tuple; an int n is (n,).
        low: lower bound of every entry.
        high: upper bound of every entry.
        init: where a search starts: a number for all entries, or a tensor, numpy array or nested
            sequence of the shape. Kept as a number, or as nested tuples. The default is the
            projection of 0.
        constraint: one of `hyperopt_dl.constraints`.

    Raises:
        SpaceError: if no tensor fits the description, or `init` does not.
    """

    shape: tuple[int, ...] | int
    _: KW_ONLY
    low: float = -math.inf
    high: float = math.inf
    init: Entries | None = None
    constraint: Constraint | None = None
    differentiable = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", _shape(self.shape))
        object.__setattr__(self, "low", _bound("low", self.low))
        object.__setattr__(self, "high", _bound("high", self.high))
        if not (self.low <= self.high and self.low < math.inf and self.high > -math.inf):
            raise SpaceError(
                f"Array needs low <= high with a number between them, got low={self.low}, "
                f"high={self.high}. Swap them, or leave a bound out."
            )
        if self.constraint is not None:
            if not isinstance(self.constraint, Constraint) or isinstance(self.constraint, type):
                raise SpaceError(
                    f"Array needs an object with project and check as its constraint, got "
                    f"{self.constraint!r}. Call one of hyperopt_dl.constraints, as in simplex()."
                )
            self.constraint.check(self._shape, self.low, self.high)
        object.__setattr__(self, "init", self._canonical_init())

    def __repr__(self) -> str:
        parts = [repr(self.shape)]
        parts += [f"low={self.low}"] if self.low > -math.inf else []
        parts += [f"high={self.high}"] if self.high < math.inf else []
        if self.init != _canonical(self._default_init()):
            short = isinstance(self.init, float) or self.size <= _LONGEST_INIT
            parts.append(f"init={self.init!r}" if short else f"init=<{self.size} numbers>")
        parts += [f"constraint={self.constraint!r}"] if self.constraint is not None else []
        return f"Array({', '.join(parts)})"

    @property
    def size(self) -> int:
        """The number of entries, each one unit coordinate."""
        return math.prod(self._shape)

    @property
    def start(self) -> Tensor:
        """`init` as a new float64 tensor of the Array's shape."""
        return torch.tensor(self.init, dtype=torch.float64).expand(self._shape).clone()

    def contains(self, value: object) -> bool:
        """Say whether `value` is finite, of the shape, in the box and in the constraint.

        Up to a relative 1e-6, in every entry and in the sum of absolute values: so much may lie
        between `value` and its projection.
        """
        try:
            x = self._tensor(value).detach().double()
        except SpaceError:
            return False
        if not bool(x.isfinite().all()):
            return False
        moved = (self.project(x) - x).abs()
        slack = _TOLERANCE * min(1.0, self.high - self.low)
        return bool(
            (moved <= _TOLERANCE * x.abs() + slack).all()
            and moved.sum() <= _TOLERANCE * x.abs().sum() + slack
        )

    def project(self, x: Tensor) -> Tensor:
        """Return the nearest tensor within the box and the constraint.

        Args:
            x: a floating tensor of the Array's shape.

        Returns:
            A tensor of `x`'s dtype and device, outside the autograd graph. It costs O(N log N) with
            a constraint on the N entries together.

        Raises:
            SpaceError: if `x` has another shape.
        """
        x = self._tensor(x)
        if self.constraint is None:
            return project_box(x, self.low, self.high)
        return self.constraint.project(x, self.low, self.high)

    def to_unit(self, value: Entries) -> Tensor:
        """Return the unit coordinates of a value, a float64 tensor of shape [size].

        The graph of a tensor is kept. Neither box nor constraint is asked for: see `contains`.

        Raises:
            SpaceError: if the value has another shape.
        """
        x = self._tensor(value).double().reshape(-1)
        return interval_to_unit(x, self.low, self.high) if self._boxed else x

    def from_unit(self, u: Tensor) -> Tensor:
        """Return the value at unit coordinates, which is not projected: see `project`.

        Args:
            u: a floating tensor of shape [size].

        Returns:
            A tensor of the Array's shape and of `u`'s dtype and device, differentiable in `u`.

        Raises:
            SpaceError: if `u` has another number of entries, or another shape than [size].
        """
        u = coordinate(u)
        if u.shape != (self.size,):
            raise SpaceError(
                f"{self!r} needs unit coordinates of shape [{self.size}], got {list(u.shape)}. "
                f"Flatten them in row-major order."
            )
        u = u.reshape(self._shape)
        return interval_from_unit(u, self.low, self.high) if self._boxed else u

    @property
    def _shape(self) -> tuple[int, ...]:
        assert isinstance(self.shape, tuple)
        return self.shape

    @property
    def _boxed(self) -> bool:
        return math.isfinite(self.high - self.low)

    def _tensor(self, value: object) -> Tensor:
        try:
            x = torch.as_tensor(value)
        except (TypeError, ValueError, RuntimeError) as error:
            raise SpaceError(
                f"An Array's value must be a tensor or nested numbers, got {type(value).__name__}: "
                f"{error}. Pass a tensor of shape {self.shape}."
            ) from error
        if x.shape != self._shape or x.is_complex() or x.dtype == torch.bool:
            raise SpaceError(
                f"An Array's value must be a real tensor of shape {self.shape}, got shape "
                f"{tuple(x.shape)} of {x.dtype}. Reshape or convert it."
            )
        if isinstance(value, Tensor) and x.is_floating_point():
            return x
        return torch.as_tensor(value, dtype=torch.float64)

    def _default_init(self) -> Tensor:
        return self.project(torch.zeros(self._shape, dtype=torch.float64))

    def _canonical_init(self) -> Entries:
        """Keep `init` as what can be hashed and compared: one number, or nested tuples of them."""
        if self.init is None:
            return _canonical(self._default_init())
        if isinstance(self.init, (int, float, np.number)) and not isinstance(self.init, bool):
            init = torch.full(self._shape, float(self.init), dtype=torch.float64)
        else:
            init = self._tensor(self.init).detach().cpu().double()
        if not self.contains(init):
            raise SpaceError(
                f"Array needs an init within low={self.low}, high={self.high} and "
                f"constraint={self.constraint!r}, got one that lies outside. Pass its projection, "
                f"Array(...).project(init), or leave it out."
            )
        return _canonical(init)


def _shape(shape: object) -> tuple[int, ...]:
    lengths: tuple[Any, ...] = tuple(shape) if isinstance(shape, (tuple, list)) else (shape,)
    whole = all(not isinstance(n, bool) and isinstance(n, (int, np.integer)) for n in lengths)
    if not lengths or not whole or min(lengths) < 1:
        raise SpaceError(
            f"Array needs a shape of one or more positive ints, got {shape!r}. Use Float for a "
            f"single number."
        )
    return tuple(int(n) for n in lengths)


def _bound(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, Real) or math.isnan(value):
        raise SpaceError(
            f"Array needs a number or an infinity as {name}, got {name}={value!r}. Pass a float."
        )
    return float(value)


def _canonical(x: Tensor) -> Entries:
    first = x.reshape(-1)[0]
    return float(first) if bool((x == first).all()) else _nested_tuple(x.tolist())


def _nested_tuple(entries: list[Entries]) -> Entries:
    return tuple(_nested_tuple(entry) if isinstance(entry, list) else entry for entry in entries)

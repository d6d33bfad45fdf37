"""What a tuner of the race is given: a space, and a loss whose least value is known or bounded."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

Params: TypeAlias = dict[str, Any]
Point: TypeAlias = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Problem:
    """A function to minimise.

    Attributes:
        space: Its dimensions: Floats without a step, Ints without a logarithm, and categorical ones
            of two choices.
        regret: The regret of a point, without noise.
        groups: Where the function is a sum over groups of dimensions, their names.
        noise: The standard deviation of what is added to the regret before a tuner sees it.
        floor: Regrets below this count as this: what is better is not worth winning.
        optimum: A point of least regret, where one is known.
    """

    space: Mapping[str, BaseDistribution]
    regret: Callable[[Params], float]
    groups: Sequence[Sequence[str]] | None = None
    noise: float = 0.0
    floor: float = 1e-6
    optimum: Params | None = None


def on_cube(
    D: int,
    regret: Callable[[Point], float],
    *,
    groups: Sequence[npt.NDArray[np.int64]] | None = None,
    noise: float = 0.0,
    optimum: Point | None = None,
) -> Problem:
    """Return the problem of a function on the unit cube of D dimensions."""
    names = [f"x{d:02d}" for d in range(D)]
    return Problem(
        dict.fromkeys(names, FloatDistribution(0.0, 1.0)),
        lambda params: regret(np.array([params[name] for name in names])),
        groups=None if groups is None else [[names[d] for d in group] for group in groups],
        noise=noise,
        optimum=None if optimum is None else dict(zip(names, optimum.tolist(), strict=True)),
    )


@dataclass(frozen=True)
class Cube:
    """The map between points of a space and the unit cube.

    A Float lies in [0, 1], evenly in its logarithm with ``log``; an Int at ``0, 1/(k-1), ..., 1``;
    a categorical dimension of two choices at 0 or 1.
    """

    space: Mapping[str, BaseDistribution]

    @property
    def levels(self) -> dict[int, list[float]]:
        """The coordinates of each dimension that is not a Float, by its index."""
        counts = enumerate(_count(dimension) for dimension in self.space.values())
        return {d: (np.arange(k) / (k - 1)).tolist() for d, k in counts if k is not None}

    def encode(self, points: Sequence[Params]) -> Point:
        """Return the coordinates ``[n, D]`` of points."""
        columns = [
            [_encode(dimension, params[name]) for params in points]
            for name, dimension in self.space.items()
        ]
        return np.array(columns).T

    def decode(self, x: Point) -> Params:
        """Return the point that is nearest to the coordinates ``[D]``."""
        pairs = zip(self.space.items(), x.tolist(), strict=True)
        return {name: _decode(dimension, u) for (name, dimension), u in pairs}

    def spread(self, x: Point) -> Params:
        """Return a point so that uniform coordinates ``[D]`` give every value equally often."""
        x = x.copy()
        for d, values in self.levels.items():
            x[d] = values[min(int(x[d] * len(values)), len(values) - 1)]
        return self.decode(x)


def _count(dimension: BaseDistribution) -> int | None:
    """Return the number of values, ``None`` for a Float."""
    if isinstance(dimension, CategoricalDistribution) and len(dimension.choices) == 2:
        return 2
    if isinstance(dimension, IntDistribution) and not dimension.log:
        return (dimension.high - dimension.low) // dimension.step + 1
    if isinstance(dimension, FloatDistribution) and dimension.step is None:
        return None
    raise TypeError(f"The race has no dimension such as {dimension}. See Problem.space.")


def _encode(dimension: BaseDistribution, value: Any) -> float:
    number = dimension.to_internal_repr(value)
    if isinstance(dimension, CategoricalDistribution):
        return number
    assert isinstance(dimension, (FloatDistribution, IntDistribution))
    low, high = float(dimension.low), float(dimension.high)
    if dimension.log:
        low, high, number = np.log(low), np.log(high), np.log(number)
    return float((number - low) / (high - low))


def _decode(dimension: BaseDistribution, u: float) -> Any:
    u = min(max(u, 0.0), 1.0)
    if isinstance(dimension, FloatDistribution):
        low, high = dimension.low, dimension.high
        value = low * (high / low) ** u if dimension.log else low + (high - low) * u
        return min(max(value, low), high)
    k = _count(dimension)
    assert k is not None
    index = round(u * (k - 1))
    if isinstance(dimension, IntDistribution):
        index = dimension.low + dimension.step * index
    return dimension.to_external_repr(float(index))

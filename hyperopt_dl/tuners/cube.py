"""The search space of a study as the unit cube in which a model sees it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from torch import Tensor

from hyperopt_dl.errors import SpaceError
from hyperopt_dl.gp.domain import Domain
from hyperopt_dl.space import Float, Int, Space
from hyperopt_dl.space.unit import interval_to_unit, log_interval_to_unit

MOST_LEVELS = 1024
"""Ordered values beyond this number are searched as an interval, and rounded in the end."""
_SLACK = 1e-9  # of the cube, by which rounding may put a value outside


@dataclass(frozen=True)
class Cube:
    """Dimensions by name, and their map to ``[n, D]`` coordinates and back.

    A Float lies in [0, 1], evenly in its logarithm with ``log``. An Int, or a Float with a step,
    has the centres of its cells; a categorical dimension has the indices of its choices.
    """

    distributions: Mapping[str, BaseDistribution]

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the D dimensions, in order."""
        return tuple(self.distributions)

    @property
    def categorical(self) -> Tensor:
        """Which dimensions are categorical, ``[D]`` of bool."""
        kinds = [isinstance(d, CategoricalDistribution) for d in self.distributions.values()]
        return torch.tensor(kinds, dtype=torch.bool)

    @property
    def domain(self) -> Domain:
        """The valid points."""
        return Domain(tuple(_levels(d) for d in self.distributions.values()), self.categorical)

    def encode(self, params: Sequence[Mapping[str, Any]]) -> tuple[Tensor, Tensor]:
        """Return coordinates ``[n, D]``, and which rows lie in the cube, ``[n]`` of bool.

        Args:
            params: Values by name, of at least these dimensions.
        """
        columns = []
        for name, distribution in self.distributions.items():
            numbers = [distribution.to_internal_repr(values[name]) for values in params]
            columns.append(_to_unit(distribution, torch.tensor(numbers, dtype=torch.float64)))
        empty = torch.empty(len(params), len(columns), dtype=torch.float64)
        x = torch.stack(columns, -1) if empty.numel() else empty
        high = torch.where(self.categorical, torch.inf, 1.0)
        inside = ((x >= -_SLACK) & (x <= high + _SLACK)).all(-1)
        return torch.minimum(x.clamp(min=0), high), inside

    def stretch(self, params: Sequence[Mapping[str, Any]]) -> Tensor:
        """Return dλ/du of each value in its coordinate, ``[n, D]``; NaN where there is none.

        Only a Float without a step has one: the width of its range, or of that of its logarithm
        times the value.

        Args:
            params: Values by name, of at least these dimensions.
        """
        columns = []
        for name, distribution in self.distributions.items():
            match distribution:
                case FloatDistribution(low=low, high=high, log=True):
                    width = math.log(high) - math.log(low)
                    column = [width * values[name] for values in params]
                case FloatDistribution(low=low, high=high, step=None):
                    column = [high - low] * len(params)
                case _:
                    column = [math.nan] * len(params)
            columns.append(torch.tensor(column, dtype=torch.float64))
        return torch.stack(columns, -1) if columns else torch.empty(len(params), 0).double()

    def decode(self, x: Tensor) -> dict[str, Any]:
        """Return the values of a point ``[D]``, as Python's own numbers and the choices."""
        values: dict[str, Any] = {}
        for u, (name, distribution) in zip(x.tolist(), self.distributions.items(), strict=True):
            if isinstance(distribution, CategoricalDistribution):
                values[name] = distribution.to_external_repr(round(u))
            else:
                dimension = Space({name: distribution})[name]
                assert isinstance(dimension, (Float, Int))
                values[name] = distribution.to_external_repr(float(dimension.from_unit(u)))
        return values


def searchable(distributions: Mapping[str, BaseDistribution]) -> dict[str, BaseDistribution]:
    """Return the distributions that have more than one value and a place in a cube."""
    return {
        name: distribution
        for name, distribution in sorted(distributions.items())
        if not distribution.single() and not unsearchable(name, distribution)
    }


def unsearchable(name: str, distribution: BaseDistribution) -> str:
    """Return why a distribution has no place in a cube; nothing if it has one."""
    try:
        Space({name: distribution})
    except SpaceError as error:
        return str(error)
    return ""


def _levels(distribution: BaseDistribution) -> Tensor | None:
    match distribution:
        case CategoricalDistribution(choices=choices):
            return torch.arange(len(choices), dtype=torch.float64)
        case FloatDistribution(low=low, high=high, step=float(step)):
            count = round((high - low) / step) + 1
        case IntDistribution(low=low, high=high, step=step):
            count = (high - low) // step + 1
        case _:
            return None
    if count > MOST_LEVELS:
        return None
    numbers = distribution.low + torch.arange(count, dtype=torch.float64) * (step or 1)
    return _to_unit(distribution, numbers)


def _to_unit(distribution: BaseDistribution, x: Tensor) -> Tensor:
    """Return the coordinates of values in Optuna's internal representation, unclamped."""
    match distribution:
        case FloatDistribution(low=low, high=high, log=True):
            return log_interval_to_unit(x, low, high)
        case FloatDistribution(low=low, high=high, step=None):
            return interval_to_unit(x, low, high)
        case IntDistribution(low=low, high=high, log=True):
            return log_interval_to_unit(x, low - 0.5, high + 0.5)
        case (
            FloatDistribution(low=low, high=high, step=float(step))
            | IntDistribution(low=low, high=high, step=step)
        ):
            cells = round((high - low) / step) + 1
            return (((x - low) / step).round() + 0.5) / cells
    return x

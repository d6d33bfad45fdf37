"""What the coordinates of a point may be: an interval, or levels, ordered or not."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Domain:
    """The set of valid points ``[D]`` in the form in which the model sees them, float64."""

    levels: tuple[Tensor | None, ...]
    """For each dimension: ``None`` for the interval [0, 1], else its levels ``[k]``, increasing."""
    categorical: Tensor
    """``[D]`` of bool: whose levels are indices ``0 .. k - 1`` without an order."""

    @property
    def continuous(self) -> Tensor:
        """Which dimensions are intervals, ``[D]`` of bool."""
        return torch.tensor([levels is None for levels in self.levels])

    @property
    def size(self) -> float:
        """The number of valid points, ``inf`` where one dimension is an interval."""
        return math.prod(math.inf if levels is None else len(levels) for levels in self.levels)

    def all_points(self) -> Tensor:
        """Return every point, ``[size, D]``; only for a domain that is finite."""
        columns = [levels for levels in self.levels if levels is not None]
        grid = torch.meshgrid(*columns, indexing="ij")
        return torch.stack([column.flatten() for column in grid], -1)

    def from_uniform(self, u: Tensor) -> Tensor:
        """Map uniform numbers ``[m, D]`` in [0, 1) to points, every level being equally likely."""
        columns = []
        for d, levels in enumerate(self.levels):
            if levels is None:
                columns.append(u[:, d])
            else:
                index = (u[:, d] * len(levels)).long().clamp(0, len(levels) - 1)
                columns.append(levels[index])
        return torch.stack(columns, -1)

    def nearest(self, x: Tensor) -> Tensor:
        """Return the nearest valid points to ``[m, D]`` numbers, dimension by dimension."""
        columns = []
        for d, levels in enumerate(self.levels):
            if levels is None:
                columns.append(x[:, d].clamp(0, 1))
            else:
                columns.append(levels[(x[:, d, None] - levels).abs().argmin(-1)])
        return torch.stack(columns, -1)

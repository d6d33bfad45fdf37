"""Observations as the likelihood reads them: one row per distinct point, and every pair of rows.

    n  distinct points        N  pairs of them, n (n - 1) / 2        D  dimensions
    E  [D + 1, N], δ_d of each pair: (x_d - x'_d)², or [x_d ≠ x'_d] for a categorical d; and last
       (ρ - ρ')² of the radius ρ

A kernel is symmetric and has one value on its diagonal, so it is a function of the pairs alone:
half the work of square matrices, and the squared distance of any group of dimensions is a sum of
rows of E.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from hyperopt_dl.gp.radius import radius


@dataclass(frozen=True)
class Data:
    """What has been observed. Values are standardised and negated: large is good."""

    x: Tensor
    """``[n, D]``, the distinct points, in the order in which they first came."""
    y: Tensor
    """``[n]``, the mean value at each of them."""
    counts: Tensor
    """``[n]``, how many observations that is the mean of."""
    spread: float
    """The squared deviations of all observations from the mean at their point, summed."""
    categorical: Tensor
    """``[D]``, bool."""
    E: Tensor
    """``[D + 1, N]``, in the order of `pairs`."""
    pairs: Tensor
    """``[2, N]``, the rows and the columns of the entries below the diagonal."""

    def square(self, below: Tensor, diagonal: Tensor) -> Tensor:
        """Return symmetric matrices ``[..., n, n]`` of which only the lower half is filled.

        Args:
            below: A ``... x N`` tensor, the entries below the diagonal.
            diagonal: A ``... x n`` tensor.
        """
        n = len(self.y)
        matrices = below.new_zeros(*below.shape[:-1], n, n)
        rows, columns = self.pairs
        matrices[..., rows, columns] = below
        matrices.diagonal(dim1=-2, dim2=-1).copy_(diagonal)
        return matrices

    def below(self, matrices: Tensor) -> Tensor:
        """Return the entries ``[..., N]`` below the diagonal of matrices ``[..., n, n]``."""
        rows, columns = self.pairs
        return matrices[..., rows, columns]


def observe(x: Tensor, y: Tensor, categorical: Tensor) -> Data:
    """Return the data of observations in which exact duplicates are merged.

    Args:
        x: A ``m x D`` tensor of points in the unit cube.
        y: A ``m`` tensor of values, standardised and negated.
        categorical: A ``D`` tensor of bool.
    """
    first, member = _distinct(x)
    n = len(first)
    counts = torch.zeros(n, dtype=y.dtype, device=y.device).index_add_(
        0, member, torch.ones_like(y)
    )
    means = torch.zeros_like(counts).index_add_(0, member, y) / counts
    spread = (y - means[member]).square().sum().item()
    points = x[first]
    pairs = torch.tril_indices(n, n, offset=-1, device=x.device)
    numbers = torch.cat([points, radius(points[:, ~categorical] - 0.5).unsqueeze(-1)], -1)
    differences = (numbers[pairs[0]] - numbers[pairs[1]]).T
    choices = torch.nn.functional.pad(categorical, (0, 1)).unsqueeze(-1)
    E = torch.where(choices, (differences != 0).to(x), differences.square())
    return Data(points, means, counts, spread, categorical, E.contiguous(), pairs)


def _distinct(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the first row of each distinct point in order, and of which one each row is a copy."""
    _, member = torch.unique(x, dim=0, return_inverse=True)
    rows = torch.arange(len(x), device=x.device)
    first = torch.full((int(member.max()) + 1,), len(x), device=x.device)
    first.scatter_reduce_(0, member, rows, "amin")
    first, order = first.sort()
    return first, order.argsort()[member]

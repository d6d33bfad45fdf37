"""Observed derivatives of the function: how they vary with its values and with each other.

With δ = x - x' and κ', κ'' the derivatives of the correlation in r², a sum kernel gives

    cov(f(x), ∂_j f(x'))      = Σ_g w_g (-2 κ'_g) a_gj δ_j
    cov(∂_i f(x), ∂_j f(x'))  = Σ_g w_g [(-4 κ''_g) a_gi δ_i a_gj δ_j + (-2 κ'_g) a_gi [i = j]]

    g  component, of G     w  its weight     a_g  its scales, 0 where its mask is 0
    u  points at which derivatives are known     r  derivatives, each of one point and one dimension

Everything is bounded, for a Matern-5/2 too: κ' is -5/6 and κ'' is 25/12 at distance 0, and every
factor 1/r of κ''' meets a δ. So the covariance with values can be differentiated once more, in x.

Source: Rasmussen and Williams, "Gaussian Processes for Machine Learning", 2006, section 9.4.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hyperopt_dl.gp.kernel import Family, Kernel, slope

_ROOT5 = 5.0**0.5


@dataclass(frozen=True)
class Derivatives:
    """Partial derivatives that have been observed, in dimensions that are not categorical.

    A batch of kernels shares all but the noise.
    """

    x: Tensor
    """``[u, D]``, the points."""
    point: Tensor
    """``[r]`` of long, the row of `x` that each derivative belongs to."""
    dimension: Tensor
    """``[r]`` of long, the dimension in which it is one."""
    values: Tensor
    """``[r]``, in standardised values per unit of the cube; what is large is good."""
    noise: Tensor
    """``[..., r]``, the variance of each around the function's derivative."""

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, index: Any) -> "Derivatives":
        """Return what one member of a batch of kernels has seen."""
        return Derivatives(self.x, self.point, self.dimension, self.values, self.noise[index])

    def with_values(self, kernel: Kernel, x: Tensor) -> Tensor:
        """Return their covariance ``[..., r, m]`` with the function at ``... x m x D`` points."""
        a = kernel.masks * kernel.scales
        slopes = slope(kernel.squared_distances(self.x, x), kernel.family)  # ... x G x u x m
        weighted = (-2 * kernel.weights)[..., None, None] * slopes
        by_dimension = torch.einsum("...gum,...gd->...udm", weighted, a)
        return by_dimension[..., self.point, self.dimension, :] * self._differences(x)

    def with_parts(self, kernel: Kernel, x: Tensor) -> Tensor:
        """Return their covariance with each component at points, ``[..., G, r, m]``."""
        a = (kernel.masks * kernel.scales)[..., self.dimension].unsqueeze(-1)
        slopes = slope(kernel.squared_distances(self.x, x), kernel.family)[..., self.point, :]
        weights = (-2 * kernel.weights)[..., None, None]
        return weights * slopes * a * self._differences(x).unsqueeze(-3)

    def covariance(self, kernel: Kernel) -> Tensor:
        """Return their covariance ``[..., r, r]`` with each other, without noise."""
        r2 = kernel.squared_distances(self.x, self.x)
        a = (kernel.masks * kernel.scales)[..., self.dimension]
        alike = self.dimension.unsqueeze(-1) == self.dimension
        curved = torch.zeros_like(r2[..., 0, :1, :1])  # summed one by one: r² numbers each
        sloped = torch.zeros_like(curved)
        for g in range(r2.shape[-3]):
            wa = kernel.weights[..., g, None] * a[..., g, :]
            pair = curvature(r2[..., g, :, :], kernel.family)[..., self.point, :][..., self.point]
            curved = curved + pair * wa.unsqueeze(-1) * a[..., g, None, :]
            flat = slope(r2[..., g, :, :], kernel.family)[..., self.point, :][..., self.point]
            sloped = sloped + flat * wa.unsqueeze(-1)
        apart = self._differences(self.x[self.point])  # r x r: along the row's dimension
        return 4 * curved * apart * apart.mT - 2 * alike * sloped

    def variance(self, kernel: Kernel) -> Tensor:
        """Return their prior variances ``[..., r]``, which differ by dimension alone."""
        shares = kernel.weights.unsqueeze(-1) * kernel.masks * kernel.scales
        at_zero = slope(shares.new_zeros(()), kernel.family)
        return -2 * at_zero * shares.sum(-2)[..., self.dimension]

    def _differences(self, x: Tensor) -> Tensor:
        """Return x_j - x'_j, ``[..., r, m]``, of points and those of the derivatives, along j."""
        return x[..., self.dimension].mT - self.x[self.point, self.dimension].unsqueeze(-1)


def curvature(r2: Tensor, family: Family) -> Tensor:
    """Return d²κ/d(r²)². Matern-5/2: 25/12 exp(-√5 r). RBF: exp(-r²/2) / 4."""
    if family == "rbf":
        return 0.25 * torch.exp(-0.5 * r2)
    return 25 / 12 * torch.exp(-_ROOT5 * r2.sqrt())

"""Observed derivatives of the function: how they vary with its values and with each other.

With δ = x - x' and κ', κ'' the derivatives of the correlation in r², a sum kernel gives

    cov(f(x), ∂_j f(x'))      = Σ_g w_g (-2 κ'_g) a_gj δ_j
    cov(∂_i f(x), ∂_j f(x'))  = Σ_g w_g [(-4 κ''_g) a_gi δ_i a_gj δ_j + (-2 κ'_g) a_gi [i = j]]

    g  component, of G     w  its weight     a_g  its scales, 0 where its mask is 0
    u  points at which derivatives are known     r  derivatives, each of one point and one dimension

A component that reads the radius ρ has r² = a_ρ (ρ - ρ')². There, with ρ_j = ∂ρ/∂x_j, the factor
a_j δ_j becomes a_ρ (ρ - ρ') ρ_j, at the point that the derivative in j belongs to, and a_i [i = j]
becomes a_ρ ρ_i ρ'_j.

Everything is bounded, for a Matern-5/2 too: κ' is -5/6 and κ'' is 25/12 at distance 0, and every
factor 1/r of κ''' meets a δ. So the covariance with values can be differentiated once more, in x.

Source: Rasmussen and Williams, "Gaussian Processes for Machine Learning", 2006, section 9.4.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hyperopt_dl.gp.kernel import Family, Kernel, slope
from hyperopt_dl.gp.radius import radius, radius_slope

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
        by_column = torch.einsum("...gum,...gd->...udm", weighted, a)
        found = by_column[..., self.point, self.dimension, :] * self._differences(x)
        if not kernel.has_radius:
            return found
        return found + by_column[..., self.point, -1, :] * self._differences_of_radii(kernel, x)

    def with_parts(self, kernel: Kernel, x: Tensor) -> Tensor:
        """Return their covariance with each component at points, ``[..., G, r, m]``."""
        a = (kernel.masks * kernel.scales).unsqueeze(-1)
        slopes = slope(kernel.squared_distances(self.x, x), kernel.family)[..., self.point, :]
        weighted = (-2 * kernel.weights)[..., None, None] * slopes
        along = a[..., self.dimension, :] * self._differences(x).unsqueeze(-3)
        if kernel.has_radius:
            along = along + a[..., -1:, :] * self._differences_of_radii(kernel, x).unsqueeze(-3)
        return weighted * along

    def covariance(self, kernel: Kernel) -> Tensor:
        """Return their covariance ``[..., r, r]`` with each other, without noise."""
        r2 = kernel.squared_distances(self.x, self.x)
        a = kernel.masks * kernel.scales
        where = self.x[self.point]
        apart = self._differences(where)  # r x r: along the row's dimension
        apart, alike = 4 * apart * apart.mT, 2 * (self.dimension.unsqueeze(-1) == self.dimension)
        radial = set[int]()
        if kernel.has_radius:
            radial = set(kernel.masks[..., -1].nonzero()[:, -1].tolist())
            slopes, aside = self._slopes_of_radii(kernel), self._differences_of_radii(kernel, where)
            slopes, aside = 2 * slopes.unsqueeze(-1) * slopes, 4 * aside * aside.mT
        total = torch.zeros_like(r2[..., 0, :1, :1])  # summed one by one: r² numbers each
        for g in range(r2.shape[-3]):
            w, a_g = kernel.weights[..., g, None], a[..., g, self.dimension]
            pair = curvature(r2[..., g, :, :], kernel.family)[..., self.point, :][..., self.point]
            flat = slope(r2[..., g, :, :], kernel.family)[..., self.point, :][..., self.point]
            of_row = (w * a_g).unsqueeze(-1)
            total = total + of_row * (a_g.unsqueeze(-2) * pair * apart - flat * alike)
            if g in radial:
                a_rho = a[..., g, -1, None, None]
                total = total + w.unsqueeze(-1) * a_rho * (a_rho * pair * aside - flat * slopes)
        return total

    def variance(self, kernel: Kernel) -> Tensor:
        """Return their prior variances ``[..., r]``."""
        shares = (kernel.weights.unsqueeze(-1) * kernel.masks * kernel.scales).sum(-2)
        at_zero = slope(shares.new_zeros(()), kernel.family)
        total = shares[..., self.dimension]
        if kernel.has_radius:
            total = total + shares[..., -1:] * self._slopes_of_radii(kernel).square()
        return -2 * at_zero * total

    def _differences(self, x: Tensor) -> Tensor:
        """Return x_j - x'_j, ``[..., r, m]``, of points and those of the derivatives, along j."""
        return x[..., self.dimension].mT - self.x[self.point, self.dimension].unsqueeze(-1)

    def _slopes_of_radii(self, kernel: Kernel) -> Tensor:
        """Return ρ_j, ``[r]``, at the points of the derivatives."""
        slopes = torch.zeros_like(self.x)
        slopes[:, ~kernel.categorical] = radius_slope(_ordered(kernel, self.x))
        return slopes[self.point, self.dimension]

    def _differences_of_radii(self, kernel: Kernel, x: Tensor) -> Tensor:
        """Return (ρ - ρ') ρ'_j, ``[..., r, m]``, of points and those of the derivatives."""
        known = radius(_ordered(kernel, self.x))[self.point].unsqueeze(-1)
        apart = radius(_ordered(kernel, x)).unsqueeze(-2) - known
        return apart * self._slopes_of_radii(kernel).unsqueeze(-1)


def _ordered(kernel: Kernel, x: Tensor) -> Tensor:
    """Return x - ½ in the ordered dimensions."""
    return x[..., ~kernel.categorical] - 0.5


def curvature(r2: Tensor, family: Family) -> Tensor:
    """Return d²κ/d(r²)². Matern-5/2: 25/12 exp(-√5 r). RBF: exp(-r²/2) / 4."""
    if family == "rbf":
        return 0.25 * torch.exp(-0.5 * r2)
    return 25 / 12 * torch.exp(-_ROOT5 * r2.sqrt())

"""The posterior of a sum kernel, in total and per component, and how it grows by new points.

    f(x*) | y ~ N(k* A⁻¹ y, k(x*, x*) - k* A⁻¹ k*ᵀ),    A = K + σ² I = L Lᵀ,    k* = k(x*, x)

    L  Cholesky factor     n  observations     q  new points     m  points asked about
    σ²  kernel.noise       G  components       s  sets of values at the same points
    r   derivatives        N  r + n

A component's posterior has its own part of the kernel in place of k, and the same A. Several sets
of values (fantasies) share one factor: they differ in ``A⁻¹ y`` alone.

Observed derivatives are further observations, and come before the values: y, k* and A then have r
more rows, which `derivatives` tells how to fill.
"""

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from hyperopt_dl.gp.derivatives import Derivatives
from hyperopt_dl.gp.kernel import Kernel
from hyperopt_dl.gp.likelihood import cholesky
from hyperopt_dl.gp.marginals import Marginals, prepare


@dataclass(frozen=True)
class Posterior:
    """A Gaussian process given observations; ``condition`` makes one.

    The leading dimensions ``...`` are the kernel's batch, such as chains. All tensors are float64.
    """

    kernel: Kernel
    x: Tensor
    """``[..., n, D]``, the points."""
    values: Tensor
    """``[..., n, s]``, standardised and to be maximised."""
    factor: Tensor
    """``[..., N, N]``, L."""
    weights: Tensor
    """``[..., N, s]``, A⁻¹ y."""
    derivatives: Derivatives | None = None
    """Those that are known of the function."""

    @cached_property
    def _marginals(self) -> dict[torch.dtype, Marginals]:
        return {}

    def __getitem__(self, index: int) -> "Posterior":
        """Return one member of a batch."""
        return Posterior(
            self.kernel[index],
            self.x[index],
            self.values[index],
            self.factor[index],
            self.weights[index],
            None if self.derivatives is None else self.derivatives[index],
        )

    def cross(self, x: Tensor) -> Tensor:
        """Return the prior covariance ``[..., m, N]`` of the function with what is known."""
        return self._and_derivatives(self.kernel(x, self.x).mT, x).mT

    def mean(self, x: Tensor) -> Tensor:
        """Return the mean ``[..., m, s]`` at ``... x m x D`` points."""
        return self.cross(x) @ self.weights

    def mean_and_variance(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean ``[..., m, s]`` and the variance ``[..., m]``, which is at least 0.

        They are computed in the precision of ``x``, or double where derivatives are known, and are
        differentiable once, in the dimensions that are not categorical. Costs O(N² m), of which
        ``mean`` alone would be O(N m).
        """
        if self.derivatives is not None:
            return self._informed_mean_and_variance(x.double())
        if x.dtype not in self._marginals:
            self._marginals[x.dtype] = prepare(
                self.kernel, self.x, self.factor, self.weights, x.dtype
            )
        return self._marginals[x.dtype](x)

    def covariance(self, x1: Tensor, x2: Tensor) -> Tensor:
        """Return the covariance ``[..., m1, m2]`` of the function between two sets of points."""
        v1 = v2 = self._whiten(self._and_derivatives(self.kernel(self.x, x1), x1))
        if x2 is not x1:
            v2 = self._whiten(self._and_derivatives(self.kernel(self.x, x2), x2))
        return self.kernel(x1, x2) - v1.mT @ v2

    def parts(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean ``[..., G, m, s]`` and variance ``[..., G, m]`` of each component.

        The means sum to the mean. The variances do not sum to the variance: a posterior couples
        the components.
        """
        k = self._and_derivatives_of_parts(self.kernel.parts(x, self.x).mT, x).mT
        explained = self._whiten_parts(k.mT).square().sum(-2)
        variance = self.kernel.weights.unsqueeze(-1) - explained
        return k @ self.weights.unsqueeze(-3), variance.clamp(min=0)

    def parts_covariance(self, x1: Tensor, x2: Tensor) -> Tensor:
        """Return the covariance ``[..., G, m1, m2]`` of each component with itself."""
        k1 = self._and_derivatives_of_parts(self.kernel.parts(self.x, x1), x1)
        v1 = v2 = self._whiten_parts(k1)
        if x2 is not x1:
            k2 = self._and_derivatives_of_parts(self.kernel.parts(self.x, x2), x2)
            v2 = self._whiten_parts(k2)
        return self.kernel.parts(x1, x2) - v1.mT @ v2

    def extend(self, x: Tensor, values: Tensor, noise: Tensor | None = None) -> "Posterior":
        """Return the posterior given further observations, at O(N² q) instead of O(N³).

        Args:
            x: A ``... x q x D`` tensor of points.
            values: A ``... x q x s`` tensor. Where one side has a single set of values, it is taken
                to go with every set of the other.
            noise: ``[...]``, the variance of the new observations; ``None`` is the kernel's noise.
        """
        cross = self._and_derivatives(self.kernel(self.x, x), x)
        cross = self._whiten(cross)  # the new rows of L are [crossᵀ, corner]
        noise = self.kernel.noise if noise is None else noise
        block = self.kernel(x, x) - cross.mT @ cross + _diagonal(noise, x.shape[-2])
        corner = factorize(block)
        upper = torch.cat([self.factor, torch.zeros_like(cross)], -1)
        factor = torch.cat([upper, torch.cat([cross.mT, corner], -1)], -2)
        s = max(self.values.shape[-1], values.shape[-1])
        old = self.values.expand(*self.values.shape[:-1], s)
        values = values.expand(*old.shape[:-2], x.shape[-2], s)
        return _with_factor(
            self.kernel,
            torch.cat([self.x, x.expand(*self.x.shape[:-2], *x.shape[-2:])], -2),
            torch.cat([old, values], -2),
            factor,
            self.derivatives,
        )

    def log_likelihood(self) -> Tensor:
        """Return the log density ``[..., s]`` of what is known under the prior, in nats."""
        fit: Tensor = (_known(self.values, self.derivatives) * self.weights).sum(-2)
        log_det = 2 * self.factor.diagonal(dim1=-2, dim2=-1).log().sum(-1).unsqueeze(-1)
        density: Tensor = -0.5 * (fit + log_det + self.factor.shape[-1] * math.log(2 * math.pi))
        return density

    def _informed_mean_and_variance(self, x: Tensor) -> tuple[Tensor, Tensor]:
        k = self.cross(x)
        explained = self._whiten(k.mT).square().sum(-2)
        variance = self.kernel.variance.unsqueeze(-1) - explained
        return k @ self.weights, variance.clamp(min=0)

    def _and_derivatives(self, k: Tensor, x: Tensor) -> Tensor:
        """Return ``[..., N, m]``: the derivatives' covariance with f(x) above that of the values.

        Args:
            k: A ``... x n x m`` tensor, the covariance of the values with f(x).
            x: A ``... x m x D`` tensor of points.
        """
        if self.derivatives is None:
            return k
        return torch.cat([self.derivatives.with_values(self.kernel, x), k], -2)

    def _and_derivatives_of_parts(self, k: Tensor, x: Tensor) -> Tensor:
        """Return the same of each component, ``[..., G, N, m]``."""
        if self.derivatives is None:
            return k
        return torch.cat([self.derivatives.with_parts(self.kernel, x), k], -2)

    def _whiten(self, k: Tensor) -> Tensor:
        """Return L⁻¹ k of ``[..., N, m]``."""
        whitened: Tensor = torch.linalg.solve_triangular(self.factor, k, upper=False)
        return whitened

    def _whiten_parts(self, k: Tensor) -> Tensor:
        """Return L⁻¹ k of ``[..., G, N, m]``: one solve, with the components side by side."""
        *batch, G, N, m = k.shape
        wide = k.movedim(-3, -2).reshape(*batch, N, G * m)
        return self._whiten(wide).reshape(*batch, N, G, m).movedim(-2, -3)


def condition(
    kernel: Kernel, x: Tensor, values: Tensor, derivatives: Derivatives | None = None
) -> Posterior:
    """Return the posterior given observations, at O(N³).

    Args:
        kernel: The prior's kernel.
        x: A ``... x n x D`` tensor of points in the unit cube.
        values: A ``... x n x s`` tensor, standardised and to be maximised.
        derivatives: What is known of the slopes.

    Raises:
        ArithmeticError: The points, the values or the kernel are not finite.
    """
    batch = kernel.weights.shape[:-1]
    x = x.expand(*batch, *x.shape[-2:])
    values = values.expand(*batch, *values.shape[-2:])
    covariance = kernel(x, x) + _diagonal(kernel.noise, x.shape[-2])
    if derivatives is not None:
        cross = derivatives.with_values(kernel, x)
        slopes = derivatives.covariance(kernel) + torch.diag_embed(derivatives.noise)
        above = torch.cat([slopes, cross], -1)
        covariance = torch.cat([above, torch.cat([cross.mT, covariance], -1)], -2)
    return _with_factor(kernel, x, values, factorize(covariance), derivatives)


def factorize(matrix: Tensor) -> Tensor:
    """Return the Cholesky factor of a ``... x n x n`` covariance, mended where rounding broke it.

    Raises:
        ArithmeticError: It cannot be mended.
    """
    factor, right = cholesky(matrix)
    if not bool(right.all()):
        raise ArithmeticError(
            f"A covariance matrix must be positive definite up to rounding, got one that is not "
            f"(n={matrix.shape[-1]}). Check that points, values and hyperparameters are finite."
        )
    return factor


def _with_factor(
    kernel: Kernel, x: Tensor, values: Tensor, factor: Tensor, derivatives: Derivatives | None
) -> Posterior:
    weights = torch.cholesky_solve(_known(values, derivatives), factor)
    return Posterior(kernel, x, values, factor, weights, derivatives)


def _known(values: Tensor, derivatives: Derivatives | None) -> Tensor:
    """Return all observations ``[..., N, s]``: every set of values has the same derivatives."""
    if derivatives is None:
        return values
    slopes = derivatives.values.unsqueeze(-1).expand(*values.shape[:-2], -1, values.shape[-1])
    return torch.cat([slopes, values], -2)


def _diagonal(entries: Tensor, n: int) -> Tensor:
    """Return ``[..., n, n]`` diagonal matrices, each with one number all along."""
    eye = torch.eye(n, dtype=entries.dtype, device=entries.device)
    return entries[..., None, None] * eye

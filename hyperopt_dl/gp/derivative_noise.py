"""A posterior that knows derivatives, and how far they are to be trusted.

    g | y ~ N(m, S + ρ V),    V = diag(v_i + g_i²)

    g  observed derivatives [r]     m, S  what the values y say of them
    ρ  relative noise               v     prior variance of a derivative in its dimension

A derivative of a loss is exact for the run that it belongs to, but not for the function behind all
runs: that has other seeds, and is only about as smooth as the kernel says. So derivatives have a
noise of their own, relative to how large they are in their dimension a priori, and to themselves: a
cliff tells the direction, and not more than that.

ρ maximises the joint density of values and derivatives times its prior, in which log ρ is normal.
The values' factor does not depend on it, and after V^-½ S V^-½ = U diag(λ) U' the rest costs O(r)
for a ρ: a fine grid finds the maximum, and no search can fail.
"""

import math
from dataclasses import replace

import torch
from torch import Tensor

from hyperopt_dl.gp.derivatives import Derivatives
from hyperopt_dl.gp.kernel import Kernel
from hyperopt_dl.gp.posterior import Posterior, condition

EXPECTED, DEVIATION = math.log(1e-2), 2.0
"""The mean and the standard deviation of log ρ a priori."""
_GRID = torch.linspace(math.log(1e-6), math.log(1e4), 93, dtype=torch.float64)


def informed(posterior: Posterior, derivatives: Derivatives) -> tuple[Posterior, float]:
    """Return the posterior that knows derivatives as well, and their relative noise ρ.

    Costs two factorisations of size N and an eigendecomposition of size r.

    Args:
        posterior: Of values alone, one model with one set of values.
        derivatives: Their noise is not read.
    """
    kernel = posterior.kernel
    unit = noise_of(derivatives, kernel, 1.0)
    rho = relative_noise(posterior, replace(derivatives, noise=unit))
    known = replace(derivatives, noise=rho * unit)
    return condition(kernel, posterior.x, posterior.values, known), rho


def noise_of(derivatives: Derivatives, kernel: Kernel, rho: float) -> Tensor:
    """Return the variances ``[..., r]`` of derivatives around those of the function: ρ V."""
    return rho * (derivatives.variance(kernel) + derivatives.values.square())


def relative_noise(posterior: Posterior, derivatives: Derivatives) -> float:
    """Return the most likely ρ.

    Args:
        posterior: Of values alone, one model with one set of values.
        derivatives: With V as their noise.
    """
    lengths, errors = _in_units_of_noise(posterior, derivatives)
    total = lengths + _GRID.exp().unsqueeze(-1)
    misfit = 0.5 * (errors.square() / total + total.log()).sum(-1)
    prior = 0.5 * ((_GRID - EXPECTED) / DEVIATION).square()
    return float(_GRID[(misfit + prior).argmin()].exp())


def _in_units_of_noise(posterior: Posterior, derivatives: Derivatives) -> tuple[Tensor, Tensor]:
    """Return λ ``[r]`` and U' V^-½ (g - m) ``[r]``, on the CPU."""
    kernel = posterior.kernel
    cross = derivatives.with_values(kernel, posterior.x)
    white = torch.linalg.solve_triangular(posterior.factor, cross.mT, upper=False)
    root = derivatives.noise.sqrt()
    S = (derivatives.covariance(kernel) - white.mT @ white) / root / root.unsqueeze(-1)
    lengths, U = torch.linalg.eigh(S)
    errors = (derivatives.values - (cross @ posterior.weights).squeeze(-1)) / root
    return lengths.clamp(min=0).cpu(), (U.mT @ errors).cpu()

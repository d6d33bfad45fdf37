"""A draw of the whole function from its posterior, that can be evaluated and differentiated.

    f(x) | y = μ(x) + τ [ f₀(x) - k(x, X) A⁻¹ (f₀(X) + ε) ],    ε ~ N(0, σ²),    A = K + σ² I

    f₀  a draw from the prior             τ  temper: 1 is a draw, 0 the posterior's mean
    ω   frequencies [G, F, C]             ξ  their amplitudes [G, F]

Where derivatives are known, y has them too, and f₀(X) is with them the draw's own derivatives.

The prior's draw is a sum of F random cosines a component, sqrt(2 w_g / F) ξ_j cos(ω_j x + b_j),
whose covariance is the kernel's up to O(1/sqrt F); the update by the data is exact. A frequency of
a categorical dimension is a number for each choice. C is D, or D + 1 if a component reads the
radius.

Sources: Wilson et al., "Efficiently Sampling Functions from Gaussian Process Posteriors", ICML
2020; Rahimi and Recht, "Random Features for Large-Scale Kernel Machines", NeurIPS 2007.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from hyperopt_dl.gp.derivatives import Derivatives
from hyperopt_dl.gp.kernel import Kernel
from hyperopt_dl.gp.posterior import Posterior
from hyperopt_dl.gp.radius import radius

FEATURES = 256
"""F, cosines of each component."""


def draw_path(
    posterior: Posterior, *, choices: int, temper: float, generator: torch.Generator
) -> Callable[[Tensor], Tensor]:
    """Return a draw of the function, from ``m x D`` points to ``[m]`` values.

    Args:
        posterior: One model with one set of values.
        choices: The most choices that a categorical dimension has.
        temper: τ, between 0 and 1.
        generator: On the CPU.
    """
    prior = draw_prior(posterior.kernel, choices=choices, generator=generator)
    n = posterior.x.shape[-2]
    noise = torch.randn(n, generator=generator, dtype=torch.float64).to(posterior.x)
    at_data = prior(posterior.x) + posterior.kernel.noise.sqrt() * noise
    if posterior.derivatives is not None:
        at_data = torch.cat([_slopes_of(prior, posterior.derivatives, generator), at_data])
    update = torch.cholesky_solve(at_data.unsqueeze(-1), posterior.factor)

    def path(x: Tensor) -> Tensor:
        k = posterior.cross(x)
        return (k @ (posterior.weights - temper * update)).squeeze(-1) + temper * prior(x)

    return path


def _slopes_of(
    prior: Callable[[Tensor], Tensor], derivatives: Derivatives, generator: torch.Generator
) -> Tensor:
    """Return what would have been observed of a draw's derivatives, ``[r]``."""
    with torch.enable_grad():
        x = derivatives.x.detach().clone().requires_grad_()
        (slopes,) = torch.autograd.grad(prior(x).sum(), x)
    r = len(derivatives)
    noise = torch.randn(r, generator=generator, dtype=torch.float64).to(slopes)
    return slopes[derivatives.point, derivatives.dimension] + derivatives.noise.sqrt() * noise


def draw_prior(
    kernel: Kernel, *, choices: int, generator: torch.Generator
) -> Callable[[Tensor], Tensor]:
    """Return a draw from the prior, from ``m x D`` points to ``[m]`` values."""
    G, C = kernel.masks.shape
    D = len(kernel.categorical)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(kernel.masks)

    root = (kernel.masks * kernel.scales).sqrt().unsqueeze(-2)
    ordered = root * ~torch.nn.functional.pad(kernel.categorical, (0, C - D))
    in_order = (~kernel.categorical).nonzero().squeeze(-1)
    unordered = kernel.categorical.nonzero().squeeze(-1).tolist()
    stretch = torch.ones(G, FEATURES, 1).to(root)
    if kernel.family == "matern52":  # frequencies of a multivariate t with 5 degrees of freedom
        stretch = (normal(G, FEATURES, 1, 5).square().sum(-1) / 5).rsqrt()
    omega = ordered * stretch * normal(G, FEATURES, C)
    by_choice = {  # two choices differ by two numbers, so each has half the variance
        d: root[..., d : d + 1] / math.sqrt(2) * stretch * normal(G, FEATURES, choices)
        for d in unordered
    }
    offset = 2 * math.pi * torch.rand(G, FEATURES, 1, generator=generator, dtype=torch.float64)
    offset = offset.to(root)
    amplitude = (2 * kernel.weights.unsqueeze(-1) / FEATURES).sqrt() * normal(G, FEATURES)

    def prior(x: Tensor) -> Tensor:
        rho = radius(x[:, in_order] - 0.5).unsqueeze(-1)
        phase = omega @ torch.cat([x, rho], -1)[:, :C].mT + offset
        for d, numbers in by_choice.items():
            phase = phase + numbers[:, :, x[:, d].detach().long()]
        return torch.einsum("gf,gfm->m", amplitude, torch.cos(phase))

    return prior

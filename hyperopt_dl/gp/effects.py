"""What the components of a posterior do along one dimension, and how much each of them varies.

    e_g(u) = f̄_g(u) - (1/J) Σ_i f̄_g(u_i),    f̄_g(u) = (1/S) Σ_s f_g(u at dimension d, z_s elsewhere)

    f_g  component g         u_j  levels of dimension d, of J       z_s  points of the cube, of S
    L    Cholesky factor     α    A⁻¹ y, the posterior's weights    X    the observations

A main effect e_g is linear in f_g, so its posterior is Gaussian, with the mean k̄ α and the
covariance k̿ - (L⁻¹ k̄ᵀ)ᵀ (L⁻¹ k̄ᵀ): k̄ is the kernel between effects and observations, k̿ between
effects and effects, both averaged and centred as e_g is. Data say nothing of how a constant is
shared between components; without the centring, that would be all that the bands show.
"""

import torch
from torch import Tensor

from hyperopt_dl.gp.kernel import Kernel
from hyperopt_dl.gp.posterior import Posterior


def main_effects(
    posterior: Posterior, dimension: int, levels: Tensor, background: Tensor
) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of main effects, each ``[1 + P, J]``.

    Row 0 is the sum of all components, the others the P components that read the dimension, in
    their order. The main effects of the rest are 0.

    Args:
        posterior: With no batch dimension and a single set of values.
        dimension: d.
        levels: A ``J`` tensor of coordinates.
        background: A ``S x D`` tensor of points, over which the other dimensions are averaged.

    Costs P (J S)² kernel entries, and J S for each of the n observations.
    """
    J, S = len(levels), len(background)
    kernel = _those_that_read(posterior.kernel, dimension)
    x = background.repeat(J, 1)
    x[:, dimension] = levels.repeat_interleave(S)
    P = len(kernel.weights)
    cross = kernel.parts(x, posterior.x).reshape(P, J, S, -1).mean(2)
    prior = kernel.parts(x, x).reshape(P, J, S, J, S).mean((2, 4))
    cross = _with_sum(cross - cross.mean(1, keepdim=True))
    prior = prior - prior.mean(1, keepdim=True)
    prior = _with_sum(prior - prior.mean(2, keepdim=True))
    white = torch.linalg.solve_triangular(posterior.factor, cross.mT, upper=False)
    variance = prior.diagonal(dim1=-2, dim2=-1) - white.square().sum(-2)
    return (cross @ posterior.weights).squeeze(-1), variance.clamp(min=0).sqrt()


def expected_variances(posterior: Posterior, points: Tensor) -> Tensor:
    """Return the variance of each component over points, as the posterior expects it: ``[G]``.

        E[Var f_g] = Var m_g + mean of the diagonal of C_g - mean of C_g

    with m_g and C_g the component's posterior mean and covariance at the points.

    Args:
        posterior: With no batch dimension and a single set of values.
        points: A ``S x D`` tensor.
    """
    mean, _ = posterior.parts(points)
    covariance = posterior.parts_covariance(points, points)
    own = covariance.diagonal(dim1=-2, dim2=-1).mean(-1)
    varied = mean.squeeze(-1).var(-1, correction=0)
    return (varied + own - covariance.mean((-2, -1))).clamp(min=0)


def _those_that_read(kernel: Kernel, dimension: int) -> Kernel:
    """Return the kernel of the components that read a dimension."""
    reads = kernel.reads[:, dimension]
    return Kernel(
        kernel.masks[reads],
        kernel.scales[reads],
        kernel.weights[reads],
        kernel.noise,
        kernel.categorical,
        kernel.family,
    )


def _with_sum(parts: Tensor) -> Tensor:
    return torch.cat([parts.sum(0, keepdim=True), parts])

"""Mean and variance of a posterior at single points, with slopes in closed form.

    μ = k α,    v = k(x, x) - |L⁻¹ k|²,    k_i = Σ_g w_g κ(r²_gi),    r²_gi = Σ_d a_gd δ_d(x, X_i)

An acquisition function is asked thousands of times for every point that is proposed, so what does
not depend on ``x`` is prepared once, and one pass yields the slopes: with the cotangents μ̄ and v̄,

    k̄ = μ̄ αᵀ - 2 v̄ L⁻ᵀ L⁻¹ k,    x̄ = Σ_gi P_gi ∂r²_gi/∂x,    P_gi = w_g k̄_i κ'(r²_gi)

    a  scales of the kernel, 0 where masked    X  the n points observed    s  sets of values
    α  A⁻¹ y    L  Cholesky factor of A         δ  as in the kernel: (x - X)², or [x ≠ X]
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hyperopt_dl.gp.distances import Distances
from hyperopt_dl.gp.kernel import Family, Kernel, correlation, correlation_and_slope


@dataclass(frozen=True)
class Marginals:
    """What the means and variances of a posterior need, in one precision; ``prepare`` makes it."""

    distances: Distances
    """To the n points observed."""
    weights: Tensor
    """``[..., G]``, w."""
    factor: Tensor
    """``[..., n, n]``, L."""
    alpha: Tensor
    """``[..., n, s]``, α."""
    variance: Tensor
    """``[..., 1]``, of the prior."""
    family: Family

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean ``[..., m, s]`` and the variance ``[..., m]`` at ``... x m x D`` points.

        They are differentiable once in the ordered dimensions, and in the others have slope 0.
        """
        mean, variance = _MeanAndVariance.apply(x, self)  # type: ignore[no-untyped-call]
        return mean, variance


def prepare(
    kernel: Kernel, x: Tensor, factor: Tensor, alpha: Tensor, dtype: torch.dtype
) -> Marginals:
    """Prepare what a posterior's marginals need.

    Args:
        kernel: The prior's, of batch shape ``...``.
        x: A ``... x n x D`` tensor of observed points.
        factor: ``[..., n, n]``, L.
        alpha: ``[..., n, s]``, A⁻¹ y.
        dtype: The precision to compute in.
    """
    return Marginals(
        kernel.distances_to(x).to(dtype),
        kernel.weights.to(dtype),
        factor.to(dtype),
        alpha.to(dtype),
        kernel.variance.unsqueeze(-1).to(dtype),
        kernel.family,
    )


class _MeanAndVariance(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, known: Marginals) -> tuple[Tensor, Tensor]:
        r2 = known.distances(x)
        if ctx.needs_input_grad[0]:
            kappa, slopes = correlation_and_slope(r2, known.family)
        else:
            kappa, slopes = correlation(r2, known.family), None
        k = (
            (known.weights.unsqueeze(-2) @ kappa.flatten(-2))
            .squeeze(-2)
            .view_as(kappa[..., 0, :, :])
        )
        white = torch.linalg.solve_triangular(known.factor, k.mT, upper=False)
        variance = (known.variance - white.square().sum(-2)).clamp(min=0)
        ctx.known, ctx.x, ctx.slopes, ctx.white, ctx.free = known, x, slopes, white, variance > 0
        return k @ known.alpha, variance

    @staticmethod
    def backward(ctx: Any, to_mean: Tensor, to_variance: Tensor) -> tuple[Tensor, None]:
        known: Marginals = ctx.known
        explained = torch.linalg.solve_triangular(known.factor.mT, ctx.white, upper=True).mT
        to_explained = (to_variance * ctx.free).unsqueeze(-1)
        to_k = to_mean @ known.alpha.mT - 2 * to_explained * explained
        P = ctx.slopes * to_k.unsqueeze(-3) * known.weights[..., None, None]
        pull = known.distances.pull(ctx.x, P)
        to_x = torch.zeros(*pull.shape[:-1], ctx.x.shape[-1], dtype=pull.dtype, device=pull.device)
        to_x[..., known.distances.ordered] = pull
        return to_x.sum_to_size(ctx.x.shape), None

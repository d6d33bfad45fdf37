"""Batch normalization in training mode whose second derivatives are closed forms.

Torch's own second derivative of it is some forty operators on whole activations, of which a dozen
are kept for later; here it is three reductions and a few scaled sums, and what is kept is x and ȳ.

Letters, each for one channel: n values; x input, γ weight, β bias; μ mean, σ² biased variance,
ρ = 1/√(σ² + eps); x̂ = ρ(x - μ); ⟨·⟩ the mean over the n values. Bars are adjoints: ȳ of y, s of μ,
r of σ²; of the first backward pass's results: v of x̄, a of γ̄, b of β̄.

The first backward pass of y = γx̂ + β, where D = ⟨ȳ⟩ and E = ⟨x̂ȳ⟩::

    x̄ = γρ(ȳ - D - Ex̂) + s/n + 2r(x - μ)/n        γ̄ = nE        β̄ = nD

The second one differentiates φ = n⟨vx̄⟩ + aγ̄ + bβ̄. With A = ⟨v⟩, B = ⟨vx̂⟩ and F = ⟨vȳ⟩ it is::

    φ = nγρ(F - AD - BE) + sA + 2rB/ρ + naE + nbD

Here x, μ and σ² are three variables, as B and E have ρ(x - μ) in them, and ρ is (σ² + eps)^-½; what
goes to μ and σ² joins the s and r of the pass back through the forward one, for nothing. With
f = a - γρB::

    ∂φ/∂ȳ = γρ(v - A) + fx̂ + b        ∂φ/∂μ  = -n(A, D)·(factors of v and ȳ in ∂φ/∂x)
    ∂φ/∂x = (2r/n - γρ²E)v + ρfȳ      ∂φ/∂σ² = -nρ²(γρ(F - AD - 2BE) + fE)/2
    ∂φ/∂γ = nρ(F - AD - BE)           ∂φ/∂s  = A        ∂φ/∂r = 2B/ρ

D and E are kept; A, B and F are sums that the kernel of the first backward pass makes, too.
"""

from typing import Any

import torch
from torch import Tensor

aten = torch.ops.aten


def batch_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return x normalized by the statistics of the batch, and these statistics.

    All three can be differentiated twice in all tensors. The second derivative takes about the time
    of the first, and needs x, the adjoint of y, and vectors of length C.

    Args:
        x: `N x C x *`, of any memory format.
        weight: `C`, or ``None`` for ones.
        bias: `C`, or ``None`` for zeros.
        eps: What is added to the variance.

    Returns:
        y as ``torch.nn.functional.batch_norm(training=True)`` returns it; the mean and the biased
        variance, `C` each. Torch's running variance takes n / (n - 1) times the latter, n values
        per channel.

    Raises:
        ValueError: There is one value per channel, which has no variance.
    """
    if x.numel() == x.shape[1]:
        raise ValueError(
            f"Expected more than 1 value per channel when training, got input size {x.size()}. "
            "Make the batch larger, or drop the last batch if it is smaller."
        )
    y, mean, var = _BatchNorm.apply(x, weight, bias, eps)  # type: ignore[no-untyped-call]
    return y, mean, var


class _BatchNorm(torch.autograd.Function):
    """x, γ, β -> y, μ, σ²."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        y, mean, rho = aten.native_batch_norm(x, weight, bias, None, None, True, 0.0, eps)
        var = (rho.pow(-2) - eps).clamp_min(0)
        ctx.save_for_backward(x, weight, mean, var, rho)
        ctx.eps = eps
        ctx.set_materialize_grads(False)
        return y, mean, var

    @staticmethod
    def backward(
        ctx: Any, y_bar: Tensor | None, s: Tensor | None, r: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        x, weight, mean, var, rho = ctx.saved_tensors
        by_x, by_weight, by_bias, _ = ctx.needs_input_grad
        y_bar = torch.zeros_like(x) if y_bar is None else y_bar
        x_bar, weight_bar, bias_bar = _FirstBackward.apply(  # type: ignore[no-untyped-call]
            y_bar, s, r, x, weight, mean, var, rho, ctx.eps, by_x
        )
        return x_bar, weight_bar if by_weight else None, bias_bar if by_bias else None, None


class _FirstBackward(torch.autograd.Function):
    """ȳ, s, r, x, γ, μ, σ² -> x̄, γ̄, β̄."""

    @staticmethod
    def forward(
        ctx: Any,
        y_bar: Tensor,
        s: Tensor | None,
        r: Tensor | None,
        x: Tensor,
        weight: Tensor | None,
        mean: Tensor,
        var: Tensor,  # noqa: ARG004 (its value is in rho; it is here for its derivative)
        rho: Tensor,
        eps: float,
        by_x: bool,
    ) -> tuple[Tensor | None, Tensor, Tensor]:
        whole = by_x and s is None and r is None
        x_bar, weight_bar, bias_bar = aten.native_batch_norm_backward(
            y_bar, x, weight, None, None, mean, rho, True, eps, [whole, True, True]
        )
        if by_x and not whole:
            n = x.numel() // x.shape[1]
            scale = rho if weight is None else rho * weight
            slope, level = weight_bar * scale * rho / -n, bias_bar * scale / -n
            slope = slope if r is None else slope + r * (2 / n)
            level = level if s is None else level + s / n
            x_bar = _sum((scale, y_bar), (slope, x), level=level - slope * mean)
        ctx.save_for_backward(y_bar, r, x, weight, mean, rho, weight_bar, bias_bar)
        ctx.set_materialize_grads(False)
        return x_bar if by_x else None, weight_bar, bias_bar

    @staticmethod
    def backward(
        ctx: Any, v: Tensor | None, a: Tensor | None, b: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        found = _SecondBackward.apply(  # type: ignore[no-untyped-call]
            ctx.needs_input_grad, v, a, b, *ctx.saved_tensors
        )
        return *found, None, None, None


class _SecondBackward(torch.autograd.Function):
    """v, a, b and what the first backward pass has kept -> the adjoints of what it was given."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ARG004
        needed: tuple[bool, ...],
        v: Tensor | None,
        a: Tensor | None,
        b: Tensor | None,
        y_bar: Tensor,
        r: Tensor | None,
        x: Tensor,
        weight: Tensor | None,
        mean: Tensor,
        rho: Tensor,
        weight_bar: Tensor,
        bias_bar: Tensor,
    ) -> tuple[Tensor | None, ...]:
        by_y_bar, by_s, by_r, by_x, by_weight, *_ = needed
        n = x.numel() // x.shape[1]
        scale = rho if weight is None else rho * weight
        D, E = bias_bar / n, weight_bar / n
        A = B = F = torch.zeros_like(rho)
        if v is not None:
            B, A = (total / n for total in _sums(v, x, mean, rho))
            F = _sums(v, y_bar, torch.zeros_like(rho), torch.ones_like(rho))[0] / n
        BE = B * E
        K = F - A * D - BE
        f = -scale * B if a is None else a - scale * B
        slope = rho * f
        y_bar_bar = x_bar = mean_bar = var_bar = None
        if by_y_bar:
            level = -scale * A - slope * mean
            level = level if b is None else level + b
            y_bar_bar = _sum((scale, v), (slope, x), level=level)
        if by_x:
            of_v = -scale * rho * E
            of_v = of_v if r is None else of_v + r * (2 / n)
            x_bar = _sum((of_v, v), (slope, y_bar))
            mean_bar = -n * (of_v * A + slope * D)
            var_bar = rho.square() * (scale * (K - BE) + f * E) * (-n / 2)
        return (
            y_bar_bar,
            A if by_s else None,
            2 * B / rho if by_r else None,
            x_bar,
            n * rho * K if by_weight else None,
            mean_bar,
            var_bar,
        )

    @staticmethod
    def backward(ctx: Any, *_: Any) -> Any:
        # Not once_differentiable: autograd.grad(..., inputs) passes by the error that it plants.
        raise NotImplementedError(
            "The third derivative for batch_norm is not implemented. Take F.batch_norm, which can "
            "be differentiated at will."
        )


def _sums(v: Tensor, x: Tensor, mean: Tensor, rho: Tensor) -> tuple[Tensor, Tensor]:
    """Return the sums of vρ(x - μ) and of v in each channel, by the kernel's first half."""
    _, products, sums = aten.native_batch_norm_backward(
        v, x, None, None, None, mean, rho, True, 0.0, [False, True, True]
    )
    return products, sums


def _sum(*terms: tuple[Tensor, Tensor | None], level: Tensor | None = None) -> Tensor:
    """Return the sum of whole tensors, each times a factor for each channel, and of a level.

    A tensor of ``None`` is left out.
    """
    (factor, first), *others = ((factor, z) for factor, z in terms if z is not None)
    shape = (-1, *[1] * (first.ndim - 2))
    total = first * factor.view(shape)
    for factor, z in others:
        total.addcmul_(z, factor.view(shape))  # in place: fresh memory would cost as much again
    if level is not None:
        total.add_(level.view(shape))
    return total.to(first.dtype)

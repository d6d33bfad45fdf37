"""Batch normalization in training mode whose second derivatives are closed forms.

Torch's own second derivative of it is some forty operators on whole activations, of which a dozen
are kept for later; here it is two reductions and a few scaled sums, and what is kept is x and ȳ.

Letters, each for one channel: n values; x input, γ weight, β bias; μ mean, σ² biased variance,
ρ = 1/√(σ² + eps); x̂ = ρ(x - μ); ⟨·⟩ the mean over the n values. Bars are adjoints: ȳ of y, s of μ,
r of σ²; of the first backward pass's results: v of x̄, a of γ̄, b of β̄.

Forward, with the derivative along ẋ::

    y = γx̂ + β        x̂˙ = ρ P ẋ,    P z = z - ⟨z⟩ - x̂⟨x̂z⟩,    ρ˙ = -ρ²⟨x̂ẋ⟩

P is its own adjoint (a projection only where eps = 0, which nothing here asks for). So the first
backward pass, which is torch's kernel where neither s nor r is given, is::

    x̄ = γρ P ȳ + s/n + 2r(x - μ)/n        γ̄ = n⟨x̂ȳ⟩        β̄ = n⟨ȳ⟩

The second one differentiates φ = n⟨v x̄⟩ + aγ̄ + bβ̄. Let A = ⟨v⟩, B = ⟨vx̂⟩, D = ⟨ȳ⟩, E = ⟨x̂ȳ⟩ and
K = ⟨v Pȳ⟩ = ⟨vȳ⟩ - AD - BE. The first term is nγρK + sA + 2rB/ρ, and K changes with x̂ alone, by
-⟨vx̂˙⟩E - B⟨ȳx̂˙⟩. Hence::

    ∂φ/∂ȳ = γρ Pv + ax̂ + b          ∂φ/∂γ = nρK        ∂φ/∂s = A        ∂φ/∂r = 2B/ρ
    ∂φ/∂x = -γρ²(Kx̂ + E Pv + B Pȳ) + aρ Pȳ + 2r(v - A)/n

Both are sums of v, ȳ and x with a factor for each channel, and D and E are γ̄ and β̄ over n: what has
to be computed of whole activations is A, B and ⟨vȳ⟩, which are sums that the kernel of the first
backward pass also makes.
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
        ctx.save_for_backward(x, weight, mean, rho)
        ctx.eps = eps
        ctx.set_materialize_grads(False)
        return y, mean, (rho.pow(-2) - eps).clamp_min(0)

    @staticmethod
    def backward(
        ctx: Any, y_bar: Tensor | None, s: Tensor | None, r: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        x, weight, mean, rho = ctx.saved_tensors
        y_bar = torch.zeros_like(x) if y_bar is None else y_bar
        x_bar, weight_bar, bias_bar = _FirstBackward.apply(  # type: ignore[no-untyped-call]
            y_bar, s, r, x, weight, mean, rho, ctx.eps, ctx.needs_input_grad[0]
        )
        _, by_weight, by_bias, _ = ctx.needs_input_grad
        return x_bar, weight_bar if by_weight else None, bias_bar if by_bias else None, None


class _FirstBackward(torch.autograd.Function):
    """ȳ, s, r, x, γ -> x̄, γ̄, β̄; of μ and ρ it knows how they depend on x."""

    @staticmethod
    def forward(
        ctx: Any,
        y_bar: Tensor,
        s: Tensor | None,
        r: Tensor | None,
        x: Tensor,
        weight: Tensor | None,
        mean: Tensor,
        rho: Tensor,
        eps: float,
        by_x: bool,
    ) -> tuple[Tensor | None, Tensor, Tensor]:
        x_bar, weight_bar, bias_bar = aten.native_batch_norm_backward(
            y_bar, x, weight, None, None, mean, rho, True, eps, [by_x, True, True]
        )
        if by_x and not (s is None and r is None):
            n = x.numel() // x.shape[1]
            slope = torch.zeros_like(mean) if r is None else r * (2 / n)
            level = -slope * mean if s is None else s / n - slope * mean
            x_bar = _sum((None, x_bar), (slope, x), level=level)
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
        return *found, None, None, None, None


class _SecondBackward(torch.autograd.Function):
    """v, a, b and what the first backward pass had -> the adjoints of ȳ, s, r, x and γ."""

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
        A = B = K = torch.zeros_like(rho)
        if v is not None:
            B, A = (total / n for total in _sums(v, x, mean, rho))
            products, _ = _sums(v, y_bar, torch.zeros_like(rho), torch.ones_like(rho))
            K = products / n - A * D - B * E
        y_bar_bar = x_bar_bar = None
        if by_y_bar:
            slope = -scale * B if a is None else a - scale * B
            level = -scale * A if b is None else b - scale * A
            slope = slope * rho
            y_bar_bar = _sum((scale, v), (slope, x), level=level - slope * mean)
        if by_x:
            of_v = -scale * rho * E
            of_y_bar = -scale * rho * B if a is None else rho * (a - scale * B)
            slope = -rho * (scale * rho * K + of_v * B + of_y_bar * E)
            level = -of_v * A - of_y_bar * D - slope * mean
            if r is not None:
                of_v, level = of_v + r * (2 / n), level - r * (2 / n) * A
            x_bar_bar = _sum((of_v, v), (of_y_bar, y_bar), (slope, x), level=level)
        return (
            y_bar_bar,
            A if by_s else None,
            2 * B / rho if by_r else None,
            x_bar_bar,
            n * rho * K if by_weight else None,
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


def _sum(*terms: tuple[Tensor | None, Tensor | None], level: Tensor) -> Tensor:
    """Return the sum of whole tensors, each times its factors, and a level for each channel.

    A tensor of ``None`` is left out; a factor of ``None`` allows to write into its tensor.
    """
    (factor, first), *others = ((factor, z) for factor, z in terms if z is not None)
    shape = (-1, *[1] * (first.ndim - 2))
    total = first if factor is None else first * factor.view(shape)
    for factor, z in others:
        assert factor is not None
        total.addcmul_(z, factor.view(shape))  # in place: fresh memory would cost as much again
    return total.add_(level.view(shape)).to(first.dtype)

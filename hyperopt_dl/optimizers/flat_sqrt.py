"""A square root that is flat at 0."""

import torch
from torch import Tensor
from torch.autograd import forward_ad


def flat_sqrt(v: Tensor) -> Tensor:
    """The square root of ``v``, with derivative 0 instead of infinity where ``v`` is 0.

    A second moment is 0 where no gradient has arrived yet (a dead unit, an unused row of an
    embedding). There ``v`` is quadratic in the gradient, and the chain rule through ``sqrt`` makes
    0 · ∞ = NaN of a derivative. 0 is the middle of the two one-sided derivatives of
    ``sqrt(c g²) = sqrt(c)|g|``.

    The value is that of ``torch.sqrt`` to the last bit; the mask is only worked out while a
    derivative is being recorded, in reverse or in forward mode.

    Args:
        v: A tensor of any shape.
    """
    if not _is_differentiated(v):
        return v.sqrt()
    zero = v == 0
    return v.masked_fill(zero, 1.0).sqrt().masked_fill(zero, 0.0)


def _is_differentiated(v: Tensor) -> bool:
    if torch.is_grad_enabled() and v.requires_grad:
        return True
    tangent: Tensor | None = forward_ad.unpack_dual(v).tangent  # type: ignore[no-untyped-call]
    return tangent is not None

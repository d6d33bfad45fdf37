"""Linear combinations of vectors, with weights that are numbers or tensors.

A number goes into the fused kernel that ``torch.optim`` uses, so that a rule with constant options
follows torch bit by bit and makes few temporaries. A tensor has no fused kernel that would be
differentiable in it: there the formula is written out, and may differ in the last bit.

x, y, z are `p` tensors; a weight is a number, a 0-dim tensor or a `p` tensor, and does not change
the dtype: every result has that of x.
"""

import torch
from torch import Tensor

from hyperopt_dl.optimizers.options import Value


def add_scaled(x: Tensor, a: Value, y: Tensor) -> Tensor:
    """``x + a y``."""
    if isinstance(a, Tensor):
        return (x + a * y).to(x.dtype)
    return torch.add(x, y, alpha=a)


def add_quotient(x: Tensor, a: Value, y: Tensor, z: Tensor) -> Tensor:
    """``x + a y / z``."""
    if isinstance(a, Tensor):
        return (x + a * (y / z)).to(x.dtype)
    return torch.addcdiv(x, y, z, value=a).to(x.dtype)


def scale(a: Value, x: Tensor) -> Tensor:
    """``a x``."""
    return (a * x).to(x.dtype)


def average(decay: Value, x: Tensor, y: Tensor) -> Tensor:
    """``decay x + (1 - decay) y``."""
    if isinstance(decay, Tensor):
        return (x + (1 - decay) * (y - x)).to(x.dtype)
    return torch.lerp(x, y, 1 - decay)


def average_square(decay: Value, x: Tensor, y: Tensor) -> Tensor:
    """``decay x + (1 - decay) y²``."""
    if isinstance(decay, Tensor):
        return (decay * x + (1 - decay) * (y * y)).to(x.dtype)
    return torch.addcmul(decay * x, y, y, value=1 - decay)

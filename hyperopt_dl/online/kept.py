"""Tensors that a tuner keeps for parameters, and their way into a ``state_dict`` and back.

A parameter is known by its place in the optimizer, as in ``optimizer.state_dict()``.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


def params_of(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """Return the parameters of an optimizer, group after group."""
    return [param for group in optimizer.param_groups for param in group["params"]]


def to_list(
    kept: Mapping[Tensor, Tensor | None], optimizer: torch.optim.Optimizer
) -> list[Tensor | None]:
    """Return what is kept, one entry a parameter."""
    return [kept.get(param) for param in params_of(optimizer)]


def from_list(
    entries: Sequence[Tensor | None], optimizer: torch.optim.Optimizer
) -> dict[Tensor, Tensor]:
    """Invert `to_list`, with copies in the dtype and on the device of each parameter."""
    pairs = zip(params_of(optimizer), entries, strict=True)
    return {param: entry.to(param, copy=True) for param, entry in pairs if entry is not None}

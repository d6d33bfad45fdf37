"""The weights of a network as tensors, apart from the module that computes with them."""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor


class Weights(NamedTuple):
    """Everything that a module's output depends on beside its inputs.

    ``params`` is the vector of the p trainable entries; ``frozen`` holds the parameters that do not
    require a gradient, ``buffers`` the registered buffers, both by the module's own names.
    """

    params: Tensor
    frozen: dict[str, Tensor]
    buffers: dict[str, Tensor]


def has_derivative(tensor: Tensor) -> bool:
    """Return whether a tensor may have a derivative: whole numbers and sparse tensors have none."""
    return tensor.layout == torch.strided and (tensor.is_floating_point() or tensor.is_complex())


def flat(pieces: Iterable[Tensor]) -> Tensor:
    """Return tensors end to end, complex ones as the pairs of their parts."""
    return torch.cat([(torch.view_as_real(p) if p.is_complex() else p).reshape(-1) for p in pieces])

"""Sums and norms of tensors, which tell at some steps whether somebody wrote into them unseen.

A tensor counts the writes to it, but for those through ``.data`` and some kernels, as that of a
GradScaler. To look at the numbers costs a pass over them; so it is done at the first steps, where
whatever a loop does shows, and then at one step in a hundred, drawn at random.
"""

import functools
import random
from collections.abc import Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from hyperopt_dl.seeds import derive

FIRST = 5
"""How many first steps are all looked at."""
_BLOCK, _DRAWN = 1000, 10
"""After these, so many steps are drawn out of each so many."""

Fingerprint: TypeAlias = Tensor
"""The sum and the norm of a tensor, of shape (2,)."""


def due(step: int, purpose: str, first: int = FIRST) -> bool:
    """Say whether a step is to be looked at: always the same ones, each purpose its own."""
    return step < first or step in _drawn(purpose, step // _BLOCK)


@functools.lru_cache(maxsize=64)
def _drawn(purpose: str, block: int) -> frozenset[int]:
    """Return the steps of a block that are looked at."""
    draws = random.Random(derive(0, purpose, block))
    return frozenset(draws.sample(range(block * _BLOCK, (block + 1) * _BLOCK), _DRAWN))


def fingerprint(tensor: Tensor) -> Fingerprint:
    """Return the fingerprint of a tensor; costs two passes over it."""
    values = torch.view_as_real(tensor.detach()) if tensor.is_complex() else tensor.detach()
    values = values if values.dtype in _FINE else values.float()
    return torch.stack([values.sum(), torch.linalg.vector_norm(values)])


def alike(a: Sequence[Fingerprint], b: Sequence[Fingerprint]) -> bool:
    """Return whether fingerprints are those of the same numbers, but for the order of summing."""
    return all(_close(x, y) for x, y in zip(a, b, strict=True))


_FINE = {torch.float32: 1e-5, torch.float64: 1e-12}


def _close(a: Fingerprint, b: Fingerprint) -> bool:
    a, b = a.to(b), b
    # The sum of entries of both signs has an error in the measure of the norm, not its own.
    limit = _FINE[b.dtype] * float(b[1])
    same = (a == b) | (a.isnan() & b.isnan()) | ((a - b).abs() <= limit)
    return bool(same.all())

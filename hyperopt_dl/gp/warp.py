"""Losses with a heavy upper tail, compressed where the evidence for it outweighs the Jacobian.

    t(y) = y                          for y <= m        m  median of the losses
    t(y) = m + s log(1 + (y - m)/s)   above             s  m - min, the spread of the better half

    log p(y) = log p(z) + Σ log dz/dy,    z = -(t - mean) / sd

A few losses that are orders of magnitude above the rest leave a standardised model nothing to see
in the good half. Their logarithm does, but where losses are not like that it hides what tells them
apart: so the two are compared as densities of the same losses.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

SKEWED = 3.0
"""How many times wider than the better half the worse half must be for a warp to be considered."""


@dataclass(frozen=True)
class Warp:
    """A map from losses to standardised values that are to be maximised."""

    median: float
    spread: float
    """``inf`` for no compression."""
    mean: float
    sd: float

    def __call__(self, y: Tensor) -> Tensor:
        """Return the standardised values of losses, of any shape."""
        return -(_compressed(y, self.median, self.spread) - self.mean) / self.sd

    def slope(self, y: Tensor) -> Tensor:
        """Return dz/dy at losses, of any shape; negative."""
        above = (y - self.median).clamp(min=0) / self.spread
        return -1 / ((1 + above) * self.sd)

    def log_jacobian(self, y: Tensor) -> float:
        """Return Σ log |dz/dy| over losses."""
        above = (y - self.median).clamp(min=0) / self.spread
        return float(-torch.log1p(above).sum() - y.numel() * torch.tensor(self.sd).log())


def plain(y: Tensor) -> Warp:
    """Return the warp that only standardises the ``n`` losses."""
    return _standardising(y, float(y.median()), float("inf"))


def compressing(y: Tensor) -> Warp | None:
    """Return the warp that compresses the tail of the ``n`` losses, or None where they have none.

    A tail is one side ``SKEWED`` times as wide as the other.
    """
    median = float(y.median())
    better, worse = median - float(y.min()), float(y.max()) - median
    if not 0 < SKEWED * better < worse:
        return None
    return _standardising(y, median, better)


def _standardising(y: Tensor, median: float, spread: float) -> Warp:
    t = _compressed(y, median, spread)
    sd = float(t.std(correction=0))
    return Warp(median, spread, float(t.mean()), sd if sd > 0 else 1.0)


def _compressed(y: Tensor, median: float, spread: float) -> Tensor:
    if spread == float("inf"):
        return y
    above = (y - median).clamp(min=0)
    return torch.where(y > median, median + spread * torch.log1p(above / spread), y)

"""The end of a study whose values are estimates: the average of the last points, run in full."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import optuna
import torch
from optuna.trial import FrozenTrial
from torch import Tensor

from hyperopt_dl.tuners.archive import Archive
from hyperopt_dl.tuners.moving import Dimensions, values_at, visit_of

CLOSING = "hd:closing"
"""The user attribute of a trial that belongs to no chain, but closes some."""


@runtime_checkable
class ClosingTuner(Protocol):
    """A sampler that wants trials of its own when a study has come to its end."""

    def closing(self, study: optuna.Study) -> Sequence[Mapping[str, Any]]:
        """Return the hyperparameters of these trials, by name."""


def is_closing(trial: FrozenTrial) -> bool:
    """Return whether a trial closes chains."""
    return bool(trial.user_attrs.get(CLOSING, False))


def average_point(
    good: Sequence[FrozenTrial], dims: Dimensions, archive: Archive, part: float
) -> dict[str, float | Tensor]:
    """Return the average of the last points of a descent, at least one, in its coordinates.

    Args:
        good: The trials that the descent has followed, all with a gradient in ``dims``.
        dims: What moves.
        archive: Where Arrays are.
        part: How many of the points, as a part of them all.
    """
    last = good[-max(1, math.ceil(part * len(good))) :]
    points = [visit_of(trial, dims, archive, sign=1.0).point for trial in last]
    return values_at(torch.stack(points).mean(0), dims)

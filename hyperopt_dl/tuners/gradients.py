"""The hypergradients of trials in the coordinates of a cube.

dE/du = dE/dλ dλ/du,    E the loss, λ a hyperparameter, u its coordinate
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from optuna.trial import FrozenTrial, TrialState
from torch import Tensor

from hyperopt_dl.tuners.cube import Cube
from hyperopt_dl.tuners.record import recorded


def gradients_of(trials: Sequence[FrozenTrial], cube: Cube, *, sign: float) -> Tensor:
    """Return the derivatives of losses ``[n, D]`` per unit of the cube; NaN where there is none.

    Only a complete trial has some, in its dimensions that are a Float without a step; those of a
    failed or pruned trial do not belong to its loss.

    Args:
        trials: Trials that have all dimensions of the cube.
        cube: The dimensions.
        sign: 1 to minimise, -1 to maximise.
    """
    gradients = torch.full((len(trials), len(cube.names)), torch.nan, dtype=torch.float64)
    rows = [row for row, trial in enumerate(trials) if _known(trial)]
    if rows:
        known = [trials[row] for row in rows]
        natural = [[_derivative(trial, name) for name in cube.names] for trial in known]
        stretch = cube.stretch([trial.params for trial in known])
        gradients[rows] = sign * torch.tensor(natural, dtype=torch.float64) * stretch
    return torch.where(gradients.isfinite(), gradients, torch.nan)


def offered(trials: Sequence[FrozenTrial], cube: Cube) -> int:
    """Return how many derivatives trials carry in the dimensions of a cube, usable or not."""
    return sum(len(set(recorded(t.user_attrs) or {}) & set(cube.names)) for t in trials)


def _known(trial: FrozenTrial) -> bool:
    return trial.state == TrialState.COMPLETE and bool(recorded(trial.user_attrs))


def _derivative(trial: FrozenTrial, name: str) -> float:
    derivative: Any = (recorded(trial.user_attrs) or {}).get(name)
    return float(derivative) if isinstance(derivative, (int, float)) else math.nan

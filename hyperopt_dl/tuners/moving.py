"""Which hyperparameters of a trial move, and the coordinates that they move in.

Letters: λ a hyperparameter, E the outer loss, u the coordinates ``[d]`` of all that moves, one
after the other: a `Float` has one, on its linear or log scale; an `Array` has one for each entry,
scaled by its range where the range is finite, else in the Array's own unit.
"""

from collections.abc import Collection, Mapping
from typing import Any, TypeAlias

import torch
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.trial import FrozenTrial
from torch import Tensor

from hyperopt_dl.hypergrad.constant import Constant
from hyperopt_dl.space import Array, Float
from hyperopt_dl.tuners.archive import Archive, array_ids
from hyperopt_dl.tuners.chain import Visit
from hyperopt_dl.tuners.record import note_of, recorded

Dimensions: TypeAlias = Mapping[str, Float | Array]
"""What moves, by name, d coordinates in all."""


def moving(trial: FrozenTrial, archive: Archive, fixed: Collection[str]) -> Dimensions:
    """Return what moves on from a trial: what is continuous and has a derivative there.

    Args:
        trial: A trial with a gradient.
        archive: The Arrays of its study.
        fixed: Names that do not move.
    """
    gradient = recorded(trial.user_attrs) or {}
    dims = continuous(trial, archive, fixed)
    return {name: dimension for name, dimension in dims.items() if name in gradient}


def continuous(trial: FrozenTrial, archive: Archive, fixed: Collection[str]) -> Dimensions:
    """Return what may move: the floats without a step that are not fixed, and the Arrays."""
    floats = {
        name: Float(d.low, d.high, log=d.log)
        for name, d in sorted(trial.distributions.items())
        if isinstance(d, FloatDistribution) and _can_move(name, d, fixed)
    }
    own = array_ids(trial)
    arrays = {name: array for name, array in sorted(archive.arrays.items()) if name in own}
    return {**floats, **arrays}


def hold(
    params: Mapping[str, Any],
    distributions: Mapping[str, BaseDistribution],
    fixed: Collection[str],
) -> dict[str, Any]:
    """Return parameters in which the floats that do not move are constants of a derivative."""
    return {
        name: Constant(value)
        if isinstance(value, float) and not _can_move(name, distributions[name], fixed)
        else value
        for name, value in params.items()
    }


def visit_of(trial: FrozenTrial, dims: Dimensions, archive: Archive, *, sign: float) -> Visit:
    """Return where a trial was and its gradient there, in the coordinates of ``dims``.

    An estimate of the gradient is shortened by the factor that its estimator noted.

    Args:
        trial: A trial with a finite gradient in all of ``dims``.
        dims: What moves.
        archive: Where the trial's Arrays and the derivatives in them are.
        sign: 1 to go down, -1 to go up.
    """
    gradient, ids = recorded(trial.user_attrs) or {}, array_ids(trial)
    sign *= note_of(trial).get("factor", 1.0)
    points, gradients = [], []
    for name, dimension in dims.items():
        of_value = gradient[name]
        if isinstance(of_value, str):
            value, derivative = archive.load(ids[name]), archive.load(of_value)
        else:
            value, derivative = trial.params[name], torch.tensor(of_value, dtype=torch.double)
        with torch.enable_grad():
            u = dimension.to_unit(value).detach().requires_grad_()
            (pulled,) = torch.autograd.grad(dimension.from_unit(u), u, sign * derivative)
        points.append(u.detach().reshape(-1))
        gradients.append(pulled.reshape(-1))
    return Visit(torch.cat(points), torch.cat(gradients))


def values_at(u: Tensor, dims: Dimensions) -> dict[str, float | Tensor]:
    """Return the hyperparameters nearest to a point ``[d]``: within range, box and constraint."""
    parts = torch.split(u, [dimension.size for dimension in dims.values()])
    values: dict[str, float | Tensor] = {}
    for part, (name, dimension) in zip(parts, dims.items(), strict=True):
        if isinstance(dimension, Array):
            values[name] = dimension.project(dimension.from_unit(part))
        else:
            values[name] = float(dimension.from_unit(part))
    return values


def _can_move(name: str, distribution: BaseDistribution, fixed: Collection[str]) -> bool:
    continuous = isinstance(distribution, FloatDistribution) and distribution.step is None
    return continuous and name not in fixed

"""What a model believes of single dimensions, in the units of the hyperparameters and the value."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from optuna.distributions import CategoricalDistribution
from torch import Tensor

from hyperopt_dl.gp.candidates import uniform
from hyperopt_dl.gp.effects import expected_variances, main_effects
from hyperopt_dl.gp.posterior import Posterior
from hyperopt_dl.tuners.cube import Cube

Scale: TypeAlias = Literal["linear", "log", "category"]
Kind: TypeAlias = Literal["full", "radius", "group"]

LEVELS = 21
"""The values of a numeric dimension at which its effects are told, at most."""
BACKGROUND, POINTS = 32, 128
"""Points of the cube over which the other dimensions are averaged, and shares are measured."""


@dataclass(frozen=True)
class Effect:
    """The change of the value along one dimension, averaged over the others.

    It is told as the difference from its own mean over these values, and its standard deviation is
    that of the difference.
    """

    values: tuple[Any, ...]
    """Of the hyperparameter, J of them: all choices and levels, or evenly spaced ones."""
    mean: npt.NDArray[np.float64]
    """``[J]``, in units of the study's value."""
    sd: npt.NDArray[np.float64]
    """``[J]``, the posterior's standard deviation, at the hyperparameters of the kernel."""
    scale: Scale
    """How the values are spaced, and how an axis should be."""


@dataclass(frozen=True)
class Component:
    """One term of the sum that the value is modelled as."""

    kind: Kind
    """What it reads: all dimensions, the distance from the middle of the space, or a group."""
    names: tuple[str, ...]
    """The dimensions that it depends on."""
    share: float
    """Of the components' variances over the space, which the posterior expects."""
    effects: Mapping[str, Effect]
    """Its main effect along each of its dimensions."""


def explain(
    posterior: Posterior, cube: Cube, unit: float
) -> tuple[tuple[Component, ...], dict[str, Effect]]:
    """Return the components of a posterior, and the main effects of their sum by dimension.

    The full component comes first, then that of the radius, then the groups.

    The space outside a dimension is averaged over ``BACKGROUND`` quasi-random points, always the
    same ones.

    Args:
        posterior: Of one chain.
        cube: Its dimensions.
        unit: What 1 in the posterior is in units of the study's value; negative where it falls.
    """
    device = posterior.x.device
    reads = posterior.kernel.reads
    shares = expected_variances(posterior, uniform(cube.domain, POINTS, seed=0).to(device))
    shares = shares / shares.sum()
    background = uniform(cube.domain, BACKGROUND, seed=1).to(device)
    parts: list[dict[str, Effect]] = [{} for _ in reads]
    total = {}
    for d, (name, (values, levels)) in enumerate(_levels(cube).items()):
        mean, sd = main_effects(posterior, d, levels.to(device), background)
        rows = zip((unit * mean).cpu().numpy(), (abs(unit) * sd).cpu().numpy(), strict=True)
        total[name], *own = (Effect(values, m, s, _scale(cube, name)) for m, s in rows)
        for g, effect in zip(reads[:, d].nonzero().flatten().tolist(), own, strict=True):
            parts[g][name] = effect
    first: tuple[Kind, ...] = ("full", "radius")
    components = (
        Component(first[g] if g < len(first) else "group", tuple(effects), share, effects)
        for g, (effects, share) in enumerate(zip(parts, shares.tolist(), strict=True))
    )
    return tuple(components), total


def _levels(cube: Cube) -> dict[str, tuple[tuple[Any, ...], Tensor]]:
    """Return by dimension the values at which effects are told, and their coordinates."""
    grids = [
        _grid(levels, bool(is_choice))
        for levels, is_choice in zip(cube.domain.levels, cube.categorical, strict=True)
    ]
    longest = max(len(grid) for grid in grids)
    rows = torch.stack([grid[torch.arange(longest).clamp(max=len(grid) - 1)] for grid in grids], -1)
    params = [cube.decode(row) for row in rows]
    x, _ = cube.encode(params)  # whole numbers of an interval are not where its grid is
    found = {}
    for d, name in enumerate(cube.names):
        first = [j for j in range(longest) if j == 0 or x[j, d] != x[j - 1, d]]
        found[name] = tuple(params[j][name] for j in first), x[first, d]
    return found


def _grid(levels: Tensor | None, is_choice: bool) -> Tensor:
    """Return coordinates, increasing: all levels, or even ones, or the levels nearest to those."""
    even = torch.linspace(0, 1, LEVELS, dtype=torch.float64)
    if levels is None:
        return even
    if is_choice or len(levels) <= LEVELS:
        return levels
    nearest = torch.searchsorted(0.5 * (levels[1:] + levels[:-1]), even)
    return levels[sorted(set(nearest.tolist()))]


def _scale(cube: Cube, name: str) -> Scale:
    distribution = cube.distributions[name]
    if isinstance(distribution, CategoricalDistribution):
        return "category"
    return "log" if getattr(distribution, "log", False) else "linear"


def strongest(effects: Mapping[str, Effect]) -> Sequence[str]:
    """Return the names of effects, those first whose means differ most."""
    return sorted(effects, key=lambda name: -float(np.ptp(effects[name].mean)))

"""What a model has learned of a study, in the words of its dimensions."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from hyperopt_dl.errors import StudyError
from hyperopt_dl.gp.partition import groups
from hyperopt_dl.gp.threads import small_matrices
from hyperopt_dl.tuners.cube import Cube
from hyperopt_dl.tuners.effects import Component, Effect, explain, strongest
from hyperopt_dl.tuners.observations import Observations
from hyperopt_dl.tuners.structure_figures import effects_figure, pairs_figure
from hyperopt_dl.tuners.surrogate import Surrogate


@dataclass(frozen=True)
class LearnedStructure:
    """Which dimensions act together, and what each does, as far as a study's trials can tell.

    From fewer than some hundred trials the groups are a guess that fits, and not a finding.
    """

    names: tuple[str, ...]
    """The D dimensions."""
    pairs: npt.NDArray[np.float64]
    """``[D, D]``, the probability that two dimensions share a group: the share of the rounds of
    moves since structures were last learned in which they did, the mean over the chains."""
    pairs_error: npt.NDArray[np.float64]
    """``[D, D]``, the standard error of that mean, from how the K chains differ: their standard
    deviation over √K. NaN where there is one chain. It is 0 where chains agree, and knows nothing
    of groups that none of them has visited."""
    groups: tuple[tuple[str, ...], ...]
    """The groups of the chain with the highest posterior density."""
    components: tuple[Component, ...]
    """The terms of that chain's sum: the full one, that of the radius, and the groups in order."""
    effects: Mapping[str, Effect]
    """By dimension, the main effect of the whole sum, which the terms divide between them."""
    compressed: bool
    """Whether effects are those on values whose bad tail is compressed: beyond the median a unit of
    an effect is then more than a unit of the value."""

    def plot_pairs(self) -> Any:
        """Return a plotly heat map of `pairs`, members of a group side by side.

        The text at a cell tells its probability and standard error.
        """
        order = [name for group in self.groups for name in group] or list(self.names)
        return pairs_figure(self.names, self.pairs, self.pairs_error, order)

    def plot_effects(self, names: Sequence[str] | None = None) -> Any:
        """Return a plotly figure of `effects`, each with a band of two standard deviations.

        Thinner lines are the terms of the sum that read the dimension.

        Args:
            names: The dimensions to show, in order; ``None`` is all, those first that matter most.

        Raises:
            StudyError: A name that is none of the dimensions.
        """
        names = strongest(self.effects) if names is None else list(names)
        if unknown := [name for name in names if name not in self.names]:
            raise StudyError(
                f"plot_effects can show the dimensions {list(self.names)}, got {unknown}. Leave "
                f"them out."
            )
        unit = "change of the value" + (", compressed" if self.compressed else "")
        return effects_figure(self.effects, self.components, names, unit)


@dataclass(frozen=True)
class Diagnostics:
    """What a model is based on, what it believes, and what went wrong."""

    losses: int
    """Trials with a loss, pruned ones among them."""
    failed: int
    """Trials without one: failed, of a value that is not finite, or pruned without a report."""
    pending: int
    """Trials that run."""
    constraints: tuple[str, ...]
    """The names of those that trials have set."""
    derivatives: int
    """Derivatives that the model knows, beside the losses."""
    unusable_derivatives: int
    """Derivatives that are not finite, or of a trial without a loss."""
    derivative_noise: tuple[float, ...]
    """Their variance around those of the function, relative to their size, by chain."""
    compressed: bool
    """Whether the tail of the losses is compressed."""
    noise: tuple[float, ...]
    """The variance of a loss around the function, as a share of the losses' variance, by chain."""
    log_posterior: tuple[float, ...]
    """In nats, by chain."""
    sound: bool
    """Whether every likelihood of the last fit could be computed."""
    fallbacks: Mapping[str, str]
    """The errors for which trials got a quasi-random point, by the trials' numbers."""

    @classmethod
    def of(
        cls,
        observations: Observations,
        surrogate: Surrogate | None,
        fallbacks: Mapping[str, str],
    ) -> "Diagnostics":
        """Return the diagnostics of a model; without one where nothing has a loss yet."""
        chains = surrogate.fitted.chains if surrogate else ()
        return cls(
            losses=len(observations.losses),
            failed=len(observations.failed),
            pending=len(observations.pending),
            constraints=tuple(observations.constraints),
            derivatives=surrogate.derivatives if surrogate else 0,
            unusable_derivatives=observations.unusable,
            derivative_noise=surrogate.derivative_noise if surrogate else (),
            compressed=surrogate is not None and surrogate.warp.spread != math.inf,
            noise=tuple(float(c.kernel.noise) for c in surrogate.chains) if surrogate else (),
            log_posterior=tuple(chain.log_posterior for chain in chains),
            sound=all(chain.sound for chain in chains),
            fallbacks=dict(fallbacks),
        )


def learned_structure(surrogate: Surrogate, cube: Cube, *, sign: float) -> LearnedStructure:
    """Return what the chains of a surrogate say of the dimensions of a cube.

    Args:
        surrogate: The models.
        cube: The dimensions.
        sign: 1 for a study that minimizes, -1 for one that maximizes.
    """
    chains = surrogate.fitted.chains
    together = np.stack([chain.together for chain in chains])
    best = max(range(len(chains)), key=lambda c: chains[c].log_posterior)
    partition = chains[best].partition
    found = [] if partition is None else groups(partition)
    with small_matrices():
        components, effects = explain(surrogate.chains[best], cube, -sign * surrogate.warp.sd)
    return LearnedStructure(
        names=cube.names,
        pairs=together.mean(0),
        pairs_error=_standard_error(together),
        groups=tuple(tuple(cube.names[d] for d in group) for group in found),
        components=components[: 2 + len(found)],
        effects=effects,
        compressed=surrogate.warp.spread != math.inf,
    )


def _standard_error(samples: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the standard error of the mean over the first axis; NaN of one sample."""
    if len(samples) == 1:
        return np.full(samples.shape[1:], math.nan)
    error = samples.std(0, ddof=1) / math.sqrt(len(samples))
    return np.asarray(error)

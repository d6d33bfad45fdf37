"""What a model has learned of a study, in the words of its dimensions."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hyperopt_dl.gp.partition import groups
from hyperopt_dl.tuners.cube import Cube
from hyperopt_dl.tuners.observations import Observations
from hyperopt_dl.tuners.surrogate import Surrogate

FULL = "all"
"""The name of the component that reads every dimension."""


@dataclass(frozen=True)
class LearnedStructure:
    """Which dimensions act together, as far as the trials of a study can tell.

    From fewer than some hundred trials the groups are a guess that fits, and not a finding.
    """

    names: tuple[str, ...]
    """The D dimensions."""
    pairs: npt.NDArray[np.float64]
    """``[D, D]``, the share of the chains' last rounds in which two dimensions shared a group."""
    spread: npt.NDArray[np.float64]
    """``[D, D]``, the standard deviation of that share between the chains."""
    groups: tuple[tuple[str, ...], ...]
    """The groups of the chain with the highest posterior density."""
    shares: Mapping[str, float]
    """Of the prior variance, by component of that chain: "all", and the names of each group."""


@dataclass(frozen=True)
class Diagnostics:
    """What a model is based on, what it believes, and what went wrong."""

    losses: int
    failed: int
    pending: int
    constraints: tuple[str, ...]
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
            compressed=surrogate is not None and surrogate.warp.spread != float("inf"),
            noise=tuple(float(c.kernel.noise) for c in surrogate.chains) if surrogate else (),
            log_posterior=tuple(chain.log_posterior for chain in chains),
            sound=all(chain.sound for chain in chains),
            fallbacks=dict(fallbacks),
        )


def learned_structure(surrogate: Surrogate, cube: Cube) -> LearnedStructure:
    """Return what the chains of a surrogate say of the dimensions of a cube."""
    chains = surrogate.fitted.chains
    together = np.stack([chain.together for chain in chains])
    best = max(range(len(chains)), key=lambda c: chains[c].log_posterior)
    partition = chains[best].partition
    found = [] if partition is None else groups(partition)
    named = [tuple(cube.names[d] for d in group) for group in found]
    weights = surrogate.chains[best].kernel.weights[: 1 + len(named)]
    labels = [FULL, *(", ".join(group) for group in named)]
    return LearnedStructure(
        names=cube.names,
        pairs=together.mean(0),
        spread=together.std(0),
        groups=tuple(named),
        shares=dict(zip(labels, (weights / weights.sum()).tolist(), strict=True)),
    )

"""Chains over structures: the model that the tuner asks.

    k = w_0 κ(all dimensions) + w_1 κ(radius) + Σ_g w_g κ(group g)

A chain has a partition of the dimensions and hyperparameters of its own. It alternates: rounds of
moves over partitions at fixed hyperparameters, then a short fit of the hyperparameters at the
partition where it is. Moves are counted, not timed, so a seed fixes everything. The chains of the
last call are where the next one starts, with whatever data there are by then.

Chain 0 starts with every dimension alone, the others at noisy clusters of the interaction scores;
so they disagree where the data do not decide. A chain that is far below the best starts again.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, TypeAlias, cast

import numpy as np
import torch
from torch import Tensor

from hyperopt_dl import seeds
from hyperopt_dl.gp.affinity import affinity_of, clusters, interaction_scores
from hyperopt_dl.gp.data import Data, observe
from hyperopt_dl.gp.evidence import Evidence
from hyperopt_dl.gp.kernel import Kernel, correlation, stack
from hyperopt_dl.gp.likelihood import Parameters, Structure, initial
from hyperopt_dl.gp.likelihood import fit as fit_hyperparameters
from hyperopt_dl.gp.moves import Affinity, round_of_moves
from hyperopt_dl.gp.partition import (
    Partition,
    default_prior,
    from_groups,
    groups,
    singletons,
    sizes,
)

StructureChoice: TypeAlias = Literal["learned", "full", "additive"] | Sequence[Sequence[int]]

FIRST_ITERATIONS, ITERATIONS, ADDITIVE_ITERATIONS = 100, 30, 25
"""Of L-BFGS, at most: for a new chain, for one that goes on, for the scores of interactions."""
HOPELESS = 10.0
"""Nats below the best chain from which a chain starts again."""
RESTARTS_EVERY, AFFINITY_EVERY = 5, 2
"""Cycles from one look for a hopeless chain to the next, since a chain needs time; and calls of
`fit` from one set of scores of interactions to the next."""


@dataclass(frozen=True)
class Chain:
    """Where one chain is."""

    partition: Partition | None
    """The groups beside the full component; None if there are none."""
    parameters: Parameters
    """The logarithms of its hyperparameters, a batch of one; component 0 is the full one, 1 that of
    the radius."""
    log_posterior: float
    """Of the partition and the hyperparameters, in nats, up to a constant of the data's number."""
    together: np.ndarray
    """``[D, D]``, the share of the last call's rounds in which two dimensions shared a group."""
    sound: bool
    """Whether every likelihood of the last fit could be computed."""


@dataclass(frozen=True)
class Fitted:
    """The chains after a call of `fit`: what the acquisition reads; where the next call starts."""

    chains: tuple[Chain, ...]
    categorical: Tensor
    """``[D]``, bool."""
    affinity: Affinity
    """``[D, D]``, which dimensions seem to interact; zeros where no structure is learned."""
    calls: int
    """How many calls of `fit` led here."""

    @cached_property
    def kernel(self) -> Kernel:
        """The kernels of the chains, a batch."""
        return stack([kernel_of(chain, self.categorical) for chain in self.chains])

    @property
    def best(self) -> Chain:
        """The chain with the highest log posterior."""
        return max(self.chains, key=lambda chain: chain.log_posterior)

    def together(self) -> np.ndarray:
        """Return ``[D, D]``, the share of all rounds in which two dimensions shared a group."""
        return np.asarray(np.mean([chain.together for chain in self.chains], axis=0))


def fit(
    x: Tensor,
    y: Tensor,
    categorical: Tensor,
    *,
    structure: StructureChoice = "learned",
    chains: int = 2,
    state: Fitted | None = None,
    seed: int,
    rounds: int = 30,
    cycles: int = 1,
) -> Fitted:
    """Fit the model to all observations, from where the last call ended.

    Args:
        x: A ``m x D`` tensor of points in the unit cube; a categorical dimension holds an index.
        y: A ``m`` tensor of values, standardised and negated.
        categorical: A ``D`` tensor of bool.
        structure: "learned" groups; "full", none; "additive", each dimension alone; or the groups
            themselves, where a dimension that is not named stands alone. Groups are always beside
            the full component and that of the radius.
        chains: How many chains; where there is nothing to learn there is one.
        state: What the last call returned, for the same dimensions.
        seed: Fixes the outcome.
        rounds: Of moves, per chain and cycle.
        cycles: How often a chain moves and is fitted.

    Returns:
        The chains. No exception comes from data that make matrices singular; see `Chain.sound`.

    Raises:
        SpaceError: Groups that overlap or name a dimension that is not there.
    """
    data, D = observe(x, y, categorical), x.shape[-1]
    if structure == "learned" and D > 1:
        return _learn(data, chains, state, seed, rounds, cycles)
    if structure in ("learned", "full"):
        partition = None
    elif structure == "additive":
        partition = singletons(D)
    else:
        partition = from_groups(cast(Sequence[Sequence[int]], structure), D)
    chain = _fit_from(data, partition, None if state is None else state.chains[0])
    calls = 1 if state is None else state.calls + 1
    return Fitted((chain,), categorical, np.zeros((D, D)), calls)


def refit(x: Tensor, y: Tensor, state: Fitted) -> Fitted:
    """Fit the hyperparameters to all observations, with the structures left as they are.

    Args:
        x: A ``m x D`` tensor of points in the unit cube.
        y: A ``m`` tensor of values, standardised and negated.
        state: What `fit` returned, for the same dimensions.
    """
    data = observe(x, y, state.categorical)
    fitted = [
        replace(_fit_from(data, chain.partition, chain), together=chain.together)
        for chain in state.chains
    ]
    return replace(state, chains=tuple(fitted))


def kernel_of(chain: Chain, categorical: Tensor) -> Kernel:
    """Return the kernel of one chain."""
    structure = _structure(chain.partition, categorical, chain.parameters.scales)
    return structure.kernel(chain.parameters)[0]


def _learn(
    data: Data, number: int, state: Fitted | None, seed: int, rounds: int, cycles: int
) -> Fitted:
    """Move and fit every chain, as often as there are cycles."""
    D = data.x.shape[-1]
    chains = [] if state is None else list(state.chains[:number])
    calls = 1 if state is None else state.calls + 1
    affinity = None if state is None or calls % AFFINITY_EVERY == 0 else state.affinity
    affinity = _affinity(data) if affinity is None else affinity
    for cycle in range(cycles):
        past = calls - 1 + cycle
        worst = _hopeless(chains) if past % RESTARTS_EVERY == 0 else None
        for c in range(number):
            rng = np.random.default_rng(seeds.derive(seed, "chains", calls, cycle, c))
            if c >= len(chains):
                start = singletons(D) if c == 0 else _clusters(affinity, rng)
                chains.append(_fit_from(data, start, None))
            elif c == worst:
                chains[c] = _fit_from(data, _clusters(affinity, rng), None)
            chains[c] = _advance(data, chains[c], affinity, rng, rounds)
    return Fitted(tuple(chains), data.categorical, affinity, calls)


def _advance(
    data: Data, chain: Chain, affinity: Affinity, rng: np.random.Generator, rounds: int
) -> Chain:
    """Return the chain after rounds of moves and a short fit."""
    assert chain.partition is not None
    evidence = _evidence(data, chain)
    partition, together = chain.partition, np.zeros_like(affinity)
    for _ in range(rounds):
        partition = round_of_moves(partition, evidence, affinity, rng)
        together += np.equal.outer(partition, partition) / rounds
    moved = replace(chain, parameters=_regroup(chain, partition))
    return replace(_fit_from(data, partition, moved), together=together)


def _fit_from(data: Data, partition: Partition | None, before: Chain | None) -> Chain:
    """Return a chain at a partition, its hyperparameters fitted from those of the chain before."""
    D = data.x.shape[-1]
    structure = _structure(partition, data.categorical, data.E)
    start = initial(structure) if before is None else before.parameters
    found = fit_hyperparameters(
        data, structure, start, FIRST_ITERATIONS if before is None else ITERATIONS
    )
    log_prior = 0.0 if partition is None else default_prior(D).log(sizes(partition))
    labels = np.arange(D) if partition is None else np.asarray(partition)
    together = np.equal.outer(labels, labels).astype(float)
    return Chain(partition, found.parameters, log_prior - found.value, together, found.sound)


def _evidence(data: Data, chain: Chain) -> Evidence:
    """Return the posterior of partitions at the hyperparameters of a chain."""
    D = data.x.shape[-1]
    scales, weights = chain.parameters.scales[0].exp(), chain.parameters.weights[0].exp()
    full = weights[0] * correlation(scales[0, :D] @ data.E[:D], "matern52")
    radial = weights[1] * correlation(scales[1, D] * data.E[D], "matern52")
    return Evidence(
        data,
        scales=scales[1, :D],
        variances=_variances(chain).exp(),
        noise=chain.parameters.noise.exp().item(),
        prior=default_prior(D),
        beside=(full + radial, float(weights[:2].sum())),
    )


def _regroup(chain: Chain, partition: Partition) -> Parameters:
    """Return the parameters of a chain for other groups: each dimension brings its variance."""
    variances = _variances(chain)
    new = torch.stack([variances[group].logsumexp(0) for group in groups(partition)])
    weights = torch.cat([chain.parameters.weights[0, :2], new])
    return replace(chain.parameters, weights=weights[None])


def _variances(chain: Chain) -> Tensor:
    """Return the log of each dimension's even share ``[D]`` in the weight of its group."""
    assert chain.partition is not None
    labels = torch.tensor(chain.partition, device=chain.parameters.weights.device)
    number = torch.bincount(labels).log()
    return (chain.parameters.weights[0, 2:] - number)[labels]


def _structure(partition: Partition | None, categorical: Tensor, like: Tensor) -> Structure:
    """Return the structure of the full component, that of the radius, and the groups.

    Its masks have the precision and the device of the tensor `like`.
    """
    D = len(categorical)
    members = [list(range(D)), [D], *([] if partition is None else groups(partition))]
    masks = like.new_zeros(1, len(members), D + 1)
    for g, group in enumerate(members):
        masks[0, g, group] = 1
    vector = torch.tensor([0] + [1] * (len(members) - 1), device=like.device)
    return Structure(masks, vector, categorical)


def _affinity(data: Data) -> Affinity:
    """Return which dimensions seem to interact, from a short fit without interactions."""
    D = data.x.shape[-1]
    masks = torch.eye(D, dtype=data.E.dtype, device=data.E.device)[None]
    vector = torch.zeros(D, dtype=torch.long, device=masks.device)
    structure = Structure(masks, vector, data.categorical)
    start = initial(structure)
    found = fit_hyperparameters(data, structure, start, ADDITIVE_ITERATIONS).parameters
    scales, weights, noise = found.scales[0, 0].exp(), found.weights[0].exp(), found.noise.exp()
    return affinity_of(interaction_scores(data, scales, weights, noise.item()))


def _clusters(affinity: Affinity, rng: np.random.Generator) -> Partition:
    """Return a partition to start from that the prior allows."""
    return clusters(affinity, default_prior(len(affinity)).cap, rng)


def _hopeless(chains: Sequence[Chain]) -> int | None:
    """Return the chain far below the best, if there is one: the worst of them."""
    if not chains:
        return None
    log_posteriors = [chain.log_posterior for chain in chains]
    worst = int(np.argmin(log_posteriors))
    return worst if max(log_posteriors) - log_posteriors[worst] > HOPELESS else None

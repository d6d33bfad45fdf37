"""Moves of a Markov chain over partitions; each leaves the posterior as it is.

A move takes a partition, a function that returns the log posterior of partitions (up to a constant)
and a generator, and returns the next partition. It is in detailed balance with the posterior.

- `gibbs`: one dimension is dealt anew to the groups of the others or to a new group, of which there
  is one. All candidates are scored at once, and the Gumbel-max trick of the paper draws one.
- `swap`: two dimensions change places. Gibbs alone would have to pass through wrong sizes.
- `split_merge`: a group is split between two anchors, or the groups of two anchors are merged. The
  other dimensions choose a side one after another, by a coin or by their affinity to the ones that
  are there. Metropolis and Hastings correct for how the proposal was made.

Sources: Wang et al., ICML 2017 (Gibbs); Jain and Neal, J. Comput. Graph. Stat. 13, 2004 (split and
merge between anchors); Dahl, technical report, University of Wisconsin, 2003 (sides in sequence).
"""

import math
from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np

from hyperopt_dl.gp.partition import Partition, canonical

LogPosterior: TypeAlias = Callable[[Sequence[Partition]], Sequence[float]]
MOST_PLACES = 12
"""Places among which a Gibbs move chooses in a round, so that its cost does not grow with ``D``."""
Affinity: TypeAlias = np.ndarray
"""``[D, D]``, symmetric: how much more likely, in nats, two dimensions are to share a group."""


def round_of_moves(
    partition: Partition, posterior: LogPosterior, affinity: Affinity, rng: np.random.Generator
) -> Partition:
    """Return the partition after one dimension's Gibbs move, two swaps, and two splits or merges.

    Costs at most `MOST_PLACES` + 4 Choleskys.
    """
    partition = gibbs(partition, int(rng.integers(len(partition))), posterior, rng, MOST_PLACES)
    for guide in (affinity, np.zeros_like(affinity)):
        partition = swap(partition, posterior, rng)
        partition = split_merge(partition, guide, posterior, rng)
    return partition


def gibbs(
    partition: Partition,
    dimension: int,
    posterior: LogPosterior,
    rng: np.random.Generator,
    most: int | None = None,
) -> Partition:
    """Draw the group of one dimension from its posterior given the groups of the others.

    Args:
        partition: Where the chain is.
        dimension: The one that is dealt anew.
        posterior: The log posterior.
        rng: The source of randomness.
        most: How many places to choose from, at least 2: the present one, and others that are drawn
            evenly. Each place would have led to the same choice equally often, so the move is in
            detailed balance all the same. None for all places.
    """
    others = partition[:dimension] + partition[dimension + 1 :]
    places = [*dict.fromkeys(others), -1]
    if most is not None and most < len(places):
        present = partition[dimension] if partition[dimension] in others else -1
        rest = [place for place in places if place != present]
        drawn = rng.choice(len(rest), size=most - 1, replace=False)
        places = [present, *(rest[k] for k in drawn.tolist())]
    candidates = [
        canonical((*partition[:dimension], label, *partition[dimension + 1 :])) for label in places
    ]
    scores = np.asarray(posterior(candidates)) + rng.gumbel(size=len(candidates))
    return candidates[int(np.argmax(scores))]


def swap(partition: Partition, posterior: LogPosterior, rng: np.random.Generator) -> Partition:
    """Propose that two dimensions of different groups change places.

    No size changes, so there are as many ways back as there: the proposal is symmetric.
    """
    labels = np.asarray(partition)
    i = int(rng.integers(len(labels)))
    elsewhere = np.flatnonzero(labels != labels[i])
    if len(elsewhere) == 0:
        return partition
    j = int(rng.choice(elsewhere))
    labels[[i, j]] = labels[[j, i]]
    return _accept(partition, canonical(labels.tolist()), 0.0, posterior, rng)


def split_merge(
    partition: Partition, affinity: Affinity, posterior: LogPosterior, rng: np.random.Generator
) -> Partition:
    """Propose to split a group between two anchors, or to merge the groups of two anchors.

    A coin says which. The anchors of a split are drawn evenly from the pairs that share a group,
    those of a merge from the pairs that do not, in proportion to ``exp(affinity)``.

    Args:
        partition: Where the chain is.
        affinity: Guides both; zeros for none.
        posterior: The log posterior.
        rng: The source of randomness.
    """
    if rng.random() < 0.5:
        return _split(partition, affinity, posterior, rng)
    return _merge(partition, affinity, posterior, rng)


def _split(
    partition: Partition, affinity: Affinity, posterior: LogPosterior, rng: np.random.Generator
) -> Partition:
    together, _ = _pairs(partition, affinity)
    if not together.any():
        return partition
    i, j = _draw(together, rng)
    group = [d for d, label in enumerate(partition) if label == partition[i]]
    side, log_sides = _sides(group, i, j, affinity, rng)
    proposal = canonical(-1 if d in side else label for d, label in enumerate(partition))
    _, apart = _pairs(proposal, affinity)
    there = -math.log(together.sum()) + log_sides
    back = math.log(apart[i, j] / apart.sum())
    return _accept(partition, proposal, back - there, posterior, rng)


def _merge(
    partition: Partition, affinity: Affinity, posterior: LogPosterior, rng: np.random.Generator
) -> Partition:
    _, apart = _pairs(partition, affinity)
    if not apart.any():
        return partition
    i, j = _draw(apart, rng)
    proposal = canonical(partition[i] if label == partition[j] else label for label in partition)
    together, _ = _pairs(proposal, affinity)
    group = [d for d, label in enumerate(partition) if label in (partition[i], partition[j])]
    side = {d for d in group if partition[d] == partition[j]}
    there = math.log(apart[i, j] / apart.sum())
    back = -math.log(together.sum()) + _log_sides(group, i, j, side, affinity)
    return _accept(partition, proposal, back - there, posterior, rng)


def _pairs(partition: Partition, affinity: Affinity) -> tuple[np.ndarray, np.ndarray]:
    """Return the weights with which the anchors ``i < j`` of a split and of a merge are drawn."""
    labels = np.asarray(partition)
    same = labels[:, None] == labels
    return np.triu(same, 1).astype(float), np.triu(np.exp(affinity) * ~same, 1)


def _draw(weights: np.ndarray, rng: np.random.Generator) -> tuple[int, int]:
    """Draw an entry of a matrix in proportion to its weight."""
    cumulated = weights.cumsum()
    drawn = int(np.searchsorted(cumulated, rng.random() * cumulated[-1], side="right"))
    return divmod(drawn, len(weights))


def _sides(
    group: Sequence[int], i: int, j: int, affinity: Affinity, rng: np.random.Generator
) -> tuple[set[int], float]:
    """Draw the members of a group that go with anchor j; return the draw's log probability too."""
    with_i, with_j, log_probability = [i], [j], 0.0
    for d in group:
        if d not in (i, j):
            to_j = _prefers_j(d, with_i, with_j, affinity)
            chosen = rng.random() < to_j
            (with_j if chosen else with_i).append(d)
            log_probability += math.log(to_j if chosen else 1 - to_j)
    return set(with_j), log_probability


def _log_sides(group: Sequence[int], i: int, j: int, side: set[int], affinity: Affinity) -> float:
    """Return the log probability with which `_sides` would have drawn `side`."""
    with_i, with_j, log_probability = [i], [j], 0.0
    for d in group:
        if d not in (i, j):
            to_j = _prefers_j(d, with_i, with_j, affinity)
            (with_j if d in side else with_i).append(d)
            log_probability += math.log(to_j if d in side else 1 - to_j)
    return log_probability


def _prefers_j(d: int, with_i: list[int], with_j: list[int], affinity: Affinity) -> float:
    """Return the probability that a dimension joins j's side, given who is there already."""
    pull = affinity[d, with_j].mean() - affinity[d, with_i].mean()
    return 1 / (1 + math.exp(-float(pull)))


def _accept(
    partition: Partition,
    proposal: Partition,
    log_proposals: float,
    posterior: LogPosterior,
    rng: np.random.Generator,
) -> Partition:
    """Return the proposal or the partition, by Metropolis and Hastings.

    Args:
        partition: Where the chain is.
        proposal: Where it may go.
        log_proposals: log of the probability of proposing the way back over that of the way there.
        posterior: The log posterior.
        rng: The source of randomness.
    """
    here, there = posterior([partition, proposal])
    return proposal if math.log1p(-rng.random()) < there - here + log_proposals else partition

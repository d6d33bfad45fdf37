"""The moves against enumerated posteriors: they leave them invariant, and reach every partition."""

import itertools
import math
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch

from hyperopt_dl.gp.data import observe
from hyperopt_dl.gp.evidence import Evidence
from hyperopt_dl.gp.moves import LogPosterior, gibbs, round_of_moves, split_merge, swap
from hyperopt_dl.gp.partition import (
    Capped,
    Dirichlet,
    Multiplicity,
    Partition,
    Prior,
    canonical,
    sizes,
)

PRIORS: list[Prior] = [Multiplicity(), Dirichlet(0.7)]
Move = Callable[[Partition, LogPosterior, np.ndarray, np.random.Generator], Partition]
MOVES: dict[str, Move] = {
    "gibbs": lambda z, p, a, rng: gibbs(z, int(rng.integers(len(z))), p, rng),
    "gibbs among two": lambda z, p, a, rng: gibbs(z, int(rng.integers(len(z))), p, rng, most=2),
    "swap": lambda z, p, a, rng: swap(z, p, rng),
    "split or merge": lambda z, p, a, rng: split_merge(z, 0 * a, p, rng),
    "guided split or merge": lambda z, p, a, rng: split_merge(z, a, p, rng),
    "round": round_of_moves,
}


def every_partition(D: int) -> list[Partition]:
    return sorted({canonical(labels) for labels in itertools.product(range(D), repeat=D)})


def affinity_of(D: int) -> np.ndarray:
    drawn = np.random.default_rng(7).normal(size=(D, D))
    return drawn + drawn.T


class Table:
    """A posterior that is looked up: a rugged likelihood, times a prior."""

    def __init__(self, D: int, prior: Prior) -> None:
        rng = np.random.default_rng(3)
        self.partitions = every_partition(D)
        self.log = {z: rng.normal() + prior.log(sizes(z)) for z in self.partitions}

    def __call__(self, partitions: Sequence[Partition]) -> list[float]:
        return [self.log[z] for z in partitions]

    def probabilities(self) -> np.ndarray:
        weights = np.exp([self.log[z] for z in self.partitions])
        return np.asarray(weights / weights.sum())


def distance(table: Table, visits: Counter[Partition]) -> float:
    """The total variation between visits and the posterior."""
    seen = np.array([visits[z] for z in table.partitions]) / visits.total()
    return 0.5 * float(np.abs(seen - table.probabilities()).sum())


def chain(move: Move, table: Table, length: int) -> Counter[Partition]:
    rng, affinity = np.random.default_rng(0), affinity_of(len(table.partitions[0]))
    partition, visits = table.partitions[-1], Counter[Partition]()
    for _ in range(length):
        partition = move(partition, table, affinity, rng)
        visits[partition] += 1
    return visits


@pytest.mark.parametrize("prior", [*PRIORS, Capped(Multiplicity(), 3)], ids=str)
@pytest.mark.parametrize(
    "name", ["gibbs among two", "swap", "split or merge", "guided split or merge"]
)
def test_a_move_leaves_the_posterior_as_it_is(name: str, prior: Prior) -> None:
    table, rng, affinity = Table(4, prior), np.random.default_rng(1), affinity_of(4)
    before = rng.choice(len(table.partitions), p=table.probabilities(), size=5000)
    visits, moved = Counter[Partition](), 0
    for start in before:
        end = MOVES[name](table.partitions[start], table, affinity, rng)
        visits[end] += 1
        moved += end != table.partitions[start]
    assert distance(table, visits) < 0.04
    assert moved > 200


@pytest.mark.slow
@pytest.mark.parametrize("prior", PRIORS, ids=str)
@pytest.mark.parametrize("name", ["swap", "split or merge", "guided split or merge"])
def test_a_move_is_as_frequent_as_its_way_back(name: str, prior: Prior) -> None:
    table, rng, affinity = Table(5, prior), np.random.default_rng(1), affinity_of(5)
    flow = Counter[tuple[Partition, Partition]]()
    for start in rng.choice(len(table.partitions), p=table.probabilities(), size=150_000):
        z = table.partitions[start]
        flow[z, MOVES[name](z, table, affinity, rng)] += 1
    pairs = [(flow[a, b], flow[b, a]) for a, b in flow if a < b]
    unusual = [abs(there - back) / math.sqrt(there + back) for there, back in pairs]
    assert len(pairs) > 20
    assert max(unusual) < 4.5
    assert np.mean(np.square(unusual)) < 1.5


@pytest.mark.parametrize("prior", PRIORS, ids=str)
@pytest.mark.parametrize("name", ["gibbs", "round"])
def test_a_long_chain_visits_partitions_in_proportion_to_the_posterior(
    name: str, prior: Prior
) -> None:
    table = Table(4, prior)
    assert distance(table, chain(MOVES[name], table, 4000)) < 0.05


@pytest.mark.slow
@pytest.mark.parametrize("prior", PRIORS, ids=str)
@pytest.mark.parametrize("D", [5, 6])
@pytest.mark.parametrize("name", ["gibbs", "split or merge", "guided split or merge", "round"])
def test_a_longer_chain_does_so_in_more_dimensions(name: str, D: int, prior: Prior) -> None:
    table = Table(D, prior)
    length = 240_000 if name.startswith("guided") else 60_000  # its proposals are timid
    assert distance(table, chain(MOVES[name], table, length)) < 0.05


def evidence(D: int, prior: Prior, n: int = 25) -> Evidence:
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(n, D, generator=generator, dtype=torch.double)
    y = torch.sin(5 * x[:, 0] * x[:, 1]) + x[:, 2]
    y = y + 0.3 * torch.randn(n, generator=generator, dtype=torch.double)
    data = observe(x, (y - y.mean()) / y.std(), torch.zeros(D, dtype=torch.bool))
    scales = torch.full((D,), 4.0, dtype=torch.double)
    variances = torch.full((D,), 1 / D, dtype=torch.double)
    return Evidence(data, scales=scales, variances=variances, noise=0.1, prior=prior)


@pytest.mark.parametrize("prior", PRIORS, ids=str)
def test_a_chain_on_data_samples_the_posterior_of_the_data(prior: Prior) -> None:
    table, posterior = Table(4, prior), evidence(4, prior)
    table.log = dict(zip(table.partitions, posterior(table.partitions), strict=True))
    assert distance(table, chain(MOVES["round"], table, 4000)) < 0.05
    assert posterior.computed == 15


def test_a_chain_of_one_group_can_leave_it() -> None:
    table = Table(4, Multiplicity())
    table.log = dict.fromkeys(table.log, 0.0)
    rng, affinity = np.random.default_rng(0), affinity_of(4)
    ends = {round_of_moves((0, 0, 0, 0), table, affinity, rng) for _ in range(200)}
    assert len(ends) > 5


def test_the_same_seed_makes_the_same_chain() -> None:
    table = Table(5, Multiplicity())
    assert chain(round_of_moves, table, 50) == chain(round_of_moves, table, 50)

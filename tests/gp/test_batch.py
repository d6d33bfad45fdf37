"""Points chosen together: spread, taking turns, joined by rank, and valid."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from hyperopt_dl.gp.acquisition import Limit
from hyperopt_dl.gp.batch import AcquisitionName, Knowledge, Strategy, _groups, propose
from hyperopt_dl.gp.domain import Domain
from hyperopt_dl.gp.kernel import Kernel
from hyperopt_dl.gp.posterior import Posterior, condition

D = 4
GROUPS = [[0, 1, 2, 3], [0, 1], [2, 3]]
DOMAIN = Domain((None,) * D, torch.zeros(D, dtype=torch.bool))


def draw(*shape: int, seed: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.double)


def posterior(
    scale: float = 3.0, full: bool = True, members: Sequence[Sequence[int]] = GROUPS
) -> Posterior:
    """A model of groups; where one of them is D, the column of the radius, masks have it."""
    members = members if full else members[1:]
    width = D + any(D in group for group in members)
    masks = torch.zeros(len(members), width, dtype=torch.double)
    for g, group in enumerate(members):
        masks[g, list(group)] = 1
    kernel = Kernel(
        masks=masks,
        scales=torch.full_like(masks, scale),
        weights=torch.full((len(members),), 1 / len(members), dtype=torch.double),
        noise=torch.tensor(1e-4, dtype=torch.double),
        categorical=torch.zeros(D, dtype=torch.bool),
    )
    x = draw(20, D, seed=0)
    y = -(x - 0.6).square().sum(-1, keepdim=True)
    return condition(kernel, x, (y - y.mean()) / y.std())


def knowledge(**changes: Any) -> Knowledge:
    nothing = torch.empty(0, D, dtype=torch.double)
    given: dict[str, Any] = {
        "domain": DOMAIN,
        "chains": (posterior(3.0), posterior(12.0)),
        "feasible": torch.ones(20, dtype=torch.bool),
        "limits": (),
        "pending": nothing,
        "avoid": nothing,
    }
    return Knowledge(**{**given, **changes})


def points(
    q: int,
    known: Knowledge,
    *,
    acquisition: AcquisitionName = "logei",
    strategy: Strategy = "greedy",
) -> Tensor:
    return propose(
        known, turns=range(q), seeds=range(q), acquisition=acquisition, strategy=strategy
    )


WAYS: list[tuple[AcquisitionName, Strategy]] = [
    ("logei", "greedy"),
    ("qlognei", "greedy"),
    ("ucb", "greedy"),
    ("logei", "dpp"),
    ("logei", "pe"),
    ("logei", "thompson"),
]


@pytest.mark.parametrize(("acquisition", "strategy"), WAYS)
def test_points_are_distinct_and_in_the_cube(
    acquisition: AcquisitionName, strategy: Strategy
) -> None:
    found = points(4, knowledge(), acquisition=acquisition, strategy=strategy)
    assert found.shape == (4, D)
    assert bool(((found >= 0) & (found <= 1)).all())
    apart = torch.cdist(found, found) + 9 * torch.eye(4, dtype=torch.double)
    assert float(apart.min()) > 1e-3


def test_one_point_after_the_other_is_a_batch() -> None:
    known = knowledge()
    batch = points(3, known)
    for i in range(3):
        one = propose(known, turns=[i], seeds=[i], acquisition="logei", strategy="greedy")
        assert torch.equal(one[0], batch[i])
        known = known.and_pending(one[0])


def test_the_chains_take_turns() -> None:
    known = knowledge()
    by_turn = [
        propose(known, turns=[turn], seeds=[0], acquisition="logei", strategy="greedy")
        for turn in range(3)
    ]
    assert torch.equal(by_turn[0], by_turn[2])
    assert not torch.equal(by_turn[0], by_turn[1])


def test_a_limit_holds_points_back() -> None:
    model = posterior()
    breaking = condition(model.kernel, model.x, model.x[:, :1])  # x_0 itself
    found = points(3, knowledge(limits=(Limit(breaking, bound=0.3),)))
    assert bool((found[:, 0] < 0.5).all())
    assert float(points(3, knowledge())[:, 0].mean()) > 0.5


def test_the_incumbent_is_feasible() -> None:
    values = posterior().values[:, 0]
    worse = values < values.median()
    assert knowledge(feasible=worse).best == float(values[worse].max())
    assert knowledge(feasible=torch.zeros(20, dtype=torch.bool)).best == float(values.min())
    assert bool(worse[(posterior().x == knowledge(feasible=worse).around[0]).all(-1)])


@pytest.mark.parametrize("strategy", ["dpp", "pe"])
def test_a_group_is_joined_by_rank(strategy: Strategy) -> None:
    """Without a full component, UCB is a sum over groups, and the ranks of both fall together."""
    known = knowledge(chains=(posterior(full=False),))
    found = points(6, known, acquisition="ucb", strategy=strategy)
    believed = known.chains[0].extend(found[:1], known.chains[0].mean(found[:1]))
    mean, variance = believed.parts(found[1:])
    beta = (2 * torch.log(torch.tensor(2.0 * 21, dtype=torch.double)) / 5).sqrt()
    bounds = mean.squeeze(-1) + beta * variance.sqrt()
    assert bool((bounds.diff(dim=-1) <= 1e-9).all())


def test_neither_the_full_component_nor_the_radius_is_a_group_unless_there_is_none() -> None:
    everything, radius = [0, 1, 2, 3], [D]
    assert _groups(posterior(members=[everything, radius, [0, 1], [2, 3]])) == [2, 3]
    assert _groups(posterior(members=[everything, radius])) == [0]
    assert _groups(posterior(members=[everything])) == [0]


@pytest.mark.parametrize("strategy", ["greedy", "dpp", "pe", "thompson"])
def test_points_can_be_chosen_where_a_component_reads_the_radius(strategy: Strategy) -> None:
    chain = posterior(members=[[0, 1, 2, 3], [D], [0, 1], [2, 3]])
    found = points(3, knowledge(chains=(chain,)), strategy=strategy)
    assert found.shape == (3, D)
    assert bool(((found >= 0) & (found <= 1)).all())
    assert len(torch.unique(found, dim=0)) == 3


def test_a_greedy_group_explores_more_than_it_would_at_random() -> None:
    known = knowledge(chains=(posterior(full=False),))
    found = points(6, known, strategy="pe")
    chain = known.chains[0]

    def volume(x: Tensor) -> float:
        return float(torch.logdet(chain.parts_covariance(x, x)[0] + 1e-9 * torch.eye(5).double()))

    others = [volume(draw(5, D, seed=seed)) for seed in range(10)]
    assert volume(found[1:]) > sum(others) / 10

"""Starts and the search: valid points, near and far, and the maximum where it is known."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from hyperopt_dl.gp.candidates import perturbed, roulette, uniform
from hyperopt_dl.gp.domain import Domain
from hyperopt_dl.gp.maximize import ascend, change, maximize


def levels(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.double)


def cube(D: int) -> Domain:
    return Domain((None,) * D, torch.zeros(D, dtype=torch.bool))


MIXED = Domain(
    (None, levels(0.1, 0.5, 0.9), levels(0, 1, 2), None, (torch.arange(100) + 0.5).double() / 100),
    torch.tensor([False, False, True, False, False]),
)
ONES = torch.ones(5, dtype=torch.double)
NOTHING = torch.empty(0, 5, dtype=torch.double)


def is_valid(domain: Domain, x: Tensor) -> bool:
    return torch.equal(domain.nearest(x), x)


def peak(centre: Tensor) -> Callable[[Tensor], Tensor]:
    """A sum over dimensions whose best point is `centre`."""
    return lambda x: -(x - centre).abs().pow(1.5).sum(-1)


@pytest.mark.parametrize("seed", range(3))
def test_candidates_are_valid_points(seed: int) -> None:
    points = uniform(MIXED, 64, seed=seed)
    assert is_valid(MIXED, points)
    assert is_valid(MIXED, perturbed(MIXED, points[:3], 64, seed=seed))


def test_every_level_is_equally_likely() -> None:
    points = uniform(MIXED, 900, seed=0)
    for d in (1, 2):
        counts = torch.unique(points[:, d], return_counts=True)[1]
        assert (counts - 300).abs().max() < 10


def test_a_perturbed_point_differs_from_its_base_in_few_or_many_coordinates() -> None:
    base = torch.full((1, 40), 0.4, dtype=torch.double)
    changed = (perturbed(cube(40), base, 4000, seed=0) != base).sum(-1)
    assert changed.min() == 1
    assert (changed == 1).float().mean() > 0.04
    assert (changed > 20).float().mean() > 0.1


def test_changes_are_small_and_large() -> None:
    base = torch.full((1, 1), 0.5, dtype=torch.double)
    moves = (perturbed(cube(1), base, 4000, seed=0) - base).abs()
    assert (moves < 0.02).float().mean() > 0.1
    assert (moves > 0.3).float().mean() > 0.1


def test_a_discrete_coordinate_leaves_its_level() -> None:
    domain = Domain((levels(*torch.arange(50).tolist()) / 49,), torch.tensor([False]))
    base = domain.nearest(torch.full((1, 1), 0.5, dtype=torch.double))
    moved = perturbed(domain, base, 500, seed=0)
    assert (moved != base).double().mean() > 0.9


def test_the_roulette_keeps_the_best_and_prefers_the_good() -> None:
    scores = torch.log(torch.tensor([0.05, 0.6, 0.05, 0.3], dtype=torch.double))
    drawn = [set(roulette(scores, 2, seed=seed).tolist()) for seed in range(400)]
    assert all(1 in pair for pair in drawn)
    share = sum(3 in pair for pair in drawn) / 400
    assert share == pytest.approx(0.3 / 0.4, abs=0.08)


def test_the_roulette_leaves_out_what_has_no_chance() -> None:
    scores = torch.tensor([-math.inf, 0.0, -1.0], dtype=torch.double)
    assert set(roulette(scores, 3, seed=0).tolist()) == {1, 2}


@pytest.mark.parametrize("scale", [0.2, 3.0])
def test_ascent_ends_at_the_maximum_or_at_the_wall(scale: float) -> None:
    """Up to the slope at which it stops, 0.1 nats per lengthscale."""
    centre = torch.tensor([0.3, 1.4, -0.2, 0.8, 0.5], dtype=torch.double)
    starts = uniform(cube(5), 6, seed=0)
    curvature = torch.tensor([300.0, 10.0, 10.0, 5.0, 50.0], dtype=torch.double)
    found = ascend(
        lambda x: -(curvature * (x - centre).square()).sum(-1),
        starts,
        torch.ones(5, dtype=torch.bool),
        scale=scale * ONES,
    )
    expected = centre.clamp(0, 1).expand(6, 5)
    torch.testing.assert_close(found, expected, atol=2e-2, rtol=0)


def test_ascent_leaves_fixed_coordinates_alone() -> None:
    starts = uniform(MIXED, 6, seed=0)
    centre = torch.tensor([0.3, 0.3, 0.3, 0.6, 0.3], dtype=torch.double)
    found = ascend(peak(centre), starts, MIXED.continuous, scale=ONES)
    fixed = ~MIXED.continuous
    assert torch.equal(found[:, fixed], starts[:, fixed])
    torch.testing.assert_close(found[:, [0, 3]], centre[[0, 3]].expand(6, 2), atol=2e-2, rtol=0)


def test_a_start_at_which_nothing_is_finite_stays_there() -> None:
    starts = uniform(cube(2), 3, seed=0)
    free = torch.ones(2, dtype=torch.bool)
    found = ascend(lambda x: x.sum(-1) * math.nan, starts, free, scale=ONES[:2])
    assert bool(found.isfinite().all())


def test_changes_find_the_best_levels_of_a_separable_function() -> None:
    """Fifty switches, of which half must be turned: the best of 2**50 points, in a few rounds."""
    switches = Domain((levels(0, 1),) * 50, torch.ones(50, dtype=torch.bool))
    best = (torch.arange(50) % 2).double()
    calls: list[int] = []

    def worth(x: Tensor) -> Tensor:
        calls.append(len(x))
        return -(x - best).abs().sum(-1)

    starts = switches.from_uniform(torch.rand(4, 50, generator=torch.Generator().manual_seed(0)))
    found = change(worth, switches, starts.double(), generator=torch.Generator().manual_seed(0))
    assert torch.equal(found, best.expand(4, 50))
    assert sum(calls) < 3000


def test_a_level_far_along_a_line_is_reached() -> None:
    domain = Domain(((torch.arange(1000) / 999).double(),), torch.tensor([False]))
    target = domain.levels[0][777]  # type: ignore[index]
    start = torch.zeros(1, 1, dtype=torch.double)
    found = change(peak(target.view(1)), domain, start, generator=torch.Generator())
    assert abs(float(found) - float(target)) < 0.35


def test_the_best_of_a_mixed_space_is_found() -> None:
    centre = torch.tensor([0.31, 0.9, 1.0, 0.77, 0.425], dtype=torch.double)
    around = uniform(MIXED, 2, seed=1)
    found = maximize(peak(centre), MIXED, around=around, seen=NOTHING, scale=ONES, seed=0)
    assert is_valid(MIXED, found.unsqueeze(0))
    torch.testing.assert_close(found, centre, atol=2e-2, rtol=0)


def test_a_small_finite_space_is_searched_whole_and_without_repeats() -> None:
    domain = Domain((levels(0.2, 0.8), levels(0, 1, 2)), torch.tensor([False, True]))
    worth = peak(torch.tensor([0.8, 1.0], dtype=torch.double))
    seen = torch.empty(0, 2, dtype=torch.double)
    around = domain.all_points()[:1]
    for _ in range(6):
        found = maximize(worth, domain, around=around, seen=seen, scale=ONES[:2], seed=0)
        seen = torch.cat([seen, found.unsqueeze(0)])
    by_rank = domain.all_points()[worth(domain.all_points()).argsort(descending=True, stable=True)]
    torch.testing.assert_close(worth(seen), worth(by_rank))
    assert len(torch.unique(seen, dim=0)) == 6
    again = maximize(worth, domain, around=around, seen=seen, scale=ONES[:2], seed=0)
    assert torch.equal(again, by_rank[0])


def test_a_narrow_peak_beside_a_known_point_is_found() -> None:
    """The region is 1e-13 of the cube, so no uniform candidate meets it."""
    centre = torch.full((20,), 0.6180, dtype=torch.double)

    def worth(x: Tensor) -> Tensor:
        return torch.relu(1 - 20 * (x - centre).square().mean(-1).sqrt())

    around = (centre + 0.02).unsqueeze(0)
    found = maximize(
        worth, cube(20), around=around, seen=around, scale=torch.ones(20).double(), seed=0
    )
    assert float(worth(found.unsqueeze(0))) > 0.8


def test_the_search_depends_on_its_seed_alone() -> None:
    def find(seed: int) -> Tensor:
        around = torch.full((1, 5), 0.5, dtype=torch.double)
        return maximize(
            lambda x: (torch.sin(900 * x) + x).sum(-1),
            cube(5),
            around=around,
            seen=around,
            scale=ONES,
            seed=seed,
        )

    assert torch.equal(find(1), find(1))
    assert not torch.equal(find(1), find(2))

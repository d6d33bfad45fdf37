"""Determinantal point processes against the enumeration of all subsets."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from hyperopt_dl.gp.dpp import greedy_dpp, log_symmetric_polynomials, sample_dpp


def psd(m: int, rank: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    root = torch.randn(m, rank, generator=generator, dtype=torch.double)
    return root @ root.mT


def determinants(L: Tensor, k: int) -> dict[tuple[int, ...], float]:
    subsets = itertools.combinations(range(len(L)), k)
    return {items: float(torch.linalg.det(L[list(items)][:, list(items)])) for items in subsets}


@pytest.mark.parametrize(("m", "k"), [(5, 1), (5, 3)])
def test_subsets_are_drawn_in_proportion_to_their_determinants(m: int, k: int) -> None:
    L = psd(m, m)
    expected = determinants(L, k)
    total, draws = sum(expected.values()), 2000
    generator = torch.Generator().manual_seed(0)
    counts = dict.fromkeys(expected, 0)
    for _ in range(draws):
        counts[tuple(sorted(sample_dpp(L, k, generator=generator).tolist()))] += 1
    distance = sum(abs(counts[s] / draws - expected[s] / total) for s in expected) / 2
    assert distance < 0.05


def test_a_subset_is_no_larger_than_the_rank() -> None:
    L = psd(8, 3)
    drawn = sample_dpp(L, 6, generator=torch.Generator().manual_seed(0))
    assert len(drawn) == len(set(drawn.tolist())) == 3


def test_two_equal_candidates_are_never_drawn_together() -> None:
    L = psd(4, 4)
    order = [0, 1, 2, 3, 0]
    twice = L[order][:, order]
    generator = torch.Generator().manual_seed(0)
    for _ in range(100):
        drawn = set(sample_dpp(twice, 3, generator=generator).tolist())
        assert len(drawn) == 3
        assert not {0, 4} <= drawn


def test_the_greedy_subset_grows_by_the_largest_determinant() -> None:
    L = psd(9, 9)
    chosen: list[int] = []
    for _ in range(4):
        rest = [i for i in range(9) if i not in chosen]
        grown = {i: float(torch.linalg.det(L[[*chosen, i]][:, [*chosen, i]])) for i in rest}
        chosen.append(max(grown, key=lambda i: grown[i]))
    assert greedy_dpp(L, 4).tolist() == chosen


def test_the_greedy_subset_ends_where_all_is_certain() -> None:
    assert len(greedy_dpp(psd(8, 3), 6)) == 3


def test_the_polynomials_are_sums_over_subsets() -> None:
    values = torch.tensor([0.5, 2.0, 3.0, 0.1], dtype=torch.double)
    table = log_symmetric_polynomials(values, 3)
    for i, j in itertools.product(range(5), range(4)):
        subsets = itertools.combinations(values[:i].tolist(), j)
        expected = sum(math.prod(subset) for subset in subsets)
        assert float(table[i, j].exp()) == pytest.approx(expected, rel=1e-12, abs=1e-12)

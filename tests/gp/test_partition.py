"""Partitions and their priors against enumeration."""

import itertools
import math
from collections import Counter
from collections.abc import Iterator

import pytest

from hyperopt_dl.errors import SpaceError
from hyperopt_dl.gp.partition import (
    Capped,
    Dirichlet,
    Multiplicity,
    Partition,
    canonical,
    default_prior,
    from_groups,
    groups,
    singletons,
    sizes,
)

BELL = {1: 1, 2: 2, 3: 5, 4: 15, 5: 52, 6: 203}


def every_partition(D: int) -> list[Partition]:
    return sorted({canonical(labels) for labels in itertools.product(range(D), repeat=D)})


def integer_partitions(D: int, largest: int) -> Iterator[tuple[int, ...]]:
    if D == 0:
        yield ()
    for size in range(min(D, largest), 0, -1):
        for rest in integer_partitions(D - size, size):
            yield (size, *rest)


@pytest.mark.parametrize("D", BELL)
def test_canonical_labels_name_each_partition_once(D: int) -> None:
    assert len(every_partition(D)) == BELL[D]


def test_labels_are_numbered_in_the_order_of_their_groups() -> None:
    assert canonical("baabc") == (0, 1, 1, 0, 2)
    assert groups((0, 1, 1, 0, 2)) == [[0, 3], [1, 2], [4]]
    assert sizes((0, 1, 1, 0, 2)) == [2, 2, 1]
    assert singletons(3) == (0, 1, 2)


@pytest.mark.parametrize("D", [1, 2, 4, 6])
def test_the_multiplicity_prior_counts_partitions_of_the_same_sizes(D: int) -> None:
    partitions = every_partition(D)
    alike = Counter(tuple(sorted(sizes(partition))) for partition in partitions)
    for partition in partitions:
        count = alike[tuple(sorted(sizes(partition)))]
        assert Multiplicity().log(sizes(partition)) == pytest.approx(-math.log(count), abs=1e-12)


def test_the_multiplicity_prior_gives_every_multiset_of_sizes_the_same_mass() -> None:
    mass = sum(math.exp(Multiplicity().log(sizes(partition))) for partition in every_partition(6))
    assert mass == pytest.approx(len(list(integer_partitions(6, 6))))


@pytest.mark.parametrize("alpha", [0.3, 1.0, 2.5])
@pytest.mark.parametrize("D", [2, 4, 5])
def test_the_dirichlet_prior_is_that_of_labels_drawn_one_after_another(
    D: int, alpha: float
) -> None:
    mass: Counter[Partition] = Counter()
    for labels in itertools.product(range(D), repeat=D):
        drawn = 1.0
        for d, label in enumerate(labels):  # Pólya's urn
            drawn *= (labels[:d].count(label) + alpha) / (d + D * alpha)
        mass[canonical(labels)] += drawn  # type: ignore[assignment]
    for partition, probability in mass.items():
        got = math.exp(Dirichlet(alpha).log(sizes(partition)))
        assert got == pytest.approx(probability, rel=1e-10)


def test_groups_above_the_cap_are_impossible() -> None:
    capped = Capped(Dirichlet(), 3)
    assert capped.log([4, 1]) == -math.inf
    assert capped.log([3, 2]) == Dirichlet().log([3, 2])


@pytest.mark.parametrize("D", [2, 3, 5, 20])
def test_the_default_never_allows_a_second_full_component(D: int) -> None:
    assert default_prior(D).log([D]) == -math.inf
    assert default_prior(D).log([1] * D) > -math.inf


def test_a_lone_dimension_has_a_partition() -> None:
    assert default_prior(1).log([1]) == 0


def test_dimensions_that_are_not_named_stand_alone() -> None:
    assert from_groups([[3, 1], [4]], 5) == (0, 1, 2, 1, 3)


@pytest.mark.parametrize("named", [[[0, 1], [1]], [[0, 5]], [[-1]]])
def test_groups_that_overlap_or_leave_the_space_are_refused(named: list[list[int]]) -> None:
    with pytest.raises(SpaceError, match="disjoint"):
        from_groups(named, 5)

"""Partitions of the dimensions into groups, and how likely each is before any data.

A partition of ``D`` dimensions is a tuple of ``D`` labels: two dimensions are in one group if their
labels are equal. Labels are canonical: 0, 1, 2, ... in the order in which groups first appear. So
two partitions are the same if and only if their tuples are.

The priors are functions of the sizes of the groups alone:

- `Multiplicity`: every multiset of sizes is equally likely, and so is every partition that has it.
  A partition's probability falls with the number of those that look like it.
- `Dirichlet`: the structure prior of the paper. Each dimension draws one of ``M = D`` labels from a
  distribution that has a symmetric Dirichlet prior, integrated out. Favours few large groups.

Source: Wang, Li, Jegelka and Kohli, "Batched High-dimensional Bayesian Optimization via Structural
Kernel Learning", ICML 2017, section 4.
"""

import math
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from hyperopt_dl.errors import SpaceError

Partition: TypeAlias = tuple[int, ...]


class Prior(Protocol):
    """The prior of a partition."""

    def log(self, sizes: Sequence[int]) -> float:
        """Return the log probability of a partition with these sizes, up to a constant."""
        ...


@dataclass(frozen=True)
class Multiplicity:
    """``p(z) ∝ 1 / (number of partitions of D dimensions that have the same sizes)``."""

    def log(self, sizes: Sequence[int]) -> float:
        """Return minus the log of that number, ``D! / (∏ size! ∏ (groups of that size)!)``."""
        within = sum(math.lgamma(size + 1) for size in sizes)
        alike = sum(math.lgamma(count + 1) for count in Counter(sizes).values())
        return within + alike - math.lgamma(sum(sizes) + 1)


@dataclass(frozen=True)
class Dirichlet:
    """The Dirichlet-multinomial of the paper with as many labels as dimensions.

    Args:
        alpha: The concentration of each label, > 0; the paper's code has 1.
    """

    alpha: float = 1.0

    def log(self, sizes: Sequence[int]) -> float:
        """Return the log probability of a partition, summed over the ways to label its groups."""
        D, alpha = sum(sizes), self.alpha
        labellings = math.lgamma(D + 1) - math.lgamma(D - len(sizes) + 1)
        drawn = sum(math.lgamma(size + alpha) - math.lgamma(alpha) for size in sizes)
        return labellings + drawn + math.lgamma(D * alpha) - math.lgamma(D + D * alpha)


@dataclass(frozen=True)
class Capped:
    """A prior that is restricted to groups of at most `cap` dimensions."""

    prior: Prior
    cap: int

    def log(self, sizes: Sequence[int]) -> float:
        """Return the log probability, up to a constant; ``-inf`` above the cap."""
        return self.prior.log(sizes) if max(sizes) <= self.cap else -math.inf


def default_prior(D: int) -> Capped:
    """Return the prior of the groups beside a full component.

    The cap, 0.7 D, leaves out the one group of all dimensions: that is a second full component,
    into which a chain would fall and learn nothing.
    """
    return Capped(Multiplicity(), max(1, int(0.7 * D)))


def canonical(labels: Iterable[Hashable]) -> Partition:
    """Return the partition in which equal labels share a group."""
    names: dict[Hashable, int] = {}
    return tuple(names.setdefault(label, len(names)) for label in labels)


def groups(partition: Partition) -> list[list[int]]:
    """Return the dimensions of each group, in the order of the labels."""
    found: list[list[int]] = [[] for _ in range(max(partition) + 1)]
    for d, label in enumerate(partition):
        found[label].append(d)
    return found


def sizes(partition: Partition) -> list[int]:
    """Return the number of dimensions of each group."""
    return [len(group) for group in groups(partition)]


def singletons(D: int) -> Partition:
    """Return the partition in which every dimension is a group."""
    return tuple(range(D))


def from_groups(named: Sequence[Sequence[int]], D: int) -> Partition:
    """Return the partition with these groups; a dimension in none of them is a group of its own.

    Raises:
        SpaceError: A dimension is named twice, or is none of the ``D``.
    """
    labels = [-1 - d for d in range(D)]
    for g, group in enumerate(named):
        for d in group:
            if not 0 <= d < D or labels[d] >= 0:
                raise SpaceError(
                    f"structure needs groups that are disjoint and of dimensions 0 to {D - 1}, got "
                    f"{[list(group) for group in named]}. Name each dimension at most once."
                )
            labels[d] = g
    return canonical(labels)

"""How likely a partition is, at hyperparameters that stay as they are.

    p(z | y) ∝ p(z) N(y; 0, K_z),    K_z = K_0 + Σ_g (Σ_{d in g} v_d) κ(Σ_{d in g} a_d E_d)

    z    partition                   K_0      noise, and the components that are no groups
    v    variance that a dimension   a, E, κ  as in the likelihood
         brings into its group

Scales and variances belong to dimensions, none to a group. So a change of some groups leaves the
others as they are, and the density needs no correction where the number of groups changes. A
candidate costs O(n²) for the groups in which it differs from the one before, and one Cholesky. What
was computed is kept: a chain that has settled proposes the same neighbours again and again.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from hyperopt_dl.gp.data import Data
from hyperopt_dl.gp.kernel import Family, correlation
from hyperopt_dl.gp.likelihood import cholesky, constant
from hyperopt_dl.gp.partition import Partition, Prior, groups

_AT_ONCE = 2**23
"""Entries of the matrices that are factorised in one call."""
_KEPT = 2**25
"""Entries of the covariances that are kept."""


class Evidence:
    """The log posterior of partitions; `computed` counts the Choleskys.

    Args:
        data: The observations.
        scales: A ``D`` tensor, a.
        variances: A ``D`` tensor, v.
        noise: The variance of an observation.
        prior: The prior of partitions.
        beside: An ``N`` tensor, the covariance of each pair under the components that are no
            groups, and their variance; None without one.
    """

    def __init__(
        self,
        data: Data,
        *,
        scales: Tensor,
        variances: Tensor,
        noise: float,
        prior: Prior,
        beside: tuple[Tensor, float] | None = None,
        family: Family = "matern52",
    ) -> None:
        self._data, self._prior, self._family = data, prior, family
        self._distances, self._variances = scales.unsqueeze(-1) * data.E[:-1], variances
        self._base = torch.zeros_like(data.E[0]) if beside is None else beside[0]
        total = variances.sum() + (0.0 if beside is None else beside[1])
        self._diagonal = total + noise / data.counts
        repeats = data.counts.sum().item() - len(data.y)
        self._constant = constant(data) + 0.5 * (repeats * math.log(noise) + data.spread / noise)
        self._known: dict[Partition, float] = {}
        self._parts: dict[tuple[int, ...], Tensor] = {}
        self._last: dict[tuple[int, ...], None] = {}
        self._sum = self._base
        self.computed = 0

    def __call__(self, partitions: Sequence[Partition]) -> list[float]:
        """Return log p(y | z) + log p(z) of each partition, in nats; ``-inf`` if it cannot be."""
        new = [z for z in dict.fromkeys(partitions) if z not in self._known]
        priors = {z: self._prior.log([len(group) for group in groups(z)]) for z in new}
        self._known |= {z: -math.inf for z in new if priors[z] == -math.inf}
        new = [z for z in new if priors[z] > -math.inf]
        size = max(1, _AT_ONCE // len(self._data.y) ** 2)
        for start in range(0, len(new), size):
            some = new[start : start + size]
            for z, value in zip(some, self._log_likelihoods(some), strict=True):
                self._known[z] = value + priors[z]
        return [self._known[z] for z in partitions]

    def _log_likelihoods(self, partitions: Sequence[Partition]) -> list[float]:
        """Return log p(y | z) of each partition."""
        self.computed += len(partitions)
        below = torch.stack([self._covariance(z) for z in partitions])
        L, ok = cholesky(self._data.square(below, self._diagonal.expand(len(below), -1)))
        y = self._data.y.expand(len(below), -1).unsqueeze(-1)
        white = torch.linalg.solve_triangular(L, y, upper=False).squeeze(-1)
        values = -0.5 * white.square().sum(-1) - L.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        values = torch.where(ok, values - self._constant, -torch.inf)
        return values.nan_to_num(nan=-math.inf).tolist()

    def _covariance(self, partition: Partition) -> Tensor:
        """Return the covariance ``[N]`` of every pair, from that of the partition before."""
        wanted = dict.fromkeys(tuple(group) for group in groups(partition))
        gone = [group for group in self._last if group not in wanted]
        come = [group for group in wanted if group not in self._last]
        if len(gone) + len(come) >= len(wanted):  # afresh, which also ends the drift of rounding
            self._sum, gone, come = self._base, [], list(wanted)
        total = self._sum.clone()
        for group in gone:
            total -= self._part(group)
        for group in come:
            total += self._part(group)
        self._sum, self._last = total, wanted
        return total

    def _part(self, group: tuple[int, ...]) -> Tensor:
        """Return the covariance ``[N]`` of every pair under one group."""
        if group not in self._parts:
            if (len(self._parts) + 1) * len(self._base) > _KEPT:
                self._parts.clear()
            distances = self._distances[group[0]].clone()
            for d in group[1:]:
                distances += self._distances[d]
            variance = self._variances[list(group)].sum()
            self._parts[group] = correlation(distances, self._family).mul_(variance)
        return self._parts[group]

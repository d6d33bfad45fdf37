"""Which points to try together: one after the other, by determinants per group, or by draws.

Greedy: the points of a batch are chosen one by one, each as the best given that those before it are
pending; the chains, which believe in different structures, take turns.

Per group (Wang et al. 2017, algorithm 2): the first point maximises the sum of the groups' upper
confidence bounds. For the others, every group picks coordinates of its own that are promising and
unlike each other, by a determinantal point process over its component's posterior; whole points are
put together from them by rank, the best of one group with the best of the others.

Thompson: each point maximises a draw of the function, tempered towards the mean: in many dimensions
a draw of a whole Gaussian process has its maximum where nothing is known.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from hyperopt_dl.gp.acquisition import (
    Limit,
    believe,
    fantasize,
    group_ucb,
    log_expected_improvement,
    log_feasibility,
    noisy_fantasies,
    ucb_width,
)
from hyperopt_dl.gp.candidates import perturbed, uniform
from hyperopt_dl.gp.domain import Domain
from hyperopt_dl.gp.dpp import greedy_dpp, sample_dpp
from hyperopt_dl.gp.maximize import Acquisition, maximize
from hyperopt_dl.gp.pathwise import draw_path
from hyperopt_dl.gp.posterior import Posterior
from hyperopt_dl.seeds import derive

AcquisitionName: TypeAlias = Literal["logei", "qlognei", "ucb"]
Strategy: TypeAlias = Literal["greedy", "dpp", "pe", "thompson"]

FANTASIES = 16
"""Sets of values drawn for pending points, by log EI."""
NOISY_FANTASIES = 32
"""Sets of values drawn for pending and observed points, by noisy log EI."""
BASES = 5
"""The best observed points near which candidates are looked for."""
TEMPER = 0.5
"""How far a Thompson draw goes from the mean to a true draw."""
CELLS = 128
"""Candidates of each kind for the coordinates of one group."""


@dataclass(frozen=True)
class Knowledge:
    """What is known when points are chosen: models, limits, and the points that are under way."""

    domain: Domain
    chains: tuple[Posterior, ...]
    """Of the objective, each with one set of values at the same n points."""
    feasible: Tensor
    """``[n]`` of bool."""
    limits: tuple[Limit, ...]
    pending: Tensor
    """``[p, D]``."""
    avoid: Tensor
    """``[..., D]``, further points that are not to be tried again, such as failed ones."""

    def and_pending(self, x: Tensor) -> "Knowledge":
        """Return what is known when one more point is under way."""
        return replace(self, pending=torch.cat([self.pending, x.unsqueeze(0)]))

    @property
    def best(self) -> float:
        """The best feasible value observed; the worst one observed where none is feasible."""
        values = self.chains[0].values[:, 0]
        return float(values[self.feasible].max() if bool(self.feasible.any()) else values.min())

    @property
    def around(self) -> Tensor:
        """The points near which good ones are likely, best first: ``[k, D]``."""
        posterior = self.chains[0]
        values = posterior.values[:, 0]
        ranked = torch.where(self.feasible, values, values - (values.max() - values.min()) - 1)
        best = ranked.topk(min(BASES, len(values))).indices
        return torch.cat([posterior.x[best], self.pending])

    @property
    def seen(self) -> Tensor:
        """All points that have been tried or are under way."""
        return torch.cat([self.chains[0].x, self.pending, self.avoid])


def propose(
    knowledge: Knowledge,
    *,
    turns: Sequence[int],
    seeds: Sequence[int],
    acquisition: AcquisitionName,
    strategy: Strategy,
) -> Tensor:
    """Return ``q x D`` points to try together.

    Args:
        knowledge: What is known.
        turns: For each point, which chain chooses it (modulo the number of chains). Where the
            strategy chooses all points at once, the first entry decides.
        seeds: A seed for each point.
        acquisition: What a greedy strategy maximises.
        strategy: How the points are chosen together.
    """
    if strategy in ("dpp", "pe"):
        chain = knowledge.chains[turns[0] % len(knowledge.chains)]
        return _per_group(knowledge, chain, len(seeds), seed=seeds[0], sample=strategy == "dpp")
    points = []
    for turn, seed in zip(turns, seeds, strict=True):
        chain = knowledge.chains[turn % len(knowledge.chains)]
        if strategy == "thompson":
            worth = _draw(knowledge, chain, seed)
        else:
            worth = _worth(knowledge, chain, acquisition, seed)
        points.append(_best(knowledge, chain, worth, seed))
        knowledge = knowledge.and_pending(points[-1])
    return torch.stack(points)


def _best(knowledge: Knowledge, chain: Posterior, worth: Acquisition, seed: int) -> Tensor:
    kernel, D = chain.kernel, chain.x.shape[-1]
    shares = (kernel.weights.unsqueeze(-1) * kernel.masks)[:, :D]
    return maximize(
        worth,
        knowledge.domain,
        around=knowledge.around,
        seen=knowledge.seen,
        scale=(shares * kernel.scales[:, :D]).sum(-2) / shares.sum(-2).clamp(min=1e-12),
        seed=derive(seed, "candidates"),
    )


def _worth(
    knowledge: Knowledge, chain: Posterior, acquisition: AcquisitionName, seed: int
) -> Acquisition:
    """Return the acquisition function of one point, given the points under way."""
    limits, pending = knowledge.limits, knowledge.pending
    draws = derive(seed, "fantasies")
    if acquisition == "ucb":
        believed, t = believe(chain, pending), chain.x.shape[-2]
        return lambda x: (
            group_ucb(believed, x.double(), observations=t) + log_feasibility(limits, x)
        )
    if acquisition == "logei":
        known = fantasize(chain, pending, knowledge.best, s=FANTASIES, seed=draws, limits=limits)
    else:
        known = noisy_fantasies(
            chain, pending, knowledge.feasible, s=NOISY_FANTASIES, seed=draws, limits=limits
        )
    return lambda x: log_expected_improvement(known, x) + log_feasibility(limits, x)


def _draw(knowledge: Knowledge, chain: Posterior, seed: int) -> Acquisition:
    generator = torch.Generator().manual_seed(derive(seed, "path"))
    sizes = [len(levels) for levels in knowledge.domain.levels if levels is not None]
    path = draw_path(chain, choices=max(sizes, default=1), temper=TEMPER, generator=generator)
    return lambda x: path(x.double()) + log_feasibility(knowledge.limits, x)


def _per_group(
    knowledge: Knowledge, chain: Posterior, q: int, *, seed: int, sample: bool
) -> Tensor:
    """Return ``q x D`` points, of which all but the first are joined from the groups' picks."""
    worth = _worth(knowledge, chain, "ucb", seed)
    first = _best(knowledge, chain, worth, seed)
    points = first.repeat(q, 1)
    believed = believe(chain, torch.cat([knowledge.pending, first.unsqueeze(0)]))
    for g in _groups(chain):
        read = chain.kernel.reads[g]
        picks = _picks(knowledge, believed, g, q - 1, seed=derive(seed, "group", g), sample=sample)
        points[1 : 1 + len(picks)][:, read] = picks[:, read]
    return points


def _groups(chain: Posterior) -> list[int]:
    """Return the components that stand for groups, or the full one where there are none."""
    masks = chain.kernel.masks[:, : chain.x.shape[-1]] > 0
    real = masks.any(-1) & (chain.kernel.weights > 0)
    groups = real & ~masks.all(-1)
    chosen: list[int] = (groups if bool(groups.any()) else real).nonzero().squeeze(-1).tolist()
    return chosen


def _picks(
    knowledge: Knowledge, believed: Posterior, g: int, k: int, *, seed: int, sample: bool
) -> Tensor:
    """Return up to ``k x D`` points whose coordinates in group g are promising and diverse.

    They come best first, by the group's upper confidence bound. What can still hold the maximum is
    where the bound, twice as wide, is above the best lower bound.
    """
    domain = knowledge.domain
    kinds = (
        uniform(domain, CELLS, seed=seed),
        perturbed(domain, knowledge.around, CELLS, seed=seed + 1),
    )
    points = torch.cat(kinds).to(believed.x)
    mean, variance = (part[g] for part in believed.parts(points))
    sigma = ucb_width(believed, believed.x.shape[-2])[g] * variance.sqrt()
    upper, lower = mean.squeeze(-1) + sigma, mean.squeeze(-1) - sigma
    relevant = (upper + sigma >= lower.max()).nonzero().squeeze(-1)
    L = believed.parts_covariance(points[relevant], points[relevant])[g]
    generator = torch.Generator().manual_seed(seed)
    subset = sample_dpp(L, k, generator=generator) if sample else greedy_dpp(L, k)
    chosen = relevant[subset.to(relevant.device)]
    return points[chosen[upper[chosen].argsort(descending=True)]]

"""The search for the best point: many starts, gradients where they exist, changes where not.

Continuous coordinates climb by L-BFGS-B, all starts in one batch, in ``z = x / lengthscale``, in
which the acquisition function is about equally curved in every direction. Discrete coordinates
climb by trying all changes of one coordinate at once and making those that help together. The two
take turns. A small finite domain is enumerated.
"""

import math
from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from botorch.optim.batched_lbfgs_b import fmin_l_bfgs_b_batched
from torch import Tensor

from hyperopt_dl.gp.candidates import perturbed, roulette, uniform
from hyperopt_dl.gp.domain import Domain

Acquisition: TypeAlias = Callable[[Tensor], Tensor]
"""Points ``m x D``, in double or single precision, to values ``[m]`` in double precision; they are
differentiable in the continuous coordinates."""
Numbers: TypeAlias = npt.NDArray[np.float64]
Change: TypeAlias = tuple[int, int]
"""A dimension, and by how many levels its coordinate moves."""

RAW = 512
"""Candidates of each kind that are scored: uniform ones, and perturbed ones."""
STARTS = (2, 3)
"""Starts of each kind; with the best known point, six in all."""
ENUMERATED = 2048
"""The largest finite domain of which every point is scored."""
_PROMISING = 64  # candidates of each kind that are scored again in double precision
_CHUNK = 64  # points scored at once: their kernel matrices stay in the cache
_ROUNDS = 3  # of continuous and discrete climbing in turns
_CHANGES = 64  # single changes tried at once, for each start
_NEAR = (1, 2, 4, 8, 16, 32)  # steps between ordered levels that are tried, where there are many
_MOST_ROUNDS = 20  # of changes, within one climb
_DOUBLINGS = 6  # the most changes made at once are 2**5
_ITERATIONS = 50  # of L-BFGS-B
_GRADIENT = 1e-1  # the projected slope, in log EI per lengthscale, at which it stops
_PROGRESS = 1e-6  # the relative gain of an iteration at which it stops
_SAME = 1e-9  # points nearer than this are one point


def maximize(
    acquisition: Acquisition,
    domain: Domain,
    *,
    around: Tensor,
    seen: Tensor,
    scale: Tensor,
    seed: int,
) -> Tensor:
    """Return a valid point ``[D]`` at which the acquisition function is large.

    Costs about 2 ``RAW`` values and 50 gradients at six points.

    Args:
        acquisition: What to maximise; a value that is NaN counts as ``-inf``.
        domain: The valid points.
        around: A ``k x D`` tensor, k >= 1, of points near which good ones are likely, best first.
        seen: A ``n x D`` tensor of points that are not proposed again while there are others.
        scale: ``[D]``, typical inverse squared lengthscales.
        seed: Of the candidates.
    """
    if domain.size <= ENUMERATED:
        points = domain.all_points().to(around)
        return _best_unseen(points, score(acquisition, points), seen)
    raw = uniform(domain, RAW, seed=seed), perturbed(domain, around, RAW, seed=seed + 1)
    kinds = [_promising(acquisition, points.to(around)) for points in raw]
    scores = [score(acquisition, points) for points in kinds]
    starts = [
        points[roulette(values, k, seed=seed + 2)]
        for points, values, k in zip(kinds, scores, STARTS, strict=True)
    ]
    climbed = climb(acquisition, domain, torch.cat([*starts, around[:1]]), scale=scale, seed=seed)
    points = torch.cat([climbed, *kinds])
    return _best_unseen(points, torch.cat([score(acquisition, climbed), *scores]), seen)


def _promising(acquisition: Acquisition, points: Tensor) -> Tensor:
    """Return the ``_PROMISING x D`` points with the highest values in single precision.

    That is half as dear, and what it leaves out of account is small beside how candidates differ.
    """
    return points[score(acquisition, points.float()).topk(_PROMISING).indices]


def score(acquisition: Acquisition, points: Tensor) -> Tensor:
    """Return the acquisition function's values ``[m]`` at ``m x D`` points, without gradients."""
    with torch.no_grad():
        values = torch.cat([acquisition(chunk) for chunk in torch.split(points, _CHUNK)])
    return values.nan_to_num(nan=-math.inf)


def climb(
    acquisition: Acquisition, domain: Domain, starts: Tensor, *, scale: Tensor, seed: int
) -> Tensor:
    """Return the ``k x D`` points that climbing from the starts ends at."""
    continuous = domain.continuous.to(starts.device)
    if bool(continuous.all()):
        return ascend(acquisition, starts, continuous, scale=scale)
    x, generator = starts, torch.Generator().manual_seed(seed)
    for _ in range(_ROUNDS):
        before = x
        x = change(acquisition, domain, x, generator=generator)
        if bool(continuous.any()):
            x = ascend(acquisition, x, continuous, scale=scale)
        if torch.equal(before[:, ~continuous], x[:, ~continuous]):
            break
    return x


def ascend(acquisition: Acquisition, starts: Tensor, free: Tensor, *, scale: Tensor) -> Tensor:
    """Climb by L-BFGS-B in the coordinates that are free, within [0, 1].

    Args:
        acquisition: What to maximise.
        starts: A ``k x D`` tensor.
        free: ``[D]`` of bool.
        scale: ``[D]``, inverse squared lengthscales.

    Returns:
        A ``k x D`` tensor of points.
    """
    root = scale[free].sqrt().clamp(0.1, 100.0)

    def points(z: Numbers, members: Sequence[int]) -> Tensor:
        x = starts[list(members)]  # a copy
        x[:, free] = (torch.from_numpy(z).to(root) / root).clamp(0, 1)
        return x

    def loss(z: Numbers, batch_indices: Sequence[int]) -> tuple[Numbers, Numbers]:
        x = points(z, batch_indices)
        with torch.enable_grad():
            values = acquisition(x.requires_grad_())
            (slopes,) = torch.autograd.grad(values.sum(), x)
        downhill = -slopes[:, free] / root
        return _numbers(-values.detach()), _numbers(downhill)

    z, _, _ = fmin_l_bfgs_b_batched(  # type: ignore[no-untyped-call]
        loss,
        _numbers(starts[:, free] * root),
        bounds=[(0.0, float(upper)) for upper in root],
        pgtol=_GRADIENT,
        factr=_PROGRESS / np.finfo(np.float64).eps,
        maxiter=_ITERATIONS,
        pass_batch_indices=True,
    )
    return points(z, range(len(starts)))


def change(
    acquisition: Acquisition, domain: Domain, starts: Tensor, *, generator: torch.Generator
) -> Tensor:
    """Climb by changes of discrete coordinates.

    In each round up to ``_CHANGES`` changes of one coordinate are tried from every start. Of those
    that help, the best 1, 2, 4, ... are then tried together, and the best of these is kept.

    Args:
        acquisition: What to maximise.
        domain: Has at least one discrete dimension.
        starts: A ``k x D`` tensor of valid points.
        generator: Chooses the changes, where there are more of them.
    """
    x, values = starts, score(acquisition, starts)
    everything = _changes(domain)
    for _ in range(_MOST_ROUNDS):
        order = torch.randperm(len(everything), generator=generator)[:_CHANGES].tolist()
        tried = [everything[i] for i in order]
        single = torch.stack([_apply(domain, x, [one]) for one in tried], 1)
        gains = score(acquisition, single.flatten(0, 1)).view(len(x), -1) - values.unsqueeze(-1)
        together = torch.stack(
            [_combined(domain, point, tried, gain) for point, gain in zip(x, gains, strict=True)]
        )
        improved = score(acquisition, together.flatten(0, 1)).view(len(x), -1)
        best, which = improved.max(-1)
        better = best > values
        if not bool(better.any()):
            break
        chosen = together[torch.arange(len(x)), which]
        x = torch.where(better.unsqueeze(-1), chosen, x)
        values = torch.where(better, best, values)
    return x


def _changes(domain: Domain) -> list[Change]:
    """Return all changes of one coordinate that are tried."""
    changes = []
    for d, levels in enumerate(domain.levels):
        if levels is None:
            continue
        if bool(domain.categorical[d]) or len(levels) <= len(_NEAR):
            changes += [(d, step) for step in range(1, len(levels))]
        else:
            changes += [(d, sign * step) for step in _NEAR for sign in (1, -1)]
    return changes


def _apply(domain: Domain, x: Tensor, changes: Sequence[Change]) -> Tensor:
    """Return the ``k x D`` points with some coordinates moved by a number of levels.

    A few levels are a circle, of which a step reaches all; many are a line with two ends.
    """
    x = x.clone()
    for d, step in changes:
        levels = domain.levels[d]
        assert levels is not None
        levels = levels.to(x)
        index = (x[:, d, None] - levels).abs().argmin(-1) + step
        circle = bool(domain.categorical[d]) or len(levels) <= len(_NEAR)
        x[:, d] = levels[index % len(levels) if circle else index.clamp(0, len(levels) - 1)]
    return x


def _combined(domain: Domain, x: Tensor, tried: Sequence[Change], gains: Tensor) -> Tensor:
    """Return ``c x D`` points: the best 1, 2, 4, ... helpful changes of different coordinates."""
    helpful: dict[int, Change] = {}
    for i in gains.argsort(descending=True).tolist():
        if gains[i] > 0:
            helpful.setdefault(tried[i][0], tried[i])
    chosen = list(helpful.values())
    counts = [2**power for power in range(_DOUBLINGS)]
    return torch.cat([_apply(domain, x.unsqueeze(0), chosen[:count]) for count in counts])


def _best_unseen(points: Tensor, values: Tensor, seen: Tensor) -> Tensor:
    """Return the best of the points that are not among those seen, or the best where all are."""
    for i in values.argsort(descending=True).tolist():
        if not bool(((points[i] - seen).abs() < _SAME).all(-1).any()):
            return points[i]
    return points[values.argmax()]


def _numbers(x: Tensor) -> Numbers:
    return x.detach().cpu().numpy().astype(np.float64)

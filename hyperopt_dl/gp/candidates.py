"""Where the search for the next point starts: points at random, and points near the best ones.

In many dimensions a random point is far from everything, and the acquisition function is flat
there. So half of the candidates are a known good point in which some coordinates are changed: few
or many of them, by little or by much, all equally likely on a log scale. In few coordinates at a
time, an additive function can be improved without spoiling the rest.
"""

import math

import torch
from torch import Tensor
from torch.quasirandom import SobolEngine

from hyperopt_dl.gp.domain import Domain

STEPS = (0.01, 0.5)
"""The range of the standard deviations of a change, in units of the cube."""
REDRAWN = 0.3
"""The part of the changed points whose changed coordinates are drawn anew in place of moved."""


def uniform(domain: Domain, m: int, *, seed: int) -> Tensor:
    """Return ``m x D`` points from a scrambled Sobol sequence, float64 on the CPU."""
    engine = SobolEngine(  # type: ignore[no-untyped-call]
        len(domain.levels), scramble=True, seed=seed % 2**31
    )
    return domain.from_uniform(engine.draw(m, dtype=torch.float64))


def perturbed(domain: Domain, around: Tensor, m: int, *, seed: int) -> Tensor:
    """Return ``m x D`` valid points, each with changes to one of the ``k x D`` points `around`.

    In each a coordinate is changed with a probability that is drawn log-uniformly from [1/D, 1],
    but at least one is. A change adds a normal number of standard deviation in ``STEPS``, also
    drawn log-uniformly; in the part ``REDRAWN`` of the points, and in every categorical dimension,
    the coordinate is drawn anew. A coordinate with levels moves by at least one of them.
    """
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    D = around.shape[-1]
    base = around.cpu()[torch.arange(m) % len(around)]
    chance = draw(m, 1) * math.log(D)
    changed = draw(m, D) < torch.exp(-chance)
    changed[torch.arange(m), (draw(m) * D).long()] = True
    low, high = (math.log(step) for step in STEPS)
    steps = torch.exp(low + (high - low) * draw(m, 1))
    moves = torch.randn(m, D, generator=generator, dtype=torch.float64) * steps
    moved = domain.nearest(base + _at_least_one_level(domain, moves))
    anew = (draw(m, 1) < REDRAWN) | domain.categorical.cpu()
    fresh = domain.from_uniform(draw(m, D))
    return torch.where(changed, torch.where(anew, fresh, moved), base)


def roulette(scores: Tensor, k: int, *, seed: int) -> Tensor:
    """Return the indices of the best of ``[m]`` scores and of up to ``k - 1`` others.

    The others are drawn without replacement with probability proportional to ``exp(score)``, by
    Gumbel's trick. Scores of ``-inf`` are not drawn.
    """
    generator = torch.Generator().manual_seed(seed)
    u = torch.rand(len(scores), generator=generator, dtype=torch.float64)
    keys = scores.cpu() - torch.log(-torch.log(u.clamp(1e-12, 1 - 1e-12)))
    keys[scores.argmax()] = math.inf
    count = min(k, max(1, int(scores.isfinite().sum())))
    return keys.topk(count).indices


def _at_least_one_level(domain: Domain, moves: Tensor) -> Tensor:
    """Return moves that are as long as half the way to the next level, and a little longer."""
    gaps = torch.tensor(
        [0.0 if v is None or len(v) < 2 else float(v.diff().max()) for v in domain.levels],
        dtype=torch.float64,
    )
    return torch.where(moves < 0, -1.0, 1.0) * moves.abs().maximum(0.51 * gaps)

"""What a point is worth: expected improvement over pending points, per-group UCB, feasibility.

    EI(x)  = E[max(f(x) - f⁺, 0)] = σ h(u),    u = (μ - f⁺) / σ,    h(u) = φ(u) + u Φ(u)
    UCB(x) = Σ_g μ_g + β_g σ_g,                β_g = sqrt(|A_g| log(2t) / 5)

    f⁺  incumbent, the value to improve on     s    fantasies, draws of values not yet known
    t   number of observations                 A_g  the dimensions that component g reads

Everything maximises, and everything is a function of points ``[m, D]`` that returns ``[m]``. Values
that are not known yet, of pending trials or below noise, are drawn: each draw is a fantasy with an
incumbent of its own, and given it EI has a closed form in the candidate, so that there is no noise
of sampling left to optimise over. One Cholesky factor serves all fantasies.

Sources: Ament et al., "Unexpected Improvements to Expected Improvement for Bayesian Optimization",
NeurIPS 2023 (log EI); Letham et al., "Constrained Bayesian Optimization with Noisy Experiments",
Bayesian Analysis 14(2), 2019 (noisy EI); Wang et al., "Batched High-dimensional Bayesian
Optimization via Structural Kernel Learning", ICML 2017 (UCB per group).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from botorch.utils.probability.utils import log_ndtr, log_phi, ndtr, phi
from botorch.utils.safe_math import log1mexp
from botorch.utils.sampling import draw_sobol_normal_samples
from torch import Tensor

from hyperopt_dl.gp.posterior import Posterior, condition

_LEAST_VARIANCE = 1e-12  # of the prior's: below it the posterior is rounding
_NOISE_FREE = 1e-6  # of the prior's variance: the noise that is left below drawn function values


@dataclass(frozen=True)
class Fantasies:
    """A posterior that knows drawn values, ``s`` sets of them, and what each has to improve on."""

    posterior: Posterior
    """Its values are ``[n + p, s]``."""
    incumbents: Tensor
    """``[s]``, f⁺."""


@dataclass(frozen=True)
class Limit:
    """A quantity that must be at most a bound for a point to be feasible, and what is known of it.

    A constraint of a trial is such a quantity, and so is the indicator of its failure.
    """

    posterior: Posterior
    """Of the standardised quantity, one set of values."""
    bound: float
    """In standardised units."""


def normal_draws(s: int, p: int, seed: int) -> Tensor:
    """Return ``s x p`` quasi-random draws of a standard normal (Sobol, scrambled), float64."""
    draws: Tensor = draw_sobol_normal_samples(p, s, dtype=torch.float64, seed=seed % 2**31)
    return draws


def fantasize(
    posterior: Posterior,
    pending: Tensor,
    best: float,
    *,
    s: int,
    seed: int,
    limits: Sequence[Limit] = (),
) -> Fantasies:
    """Draw the values of pending points.

    Args:
        posterior: One model with one set of values.
        pending: A ``p x D`` tensor of points; ``p`` may be 0.
        best: The best feasible value observed; where there is none, the worst value observed, so
            that anything feasible improves.
        s: Fantasies to draw.
        seed: Of the draws.
        limits: A fantasy becomes the incumbent only where drawn values of these allow it.
    """
    p = pending.shape[-2]
    if p == 0:
        return Fantasies(posterior, posterior.x.new_full((1,), best))
    drawn = _draw(posterior, pending, s, seed)
    allowed = _drawn_feasibility(limits, pending, s, seed + 1)
    incumbents = torch.where(allowed, drawn, best).amax(0).clamp(min=best)
    noise = _NOISE_FREE * posterior.kernel.variance
    return Fantasies(posterior.extend(pending, drawn, noise), incumbents)


def noisy_fantasies(
    posterior: Posterior,
    pending: Tensor,
    feasible: Tensor,
    *,
    s: int,
    seed: int,
    limits: Sequence[Limit] = (),
) -> Fantasies:
    """Draw the function below the noise, at observed and pending points alike.

    Improving on the best *observation* rewards luck. Here the incumbent is the best of the drawn
    function values, and the posterior is that of a function known without noise.

    Args:
        posterior: One model with one set of values, of n points.
        pending: A ``p x D`` tensor of points; ``p`` may be 0.
        feasible: ``[n]`` of bool: which observed points may be the incumbent; in a fantasy where
            none may, it is the worst value drawn.
        s: Fantasies to draw.
        seed: Of the draws.
        limits: Decide by drawn values which pending points may be the incumbent.
    """
    x = torch.cat([posterior.x, pending], -2)
    drawn = _draw(posterior, x, s, seed)
    allowed = feasible.unsqueeze(-1).expand(-1, s)
    if pending.shape[-2]:
        allowed = torch.cat([allowed, _drawn_feasibility(limits, pending, s, seed + 1)])
    kernel = replace(posterior.kernel, noise=_NOISE_FREE * posterior.kernel.variance)
    incumbents = torch.where(allowed, drawn, drawn.amin(0)).amax(0)
    return Fantasies(condition(kernel, x, drawn, posterior.derivatives), incumbents)


def log_expected_improvement(fantasies: Fantasies, x: Tensor) -> Tensor:
    """Return the log of EI, averaged over fantasies, ``[m]``, float64.

    The posterior is computed in the precision of ``x``.
    """
    mean, variance = (told.double() for told in fantasies.posterior.mean_and_variance(x))
    floor = _LEAST_VARIANCE * fantasies.posterior.kernel.variance
    sigma = variance.clamp(min=floor).sqrt().unsqueeze(-1)
    u = (mean - fantasies.incumbents) / sigma
    return torch.logsumexp(log_h(u) + sigma.log(), -1) - math.log(u.shape[-1])


def group_ucb(posterior: Posterior, x: Tensor, *, observations: int) -> Tensor:
    """Return the sum over components of their upper confidence bounds, ``[m]``.

    Pending points belong into `posterior` with their mean as value: their variance then shrinks and
    nothing else changes.
    """
    mean, variance = posterior.parts(x)
    floor = _LEAST_VARIANCE * posterior.kernel.variance
    beta = ucb_width(posterior, observations).unsqueeze(-1)
    return (mean.squeeze(-1) + beta * variance.clamp(min=floor).sqrt()).sum(-2)


def ucb_width(posterior: Posterior, observations: int) -> Tensor:
    """Return β_g, ``[G]``: how many standard deviations above the mean the bound of g lies."""
    sizes = posterior.kernel.masks.sum(-1)
    return (sizes * math.log(2 * max(observations, 1)) / 5).sqrt()


def believe(posterior: Posterior, pending: Tensor) -> Posterior:
    """Return the posterior in which pending points have turned out as expected."""
    if pending.shape[-2] == 0:
        return posterior
    return posterior.extend(pending, posterior.mean(pending))


def log_feasibility(limits: Sequence[Limit], x: Tensor) -> Tensor:
    """Return the log probability that all limits hold, taken as independent, ``[m]``."""
    total = torch.zeros_like(x[..., 0], dtype=torch.float64)
    for limit in limits:
        mean, variance = (told.double() for told in limit.posterior.mean_and_variance(x))
        floor = _LEAST_VARIANCE * limit.posterior.kernel.variance
        total = total + log_ndtr(
            (limit.bound - mean.squeeze(-1)) / variance.clamp(min=floor).sqrt()
        )
    return total


def log_h(u: Tensor) -> Tensor:
    """Return log(φ(u) + u Φ(u)) to about 1e-9 relative for any finite u; differentiable once."""
    logs: Tensor = _LogH.apply(u)  # type: ignore[no-untyped-call]
    return logs


class _LogH(torch.autograd.Function):
    """log h and its slope Φ / h.

    Above -1 the definitions serve. Below, the two terms of h cancel, and with the scaled
    complementary error function h = φ(u) (1 - e^w), w = log(|u| Φ(u) / φ(u)), where 1 - e^w → 1/u².
    """

    @staticmethod
    def forward(ctx: Any, u: Tensor) -> Tensor:
        high = u.clamp(min=-1.0)
        low = u.clamp(max=-1.0)
        middle = low.clamp(min=-1e5)
        ratio = math.sqrt(math.pi / 2) * torch.special.erfcx(-middle / math.sqrt(2))
        w = torch.log(-middle * ratio)
        tail = torch.where(low > -1e5, log1mexp(w), -2 * torch.log(-low))
        cumulative = ndtr(high)
        h = phi(high) + high * cumulative
        if ctx.needs_input_grad[0]:
            slope = torch.where(low > -1e5, 1 / (middle * torch.expm1(-w)).neg(), -low)
            ctx.save_for_backward(torch.where(u > -1.0, cumulative / h, slope))
        logs: Tensor = torch.where(u > -1.0, torch.log(h), log_phi(low) + tail)
        return logs

    @staticmethod
    def backward(ctx: Any, to_logs: Tensor) -> Tensor:
        slope: Tensor = ctx.saved_tensors[0]
        return to_logs * slope


def _draw(posterior: Posterior, x: Tensor, s: int, seed: int) -> Tensor:
    """Return ``p x s`` joint draws of the function at points."""
    covariance = posterior.covariance(x, x)
    floor = _LEAST_VARIANCE * posterior.kernel.variance
    root = _root(covariance, float(floor))
    z = normal_draws(s, x.shape[-2], seed).to(x.device)
    return posterior.mean(x) + root @ z.mT


def _root(covariance: Tensor, floor: float) -> Tensor:
    """Return a symmetric square root, by eigenvalues: a posterior covariance is often singular."""
    eigenvalues, vectors = torch.linalg.eigh(covariance)
    root: Tensor = (vectors * eigenvalues.clamp(min=floor).sqrt()) @ vectors.mT
    return root


def _drawn_feasibility(limits: Sequence[Limit], x: Tensor, s: int, seed: int) -> Tensor:
    """Return ``p x s`` of bool: in which draws the limits hold at points."""
    allowed = torch.ones(x.shape[-2], s, dtype=torch.bool, device=x.device)
    for i, limit in enumerate(limits):
        allowed &= _draw(limit.posterior, x, s, seed + i) <= limit.bound
    return allowed

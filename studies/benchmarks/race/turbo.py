"""TuRBO-1: Bayesian optimization in one trust region, written from the paper.

Eriksson, Pearce, Gardner, Turner and Poloczek, "Scalable Global Optimization via Local Bayesian
Optimization", NeurIPS 2019. The region is a box around the best point, whose sides are L times the
lengthscales of the model, scaled to a geometric mean of 1. A batch is a joint Thompson sample over
min(100 D, 5000) candidates: the best point with a share min(1, 20/D) of its coordinates replaced by
those of a Sobol point of the box. L doubles after 3 batches in a row that improve the best loss by
a thousandth, and is halved after ceil(max(4/q, D/q)) in a row that do not; below 2^-7 the region
forgets, and starts anew from fresh points. Ordered and categorical dimensions, which the paper has
not, are rounded.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from botorch.fit import fit_gpytorch_mll
from botorch.generation.sampling import MaxPosteriorSampling
from botorch.models import SingleTaskGP
from gpytorch.constraints import Interval
from gpytorch.kernels import MaternKernel, ScaleKernel
from gpytorch.likelihoods import GaussianLikelihood
from gpytorch.mlls import ExactMarginalLogLikelihood
from scipy.stats import qmc
from torch import Tensor

from studies.benchmarks.race.problem import Cube, Params, Point, Problem

FIRST, LEAST, MOST = 0.8, 0.5**7, 1.6  # of L
SUCCESSES = 3
STARTS = 24  # of a region after the first
MARGIN = 1e-3


class TuRBO:
    """The trust region, and the points that it knows."""

    def __init__(self, problem: Problem, seed: int) -> None:
        self.cube = Cube(problem.space)
        self.D = len(problem.space)
        self.rng = np.random.default_rng(seed)
        self.fresh: list[Point] = []  # points that a new region is to begin with
        self._begin()

    def _begin(self) -> None:
        self.x, self.y = np.empty((0, self.D)), np.empty(0)
        self.length, self.successes, self.failures = FIRST, 0, 0
        self.beginning = True

    def tell(self, points: Sequence[Params], losses: Sequence[float]) -> None:
        """Learn the losses of points, and change the region."""
        best = self.y.min() if len(self.y) else math.inf
        self.x = np.concatenate([self.x, self.cube.encode(points)])
        self.y = np.concatenate([self.y, losses])
        if self.beginning:
            self.beginning = bool(self.fresh)
            return
        if min(losses) < best - MARGIN * abs(best):
            self.successes, self.failures = self.successes + 1, 0
        else:
            self.successes, self.failures = 0, self.failures + 1
        q = len(losses)
        if self.successes == SUCCESSES:
            self.length, self.successes = min(2 * self.length, MOST), 0
        elif self.failures >= math.ceil(max(4 / q, self.D / q)):
            self.length, self.failures = self.length / 2, 0
        if self.length < LEAST:
            self._begin()
            self.fresh = list(qmc.Sobol(self.D, seed=self.rng).random_base2(5)[:STARTS])

    def ask(self, q: int) -> list[Params]:
        """Return q points to evaluate together."""
        if self.fresh:
            first, self.fresh = self.fresh[:q], self.fresh[q:]
            return [self.cube.spread(point) for point in first]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(self.rng.integers(2**31)))
            model = self._fit()
            candidates = torch.from_numpy(self._candidates(model))
            with torch.no_grad():
                batch = MaxPosteriorSampling(model, replacement=False)(candidates, num_samples=q)
        return [self.cube.decode(point) for point in batch.numpy()]

    def _fit(self) -> SingleTaskGP:
        """Return a Gaussian process with the paper's kernel and bounds."""
        matern = MaternKernel(
            nu=2.5, ard_num_dims=self.D, lengthscale_constraint=Interval(0.005, 2.0)
        )
        model = SingleTaskGP(
            torch.from_numpy(self.x),
            -torch.from_numpy(self.y)[:, None],
            covar_module=ScaleKernel(matern, outputscale_constraint=Interval(0.05, 20.0)),
            likelihood=GaussianLikelihood(noise_constraint=Interval(5e-4, 0.2)),
        )
        fit_gpytorch_mll(ExactMarginalLogLikelihood(model.likelihood, model))
        return model

    def _candidates(self, model: SingleTaskGP) -> Point:
        scales: Tensor = model.covar_module.base_kernel.lengthscale.detach()
        weights = (scales / scales.log().mean().exp()).squeeze(0).numpy()
        centre = self.x[self.y.argmin()]
        low = np.clip(centre - weights * self.length / 2, 0, 1)
        high = np.clip(centre + weights * self.length / 2, 0, 1)
        number = min(100 * self.D, 5000)
        fresh = qmc.Sobol(self.D, seed=self.rng).random_base2(math.ceil(math.log2(number)))
        x = low + (high - low) * fresh[:number]
        replaced = self.rng.random(x.shape) < min(1.0, 20 / self.D)
        replaced[np.arange(number), self.rng.integers(self.D, size=number)] = True
        x = np.where(replaced, x, centre)
        for d, levels in self.cube.levels.items():
            x[:, d] = np.round(x[:, d] * (len(levels) - 1)) / (len(levels) - 1)
        return np.asarray(x)

"""BoTorch as its tutorials use it: a SingleTaskGP and qLogNoisyExpectedImprovement by default.

Categorical dimensions have two choices in this race, so they are numbers 0 and 1 to the model.
"""

from collections.abc import Sequence

import torch
from botorch.acquisition.logei import qLogNoisyExpectedImprovement
from botorch.fit import fit_gpytorch_mll
from botorch.models import SingleTaskGP
from botorch.optim import optimize_acqf, optimize_acqf_mixed_alternating
from gpytorch.mlls import ExactMarginalLogLikelihood

from studies.benchmarks.race.problem import Cube, Params, Problem

RESTARTS, RAW = 10, 512


class BoTorch:
    """A batch is chosen point by point, each given the ones before it."""

    def __init__(self, problem: Problem, seed: int) -> None:
        self.cube = Cube(problem.space)
        self.seed = seed
        self.x = torch.empty(0, len(problem.space), dtype=torch.double)
        self.y = torch.empty(0, 1, dtype=torch.double)

    def tell(self, points: Sequence[Params], losses: Sequence[float]) -> None:
        """Learn the losses of points."""
        self.x = torch.cat([self.x, torch.from_numpy(self.cube.encode(points))])
        self.y = torch.cat([self.y, torch.tensor(losses, dtype=torch.double)[:, None]])

    def ask(self, q: int) -> list[Params]:
        """Return q points to evaluate together."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1000 * self.seed + len(self.y))
            model = SingleTaskGP(self.x, -self.y)
            fit_gpytorch_mll(ExactMarginalLogLikelihood(model.likelihood, model))
            acquisition = qLogNoisyExpectedImprovement(model, X_baseline=self.x)
            bounds = torch.tensor([[0.0], [1.0]], dtype=torch.double).expand(2, self.x.shape[1])
            if self.cube.levels:
                batch, _ = optimize_acqf_mixed_alternating(
                    acquisition,
                    bounds,
                    discrete_dims=self.cube.levels,
                    q=q,
                    raw_samples=RAW,
                    num_restarts=RESTARTS,
                )
            else:
                batch, _ = optimize_acqf(
                    acquisition,
                    bounds,
                    q=q,
                    raw_samples=RAW,
                    num_restarts=RESTARTS,
                    sequential=True,
                )
        return [self.cube.decode(point) for point in batch.detach().numpy()]

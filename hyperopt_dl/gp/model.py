"""The model as BoTorch knows models, so that any of its acquisition functions works on it.

`AdditiveGP` is a `SingleTaskGP` whose kernel is a fitted `Kernel` with fixed hyperparameters. Given
a batch of kernels, such as the chains of a fit, it is an ensemble in BoTorch's sense: acquisition
functions take the mean over its members.

Values are standardised and negated, and points lie in the unit cube, as everywhere in this room.
"""

from typing import Any, cast

import gpytorch
import torch
from botorch.acquisition.objective import PosteriorTransform
from botorch.models import SingleTaskGP
from botorch.posteriors import GPyTorchPosterior
from botorch.posteriors.fully_bayesian import MCMC_DIM, GaussianMixturePosterior
from gpytorch.constraints import GreaterThan
from gpytorch.distributions import MultivariateNormal
from gpytorch.likelihoods import GaussianLikelihood
from gpytorch.means import ZeroMean
from linear_operator import to_linear_operator
from torch import Tensor

from hyperopt_dl.gp.kernel import Family, Kernel
from hyperopt_dl.gp.posterior import Posterior, factorize


class AdditiveGP(SingleTaskGP):
    """A Gaussian process given observations, for use with BoTorch.

    Args:
        x: A ``n x D`` tensor of points.
        y: A ``n`` tensor of values, standardised and negated.
        kernel: The covariance and the noise, with no batch dimension; or with one, of members.
    """

    def __init__(self, x: Tensor, y: Tensor, kernel: Kernel) -> None:
        members = kernel.noise.shape
        likelihood = GaussianLikelihood(noise_constraint=GreaterThan(0.0), batch_shape=members)
        super().__init__(
            x.expand(*members, *x.shape),
            y.unsqueeze(-1).expand(*members, len(y), 1),
            likelihood=likelihood,
            mean_module=ZeroMean(),
            covar_module=SumKernel(kernel),
            outcome_transform=None,
        )
        self.to(x)
        self.likelihood.noise = kernel.noise.unsqueeze(-1)
        self.requires_grad_(False)
        self.eval()
        self._is_ensemble = len(members) > 0

    def posterior(  # type: ignore[override]  # BoTorch's own bases disagree with each other
        self,
        X: Tensor,
        output_indices: list[int] | None = None,
        observation_noise: bool | Tensor = False,
        posterior_transform: PosteriorTransform | None = None,
    ) -> GPyTorchPosterior:
        """Return the posterior at ``... x q x D`` points, of each member where there are several.

        Args:
            X: The points.
            output_indices: Of no use: there is one output.
            observation_noise: True for the posterior of observations, or their variance.
            posterior_transform: Applied to the result.
        """
        X = X.unsqueeze(MCMC_DIM) if self._is_ensemble else X
        joint = super().posterior(X, output_indices, observation_noise, posterior_transform)
        posterior = cast(GPyTorchPosterior, joint)
        if self._is_ensemble:
            return GaussianMixturePosterior(distribution=posterior.distribution)
        return posterior

    def components(self, X: Tensor) -> GPyTorchPosterior:
        """Return the posterior of each component at ``... x q x D`` points: ``... x G x q x 1``.

        The means sum to that of the function. The components are dependent given the data, so
        their variances do not sum to its variance.
        """
        x, y = self.train_inputs[0], self.train_targets
        kernel: Kernel = self.covar_module.kernel
        X = X.unsqueeze(MCMC_DIM) if self._is_ensemble else X
        prior = self.likelihood(MultivariateNormal(torch.zeros_like(y), kernel(x, x)))
        values, factor = y.unsqueeze(-1), factorize(prior.covariance_matrix)
        posterior = Posterior(kernel, x, values, factor, torch.cholesky_solve(values, factor))
        mean = posterior.parts(X)[0].squeeze(-1)
        covariance = posterior.parts_covariance(X, X)
        return GPyTorchPosterior(MultivariateNormal(mean, to_linear_operator(covariance)))


class SumKernel(gpytorch.kernels.Kernel):  # type: ignore[misc]  # GPyTorch is untyped
    """A `Kernel` as GPyTorch knows kernels. Its tensors are buffers: nothing is trained."""

    def __init__(self, kernel: Kernel) -> None:
        super().__init__(batch_shape=kernel.noise.shape)
        self.family: Family = kernel.family
        self.register_buffer("masks", kernel.masks)
        self.register_buffer("scales", kernel.scales)
        self.register_buffer("weights", kernel.weights)
        self.register_buffer("noise", kernel.noise)
        self.register_buffer("categorical", kernel.categorical)

    @property
    def kernel(self) -> Kernel:
        """The kernel, on the device on which this module is."""
        return Kernel(
            self.masks, self.scales, self.weights, self.noise, self.categorical, self.family
        )

    def forward(self, x1: Tensor, x2: Tensor, diag: bool = False, **params: Any) -> Tensor:
        """Return the covariance ``[..., n1, n2]``, or its diagonal ``[..., n1]``."""
        del params
        if diag:
            return self.kernel.parts(x1.unsqueeze(-2), x2.unsqueeze(-2)).sum(-3)[..., 0, 0]
        return self.kernel(x1, x2)

    def __getitem__(self, index: Any) -> "SumKernel":
        return SumKernel(self.kernel[index])

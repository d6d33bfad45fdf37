"""The BoTorch face against BoTorch's own model with the same kernel, and against dense matrices."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from botorch.acquisition import (
    AcquisitionFunction,
    LogExpectedImprovement,
    qKnowledgeGradient,
    qLogNoisyExpectedImprovement,
    qUpperConfidenceBound,
)
from botorch.models import SingleTaskGP
from botorch.models.model import Model
from botorch.optim import optimize_acqf
from botorch.posteriors import GPyTorchPosterior, Posterior
from botorch.posteriors.fully_bayesian import GaussianMixturePosterior
from botorch.sampling import SobolQMCNormalSampler
from gpytorch.constraints import GreaterThan
from gpytorch.kernels import AdditiveKernel, MaternKernel, ScaleKernel
from gpytorch.likelihoods import GaussianLikelihood
from gpytorch.means import ZeroMean
from torch import Tensor

from hyperopt_dl.gp.kernel import Kernel, stack
from hyperopt_dl.gp.model import AdditiveGP
from hyperopt_dl.gp.posterior import condition

D = 4
GROUPS = [[0, 1, 2, 3], [0, 2], [1], [3]]


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def observations(n: int = 15) -> tuple[Tensor, Tensor]:
    x = torch.rand(n, D, generator=generator(0), dtype=torch.double)
    y = torch.sin(5 * x[:, 0] * x[:, 2]) + x[:, 1]
    return x, (y - y.mean()) / y.std()


def kernel_of(groups: list[list[int]] = GROUPS, seed: int = 1) -> Kernel:
    masks = torch.zeros(len(groups), D, dtype=torch.double)
    for g, group in enumerate(groups):
        masks[g, group] = 1
    return Kernel(
        masks=masks,
        scales=9 * torch.rand(len(groups), D, generator=generator(seed), dtype=torch.double) + 1,
        weights=torch.rand(len(groups), generator=generator(seed), dtype=torch.double) + 0.1,
        noise=torch.tensor(0.02 * seed, dtype=torch.double),
        categorical=torch.zeros(D, dtype=torch.bool),
    )


def botorchs(x: Tensor, y: Tensor, kernel: Kernel) -> SingleTaskGP:
    """The same process out of GPyTorch's kernels."""
    components = []
    for mask, scales, weight in zip(kernel.masks, kernel.scales, kernel.weights, strict=True):
        group = mask.nonzero().squeeze(-1)
        matern = MaternKernel(ard_num_dims=len(group), active_dims=group)
        component = ScaleKernel(matern).double()
        matern.lengthscale = scales[group].rsqrt()
        component.outputscale = weight
        components.append(component)
    likelihood = GaussianLikelihood(noise_constraint=GreaterThan(0.0)).double()
    likelihood.noise = kernel.noise
    model = SingleTaskGP(
        x,
        y.unsqueeze(-1),
        likelihood=likelihood,
        mean_module=ZeroMean(),
        covar_module=AdditiveKernel(*components),
        outcome_transform=None,
    )
    return model.eval()


def covariance_of(posterior: Posterior) -> Tensor:
    assert isinstance(posterior, GPyTorchPosterior)
    covariance: Tensor = posterior.distribution.covariance_matrix
    return covariance


def close(got: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(got, wanted, rtol=1e-6, atol=1e-8)


def points(*shape: int, seed: int = 5) -> Tensor:
    return torch.rand(*shape, D, generator=generator(seed), dtype=torch.double)


@pytest.fixture
def pair() -> tuple[AdditiveGP, SingleTaskGP]:
    return AdditiveGP(*observations(), kernel_of()), botorchs(*observations(), kernel_of())


Pair = tuple[AdditiveGP, SingleTaskGP]


@pytest.mark.parametrize("noise", [False, True])
def test_the_posterior_is_that_of_gpytorchs_kernels(pair: Pair, noise: bool) -> None:
    got, wanted = (model.posterior(points(3, 5), observation_noise=noise) for model in pair)
    close(got.mean, wanted.mean)
    close(got.variance, wanted.variance)
    close(covariance_of(got), covariance_of(wanted))


def test_the_posterior_knows_the_radius() -> None:
    x, y = observations()
    groups = kernel_of()
    pad = torch.nn.functional.pad
    kernel = replace(
        groups,
        masks=torch.cat([pad(groups.masks, (0, 1)), torch.eye(D + 1)[D:].double()]),
        scales=pad(groups.scales, (0, 1, 0, 1), value=4.0),
        weights=pad(groups.weights, (0, 1), value=0.5),
    )
    got, wanted = AdditiveGP(x, y, kernel).posterior(points(5)), condition(kernel, x, y[:, None])
    close(got.mean, wanted.mean(points(5)))
    close(covariance_of(got), wanted.covariance(points(5), points(5)))
    without = condition(groups, x, y[:, None])
    assert not torch.allclose(got.mean, without.mean(points(5)), atol=1e-2)


def test_it_says_what_a_model_must_say(pair: Pair) -> None:
    ours, _ = pair
    assert isinstance(ours, Model)
    assert ours.num_outputs == 1
    assert ours.batch_shape == torch.Size([])
    assert not list(filter(lambda p: p.requires_grad, ours.parameters()))


def sampler() -> SobolQMCNormalSampler:
    return SobolQMCNormalSampler(torch.Size([32]), seed=0)


ACQUISITIONS: dict[str, Callable[[Model], AcquisitionFunction]] = {
    "LogEI": lambda model: LogExpectedImprovement(model, best_f=0.5),
    "qLogNEI": lambda model: qLogNoisyExpectedImprovement(
        model, observations()[0], sampler=sampler(), prune_baseline=False
    ),
    "qUCB": lambda model: qUpperConfidenceBound(model, beta=2.0, sampler=sampler()),
    "qKG": lambda model: qKnowledgeGradient(model, num_fantasies=None, sampler=sampler()),
}


@pytest.mark.parametrize("name", ACQUISITIONS)
def test_acquisitions_and_their_gradients_are_those_of_botorchs_model(
    pair: Pair, name: str
) -> None:
    q = {"LogEI": 1, "qKG": 34}.get(name, 2)
    values, gradients = [], []
    for model in pair:
        X = points(3, q).requires_grad_()
        value = ACQUISITIONS[name](model)(X)
        values.append(value.detach())
        gradients.append(torch.autograd.grad(value.sum(), X)[0])
    close(*values)
    close(*gradients)


def test_botorch_optimises_an_acquisition_of_it(pair: Pair) -> None:
    bounds = torch.stack([torch.zeros(D), torch.ones(D)]).double()
    torch.manual_seed(0)
    acquisition = ACQUISITIONS["LogEI"](pair[0])
    best, _ = optimize_acqf(acquisition, bounds, q=1, num_restarts=4, raw_samples=64)
    assert acquisition(best).item() >= acquisition(points(200, 1)).max().item() - 1e-9
    assert bool(((best >= 0) & (best <= 1)).all())


def test_conditioning_is_the_model_of_all_observations(pair: Pair) -> None:
    x, y = observations()
    X, Y = points(3), torch.tensor([[0.3], [-1.0], [0.8]], dtype=torch.double)
    pair[0].posterior(X)  # BoTorch asks for one before it conditions
    got = pair[0].condition_on_observations(X, Y).posterior(points(4, seed=6))
    whole = AdditiveGP(torch.cat([x, X]), torch.cat([y, Y.squeeze(-1)]), kernel_of())
    wanted = whole.posterior(points(4, seed=6))
    close(got.mean, wanted.mean)
    close(covariance_of(got), covariance_of(wanted))


def test_fantasies_are_the_model_conditioned_on_samples(pair: Pair) -> None:
    X, ask = points(2), points(4, seed=6)
    fantasies = [model.fantasize(X, sampler()) for model in pair]
    got, wanted = (fantasy.posterior(ask) for fantasy in fantasies)
    assert got.mean.shape == (32, 4, 1)
    close(got.mean, wanted.mean)
    close(got.variance, wanted.variance)


def test_components_are_those_of_dense_matrices() -> None:
    (x, y), kernel, X = observations(), kernel_of(), points(4)
    got = AdditiveGP(x, y, kernel).components(X)
    A = torch.linalg.inv(kernel(x, x) + kernel.noise * torch.eye(len(x)).double())
    for g, (k, prior) in enumerate(zip(kernel.parts(X, x), kernel.parts(X, X), strict=True)):
        close(got.mean[g, :, 0], k @ A @ y)
        close(covariance_of(got)[g], prior - k @ A @ k.T)


def test_the_means_of_the_components_sum_to_the_mean() -> None:
    model = AdditiveGP(*observations(), kernel_of())
    X = points(3, 5)
    close(model.components(X).mean.sum(-3), model.posterior(X).mean)


def ensemble() -> tuple[AdditiveGP, list[AdditiveGP]]:
    kernels = [kernel_of(), kernel_of([[0, 1, 2, 3], [0, 1, 2]], seed=2)]
    alone = [AdditiveGP(*observations(), kernel) for kernel in kernels]
    return AdditiveGP(*observations(), stack(kernels)), alone


def test_several_kernels_are_an_ensemble() -> None:
    together, alone = ensemble()
    X = points(3, 5)
    got = together.posterior(X)
    for c, member in enumerate(alone):
        wanted = member.posterior(X)
        close(got.mean[:, c], wanted.mean)
        close(got.variance[:, c], wanted.variance)
    assert isinstance(got, GaussianMixturePosterior)
    close(got.mixture_mean, torch.stack([m.posterior(X).mean for m in alone]).mean(0))


@pytest.mark.parametrize("name", ["LogEI", "qUCB"])
def test_an_acquisition_of_an_ensemble_is_the_mean_over_its_members(name: str) -> None:
    together, alone = ensemble()
    X = points(3, {"LogEI": 1}.get(name, 2))
    values = [ACQUISITIONS[name](member)(X) for member in alone]
    mean = torch.stack(values).exp().mean(0).log() if "Log" in name else sum(values) / 2
    close(ACQUISITIONS[name](together)(X), torch.as_tensor(mean))


def test_noisy_improvement_works_on_an_ensemble() -> None:
    together, _ = ensemble()
    value = ACQUISITIONS["qLogNEI"](together)(points(3, 2))
    assert value.shape == (3,)
    assert bool(value.isfinite().all())


def test_the_components_of_an_ensemble_are_those_of_its_members() -> None:
    together, alone = ensemble()
    X = points(3, 5)
    got = together.components(X)
    for c, member in enumerate(alone):
        wanted = member.components(X)
        close(got.mean[:, c, : wanted.mean.shape[-3]], wanted.mean)

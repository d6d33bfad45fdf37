"""Acquisition functions against BoTorch, against sampling, and their derivatives."""

import math

import pytest
import torch
from botorch.acquisition.analytic import LogExpectedImprovement
from botorch.models import SingleTaskGP
from botorch.utils.testing import MockModel, MockPosterior
from gpytorch.kernels import MaternKernel, ScaleKernel
from gpytorch.means import ZeroMean
from torch import Tensor

from hyperopt_dl.gp.acquisition import (
    Fantasies,
    Limit,
    believe,
    fantasize,
    group_ucb,
    log_expected_improvement,
    log_feasibility,
    log_h,
    noisy_fantasies,
    normal_draws,
    ucb_width,
)
from hyperopt_dl.gp.kernel import Kernel
from hyperopt_dl.gp.posterior import Posterior, condition


def draw(*shape: int, seed: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.double)


X, AT = draw(8, 2, seed=0), draw(6, 2, seed=1)
Y = torch.sin(6 * X.sum(-1, keepdim=True))
PENDING = draw(3, 2, seed=2)


def kernel(noise: float = 1e-3) -> Kernel:
    return Kernel(
        masks=torch.tensor([[1.0, 1.0], [1.0, 0.0], [0.0, 1.0]], dtype=torch.double),
        scales=torch.tensor([[4.0, 9.0], [2.0, 1.0], [1.0, 6.0]], dtype=torch.double),
        weights=torch.tensor([0.5, 0.3, 0.2], dtype=torch.double),
        noise=torch.tensor(noise, dtype=torch.double),
        categorical=torch.zeros(2, dtype=torch.bool),
    )


def posterior(noise: float = 1e-3) -> Posterior:
    return condition(kernel(noise), X, Y)


def test_log_h_is_that_of_botorch_over_the_whole_line() -> None:
    u = torch.cat([-torch.logspace(9, -3, 60), torch.logspace(-3, 2, 30)]).double()
    model = MockModel(
        MockPosterior(mean=u.view(-1, 1, 1), variance=torch.ones_like(u).view(-1, 1, 1))
    )
    expected = LogExpectedImprovement(model, best_f=0.0)(torch.zeros(len(u), 1, 1).double())
    torch.testing.assert_close(log_h(u), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("u", [-1e6, -1e4, -30.0, -1.0 - 1e-9, -1.0 + 1e-9, 0.0, 5.0])
def test_the_derivative_of_log_h_is_the_hazard(u: float) -> None:
    at = torch.tensor(u, dtype=torch.double, requires_grad=True)
    (slope,) = torch.autograd.grad(log_h(at), at)
    step = 1e-6 * max(1.0, abs(u))
    near = torch.tensor([u - step, u + step], dtype=torch.double)
    low, high = log_h(near)
    torch.testing.assert_close(slope, (high - low) / (2 * step), rtol=1e-5, atol=1e-8)


def test_without_pending_points_it_is_the_log_of_expected_improvement() -> None:
    k = kernel()
    gp = SingleTaskGP(
        X, Y, torch.full_like(Y, 1e-3), outcome_transform=None, mean_module=ZeroMean(),
        covar_module=ScaleKernel(MaternKernel(2.5, ard_num_dims=2)).double(),
    )  # fmt: skip
    gp.covar_module.outputscale = 0.5
    gp.covar_module.base_kernel.lengthscale = k.scales[0].rsqrt()
    full = Kernel(
        k.masks[:1], k.scales[:1], k.weights[:1], k.noise, k.categorical
    )  # the part of k that GPyTorch has
    best = float(Y.max())
    ours = log_expected_improvement(fantasize(condition(full, X, Y), X[:0], best, s=16, seed=0), AT)
    theirs = LogExpectedImprovement(gp, best_f=best)(AT.unsqueeze(1))
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_pending_points_enter_by_their_joint_distribution() -> None:
    """Against plain sampling of E[max(f(x) - max(best, f(pending)), 0)]."""
    model, best = posterior(), float(Y.max()) - 0.3
    ours = log_expected_improvement(fantasize(model, PENDING, best, s=512, seed=3), AT).exp()
    for i, x in enumerate(AT):
        points = torch.cat([x.unsqueeze(0), PENDING])
        joint = torch.distributions.MultivariateNormal(
            model.mean(points).squeeze(-1),
            model.covariance(points, points) + 1e-10 * torch.eye(4, dtype=torch.double),
        )
        torch.manual_seed(i)
        samples = joint.sample((200_000,))
        incumbent = samples[:, 1:].amax(-1).clamp(min=best)
        gains = (samples[:, 0] - incumbent).clamp(min=0)
        error = 5 * float(gains.std()) / 200_000**0.5 + 2e-5
        assert abs(float(ours[i] - gains.mean())) < error + 0.02 * float(gains.mean())


def test_a_pending_point_has_nothing_left_to_improve() -> None:
    known = fantasize(posterior(), PENDING, float(Y.max()), s=16, seed=0)
    values = log_expected_improvement(known, torch.cat([AT, PENDING]))
    assert bool((values[len(AT) :] < values[: len(AT)].max() - 1).all())


def test_fantasies_are_drawn_with_the_right_mean_and_covariance() -> None:
    model = posterior()
    drawn = fantasize(model, PENDING, 0.0, s=4096, seed=0).posterior.values[len(X) :]
    torch.testing.assert_close(
        drawn.mean(-1, keepdim=True), model.mean(PENDING), atol=5e-3, rtol=1e-2
    )
    expected = model.covariance(PENDING, PENDING)
    torch.testing.assert_close(torch.cov(drawn), expected, atol=5e-3, rtol=3e-2)


def test_noisy_improvement_is_over_the_function_and_not_the_observations() -> None:
    """Against plain sampling of E[max(f(x) - max f(X), 0)], with much noise."""
    model = posterior(noise=0.3)
    known = noisy_fantasies(model, X[:0], torch.ones(len(X), dtype=torch.bool), s=1024, seed=0)
    ours = log_expected_improvement(known, AT).exp()
    for i, x in enumerate(AT):
        points = torch.cat([x.unsqueeze(0), X])
        joint = torch.distributions.MultivariateNormal(
            model.mean(points).squeeze(-1),
            model.covariance(points, points) + 1e-9 * torch.eye(9, dtype=torch.double),
        )
        torch.manual_seed(i)
        samples = joint.sample((200_000,))
        gains = (samples[:, 0] - samples[:, 1:].amax(-1)).clamp(min=0)
        error = 5 * float(gains.std()) / 200_000**0.5 + 2e-5
        assert abs(float(ours[i] - gains.mean())) < error + 0.05 * float(gains.mean())


def test_without_noise_the_noisy_improvement_is_the_plain_one() -> None:
    model = posterior(noise=1e-9)
    every = torch.ones(len(X), dtype=torch.bool)
    noisy = log_expected_improvement(noisy_fantasies(model, X[:0], every, s=64, seed=0), AT)
    plain = log_expected_improvement(fantasize(model, X[:0], float(Y.max()), s=1, seed=0), AT)
    torch.testing.assert_close(noisy, plain, rtol=1e-2, atol=1e-2)


def test_only_a_feasible_point_is_an_incumbent() -> None:
    feasible = Y.squeeze(-1) < Y.median()
    known = noisy_fantasies(posterior(1e-9), X[:0], feasible, s=8, seed=0)
    expected = Y[feasible].max().expand(8)
    torch.testing.assert_close(known.incumbents, expected, rtol=1e-2, atol=1e-2)


def test_a_pending_point_that_breaks_a_limit_raises_no_incumbent() -> None:
    forbidding = Limit(condition(kernel(), PENDING, torch.full((3, 1), 5.0).double()), bound=0.0)
    known = fantasize(posterior(), PENDING, -9.0, s=16, seed=0, limits=[forbidding])
    assert known.incumbents.tolist() == [-9.0] * 16
    allowing = Limit(forbidding.posterior, bound=50.0)
    known = fantasize(posterior(), PENDING, -9.0, s=16, seed=0, limits=[allowing])
    torch.testing.assert_close(known.incumbents, known.posterior.values[len(X) :].amax(0))


def test_feasibility_is_a_product_of_normal_probabilities() -> None:
    model, other = posterior(), condition(kernel(), X, -Y)
    limits = [Limit(model, 0.9), Limit(other, 0.7)]
    expected = torch.zeros(len(AT), dtype=torch.double)
    for limit in limits:
        mean, variance = limit.posterior.mean_and_variance(AT)
        u = (limit.bound - mean.squeeze(-1)) / variance.sqrt()
        expected += (0.5 * torch.erfc(-u / 2**0.5)).log()
    torch.testing.assert_close(log_feasibility(limits, AT), expected)


def test_the_bound_of_a_sum_is_the_sum_of_the_groups_bounds() -> None:
    model = posterior()
    mean, variance = model.parts(AT)
    t, sizes = 40, [2, 1, 1]
    expected = sum(
        mean[g, :, 0] + math.sqrt(sizes[g] * math.log(2 * t) / 5) * variance[g].sqrt()
        for g in range(3)
    )
    torch.testing.assert_close(group_ucb(model, AT, observations=t), expected)
    assert ucb_width(model, t).tolist() == pytest.approx(
        [math.sqrt(size * math.log(2 * t) / 5) for size in sizes]
    )


def test_believing_a_pending_point_moves_no_mean_and_shrinks_variances() -> None:
    model = posterior()
    believed = believe(model, PENDING)
    torch.testing.assert_close(believed.mean(AT), model.mean(AT), rtol=1e-6, atol=1e-8)
    before, after = (p.mean_and_variance(AT)[1] for p in (model, believed))
    assert bool((after <= before + 1e-12).all())
    assert float(believed.mean_and_variance(PENDING)[1].max()) < 2e-3


@pytest.mark.parametrize("pending", [0, 3])
def test_the_gradient_is_that_of_finite_differences(pending: int) -> None:
    known = fantasize(posterior(), PENDING[:pending], float(Y.max()), s=8, seed=0)
    assert torch.autograd.gradcheck(
        lambda x: log_expected_improvement(known, x), AT[:3].clone().requires_grad_()
    )
    assert torch.autograd.gradcheck(
        lambda x: group_ucb(posterior(), x, observations=9), AT[:3].clone().requires_grad_()
    )


def test_improvement_is_finite_at_an_observed_point() -> None:
    at = X.clone().requires_grad_()
    known = Fantasies(posterior(1e-9), Y.max().unsqueeze(0))
    values = log_expected_improvement(known, at)
    (slope,) = torch.autograd.grad(values.sum(), at)
    assert bool(values.isfinite().all())
    assert bool(slope.isfinite().all())


def test_normal_draws_depend_on_their_seed_alone() -> None:
    one = normal_draws(16, 3, seed=7)
    assert one.shape == (16, 3)
    assert torch.equal(one, normal_draws(16, 3, seed=7))
    assert not torch.equal(one, normal_draws(16, 3, seed=8))

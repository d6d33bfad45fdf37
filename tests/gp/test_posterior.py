"""The posterior against dense formulas, and what extends it against starting anew."""

import math

import pytest
import torch
from torch import Tensor

from hyperopt_dl.gp.kernel import Kernel, stack
from hyperopt_dl.gp.posterior import Posterior, condition, factorize

GROUPS = [[0, 1, 2, 3], [0, 2], [1, 3]]


def draw(*shape: int, seed: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.double)


def kernel(seed: int = 0, noise: float = 0.01) -> Kernel:
    masks = torch.zeros(len(GROUPS), 4, dtype=torch.double)
    for g, group in enumerate(GROUPS):
        masks[g, group] = 1
    return Kernel(
        masks=masks,
        scales=5 * draw(3, 4, seed=seed) + 0.5,
        weights=draw(3, seed=seed + 1) + 0.2,
        noise=torch.tensor(noise, dtype=torch.double),
        categorical=torch.zeros(4, dtype=torch.bool),
    )


X, Y = draw(12, 4, seed=10), draw(12, 1, seed=11) - 0.5
NEW, VALUES = draw(3, 4, seed=12), draw(3, 1, seed=13) - 0.5
AT = draw(7, 4, seed=14)


def dense(k: Kernel, x: Tensor, y: Tensor, at: Tensor) -> tuple[Tensor, Tensor]:
    """The mean [m, s] and the covariance [m, m], by the inverse of the covariance matrix."""
    inverse = torch.linalg.inv(k(x, x) + k.noise * torch.eye(len(x), dtype=torch.double))
    cross = k(at, x)
    return cross @ inverse @ y, k(at, at) - cross @ inverse @ cross.mT


def test_mean_variance_and_covariance_are_those_of_the_dense_formula() -> None:
    posterior = condition(kernel(), X, Y)
    mean, covariance = dense(kernel(), X, Y, AT)
    torch.testing.assert_close(posterior.mean(AT), mean, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(posterior.covariance(AT, AT), covariance, rtol=1e-9, atol=1e-12)
    both = posterior.mean_and_variance(AT)
    torch.testing.assert_close(both, (mean, covariance.diagonal()), rtol=1e-9, atol=1e-12)


def test_a_covariance_between_two_sets_is_a_block_of_the_joint_one() -> None:
    posterior = condition(kernel(), X, Y)
    joint = posterior.covariance(AT, AT)
    torch.testing.assert_close(posterior.covariance(AT[:3], AT[3:]), joint[:3, 3:])


@pytest.mark.parametrize("g", range(3))
def test_a_component_has_its_own_posterior(g: int) -> None:
    k, posterior = kernel(), condition(kernel(), X, Y)
    inverse = torch.linalg.inv(k(X, X) + k.noise * torch.eye(12, dtype=torch.double))
    cross = k.parts(AT, X)[g]
    covariance = k.parts(AT, AT)[g] - cross @ inverse @ cross.mT
    mean, variance = posterior.parts(AT)
    torch.testing.assert_close(mean[g], cross @ inverse @ Y, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(variance[g], covariance.diagonal(), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(
        posterior.parts_covariance(AT, AT)[g], covariance, rtol=1e-9, atol=1e-12
    )
    torch.testing.assert_close(
        posterior.parts_covariance(AT[:2], AT[2:])[g], covariance[:2, 2:], rtol=1e-9, atol=1e-12
    )


def test_the_means_of_the_components_sum_to_the_mean() -> None:
    posterior = condition(kernel(), X, Y)
    torch.testing.assert_close(posterior.parts(AT)[0].sum(0), posterior.mean(AT))


def assert_same(one: Posterior, other: Posterior) -> None:
    for name in ("x", "values", "factor", "weights"):
        torch.testing.assert_close(getattr(one, name), getattr(other, name), rtol=1e-9, atol=1e-10)


def test_extending_is_conditioning_on_everything() -> None:
    extended = condition(kernel(), X, Y).extend(NEW, VALUES)
    assert_same(extended, condition(kernel(), torch.cat([X, NEW]), torch.cat([Y, VALUES])))


def test_every_fantasy_is_a_posterior_of_its_own() -> None:
    fantasies = draw(3, 5, seed=20)
    together = condition(kernel(), X, Y).extend(NEW, fantasies)
    for s in range(5):
        values = torch.cat([Y, fantasies[:, s : s + 1]])
        alone = condition(kernel(), torch.cat([X, NEW]), values)
        torch.testing.assert_close(together.mean(AT)[:, s : s + 1], alone.mean(AT))
        torch.testing.assert_close(
            together.mean_and_variance(AT)[1], alone.mean_and_variance(AT)[1]
        )


def test_a_batch_of_kernels_is_a_loop_over_them() -> None:
    kernels = [kernel(seed) for seed in (0, 5)]
    batch = condition(stack(kernels), X, Y).extend(NEW, VALUES)
    for b, k in enumerate(kernels):
        alone = condition(k, X, Y).extend(NEW, VALUES)
        assert_same(batch[b], alone)
        torch.testing.assert_close(batch.mean(AT)[b], alone.mean(AT))
        torch.testing.assert_close(
            batch.mean_and_variance(AT)[1][b], alone.mean_and_variance(AT)[1]
        )
        torch.testing.assert_close(batch.parts(AT)[0][b], alone.parts(AT)[0])
        torch.testing.assert_close(batch.parts(AT)[1][b], alone.parts(AT)[1])
        torch.testing.assert_close(batch.log_likelihood()[b], alone.log_likelihood())


def test_the_likelihood_is_that_of_a_multivariate_normal() -> None:
    k = kernel()
    normal = torch.distributions.MultivariateNormal(
        torch.zeros(12, dtype=torch.double), k(X, X) + k.noise * torch.eye(12, dtype=torch.double)
    )
    expected = normal.log_prob(Y.squeeze(-1)).unsqueeze(0)  # type: ignore[no-untyped-call]
    torch.testing.assert_close(condition(k, X, Y).log_likelihood(), expected)


def test_the_gradient_of_the_mean_is_finite_at_an_observed_point() -> None:
    at = X[:2].clone().requires_grad_()
    mean, variance = condition(kernel(), X, Y).mean_and_variance(at)
    (slope,) = torch.autograd.grad((mean.squeeze(-1) + variance).sum(), at)
    assert bool(slope.isfinite().all())


def test_points_that_coincide_without_noise_are_borne() -> None:
    posterior = condition(kernel(noise=0.0), X[:1].expand(5, 4), Y[:5])
    assert bool(posterior.mean(AT).isfinite().all())


def test_a_matrix_that_is_no_covariance_is_refused() -> None:
    with pytest.raises(ArithmeticError, match="positive definite"):
        factorize(torch.full((3, 3), math.nan, dtype=torch.double))

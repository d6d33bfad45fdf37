"""Derivatives as observations, against autograd, dense formulas and limits of differences."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from hyperopt_dl.gp.acquisition import fantasize, log_expected_improvement, noisy_fantasies
from hyperopt_dl.gp.derivatives import Derivatives
from hyperopt_dl.gp.kernel import Family, Kernel, stack
from hyperopt_dl.gp.pathwise import draw_path
from hyperopt_dl.gp.posterior import Posterior, condition

MASKS = torch.tensor([[1, 1, 1, 1], [1, 0, 1, 0], [0, 1, 0, 1]], dtype=torch.double)
RADIAL = torch.cat([MASKS, torch.zeros(3, 1)], 1)
RADIAL = torch.cat([RADIAL, torch.eye(5)[4:]]).double()
"""The same components, and one that reads the radius."""
KINDS = [
    pytest.param("matern52", False, MASKS, id="matern52"),
    pytest.param("rbf", False, MASKS, id="rbf"),
    pytest.param("matern52", True, MASKS, id="categorical"),
    pytest.param("matern52", False, RADIAL, id="radius"),
    pytest.param("rbf", True, RADIAL, id="radius, rbf, categorical"),
]


def draw(*shape: int, seed: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.double)


def kernel(
    seed: int = 0,
    family: Family = "matern52",
    categorical: bool = False,
    masks: Tensor = MASKS,
) -> Kernel:
    return Kernel(
        masks=masks,
        scales=5 * draw(*masks.shape, seed=seed) + 0.5,
        weights=draw(len(masks), seed=seed + 1) + 0.2,
        noise=torch.tensor(0.01, dtype=torch.double),
        categorical=torch.tensor([False, False, False, categorical]),
        family=family,
    )


def points(n: int, seed: int, categorical: bool = False) -> Tensor:
    x = draw(n, 4, seed=seed)
    return torch.cat([x[:, :3], (3 * x[:, 3:]).floor()], -1) if categorical else x


def derivatives(seed: int = 20, noise: float = 1e-3, categorical: bool = False) -> Derivatives:
    point = torch.tensor([0, 0, 1, 1, 2, 2])
    dimension = torch.tensor([0, 2, 1, 0, 2, 1])
    values = 2 * draw(6, seed=seed + 1) - 1
    x = points(3, seed, categorical)
    return Derivatives(x, point, dimension, values, torch.full((6,), noise).double())


def one(k: Kernel, x1: Tensor, x2: Tensor) -> Tensor:
    """The kernel of two points ``[D]``, written out with none of the package's arithmetic."""
    total = torch.zeros((), dtype=torch.double)
    apart = torch.where(k.categorical, (x1 != x2).double(), (x1 - x2).square())
    if k.masks.shape[1] > 4:
        rho1, rho2 = ((2 * x[~k.categorical] - 1).square().mean() for x in (x1, x2))
        apart = torch.cat([apart, (rho1 - rho2).square()[None]])
    for g in range(len(k.masks)):
        r2 = (k.masks[g] * k.scales[g] * apart).sum()
        r = (5 * r2).sqrt()
        matern = (1 + r + 5 / 3 * r2) * torch.exp(-r)
        total = total + k.weights[g] * (torch.exp(-r2 / 2) if k.family == "rbf" else matern)
    return total


def slope_at(k: Kernel, x: Tensor, known: Derivatives, i: int) -> Tensor:
    """cov(f(x), the i-th derivative), by autograd, with its graph."""
    at = known.x[known.point[i]].clone().requires_grad_()
    (slope,) = torch.autograd.grad(one(k, x, at), at, create_graph=True)
    return slope[known.dimension[i]]


X, Y = draw(9, 4, seed=10), draw(9, 1, seed=11) - 0.5
AT = draw(5, 4, seed=14)


@pytest.mark.parametrize(("family", "categorical", "masks"), KINDS)
def test_the_covariance_with_values_is_the_kernels_derivative(
    family: Family, categorical: bool, masks: Tensor
) -> None:
    k, known = kernel(0, family, categorical, masks), derivatives(categorical=categorical)
    at = points(5, 14, categorical)
    expected = torch.stack([torch.stack([slope_at(k, x, known, i) for x in at]) for i in range(6)])
    torch.testing.assert_close(known.with_values(k, at), expected, rtol=1e-12, atol=1e-13)
    parts = known.with_parts(k, at)
    torch.testing.assert_close(parts.sum(-3), expected, rtol=1e-12, atol=1e-13)
    for g, part in enumerate(parts):
        alone = replace(k, weights=k.weights * torch.eye(len(masks)).double()[g])
        torch.testing.assert_close(part, known.with_values(alone, at), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize(("family", "categorical", "masks"), KINDS)
def test_the_covariance_with_each_other_is_the_kernels_second_derivative(
    family: Family, categorical: bool, masks: Tensor
) -> None:
    k, known = kernel(0, family, categorical, masks), derivatives(categorical=categorical)
    found = known.covariance(k)
    for i in range(6):
        for j in range(6):
            if known.point[i] == known.point[j]:
                continue  # r has no derivative at 0; see the next test
            at = known.x[known.point[i]].clone().requires_grad_()
            (second,) = torch.autograd.grad(slope_at(k, at, known, j), at)
            expected = second[known.dimension[i]]
            torch.testing.assert_close(found[i, j], expected, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize(("family", "at_zero"), [("matern52", 5 / 3), ("rbf", 1.0)])
def test_at_one_point_derivatives_have_their_known_variance_and_are_independent(
    family: Family, at_zero: float
) -> None:
    k, known = kernel(0, family), derivatives()
    variance = at_zero * (k.weights.unsqueeze(-1) * MASKS * k.scales).sum(0)
    found = known.covariance(k)
    torch.testing.assert_close(found.diagonal(), variance[known.dimension])
    torch.testing.assert_close(known.variance(k), variance[known.dimension])
    assert found[0, 1] == found[2, 3] == found[4, 5] == 0


@pytest.mark.parametrize("family", ["matern52", "rbf"])
def test_at_one_point_a_component_of_the_radius_knows_its_slope_alone(family: Family) -> None:
    k, known = kernel(0, family, masks=RADIAL), derivatives()
    without = replace(k, weights=k.weights * torch.tensor([1.0, 1.0, 1.0, 0.0]).double())
    a, at_zero = k.scales[3, 4], 5 / 3 if family == "matern52" else 1.0
    slopes = 2 * (known.x - 0.5)[known.point, known.dimension]  # 8/4 of what is from the middle
    found = (known.covariance(k) - known.covariance(without)).diagonal()
    torch.testing.assert_close(found, at_zero * k.weights[3] * a * slopes.square())
    torch.testing.assert_close(known.variance(k) - known.variance(without), found)


@pytest.mark.parametrize("masks", [MASKS, RADIAL], ids=["groups", "radius"])
def test_the_joint_covariance_is_positive_definite_even_where_points_coincide(
    masks: Tensor,
) -> None:
    k = kernel(masks=masks)
    x = torch.cat([AT, AT[:2]])  # all derivatives at all points, of which two are there twice
    point, dimension = torch.cartesian_prod(torch.arange(7), torch.arange(4)).T
    known = Derivatives(x, point, dimension, torch.zeros(28).double(), torch.zeros(28).double())
    cross = known.with_values(k, x)
    above, below = torch.cat([known.covariance(k), cross], -1), torch.cat([cross.mT, k(x, x)], -1)
    joint = torch.cat([above, below])
    torch.testing.assert_close(joint, joint.mT)
    eigenvalues = torch.linalg.eigvalsh(joint)
    assert eigenvalues.min() > -1e-12
    assert int((eigenvalues > 1e-6).sum()) == 25  # five distinct points, five numbers each


def test_a_batch_of_kernels_is_a_loop_over_them() -> None:
    kernels = [kernel(0), kernel(5)]
    noise = torch.tensor([[1e-3], [1e-2]]).double().expand(2, 6)
    known = replace(derivatives(), noise=noise)
    batch = condition(stack(kernels), X, Y, known)
    for c, k in enumerate(kernels):
        alone = condition(k, X, Y, known[c])
        torch.testing.assert_close(batch.mean(AT)[c], alone.mean(AT))
        torch.testing.assert_close(batch.covariance(AT, AT)[c], alone.covariance(AT, AT))
        torch.testing.assert_close(batch[c].parts(AT), alone.parts(AT))


# The posterior


def dense(k: Kernel, known: Derivatives, at: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and covariance by the inverse of a joint covariance that autograd has filled."""
    cross = torch.stack([torch.stack([slope_at(k, x, known, i) for x in X]) for i in range(6)])
    A = torch.zeros(15, 15).double()
    A[:6, :6] = known.covariance(k) + known.noise.diag()
    A[:6, 6:], A[6:, :6] = cross, cross.T
    A[6:, 6:] = torch.stack([torch.stack([one(k, a, b) for b in X]) for a in X])
    A[6:, 6:] += k.noise * torch.eye(9).double()
    to_values = torch.stack([torch.stack([one(k, a, b) for b in X]) for a in at])
    to_slopes = torch.stack([torch.stack([slope_at(k, a, known, i) for i in range(6)]) for a in at])
    star, inverse = torch.cat([to_slopes, to_values], -1), torch.linalg.inv(A)
    prior = torch.stack([torch.stack([one(k, a, b) for b in at]) for a in at])
    y = torch.cat([known.values.unsqueeze(-1), Y])
    return (star @ inverse @ y).detach(), (prior - star @ inverse @ star.T).detach()


def test_the_posterior_is_that_of_the_dense_formula() -> None:
    k, known = kernel(), derivatives()
    posterior = condition(k, X, Y, known)
    mean, covariance = dense(k, known, AT)
    torch.testing.assert_close(posterior.mean(AT), mean, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(posterior.covariance(AT, AT), covariance, rtol=1e-9, atol=1e-11)
    block = posterior.covariance(AT[:2], AT[2:])
    torch.testing.assert_close(block, covariance[:2, 2:], rtol=1e-9, atol=1e-11)
    both = posterior.mean_and_variance(AT)
    torch.testing.assert_close(both, (mean, covariance.diagonal()), rtol=1e-9, atol=1e-11)


def test_components_are_parts_of_the_whole() -> None:
    posterior = condition(kernel(), X, Y, derivatives())
    mean, variance = posterior.parts(AT)
    torch.testing.assert_close(mean.sum(0), posterior.mean(AT))
    covariance = posterior.parts_covariance(AT, AT)
    torch.testing.assert_close(covariance.diagonal(dim1=-2, dim2=-1), variance)
    torch.testing.assert_close(posterior.parts_covariance(AT[:2], AT), covariance[:, :2])


def test_a_component_that_is_all_there_is_has_the_posterior_of_the_whole() -> None:
    k = kernel()
    k = replace(k, weights=k.weights * torch.tensor([0.0, 1.0, 0.0]).double())
    posterior = condition(k, X, Y, derivatives())
    mean, variance = posterior.parts(AT)
    expected = posterior.mean_and_variance(AT)
    torch.testing.assert_close((mean[1], variance[1]), expected)
    covariance = posterior.parts_covariance(AT, AT)[1]
    torch.testing.assert_close(covariance, posterior.covariance(AT, AT))


def test_a_derivative_is_the_limit_of_a_pair_of_values() -> None:
    """The error of the pair falls with h², so half the distance leaves a quarter of it."""
    k = replace(kernel(), noise=torch.tensor(1e-6).double())
    x, slope, d = AT[0], 0.7, 1
    known = Derivatives(
        x[None], torch.tensor([0]), torch.tensor([d]), torch.tensor([slope]).double(),
        torch.tensor([1e-8]).double(),
    )  # fmt: skip
    exact = condition(k, X, Y, known).mean(AT)
    errors = []
    for h in (0.04, 0.02):
        step = h * torch.eye(4).double()[d]
        pair = torch.stack([x - step, x + step])
        # a difference of known values is a known slope; their sum is left open by a wide prior
        sums, differences = torch.ones(2, 2).double(), torch.tensor([[1.0, -1], [-1, 1]]).double()
        noise = 1e4 * sums + 1e-10 * differences
        joint = torch.cat([X, pair])
        A = k(joint, joint)
        A[:9, :9] += k.noise * torch.eye(9).double()
        A[9:, 9:] += noise
        y = torch.cat([Y, torch.tensor([[-h * slope], [h * slope]]).double()])
        errors.append((k(AT, joint) @ torch.linalg.solve(A, y) - exact).abs().max())
    assert errors[1] < 0.3 * errors[0]
    assert errors[1] < 1e-2 * (exact - condition(k, X, Y).mean(AT)).abs().max()


def test_the_mean_has_the_slopes_that_are_known_without_noise() -> None:
    known = derivatives(noise=1e-10)
    posterior = condition(kernel(), X, Y, known)
    x = known.x.clone().requires_grad_()
    (slopes,) = torch.autograd.grad(posterior.mean(x).sum(), x)
    torch.testing.assert_close(
        slopes[known.point, known.dimension], known.values, rtol=1e-6, atol=1e-7
    )


def test_derivatives_of_unbounded_noise_change_nothing() -> None:
    without = condition(kernel(), X, Y).mean_and_variance(AT)
    ignored = condition(kernel(), X, Y, derivatives(noise=1e12)).mean_and_variance(AT)
    torch.testing.assert_close(ignored, without, rtol=1e-8, atol=1e-9)


def test_the_order_of_derivatives_changes_nothing() -> None:
    known, order = derivatives(), torch.tensor([3, 0, 5, 1, 4, 2])
    other = Derivatives(
        known.x, known.point[order], known.dimension[order], known.values[order], known.noise
    )
    torch.testing.assert_close(
        condition(kernel(), X, Y, other).mean(AT), condition(kernel(), X, Y, known).mean(AT)
    )


def test_extending_is_conditioning_on_everything() -> None:
    known = derivatives()
    extended = condition(kernel(), X[:6], Y[:6], known).extend(X[6:], Y[6:])
    whole = condition(kernel(), X, Y, known)
    torch.testing.assert_close(extended.mean(AT), whole.mean(AT))
    torch.testing.assert_close(extended.factor, whole.factor)
    torch.testing.assert_close(extended.covariance(AT, AT), whole.covariance(AT, AT))


def test_fantasies_share_the_derivatives() -> None:
    posterior = condition(kernel(), X[:6], Y[:6], derivatives())
    sets = torch.cat([Y[6:], -Y[6:]], -1)
    both = posterior.extend(X[6:], sets)
    for s in range(2):
        alone = posterior.extend(X[6:], sets[:, s : s + 1])
        torch.testing.assert_close(both.mean(AT)[:, s : s + 1], alone.mean(AT))


def test_the_likelihood_is_the_joint_normal_density() -> None:
    k, known = kernel(), derivatives()
    posterior = condition(k, X, Y, known)
    A = posterior.factor @ posterior.factor.mT
    y = torch.cat([known.values, Y.squeeze(-1)])
    expected = -0.5 * (y @ torch.linalg.inv(A) @ y + torch.logdet(2 * math.pi * A))
    torch.testing.assert_close(posterior.log_likelihood(), expected[None])


# What is built on it


def informed() -> Posterior:
    return condition(kernel(), X, Y, derivatives())


def test_expected_improvement_can_be_differentiated_at_observed_points_too() -> None:
    """A Matern's r has no derivative at 0; what is a function of it has."""
    fantasies = fantasize(informed(), AT[:2], 0.3, s=4, seed=0)
    at = torch.cat([AT[2:], derivatives().x, X[:1]])
    x = at.clone().requires_grad_()
    (slopes,) = torch.autograd.grad(log_expected_improvement(fantasies, x).sum(), x)
    assert bool(slopes.isfinite().all())
    h = 1e-6
    for d in range(4):
        step = h * torch.eye(4).double()[d]
        ahead, behind = (log_expected_improvement(fantasies, at[:3] + s * step) for s in (1, -1))
        torch.testing.assert_close(slopes[:3, d], (ahead - behind) / 2 / h, rtol=1e-4, atol=1e-5)


def test_noisy_fantasies_keep_the_derivatives() -> None:
    fantasies = noisy_fantasies(informed(), AT[:1], torch.ones(9, dtype=torch.bool), s=4, seed=0)
    assert fantasies.posterior.derivatives is not None
    x = derivatives().x.clone().requires_grad_()
    (slopes,) = torch.autograd.grad(fantasies.posterior.mean(x)[:, 0].sum(), x)
    known = derivatives()
    torch.testing.assert_close(
        slopes[known.point, known.dimension], known.values, rtol=0.05, atol=0.05
    )


def test_a_drawn_path_has_the_known_slopes() -> None:
    known = derivatives(noise=1e-10)
    posterior = condition(kernel(), X, Y, known)
    generator = torch.Generator().manual_seed(0)
    path = draw_path(posterior, choices=1, temper=1.0, generator=generator)
    x = known.x.clone().requires_grad_()
    (slopes,) = torch.autograd.grad(path(x).sum(), x)
    torch.testing.assert_close(
        slopes[known.point, known.dimension], known.values, rtol=1e-4, atol=1e-5
    )
    assert not math.isclose(float(path(AT)[0]), float(posterior.mean(AT)[0, 0]), abs_tol=1e-3)

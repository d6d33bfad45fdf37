"""Mean, variance and their slopes against the dense formula and autograd through it."""

import pytest
import torch
from torch import Tensor

from hyperopt_dl.gp.kernel import Family, Kernel, stack
from hyperopt_dl.gp.posterior import Posterior, condition

GROUPS = [[0, 1, 2, 3], [0, 2], [1], [3]]


def draw(*shape: int, seed: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.double)


def kernel(seed: int, *, family: Family = "matern52", categorical: bool = False) -> Kernel:
    masks = torch.zeros(len(GROUPS), 4, dtype=torch.double)
    for g, group in enumerate(GROUPS):
        masks[g, group] = 1
    return Kernel(
        masks,
        5 * draw(4, 4, seed=seed) + 0.5,
        draw(4, seed=seed + 1) + 0.2,
        torch.tensor(0.01).double(),
        torch.tensor([False, categorical, False, categorical]),
        family,
    )


def points(n: int, seed: int, *, categorical: bool = False, choices: int = 3) -> Tensor:
    x = draw(n, 4, seed=seed)
    if categorical:
        x[:, [1, 3]] = (x[:, [1, 3]] * choices).floor()
    return x


def dense(posterior: Posterior, x: Tensor) -> tuple[Tensor, Tensor]:
    """By the inverse of the covariance matrix, and differentiable by autograd."""
    k, seen = posterior.kernel, posterior.x
    inverse = torch.linalg.inv(k(seen, seen) + k.noise * torch.eye(len(seen)).double())
    cross = k(x, seen)
    return cross @ inverse @ posterior.values, k.variance - (cross @ inverse * cross).sum(-1)


def slopes(values: tuple[Tensor, Tensor], x: Tensor) -> Tensor:
    """Of a sum that weighs every mean and every variance differently."""
    mean, variance = values
    total = (mean * draw(*mean.shape, seed=5)).sum() + (variance * draw(len(x), seed=6)).sum()
    (slope,) = torch.autograd.grad(total, x)
    return slope


@pytest.mark.parametrize("family", ["matern52", "rbf"])
@pytest.mark.parametrize("categorical", [False, True])
def test_values_and_slopes_are_those_of_the_dense_formula(
    family: Family, categorical: bool
) -> None:
    known = points(12, 10, categorical=categorical)
    posterior = condition(
        kernel(0, family=family, categorical=categorical), known, draw(12, 3, seed=11) - 0.5
    )
    at = torch.cat([points(7, 12, categorical=categorical, choices=4), known[:1]])
    at.requires_grad_()
    found, expected = posterior.mean_and_variance(at), dense(posterior, at)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    ordered = ~posterior.kernel.categorical
    found_slopes, expected_slopes = slopes(found, at), slopes(expected, at)
    torch.testing.assert_close(
        found_slopes[:, ordered], expected_slopes[:, ordered], rtol=1e-8, atol=1e-10
    )
    assert bool((found_slopes[:, ~ordered] == 0).all())


def test_a_choice_that_was_never_observed_is_as_far_from_all_others() -> None:
    posterior = condition(
        kernel(0, categorical=True), points(9, 1, categorical=True), draw(9, 1, seed=2)
    )
    at = points(2, 3, categorical=True)
    at[:, 1] = torch.tensor([7.0, 8.0])
    at[1, [0, 2, 3]] = at[0, [0, 2, 3]]
    mean, variance = posterior.mean_and_variance(at)
    torch.testing.assert_close(mean[0], mean[1])
    torch.testing.assert_close((mean, variance), dense(posterior, at), rtol=1e-9, atol=1e-12)


def test_points_in_single_precision_are_answered_in_it() -> None:
    posterior = condition(kernel(0), points(30, 1), draw(30, 2, seed=2) - 0.5)
    at = points(5, 3)
    mean, variance = posterior.mean_and_variance(at.float())
    assert mean.dtype == variance.dtype == torch.float32
    torch.testing.assert_close(
        (mean.double(), variance.double()), posterior.mean_and_variance(at), rtol=1e-3, atol=1e-4
    )


def test_a_batch_answers_as_its_members_do_with_slopes_summed() -> None:
    batch = condition(stack([kernel(0), kernel(7)]), points(12, 1), draw(12, 1, seed=2) - 0.5)
    at = points(5, 3).requires_grad_()
    mean, variance = batch.mean_and_variance(at)
    alone = [batch[b].mean_and_variance(at) for b in range(2)]
    torch.testing.assert_close(mean, torch.stack([m for m, _ in alone]))
    torch.testing.assert_close(variance, torch.stack([v for _, v in alone]))
    (together,) = torch.autograd.grad(mean.sum() + variance.sum(), at)
    total = torch.stack([m.sum() + v.sum() for m, v in alone]).sum()
    (apart,) = torch.autograd.grad(total, at)
    torch.testing.assert_close(together, apart)

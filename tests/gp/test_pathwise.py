"""Draws of the whole function against the prior and the posterior that they are drawn from."""

from dataclasses import replace
from typing import Literal

import pytest
import torch
from torch import Tensor

from hyperopt_dl.gp.kernel import Kernel
from hyperopt_dl.gp.pathwise import draw_path, draw_prior
from hyperopt_dl.gp.posterior import Posterior, condition


def kernel(family: Literal["matern52", "rbf"] = "matern52") -> Kernel:
    return Kernel(
        masks=torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.0, 0.0]], dtype=torch.double),
        scales=torch.tensor([[4.0, 9.0, 1.5], [20.0, 1.0, 1.0]], dtype=torch.double),
        weights=torch.tensor([0.7, 0.3], dtype=torch.double),
        noise=torch.tensor(0.01, dtype=torch.double),
        categorical=torch.tensor([False, False, True]),
        family=family,
    )


def with_radius(k: Kernel) -> Kernel:
    """The kernel and a component of variance 0.5 that reads the radius."""
    pad = torch.nn.functional.pad
    masks, scales = pad(k.masks, (0, 1, 0, 1)), pad(k.scales, (0, 1, 0, 1))
    masks[2, 3], scales[2, 3] = 1.0, 3.0
    return replace(k, masks=masks, scales=scales, weights=pad(k.weights, (0, 1), value=0.5))


def points(n: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(n, 3, generator=generator, dtype=torch.double)
    x[:, 2] = (3 * x[:, 2]).floor()
    return x


X, AT = points(6, 0), points(5, 1)
Y = torch.sin(5 * X[:, :1]) + X[:, 2:]


def posterior() -> Posterior:
    return condition(kernel(), X, Y)


def many(count: int, temper: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    paths = [
        draw_path(posterior(), choices=3, temper=temper, generator=generator)(AT)
        for _ in range(count)
    ]
    return torch.stack(paths)


@pytest.mark.parametrize("has_radius", [False, True])
@pytest.mark.parametrize("family", ["matern52", "rbf"])
def test_draws_from_the_prior_have_its_covariance(
    family: Literal["matern52", "rbf"], has_radius: bool
) -> None:
    k, generator = kernel(family), torch.Generator().manual_seed(0)
    k = with_radius(k) if has_radius else k
    drawn = [draw_prior(k, choices=3, generator=generator)(AT) for _ in range(1500)]
    torch.testing.assert_close(torch.cov(torch.stack(drawn).T), k(AT, AT), atol=0.12, rtol=0)


def test_draws_have_the_posterior_s_mean_and_covariance() -> None:
    drawn, model = many(1500), posterior()
    torch.testing.assert_close(drawn.mean(0), model.mean(AT).squeeze(-1), atol=0.1, rtol=0)
    torch.testing.assert_close(torch.cov(drawn.T), model.covariance(AT, AT), atol=0.1, rtol=0)


def test_a_temper_of_zero_leaves_the_mean() -> None:
    expected = posterior().mean(AT).squeeze(-1).expand(3, 5)
    torch.testing.assert_close(many(3, temper=0.0), expected)


def test_a_temper_scales_the_deviation_from_the_mean() -> None:
    mean = posterior().mean(AT).squeeze(-1)
    torch.testing.assert_close(many(4, temper=0.5) - mean, 0.5 * (many(4) - mean))


def test_a_draw_is_one_function_with_a_gradient() -> None:
    path = draw_path(posterior(), choices=3, temper=1.0, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(path(AT), torch.cat([path(AT[:2]), path(AT[2:])]))
    numbers = AT[:, :2].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda u: path(torch.cat([u, AT[:, 2:]], -1)), numbers)

"""Main effects and variances of components, against dense matrices and against draws."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from hyperopt_dl.gp.effects import expected_variances, main_effects
from hyperopt_dl.gp.kernel import Kernel
from hyperopt_dl.gp.posterior import Posterior, condition

GROUPS = [[0, 1, 2, 3], [0, 2], [1], [3]]
CATEGORICAL = torch.tensor([False, False, False, True])
N, J, S = 9, 5, 6


def draw(*shape: int, seed: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.double)


def points(m: int, seed: int) -> Tensor:
    x = draw(m, 4, seed=seed)
    x[:, 3] = (3 * x[:, 3]).floor()
    return x


def posterior(groups: Sequence[Sequence[int]] = GROUPS) -> Posterior:
    """A model of groups; with the radius, whose column is 4, where one of them is that."""
    masks = torch.zeros(len(groups), max(4, *(1 + max(group) for group in groups)))
    for g, group in enumerate(groups):
        masks[g, list(group)] = 1
    kernel = Kernel(
        masks=masks.double(),
        scales=5 * draw(*masks.shape, seed=0) + 0.5,
        weights=draw(len(groups), seed=1) + 0.2,
        noise=torch.tensor(0.01, dtype=torch.double),
        categorical=CATEGORICAL,
    )
    return condition(kernel, points(N, 10), draw(N, 1, seed=11) - 0.5)


def levels_of(d: int) -> Tensor:
    return torch.arange(3).double() if CATEGORICAL[d] else torch.linspace(0, 1, J).double()


def averaging(J: int) -> Tensor:
    """The ``J x (J S)`` matrix that averages S values for each level, and centres the averages."""
    average = torch.kron(torch.eye(J).double(), torch.full((1, S), 1 / S, dtype=torch.double))
    return average - average.mean(0)


@pytest.mark.parametrize("d", range(4))
def test_a_main_effect_is_the_average_of_the_components_posterior(d: int) -> None:
    p, levels, background = posterior(), levels_of(d), points(S, 12)
    mean, sd = main_effects(p, d, levels, background)
    x = torch.stack(
        [z for u in levels for z in background.index_fill(1, torch.tensor(d), float(u))]
    )
    average = averaging(len(levels))
    member = [g for g, group in enumerate(GROUPS) if d in group]
    means, covariances = p.parts(x)[0][member].squeeze(-1), p.parts_covariance(x, x)[member]
    torch.testing.assert_close(mean[1:], means @ average.T, rtol=1e-9, atol=1e-12)
    variances = (average @ covariances @ average.T).diagonal(dim1=-2, dim2=-1)
    torch.testing.assert_close(sd[1:].square(), variances, rtol=1e-7, atol=1e-12)


@pytest.mark.parametrize("d", range(4))
def test_a_component_of_the_radius_has_an_effect_where_there_is_an_order(d: int) -> None:
    p, levels, background = posterior([*GROUPS, [4]]), levels_of(d), points(S, 12)
    mean, _ = main_effects(p, d, levels, background)
    member = [g for g, group in enumerate(GROUPS) if d in group] + [4] * (not CATEGORICAL[d])
    assert p.kernel.reads[:, d].nonzero().flatten().tolist() == member
    x = torch.stack(
        [z for u in levels for z in background.index_fill(1, torch.tensor(d), float(u))]
    )
    means = p.parts(x)[0].squeeze(-1) @ averaging(len(levels)).T
    torch.testing.assert_close(mean[1:], means[member], rtol=1e-9, atol=1e-12)
    if CATEGORICAL[d]:
        assert means[4].abs().max() < 1e-12


@pytest.mark.parametrize("d", range(4))
def test_the_sum_is_the_main_effect_of_the_whole_function(d: int) -> None:
    p, levels, background = posterior(), levels_of(d), points(S, 12)
    mean, sd = main_effects(p, d, levels, background)
    x = torch.stack(
        [z for u in levels for z in background.index_fill(1, torch.tensor(d), float(u))]
    )
    average = averaging(len(levels))
    torch.testing.assert_close(mean[0], average @ p.mean(x).squeeze(-1), rtol=1e-9, atol=1e-12)
    covariance = average @ p.covariance(x, x) @ average.T
    torch.testing.assert_close(sd[0].square(), covariance.diagonal(), rtol=1e-7, atol=1e-12)


def test_expected_variances_are_those_of_draws() -> None:
    """Draws of each component at the points, from its dense posterior."""
    p, x = posterior(), points(40, 13)
    A = torch.linalg.inv(p.kernel(p.x, p.x) + p.kernel.noise * torch.eye(N).double())
    got = expected_variances(p, x)
    normal = torch.randn(40, 20_000, generator=torch.Generator().manual_seed(0)).double()
    for g, cross in enumerate(p.kernel.parts(x, p.x)):
        covariance = p.kernel.parts(x, x)[g] - cross @ A @ cross.T
        root = torch.linalg.cholesky(covariance + 1e-9 * torch.eye(40).double())
        draws = cross @ A @ p.values + root @ normal
        assert got[g].item() == pytest.approx(draws.var(0, correction=0).mean().item(), rel=0.02)


def test_an_empty_component_does_not_vary() -> None:
    p = posterior()
    p.kernel.weights[2] = 0.0
    p.kernel.masks[2] = 0.0
    assert expected_variances(p, points(20, 14))[2] == 0

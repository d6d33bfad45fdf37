"""The likelihood against dense matrices, its gradient against autograd, its fit against others."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal
from torch import Tensor

from hyperopt_dl.gp.data import Data, observe
from hyperopt_dl.gp.kernel import Family
from hyperopt_dl.gp.likelihood import (
    GROUP_SCALE,
    LOWEST_NOISE,
    Parameters,
    Structure,
    cholesky,
    fit,
    initial,
    negative_log_posterior,
)

GROUPS = [[0, 1, 2, 3], [1, 3], [0], [2]]
RADIUS = 4
"""The column of the radius."""
CATEGORICAL = [False, False, True, False]


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def observations(n: int = 12, copies: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Points whose dimension 2 has three choices, values, and which dimensions are categorical."""
    x = torch.rand(n, 4, generator=generator(0), dtype=torch.double)
    x[:, 2] = (3 * x[:, 2]).floor()
    x = torch.cat([x, x[:copies], x[: copies // 2]])
    y = torch.randn(len(x), generator=generator(1), dtype=torch.double)
    return x, y, torch.tensor(CATEGORICAL)


def structure_of(
    *partitions: list[list[int]],
    family: Family = "matern52",
    has_radius: bool = False,
) -> Structure:
    """A full component and groups; a partition with fewer groups than the first is padded."""
    width = 5 if has_radius else 4
    masks = torch.zeros(len(partitions), len(partitions[0]), width, dtype=torch.double)
    for b, groups in enumerate(partitions):
        for g, group in enumerate(groups):
            masks[b, g, group] = 1
    vector = torch.tensor([0] + [1] * (len(partitions[0]) - 1))
    return Structure(masks, vector, torch.tensor(CATEGORICAL), family)


def parameters_of(structure: Structure, seed: int = 2) -> Parameters:
    start = initial(structure)
    flat = start.flat()
    return start.like(flat + torch.randn(flat.shape, generator=generator(seed), dtype=torch.double))


def log_prior(structure: Structure, parameters: Parameters) -> Tensor:
    """The priors of one kernel as its documentation words them."""
    a, s2 = parameters.scales[0].exp(), parameters.noise[0].exp()
    log_w = parameters.weights[0][structure.masks[0].any(-1)]
    total = log_w.exp().sum()
    relative = a / torch.tensor([[1.0], [GROUP_SCALE]]).double()
    on_scales = -(0.1 / relative + 0.1 * relative).sum()
    groups = len(log_w) - 1
    shares = torch.tensor([0.5] + [0.5 / groups] * groups, dtype=torch.double)
    on_weights = -0.5 * (log_w - (total * shares).log()).square().sum()
    return on_scales + on_weights + total.log() - total + 0.1 * s2.log() - 30 * s2


def dense(x: Tensor, y: Tensor, flags: Tensor, structure: Structure, p: Parameters) -> Tensor:
    """The negative log posterior of one kernel from the matrix of all observations."""
    kernel = structure.kernel(p)[0]
    K = kernel(x, x) + kernel.noise * torch.eye(len(y), dtype=y.dtype)
    quadratic = y @ torch.linalg.solve(K, y)
    value: Tensor = 0.5 * (quadratic + torch.logdet(2 * math.pi * K)) - log_prior(structure, p)
    return value


@pytest.mark.parametrize("family", ["matern52", "rbf"])
@pytest.mark.parametrize("copies", [0, 5], ids=["distinct", "duplicates"])
@pytest.mark.parametrize("has_radius", [False, True])
def test_the_value_is_that_of_the_dense_matrix_of_all_observations(
    family: Family, copies: int, has_radius: bool
) -> None:
    x, y, flags = observations(copies=copies)
    members = [*GROUPS, [RADIUS]] if has_radius else GROUPS
    structure = structure_of(members, family=family, has_radius=has_radius)
    parameters = parameters_of(structure)
    value, _ = negative_log_posterior(observe(x, y, flags), structure, parameters)
    torch.testing.assert_close(value[0], dense(x, y, flags, structure, parameters))


def test_the_likelihood_is_scipys() -> None:
    x, y, flags = observations()
    structure = structure_of(GROUPS)
    parameters = parameters_of(structure)
    kernel = structure.kernel(parameters)[0]
    K = (kernel(x, x) + kernel.noise * torch.eye(12)).numpy()
    wanted = -multivariate_normal(np.zeros(12), K).logpdf(y.numpy())
    value, _ = negative_log_posterior(observe(x, y, flags), structure, parameters)
    got = value[0] + log_prior(structure, parameters)
    assert got.item() == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize("family", ["matern52", "rbf"])
@pytest.mark.parametrize("copies", [0, 5], ids=["distinct", "duplicates"])
@pytest.mark.parametrize("has_radius", [False, True])
def test_the_gradient_is_autograds_of_the_dense_value(
    family: Family, copies: int, has_radius: bool
) -> None:
    x, y, flags = observations(copies=copies)
    members = [*GROUPS, [RADIUS]] if has_radius else GROUPS
    structure = structure_of(members, family=family, has_radius=has_radius)
    parameters = parameters_of(structure)
    _, gradient = negative_log_posterior(observe(x, y, flags), structure, parameters)
    flat = parameters.flat().requires_grad_()
    value = dense(x, y, flags, structure, parameters.like(flat))
    (wanted,) = torch.autograd.grad(value, flat)
    torch.testing.assert_close(gradient.flat(), wanted, rtol=1e-9, atol=1e-9)


def test_the_gradient_is_that_of_finite_differences() -> None:
    data = observe(*observations(copies=5))
    structure = structure_of(GROUPS)
    parameters = parameters_of(structure)
    _, gradient = negative_log_posterior(data, structure, parameters)
    flat, step = parameters.flat(), 1e-5
    for i, got in enumerate(gradient.flat()[0].tolist()):
        move = step * torch.nn.functional.one_hot(torch.tensor([i]), flat.shape[-1])
        up, _ = negative_log_posterior(data, structure, parameters.like(flat + move))
        down, _ = negative_log_posterior(data, structure, parameters.like(flat - move))
        assert got == pytest.approx((up - down).item() / (2 * step), rel=1e-6, abs=1e-6)


def test_a_batch_of_structures_is_a_loop_over_them() -> None:
    data = observe(*observations(copies=3))
    both = structure_of(GROUPS, [[0, 1, 2, 3], [0, 1], [2, 3], []])
    parameters = parameters_of(both)
    values, gradients = negative_log_posterior(data, both, parameters)
    for b, groups in enumerate([GROUPS, [[0, 1, 2, 3], [0, 1], [2, 3]]]):
        alone, G = structure_of(groups), len(groups)
        only = Parameters(
            parameters.scales[b : b + 1],
            parameters.weights[b : b + 1, :G],
            parameters.noise[b : b + 1],
        )
        value, gradient = negative_log_posterior(data, alone, only)
        torch.testing.assert_close(values[b], value[0])
        torch.testing.assert_close(gradients.scales[b], gradient.scales[0])
        torch.testing.assert_close(gradients.weights[b, :G], gradient.weights[0])
        torch.testing.assert_close(gradients.noise[b], gradient.noise[0])


def test_reordering_the_dimensions_changes_nothing() -> None:
    x, y, flags = observations()
    order = torch.tensor([2, 0, 3, 1])
    structure = structure_of(GROUPS)
    p = parameters_of(structure)
    moved = Structure(structure.masks[..., order], structure.vector, flags[order])
    p_moved = Parameters(p.scales[..., order], p.weights, p.noise)
    value, _ = negative_log_posterior(observe(x, y, flags), structure, p)
    again, _ = negative_log_posterior(observe(x[:, order], y, flags[order]), moved, p_moved)
    torch.testing.assert_close(value, again)


def test_duplicates_are_merged_in_the_order_in_which_they_first_came() -> None:
    x = torch.tensor([[0.7], [0.2], [0.7], [0.1], [0.2], [0.7]], dtype=torch.double)
    y = torch.tensor([1.0, 2.0, 3.0, 4.0, 2.0, 5.0], dtype=torch.double)
    data = observe(x, y, torch.tensor([False]))
    assert data.x.squeeze(-1).tolist() == [0.7, 0.2, 0.1]
    assert data.y.tolist() == [3.0, 2.0, 4.0]
    assert data.counts.tolist() == [3.0, 2.0, 1.0]
    assert data.spread == pytest.approx(8.0)


def test_a_square_matrix_is_read_back() -> None:
    data = observe(*observations(6))
    below = torch.rand(2, 15, dtype=torch.double, generator=generator(0))
    square = data.square(below, torch.ones(6, dtype=torch.double))
    assert square.shape == (2, 6, 6)
    assert bool((square.triu(1) == 0).all())
    assert torch.equal(data.below(square), below)


def test_only_the_matrix_that_needs_jitter_gets_it() -> None:
    good = torch.eye(3, dtype=torch.double) * 4
    bad = torch.ones(3, 3, dtype=torch.double) - 1e-7 * torch.eye(3, dtype=torch.double)
    L, ok = cholesky(torch.stack([good, bad]))
    assert ok.tolist() == [True, True]
    assert torch.equal(L[0], 2 * torch.eye(3, dtype=torch.double))
    repaired = L[1] @ L[1].T
    added = (repaired - bad).diagonal()
    torch.testing.assert_close(added, added.mean().expand(3), rtol=0, atol=1e-12)
    assert 1e-7 < added.mean().item() < 2e-6


def test_a_matrix_beyond_repair_is_reported() -> None:
    broken = torch.full((1, 3, 3), math.nan, dtype=torch.double)
    _, ok = cholesky(torch.cat([torch.eye(3, dtype=torch.double)[None], broken]))
    assert ok.tolist() == [True, False]


def drawn_data(n: int = 40) -> Data:
    x = torch.rand(n, 4, generator=generator(5), dtype=torch.double)
    noise = torch.randn(n, generator=generator(6), dtype=torch.double)
    y = torch.sin(9 * x[:, 0] * x[:, 1]) + torch.cos(6 * x[:, 2]) + 0.1 * noise
    return observe(x, (y - y.mean()) / y.std(), torch.zeros(4, dtype=torch.bool))


def test_a_fit_reaches_a_stationary_point_no_worse_than_adams() -> None:
    data, structure = drawn_data(), structure_of(GROUPS)
    start = initial(structure)
    found = fit(data, structure, start, iterations=500)
    flat = torch.nn.Parameter(start.flat())
    adam = torch.optim.Adam([flat], lr=0.05)
    for _ in range(600):
        _, gradient = negative_log_posterior(data, structure, start.like(flat.detach()))
        flat.grad = gradient.flat()
        adam.step()
    value, _ = negative_log_posterior(data, structure, start.like(flat.detach()))
    assert found.sound
    assert found.value == pytest.approx(value.item(), abs=0.02)
    _, gradient = negative_log_posterior(data, structure, found.parameters)
    assert gradient.flat().abs().max() < 0.1


@pytest.mark.parametrize(("categories", "typical"), [(0, 1.0), (6, 1.0), (20, 1 / 3), (50, 2 / 15)])
def test_many_categories_share_what_few_have_in_the_component_of_all_dimensions(
    categories: int, typical: float
) -> None:
    D = categories + 3
    flags = torch.arange(D) < categories
    masks = torch.ones(1, 2, D, dtype=torch.double)
    masks[0, 1, 2:] = 0
    start = initial(Structure(masks, torch.tensor([0, 1]), flags))
    whole, group = start.scales[0].exp()
    torch.testing.assert_close(whole[:categories], torch.full((categories,), typical).double())
    torch.testing.assert_close(whole[categories:], torch.ones(3).double())
    torch.testing.assert_close(group, torch.full((D,), GROUP_SCALE).double())


def test_a_warm_start_at_the_optimum_stays_there() -> None:
    data, structure = drawn_data(), structure_of(GROUPS)
    once = fit(data, structure, initial(structure), iterations=500)
    twice = fit(data, structure, once.parameters, iterations=5)
    assert once.value - 0.01 <= twice.value <= once.value


def test_a_fit_keeps_to_its_bounds_and_never_gets_worse() -> None:
    x = torch.rand(30, 4, generator=generator(5), dtype=torch.double)
    data = observe(x, x[:, 0] - x[:, 0].mean(), torch.zeros(4, dtype=torch.bool))
    structure = structure_of(GROUPS)
    start = initial(structure)
    before, _ = negative_log_posterior(data, structure, start)
    found = fit(data, structure, start, iterations=200)
    assert found.value < before.item()
    assert found.parameters.noise.item() >= LOWEST_NOISE


def test_a_fit_to_what_is_no_number_returns_its_start_and_says_so() -> None:
    data = observe(*observations())
    broken = Data(data.x, data.y * math.nan, *list(vars(data).values())[2:])
    structure = structure_of(GROUPS)
    start = initial(structure)
    found = fit(broken, structure, start, iterations=5)
    assert not found.sound
    assert found.value == math.inf
    assert torch.equal(found.parameters.flat(), start.flat())

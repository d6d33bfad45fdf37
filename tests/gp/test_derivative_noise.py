"""How far derivatives are trusted, and which are chosen."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from hyperopt_dl.gp.derivative_choice import choose
from hyperopt_dl.gp.derivative_noise import (
    DEVIATION,
    EXPECTED,
    informed,
    noise_of,
    relative_noise,
)
from hyperopt_dl.gp.derivatives import Derivatives
from hyperopt_dl.gp.posterior import Posterior, condition
from tests.gp.test_derivatives import AT, X, Y, derivatives, draw, kernel

NAN = float("nan")


def log_density(posterior: Posterior, known: Derivatives, rho: float) -> float:
    """The joint log density of values and derivatives, and of log ρ, up to a constant."""
    kernel = posterior.kernel
    known = replace(known, noise=noise_of(known, kernel, rho))
    joint = condition(kernel, posterior.x, posterior.values, known).log_likelihood()
    away = (torch.tensor(rho).log().item() - EXPECTED) / DEVIATION
    return float(joint) - 0.5 * away**2


@pytest.mark.parametrize("size", [0.1, 1.0, 10.0])
def test_the_noise_maximises_the_joint_density(size: float) -> None:
    posterior = condition(kernel(), X, Y)
    known = derivatives()
    known = replace(known, values=size * known.values)
    _, rho = informed(posterior, known)
    best = log_density(posterior, known, rho)
    for factor in (0.3, 0.7, 1.5, 3.0):
        assert log_density(posterior, known, factor * rho) < best


def drawn(rho: float, seed: int) -> tuple[Posterior, Derivatives]:
    """Values and noisy derivatives of one draw from the prior, at thirty points."""
    k, x = kernel(), draw(30, 4, seed=seed)
    point, dimension = torch.cartesian_prod(torch.arange(30), torch.arange(4)).T
    blank = torch.zeros(120).double()
    known = Derivatives(x, point, dimension, blank, blank)
    cross = known.with_values(k, x)
    above, below = torch.cat([known.covariance(k), cross], -1), torch.cat([cross.mT, k(x, x)], -1)
    root = torch.linalg.cholesky(torch.cat([above, below]) + 1e-9 * torch.eye(150).double())
    generator = torch.Generator().manual_seed(seed)
    both = root @ torch.randn(150, generator=generator, dtype=torch.double)
    exact, values = both[:120], both[120:]
    sd = (rho * (known.variance(k) + exact.square())).sqrt()
    noisy = exact + sd * torch.randn(120, generator=generator, dtype=torch.double)
    return condition(k, x, values.unsqueeze(-1)), replace(known, values=noisy)


@pytest.mark.parametrize("rho", [1e-2, 1e-1])
def test_the_noise_of_a_function_from_the_prior_is_found(rho: float) -> None:
    posterior, known = drawn(rho, seed=3)
    _, found = informed(posterior, known)
    assert rho / 2 < found < 2 * rho


def test_derivatives_that_contradict_the_values_are_not_believed() -> None:
    posterior, known = drawn(1e-3, seed=4)
    shuffled = known.values[torch.randperm(120, generator=torch.Generator().manual_seed(0))]
    informed_posterior, rho = informed(posterior, replace(known, values=5 * shuffled))
    assert rho > 0.3
    errors = (informed_posterior.mean(AT) - posterior.mean(AT)).abs().max()
    trusting = condition(
        posterior.kernel,
        posterior.x,
        posterior.values,
        replace(known, values=5 * shuffled, noise=torch.full((120,), 1e-3).double()),
    )
    assert errors < 0.2 * (trusting.mean(AT) - posterior.mean(AT)).abs().max()


def test_what_is_returned_knows_the_derivatives_with_that_noise() -> None:
    posterior, known = condition(kernel(), X, Y), derivatives()
    found, rho = informed(posterior, known)
    assert found.derivatives is not None
    expected = rho * (known.variance(kernel()) + known.values.square())
    torch.testing.assert_close(found.derivatives.noise, expected)
    unit = replace(known, noise=noise_of(known, kernel(), 1.0))
    assert relative_noise(posterior, unit) == rho


# Which are chosen


def pairs(chosen: Derivatives | None, x: Tensor) -> set[tuple[int, int]]:
    """What was chosen, as rows of x and dimensions."""
    assert chosen is not None
    rows = [int((x == chosen.x[p]).all(-1).nonzero()[0, 0]) for p in chosen.point]
    return set(zip(rows, chosen.dimension.tolist(), strict=True))


POINTS = draw(5, 3, seed=0)
VALUES = torch.tensor([0.1, 2.0, -1.0, 0.5, 0.2]).double()  # best first: 1, 3, 4, 0, 2
GRADIENTS = draw(5, 3, seed=1) - 0.5


def test_the_best_and_the_latest_points_take_turns() -> None:
    chosen = choose(POINTS, VALUES, GRADIENTS, budget=9)
    assert pairs(chosen, POINTS) == {(i, d) for i in (1, 4, 3) for d in range(3)}
    assert chosen is not None
    for p, d, value in zip(chosen.point, chosen.dimension, chosen.values, strict=True):
        i = int((chosen.x[p] == POINTS).all(-1).nonzero()[0, 0])
        assert value == GRADIENTS[i, d]


def test_what_does_not_fit_whole_brings_its_largest() -> None:
    chosen = choose(POINTS, VALUES, GRADIENTS, budget=4)
    largest = int(GRADIENTS[4].abs().argmax())
    assert pairs(chosen, POINTS) == {(1, 0), (1, 1), (1, 2), (4, largest)}


def test_what_is_not_known_takes_no_room() -> None:
    gradients = GRADIENTS.clone()
    gradients[1] = NAN
    gradients[4, 2] = NAN
    chosen = choose(POINTS, VALUES, gradients, budget=4)
    largest = int(GRADIENTS[4, :2].abs().argmax())
    assert pairs(chosen, POINTS) == {(3, 0), (3, 1), (3, 2), (4, largest)}


def test_a_large_budget_takes_all() -> None:
    gradients = GRADIENTS.clone()
    gradients[2, 0] = NAN
    chosen = choose(POINTS, VALUES, gradients, budget=100)
    assert len(pairs(chosen, POINTS)) == 14


@pytest.mark.parametrize("size", [-31.0, 1e300])
def test_a_point_on_a_cliff_brings_nothing(size: float) -> None:
    gradients = GRADIENTS.clone()
    gradients[1, 2] = size
    gradients[3, 0] = 29.0
    chosen = choose(POINTS, VALUES, gradients, budget=100)
    assert {i for i, _ in pairs(chosen, POINTS)} == {0, 2, 3, 4}


def test_nothing_known_is_nothing_chosen() -> None:
    assert choose(POINTS, VALUES, torch.full((5, 3), NAN).double(), budget=9) is None

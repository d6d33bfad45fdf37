"""The problems of the race at their optima, which are known from the literature or by search."""

import itertools
from collections.abc import Callable

import numpy as np
import pytest

from studies.benchmarks.race import functions, real, rover
from studies.benchmarks.race.problem import Cube, Params, Problem

KNOWN: dict[str, Callable[[int], Problem]] = {
    "ackley": functions.shifted_ackley(5),
    "add_ackley": functions.add_ackley(6, 3),
    "ackley_53": functions.ackley_53,
    "levy": functions.levy(4),
    "rosenbrock": functions.rosenbrock(4),
    "styblinski_tang": functions.styblinski_tang(4),
    "hartmann6": functions.hartmann6(9),
    "add_gp": functions.add_gp(5, (2, 3), 0.3),
}
if real.TABLES_ARE_HERE:
    KNOWN["hpolib"] = real.hpolib("protein_structure")


def uniform(problem: Problem, n: int) -> list[Params]:
    cube = Cube(problem.space)
    return [cube.spread(u) for u in np.random.default_rng(0).random((n, len(problem.space)))]


@pytest.mark.parametrize("name", KNOWN)
@pytest.mark.parametrize("seed", [0, 1])
def test_regret_is_0_at_the_optimum_and_nowhere_less(name: str, seed: int) -> None:
    problem = KNOWN[name](seed)
    assert problem.optimum is not None
    assert problem.regret(problem.optimum) == pytest.approx(0, abs=1e-6)
    cube = Cube(problem.space)
    near = cube.encode([problem.optimum])[0]
    steps = np.random.default_rng(1).normal(0, 0.02, (200, len(near)))
    points = [cube.decode(near + step) for step in steps] + uniform(problem, 300)
    regrets = [problem.regret(point) for point in points if point != problem.optimum]
    assert min(regrets) > -1e-9
    assert max(regrets) > 0.1


@pytest.mark.parametrize("name", ["add_ackley", "add_gp", "levy", "styblinski_tang"])
def test_mixed_differences_vanish_between_groups_and_only_there(name: str) -> None:
    problem = KNOWN[name](0)
    assert problem.groups is not None
    x, y = uniform(problem, 2)
    for a, b in itertools.combinations(problem.space, 2):
        corners = [
            problem.regret(x | {k: y[k] for k in moved}) for moved in ((), (a,), (b,), (a, b))
        ]
        together = any(a in group and b in group for group in problem.groups)
        assert (abs(corners[0] - corners[1] - corners[2] + corners[3]) > 1e-8) is together


def test_a_straight_way_through_free_space_costs_its_length() -> None:
    line = rover.START + np.linspace(0, 1, rover.POINTS)[:, None] * (rover.GOAL - rover.START)
    nowhere = np.empty((0, 2))
    assert rover.cost(line, nowhere) == pytest.approx(0.05 * 0.9 * 2**0.5)
    missed = line + np.linspace(1, 0, rover.POINTS)[:, None] * np.array([0.1, 0.0])
    assert rover.cost(missed, nowhere) == pytest.approx(1.0, abs=0.07)
    blocked = rover.cost(line, np.array([[0.5, 0.5]])) - rover.cost(line, nowhere)
    assert blocked == pytest.approx(20 * 0.05 * 2**0.5, rel=0.05)


def test_noise_is_a_share_of_the_range() -> None:
    noisy, exact = functions.add_ackley(6, 3, noise=0.05)(3), functions.add_ackley(6, 3)(3)
    highest = max(exact.regret(point) for point in uniform(exact, 2000))
    assert noisy.noise == pytest.approx(0.05 * highest, rel=0.1)
    assert exact.noise == 0


def test_a_classifier_with_equal_lengthscales_reads_digits() -> None:
    problem = real.svm(0)
    params = dict.fromkeys(problem.space, 1.0) | {"C": 10.0, "gamma": 0.05}
    assert 0.01 < problem.regret(params) < 0.08
    assert problem.regret(params | {"gamma": 10.0}) > 0.5

"""Functions of the race with a known least value; a seed decides their shift, draw or order.

A function of D dimensions takes ``u`` in the unit cube, and returns its regret: 0 is the optimum.
"""

import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from scipy.optimize import minimize
from scipy.stats import qmc

from studies.benchmarks.race.problem import Params, Point, Problem, on_cube

_FEATURES = 500
_HARTMANN_A = np.array(
    [
        [10, 3, 17, 3.5, 1.7, 8],
        [0.05, 10, 17, 0.1, 8, 14],
        [3, 3.5, 1.7, 10, 17, 8],
        [17, 8, 0.05, 10, 0.1, 14],
    ]
)
_HARTMANN_P = 1e-4 * np.array(
    [
        [1312, 1696, 5569, 124, 8283, 5886],
        [2329, 4135, 8307, 3736, 1004, 9991],
        [2348, 1451, 3522, 2883, 3047, 6650],
        [4047, 8828, 8732, 5743, 1091, 381],
    ]
)
_HARTMANN_WEIGHTS = np.array([1.0, 1.2, 3.0, 3.2])
_HARTMANN_OPTIMUM = np.array(
    [0.20168951, 0.15001069, 0.47687398, 0.27533243, 0.31165162, 0.6573005]
)
_HARTMANN_LEAST = -3.322368011415515
_STYBLINSKI_OPTIMUM = -2.9035340277711773
_STYBLINSKI_LEAST = -39.16616570377142  # of one dimension


def ackley(z: Point) -> float:
    """Return Ackley's function, 0 at 0."""
    wave = np.exp(np.cos(2 * np.pi * z).mean())
    return float(20 + np.e - 20 * np.exp(-0.2 * np.sqrt((z**2).mean())) - wave)


def shifted_ackley(D: int) -> Callable[[int], Problem]:
    """Ackley on [-5, 5], its optimum within 3 of the middle."""

    def make(seed: int) -> Problem:
        centre = np.random.default_rng(seed).uniform(-3, 3, D)
        return on_cube(D, lambda u: ackley(10 * u - 5 - centre), optimum=(centre + 5) / 10)

    return make


def add_ackley(D: int, size: int, noise: float = 0.0) -> Callable[[int], Problem]:
    """The sum of Ackley functions of `size` dimensions each, on [-5, 5], shifted.

    `noise` is a share of the function's range: from 0 to the largest of 10,000 random points.
    """

    def make(seed: int) -> Problem:
        rng = np.random.default_rng(seed)
        centre = rng.uniform(-3, 3, D)
        groups = _groups(rng.permutation(D), [size])

        def regret(u: Point) -> float:
            return sum(ackley((10 * u - 5 - centre)[group]) for group in groups)

        wide = max(regret(u) for u in rng.random((10_000, D))) if noise else 0.0
        optimum = (centre + 5) / 10
        return on_cube(D, regret, groups=groups, noise=noise * wide, optimum=optimum)

    return make


def ackley_53(seed: int) -> Problem:
    """Ackley of 50 switches and 3 numbers in [-1, 1]; a switch in its right place is a 0."""
    rng = np.random.default_rng(seed)
    right, centre = rng.integers(0, 2, 50).astype(bool), rng.uniform(-0.5, 0.5, 3)
    switches, numbers = [f"b{d:02d}" for d in range(50)], [f"x{d}" for d in range(3)]
    space: dict[str, BaseDistribution] = dict.fromkeys(
        switches, CategoricalDistribution([False, True])
    )
    space |= dict.fromkeys(numbers, FloatDistribution(-1.0, 1.0))

    def regret(params: Params) -> float:
        wrong = np.array([params[name] for name in switches]) != right
        off = np.array([params[name] for name in numbers]) - centre
        return ackley(np.concatenate([wrong.astype(float), off]))

    optimum = dict(zip(switches, right.tolist(), strict=True))
    optimum |= dict(zip(numbers, centre.tolist(), strict=True))
    return Problem(space, regret, optimum=optimum)


def levy(D: int) -> Callable[[int], Problem]:
    """Levy's function on [-10, 10], its dimensions reflected at random."""

    def make(seed: int) -> Problem:
        flip = np.random.default_rng(seed).integers(0, 2, D).astype(bool)

        def regret(u: Point) -> float:
            w = 1 + (20 * np.where(flip, 1 - u, u) - 11) / 4
            middle = (w[:-1] - 1) ** 2 * (1 + 10 * np.sin(np.pi * w[:-1] + 1) ** 2)
            last = (w[-1] - 1) ** 2 * (1 + np.sin(2 * np.pi * w[-1]) ** 2)
            return float(np.sin(np.pi * w[0]) ** 2 + middle.sum() + last)

        optimum = np.where(flip, 0.45, 0.55)
        return on_cube(D, regret, groups=_groups(np.arange(D), [1]), optimum=optimum)

    return make


def rosenbrock(D: int) -> Callable[[int], Problem]:
    """Rosenbrock's function on [-5, 10], its dimensions in random order."""

    def make(seed: int) -> Problem:
        order = np.random.default_rng(seed).permutation(D)

        def regret(u: Point) -> float:
            x = (15 * u - 5)[order]
            return float((100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2).sum())

        return on_cube(D, regret, optimum=np.full(D, 0.4))

    return make


def styblinski_tang(D: int) -> Callable[[int], Problem]:
    """Styblinski and Tang's function on [-5, 5], its dimensions reflected at random."""

    def make(seed: int) -> Problem:
        sign = np.random.default_rng(seed).choice([-1.0, 1.0], D)

        def regret(u: Point) -> float:
            x = sign * (10 * u - 5)
            return float(((x**4 - 16 * x**2 + 5 * x) / 2 - _STYBLINSKI_LEAST).sum())

        optimum = (sign * _STYBLINSKI_OPTIMUM + 5) / 10
        return on_cube(D, regret, groups=_groups(np.arange(D), [1]), optimum=optimum)

    return make


def hartmann6(D: int) -> Callable[[int], Problem]:
    """Hartmann's function of six of the dimensions, drawn at random; the others do nothing."""

    def make(seed: int) -> Problem:
        active = np.random.default_rng(seed).permutation(D)[:6]

        def regret(u: Point) -> float:
            exponents = (_HARTMANN_A * (u[active] - _HARTMANN_P) ** 2).sum(1)
            return float(-(_HARTMANN_WEIGHTS @ np.exp(-exponents)) - _HARTMANN_LEAST)

        optimum = np.full(D, 0.5)
        optimum[active] = _HARTMANN_OPTIMUM
        return on_cube(D, regret, optimum=optimum)

    return make


def add_gp(D: int, sizes: Sequence[int], lengthscale: float) -> Callable[[int], Problem]:
    """Sums of draws from RBF processes over random groups, whose sizes take turns."""

    def make(seed: int) -> Problem:
        rng = np.random.default_rng(seed)
        groups = _groups(rng.permutation(D), sizes)
        parts = [_Draw(len(group), lengthscale, rng) for group in groups]
        optimum, least = np.empty(D), 0.0
        for group, part in zip(groups, parts, strict=True):
            optimum[group] = part.optimum()
            least += float(part(optimum[None, group])[0])

        def regret(u: Point) -> float:
            pairs = zip(groups, parts, strict=True)
            return sum(float(part(u[None, group])[0]) for group, part in pairs) - least

        return on_cube(D, regret, groups=groups, optimum=optimum)

    return make


class _Draw:
    """A draw from an RBF process on the cube of d dimensions, as random cosines."""

    def __init__(self, d: int, lengthscale: float, rng: np.random.Generator) -> None:
        self.omega = rng.standard_normal((_FEATURES, d)) / lengthscale
        self.phases = rng.uniform(0, 2 * np.pi, _FEATURES)
        self.weights = rng.standard_normal(_FEATURES) * math.sqrt(2 / _FEATURES)

    def __call__(self, u: Point) -> Point:
        """Return the values at `n x d` points."""
        return np.asarray(np.cos(u @ self.omega.T + self.phases) @ self.weights)

    def slope(self, u: Point) -> Point:
        """Return the gradient at one point."""
        return np.asarray(-(self.weights * np.sin(self.omega @ u + self.phases)) @ self.omega)

    def optimum(self) -> Point:
        """Return where descents from the 50 best of 8192 points end lowest."""
        d = self.omega.shape[1]
        u = qmc.Sobol(d, seed=0).random(2**13)
        starts = u[np.argsort(self(u))[:50]]
        ends = [
            minimize(lambda x: self(x[None])[0], start, jac=self.slope, bounds=[(0, 1)] * d)
            for start in starts
        ]
        return np.asarray(min(ends, key=lambda end: float(end.fun)).x)


def _groups(order: npt.NDArray[np.int64], sizes: Sequence[int]) -> list[npt.NDArray[np.int64]]:
    """Cut an order of dimensions into groups whose sizes take turns."""
    groups, start = list[npt.NDArray[np.int64]](), 0
    for size in itertools.cycle(sizes):
        if start >= len(order):
            return groups
        groups.append(order[start : start + size])
        start += size
    return groups

"""The arithmetic of randomized telescoping, by enumerating every draw."""

import itertools
from collections.abc import Callable, Sequence
from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hyperopt_dl.errors import TrainingError
from hyperopt_dl.hypergrad.telescope.moments import (
    costs,
    expected_cost,
    second_moment,
    step_factor,
    variances,
    work,
)
from hyperopt_dl.hypergrad.telescope.optimum import (
    FLOOR,
    among,
    best_distribution,
    best_levels,
    floored,
)
from hyperopt_dl.hypergrad.telescope.weights import (
    Array,
    Scheme,
    check_levels,
    coefficients,
    draw,
    ladder,
    survival,
)

SCHEMES: tuple[Scheme, ...] = get_args(Scheme)
schemes = pytest.mark.parametrize("scheme", SCHEMES)
any_scheme = st.sampled_from(SCHEMES)


def gradients(J: int, seed: int, *, rough: float = 1.0) -> Array:
    """G ``[J, 6]``: a part that converges at a rate of its own, and noise."""
    g = np.random.default_rng(seed)
    rate = g.uniform(0.2, 0.9)
    toward = g.normal(size=6)
    return np.stack([toward * (1 - rate ** (n + 1)) for n in range(J)]) + rough * g.normal(
        size=(J, 6)
    ) * rate ** np.arange(J).reshape(-1, 1)


def distances(G: Array) -> Array:
    rows = np.vstack([np.zeros(G.shape[1]), G])
    return np.asarray(((rows[:, None] - rows[None]) ** 2).sum(-1))


def some_distribution(J: int, seed: int) -> Array:
    return np.asarray(np.random.default_rng(seed).dirichlet(np.ones(J)))


# ------------------------------------------------------------------------------------------ draws


@given(any_scheme, st.integers(1, 9), st.integers(0, 10**6))
@settings(deadline=None)
def test_the_draws_of_any_distribution_average_to_the_last_gradient(
    scheme: Scheme, J: int, seed: int
) -> None:
    G, q = gradients(J, seed), some_distribution(J, seed + 1)
    np.testing.assert_allclose(q @ (coefficients(scheme, q) @ G), G[-1], rtol=0, atol=1e-10)


@given(any_scheme, st.integers(1, 9), st.integers(0, 10**6))
@settings(deadline=None)
def test_the_second_moment_is_that_of_all_draws(scheme: Scheme, J: int, seed: int) -> None:
    G, q = gradients(J, seed), some_distribution(J, seed + 1)
    squares = np.square(coefficients(scheme, q) @ G).sum(1)
    np.testing.assert_allclose(second_moment(scheme, q, distances(G)), q @ squares, rtol=1e-10)


def test_roulette_counts_a_level_that_is_never_the_last_in_full() -> None:
    q, G = np.array([0.3, 0.0, 0.7]), gradients(3, 0)
    c = coefficients("russian_roulette", q)
    assert not c[1].any()
    np.testing.assert_allclose(q @ (c @ G), G[-1], atol=1e-12)


def test_a_draw_by_hand() -> None:
    q = np.array([0.5, 0.25, 0.25])
    assert coefficients("single_sample", q).tolist() == [[2, 0, 0], [-4, 4, 0], [0, -4, 4]]
    assert coefficients("russian_roulette", q).tolist() == [[1, 0, 0], [-1, 2, 0], [-1, -2, 4]]


@pytest.mark.parametrize(
    ("scheme", "q"),
    [
        ("single_sample", [0.5, 0.0, 0.5]),
        ("russian_roulette", [0.5, 0.5, 0.0]),
        ("single_sample", [0.5, 0.4]),
        ("russian_roulette", [1.5, -0.5]),
        ("russian_roulette", [np.nan, 1.0]),
        ("single_sample", []),
    ],
)
def test_probabilities_that_leave_a_bias_are_refused(scheme: Scheme, q: list[float]) -> None:
    with pytest.raises(TrainingError, match="probabilities"):
        coefficients(scheme, np.array(q))


def test_a_number_draws_each_level_as_often_as_it_is_likely() -> None:
    q = np.array([0.0, 0.2, 0.0, 0.5, 0.3, 0.0])
    drawn = [draw(q, u) for u in np.linspace(0, 1, 1000, endpoint=False)]
    np.testing.assert_allclose(np.bincount(drawn, minlength=6) / 1000, q, atol=2e-3)


@given(st.integers(1, 8), st.integers(0, 10**6))
@settings(deadline=None)
def test_survival_is_what_lies_at_a_level_or_beyond(J: int, seed: int) -> None:
    q = some_distribution(J, seed)
    np.testing.assert_allclose(survival(q), [q[n:].sum() for n in range(J)], rtol=1e-12)


# -------------------------------------------------------------------------------- levels and costs


def test_the_ladder_doubles_up_to_the_last_step() -> None:
    assert ladder(512) == (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
    assert ladder(100) == (1, 2, 4, 7, 13, 25, 50, 100)
    assert ladder(1) == (1,)


def test_the_last_step_is_always_a_level() -> None:
    assert check_levels((2, 5), 9) == (2, 5, 9)
    assert check_levels((2, 9), 9) == (2, 9)
    assert check_levels((), 9) == (9,)


@pytest.mark.parametrize("levels", [(0, 3), (3, 3), (4, 2), (10,), (2, 9, 5), (1.5,), (True,)])
def test_levels_that_are_none_are_refused(levels: tuple[int, ...]) -> None:
    with pytest.raises(TrainingError, match="ascend between 1 and the 9 of the training"):
        check_levels(levels, 9)


def test_a_draw_costs_its_one_run_and_sweep_or_those_of_all_that_it_needs() -> None:
    assert costs("single_sample", (2, 4, 8)).tolist() == [4, 8, 16]
    assert costs("russian_roulette", (2, 4, 8)).tolist() == [4, 8, 16]
    assert costs("single_sample", (2, 4, 8), separate=True).tolist() == [4, 12, 24]
    assert costs("russian_roulette", (2, 4, 8), separate=True).tolist() == [4, 12, 28]


@schemes
@pytest.mark.parametrize("separate", [False, True])
def test_a_draw_costs_what_its_coefficients_need(scheme: Scheme, separate: bool) -> None:
    levels, q = (3, 5, 11), np.array([0.2, 0.5, 0.3])
    needed = coefficients(scheme, q) != 0
    runs = needed if separate else np.eye(3)
    np.testing.assert_allclose(
        costs(scheme, levels, separate=separate), 2 * runs @ np.array(levels)
    )


# ------------------------------------------------------------------------------------- the optimum


def feasible(J: int, seed: int, n: int) -> Array:
    """Distributions ``[n, J]``, sparse and dense ones."""
    g = np.random.default_rng(seed)
    return np.concatenate([g.dirichlet(np.full(J, a), size=n // 4) for a in (0.1, 0.5, 1.0, 5.0)])


@schemes
@pytest.mark.parametrize("seed", range(6))
def test_the_optimum_beats_ten_thousand_distributions(scheme: Scheme, seed: int) -> None:
    J = 3 + seed
    D, C = distances(gradients(J, seed, rough=0.3 * seed)), costs(scheme, ladder(2 ** (J - 1)))
    best = work(scheme, best_distribution(scheme, D, C), D, C)
    others = [work(scheme, q, D, C) for q in feasible(J, seed, 10_000)]
    assert best <= min(others) * (1 + 1e-12)
    assert best < np.median(others)


@schemes
def test_no_small_change_of_the_optimum_is_better(scheme: Scheme) -> None:
    for seed in range(20):
        D, C = distances(gradients(6, seed)), costs(scheme, ladder(32))
        q = best_distribution(scheme, D, C)
        best = work(scheme, q, D, C)
        for other in feasible(6, seed, 40):
            assert work(scheme, 0.999 * q + 0.001 * other, D, C) >= best * (1 - 1e-12)


def test_the_optimum_of_a_single_sample_reaches_the_bound_of_cauchy_and_schwarz() -> None:
    D, C = distances(gradients(7, 3)), costs("single_sample", ladder(64))
    bound = np.sqrt(variances("single_sample", D) * C).sum() ** 2
    q = best_distribution("single_sample", D, C)
    assert work("single_sample", q, D, C) == pytest.approx(bound, rel=1e-12)


def test_the_optimum_of_roulette_reaches_the_bound_where_it_falls_by_itself() -> None:
    G = np.cumsum(np.diag(0.4 ** np.arange(5)), axis=0)
    D, C = distances(G), costs("russian_roulette", ladder(16))
    bound = np.sqrt(variances("russian_roulette", D) * np.diff(C, prepend=0)).sum() ** 2
    q = best_distribution("russian_roulette", D, C)
    assert work("russian_roulette", q, D, C) == pytest.approx(bound, rel=1e-12)


def test_roulette_never_stops_where_a_level_leads_away_from_the_last() -> None:
    G = np.array([[1.0], [-2.0], [3.0]])  # ‖G[H] - G[1]‖ > ‖G[H] - G[0]‖
    q = best_distribution("russian_roulette", distances(G), np.array([1.0, 2.0, 4.0]))
    assert q[1] == 0
    assert q[2] > 0


@schemes
def test_gradients_of_zero_are_estimated_by_the_last_level(scheme: Scheme) -> None:
    D, C = np.zeros((4, 4)), costs(scheme, (1, 2, 4))
    assert best_distribution(scheme, D, C).tolist() == [0, 0, 1]
    assert step_factor(scheme, np.full(3, 1 / 3), D) == 1


def test_a_floor_leaves_every_level_a_chance() -> None:
    q = floored(np.array([0.0, 1.0]))
    assert q.tolist() == [FLOOR / 2, 1 - FLOOR / 2]


@schemes
@pytest.mark.parametrize("separate", [False, True])
def test_the_greedy_levels_are_nearly_the_best_of_all_subsets(
    scheme: Scheme, separate: bool
) -> None:
    levels = ladder(64)

    def cost(places: Sequence[int]) -> Array:
        return costs(scheme, [levels[n] for n in places], separate=separate)

    ratios = []
    for seed in range(12):
        D = distances(gradients(7, seed, rough=0.5))
        kept, q = best_levels(scheme, D, cost)
        assert kept[-1] == 6
        found = work(scheme, q, among(D, kept), cost(kept))
        best = min(_work_of(scheme, D, [*some, 6], cost) for some in _subsets(6))
        assert found <= min(_work_of(scheme, D, p, cost) for p in ([6], [*range(7)])) * (1 + 1e-12)
        assert found >= best * (1 - 1e-12)
        ratios.append(found / best)
    assert np.median(ratios) < 1.001
    assert max(ratios) < 1.1


@schemes
def test_the_step_is_shortened_by_what_the_draws_scatter(scheme: Scheme) -> None:
    G, q = gradients(5, 1), some_distribution(5, 2)
    draws = coefficients(scheme, q) @ G
    a = step_factor(scheme, q, distances(G))
    assert 0 < a <= 1

    def error(a: float) -> float:
        return float(q @ np.square(a * draws - G[-1]).sum(1))

    assert error(a) < min(error(0.99 * a), error(1.01 * a))
    assert step_factor(scheme, np.ones(1), distances(G[-1:])) == 1


def test_the_expected_cost_is_the_average() -> None:
    assert expected_cost(np.array([0.25, 0.75]), np.array([2.0, 6.0])) == 5


def _subsets(J: int) -> list[tuple[int, ...]]:
    return [s for k in range(J + 1) for s in itertools.combinations(range(J), k)]


def _work_of(
    scheme: Scheme, D: Array, places: list[int], cost: Callable[[Sequence[int]], Array]
) -> float:
    part, C = among(D, places), cost(places)
    return work(scheme, best_distribution(scheme, part, C), part, C)

"""Randomized telescoping by forward mode: one run, every level by itself, and no way back."""

import gc
import itertools
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import Tensor

from hyperopt_dl.hypergrad import Estimator, Forward, Reverse, Telescoping, hypergradient
from hyperopt_dl.hypergrad.level_runs import LevelRuns, Pulled
from hyperopt_dl.hypergrad.telescope.weights import Scheme, coefficients
from hyperopt_dl.training import HParams, State, Training
from tests.contracts.estimator import EstimatorContract
from tests.hypergrad.runs import ALL, DOUBLE, all_together, mean_smoothed
from tests.hypergrad.test_forward import Watched
from tests.hypergrad.test_telescoping import Decay
from tests.problems import Quadratic, Spiral

SCHEMES: tuple[Scheme, ...] = get_args(Scheme)
schemes = pytest.mark.parametrize("scheme", SCHEMES)
SPIRAL_AT = {"start": torch.tensor([1.2, -0.7], dtype=DOUBLE), "decay": 0.4, "frequency": 2.5}
FEW = {name: value for name, value in ALL.items() if name != "w"}
Q = np.array([0.4, 0.1, 0.2, 0.3])


class TestTheLastLevelAlone(EstimatorContract):
    """With no other level, the estimate is exact."""

    @pytest.fixture(params=SCHEMES)
    def estimator(self, request: pytest.FixtureRequest) -> Estimator:
        return Telescoping(scheme=request.param, levels=(), mode=Forward())


def network(net: str) -> Training:
    return all_together(net, steps=8, weights=None, loss=mean_smoothed)


PROBLEMS: dict[str, tuple[Training, Mapping[str, Any], tuple[int, ...]]] = {
    "quadratic": (Quadratic(steps=12, noise=0.3), {"lr": 0.1}, (1, 3, 7, 12)),
    "spiral": (Spiral(steps=9), SPIRAL_AT, (2, 3, 8, 9)),
    "mlp": (network("mlp"), FEW, (1, 2, 4, 8)),
    "dropout": (network("dropout"), FEW, (1, 2, 4, 8)),
    "batch norm": (network("batch norm"), FEW, (1, 2, 4, 8)),
}
problems = pytest.mark.parametrize("name", PROBLEMS)


def draws(name: str, scheme: Scheme, mode: Forward | Reverse) -> list[Pulled]:
    """Every draw from four levels."""
    training, hparams, levels = PROBLEMS[name]
    runs = LevelRuns(training, hparams, mode, seed=3, device=torch.device("cpu"))
    return [
        runs.sum_of({t: w for t, w in zip(levels, c.tolist(), strict=True) if w}, along=levels)
        for c in coefficients(scheme, Q)
    ]


def assert_near(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


@schemes
@problems
def test_the_draws_average_to_the_gradient_after_all_steps(name: str, scheme: Scheme) -> None:
    training, hparams, _ = PROBLEMS[name]
    made = draws(name, scheme, Forward())
    value, gradient = hypergradient(training, hparams, estimator=Reverse(), seed=3)
    assert_near(sum(q * each.value for q, each in zip(Q, made, strict=True)), value)
    for part in gradient:
        average = sum(q * each.gradient[part] for q, each in zip(Q, made, strict=True))
        assert_near(average, gradient[part])


@schemes
@problems
def test_every_draw_is_that_of_the_sweep_back(name: str, scheme: Scheme) -> None:
    pairs = zip(draws(name, scheme, Forward()), draws(name, scheme, Reverse("all")), strict=True)
    for found, expected in pairs:
        assert_near(found.value, expected.value)
        assert found.gradient.keys() == expected.gradient.keys()
        for part, gradient in expected.gradient.items():
            assert_near(found.gradient[part], gradient)


@problems
def test_a_run_knows_the_gradient_of_every_level_that_it_passes(name: str) -> None:
    training, hparams, levels = PROBLEMS[name]
    runs = LevelRuns(training, hparams, Reverse("all"), seed=3, device=torch.device("cpu"))
    alone = {t: each.gradient for t, each in zip(levels, runs.each_of(levels), strict=True)}
    for n, made in enumerate(draws(name, "single_sample", Forward())):
        assert tuple(made.gradients) == levels[: n + 1]
        for t, gradient in made.gradients.items():
            for part, expected in alone[t].items():
                assert_near(gradient[part], expected)


# what it costs


class Counting(Quadratic):
    """Counts how often a step is run."""

    calls = itertools.count()

    def step(self, state: State, hparams: HParams, t: int) -> State:
        next(Counting.calls)
        return super().step(state, hparams, t)


def noted(estimator: Telescoping, training: Training, **options: Any) -> tuple[dict[str, Any], int]:
    """What a run notes, and how many steps it makes beside the two that are checked."""
    Counting.calls = itertools.count()
    notes: list[Mapping[str, Any]] = []
    settings = {"seed": 0, "device": "cpu", "note": notes.append, **options}
    estimator(training, {"lr": 0.1}, **settings)
    return dict(notes[0]), next(Counting.calls) - 2


@schemes
def test_a_draw_makes_as_many_steps_as_its_level_has(scheme: Scheme) -> None:
    estimator, seen = Telescoping(scheme, tune=False, mode=Forward()), set()
    for seed in range(30):
        note, made = noted(estimator, Counting(steps=16), seed=seed)
        assert made == note["steps"] == note["level"]
        seen.add(made)
    assert len(seen) > 2


def test_a_calibration_is_one_run() -> None:
    estimator = Telescoping(levels=(3, 8, 15), mode=Forward())
    note, made = noted(estimator, Counting(steps=20), plan={"do": "calibrate"})
    assert made == note["steps"] == 20
    assert note["measured"] == note["levels"] == [3, 8, 15, 20]


def test_the_states_alive_grow_neither_with_the_steps_nor_with_the_levels() -> None:
    most = []
    gc.disable()
    try:
        for steps, levels in ((20, (5,)), (20, (2, 5, 9, 13)), (200, (2, 5, 9, 13, 150))):
            training = Watched(steps=steps)
            plan = {"do": "calibrate"}
            estimator = Telescoping(levels=levels, mode=Forward())
            estimator(training, {"lr": 0.01}, seed=0, device="cpu", plan=plan)
            most.append(max(training.alive))
    finally:
        gc.enable()
    assert max(most) <= 3


# what is measured


def test_a_draw_measures_the_distances_of_all_levels_that_it_passes() -> None:
    problem = Quadratic(steps=16, noise=0.3)
    estimator, seen = Telescoping(levels=(2, 4, 8), mode=Forward()), set()
    plan = {"do": "draw", "levels": [2, 8, 16], "probabilities": [0.3, 0.3, 0.4]}
    for seed in range(12):
        note, _ = noted(estimator, problem, seed=seed, plan=plan, scale={"lr": 0.5})
        passed = [t for t in (2, 4, 8, 16) if t <= note["level"]]
        assert note["measured"] == passed
        slopes = [float(replace(problem, steps=t).exact_gradient(0.1, seed=seed)) for t in passed]
        G = [0.0, *slopes]
        D = [[(0.5 * (a - b)) ** 2 for b in G] for a in G]
        np.testing.assert_allclose(note["distances"], D, rtol=1e-9, atol=1e-18)
        seen.add(note["level"])
    assert seen == {2, 8, 16}


def measured(*G: float, H: int, level: str = "draw") -> dict[str, Any]:
    """The note of a trial that measured such gradients at the first of the levels 1, 2, ..., H."""
    rows = np.array([0.0, *G])
    D = np.square(rows[:, None] - rows[None])
    places = [2**n for n in range(len(G))]
    own = {"do": level, "levels": [H], "steps": places[-1]}
    return {**own, "measured": places, "distances": D.tolist()}


def test_draws_change_the_odds_and_whole_ones_are_calibrations() -> None:
    estimator = Telescoping(mode=Forward(), calibrate_every=2.0)
    first = measured(0.5, 0.9, 1.0, H=4, level="calibrate")
    draws = [measured(0.5, H=4), measured(0.5, 1.1, H=4)]
    before, after = (estimator.next_plan([first, *some], []) for some in ([], draws))
    assert after["do"] == "draw"
    assert before["probabilities"] != after["probabilities"]
    low = [measured(0.5, H=4)] * 8
    assert estimator.next_plan([first, *low[:7]], [])["do"] == "draw"
    assert estimator.next_plan([first, *low], []) == {"do": "calibrate"}
    whole = measured(0.4, 0.8, 1.0, H=4)
    assert estimator.next_plan([first, *low, whole, *low[:7]], [])["do"] == "draw"
    failed = {**measured(0.5, 1.1, H=4), "distances": None}
    longer, other = measured(7.0, 9.0, H=8), {**measured(7.0, H=4), "measured": [3]}
    for unknown in (failed, longer, other):
        assert estimator.next_plan([first, unknown], []) == before


@pytest.mark.parametrize("mode", [Forward(), Reverse("all")])
@pytest.mark.parametrize(
    ("scheme", "level", "runs"),
    [
        ("single_sample", 2, [2]),
        ("single_sample", 8, [4, 8]),
        ("russian_roulette", 2, [2]),
        ("russian_roulette", 8, [2, 4, 8]),
    ],
)
def test_separate_runs_measure_what_they_run(
    scheme: Scheme, level: int, runs: list[int], mode: Forward | Reverse
) -> None:
    estimator, notes = Telescoping(scheme, separate=True, mode=mode), list[Mapping[str, Any]]()
    plan = {"do": "draw", "levels": [2, 4, 8], "probabilities": [0.4, 0.3, 0.3]}
    states: list[State] = []
    call = partial(estimator, Decay(8), {"rate": 0.7}, device="cpu", plan=plan)
    for seed in range(20):
        states.clear()
        call(seed=seed, note=notes.append, observe=states.append)
        if notes[-1]["level"] == level:
            break
    assert notes[-1]["measured"] == runs
    G = [0.0, *(Decay(t).exact_gradient(0.7) for t in runs)]
    np.testing.assert_allclose(notes[-1]["distances"], [[(a - b) ** 2 for b in G] for a in G])
    assert notes[-1]["steps"] == (1 if isinstance(mode, Forward) else 2) * sum(runs)
    assert [float(state["x"]) for state in states] == pytest.approx(
        [(1 - 0.7 / 8) ** 8] if level == 8 else []
    )

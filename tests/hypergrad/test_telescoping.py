"""Randomized telescoping: every draw enumerated, steps counted, and what is learned."""

import functools
import itertools
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import Tensor

from hyperopt_dl.errors import TrainingError
from hyperopt_dl.hypergrad import Estimator, Reverse, Telescoping, hypergradient
from hyperopt_dl.hypergrad.level_runs import LevelRuns
from hyperopt_dl.hypergrad.reverse import Memory
from hyperopt_dl.hypergrad.telescope.weights import Scheme, coefficients
from hyperopt_dl.optimizers import SGD, Schedule
from hyperopt_dl.training import HParams, State, Training
from tests.contracts.estimator import EstimatorContract, line
from tests.hypergrad.runs import ALL, DOUBLE, all_together
from tests.problems import Quadratic, Spiral

SCHEMES: tuple[Scheme, ...] = get_args(Scheme)
schemes = pytest.mark.parametrize("scheme", SCHEMES)
SPIRAL_AT = {"start": torch.tensor([1.2, -0.7], dtype=DOUBLE), "decay": 0.4, "frequency": 2.5}
HALF = (0.4, 0.1, 0.2, 0.3)
EXACT = Reverse("all")


class TestTheLastLevelAlone(EstimatorContract):
    """With no other level, the estimate is exact."""

    @pytest.fixture(params=SCHEMES)
    def estimator(self, request: pytest.FixtureRequest) -> Estimator:
        return Telescoping(scheme=request.param, levels=())


# unbiasedness


def averaged(
    training: Training,
    hparams: Mapping[str, Any],
    levels: tuple[int, ...],
    q: tuple[float, ...],
    scheme: Scheme,
    *,
    mode: Reverse = EXACT,
    separate: bool = False,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The average over all draws, by the weights of each."""
    runs = LevelRuns(training, hparams, mode, seed=3, device=torch.device("cpu"))
    runs = replace(runs, separate=separate)
    value, gradient = torch.zeros(()).double(), dict[str, Any]()
    for chance, c in zip(q, coefficients(scheme, np.asarray(q)), strict=True):
        drawn = runs.sum_of({t: w for t, w in zip(levels, c.tolist(), strict=True) if w})
        value = value + chance * drawn.value
        for name, part in drawn.gradient.items():
            gradient[name] = gradient.get(name, 0.0) + chance * part
    return value, gradient


def assert_same(
    found: tuple[Tensor, Mapping[str, Tensor]], expected: tuple[Tensor, Mapping[str, Tensor]]
) -> None:
    torch.testing.assert_close(found[0], expected[0], rtol=1e-10, atol=1e-10)
    assert found[1].keys() == expected[1].keys()
    for name, gradient in expected[1].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-10, atol=1e-10)


@schemes
@pytest.mark.parametrize("memory", ["all", "activations", "sqrt", 3, "auto"])
@pytest.mark.parametrize("levels", [(1, 3, 7, 12), (5, 6, 11, 12)])
def test_the_draws_average_to_the_closed_form(
    scheme: Scheme, memory: Memory, levels: tuple[int, ...]
) -> None:
    problem = Quadratic(steps=12, noise=0.3)
    found = averaged(problem, {"lr": 0.1}, levels, HALF, scheme, mode=Reverse(memory))
    exact = problem.exact_gradient(0.1, seed=3)
    value = torch.tensor(problem.exact_loss(0.1, seed=3), dtype=DOUBLE)
    assert_same(found, (value, {"lr": exact}))


@schemes
def test_a_start_and_a_loss_that_depend_on_hyperparameters_are_in_the_average(
    scheme: Scheme,
) -> None:
    found = averaged(Spiral(steps=9), SPIRAL_AT, (2, 3, 8, 9), HALF, scheme)
    assert_same(found, hypergradient(Spiral(steps=9), SPIRAL_AT, estimator=Reverse(), seed=3))


@schemes
@pytest.mark.parametrize("net", ["mlp", "dropout", "batch norm"])
@pytest.mark.parametrize("memory", ["activations", "sqrt"])
def test_the_draws_of_a_network_average_to_its_gradient(
    scheme: Scheme, net: str, memory: Memory
) -> None:
    training = all_together(net, steps=8)
    found = averaged(training, ALL, (1, 2, 4, 8), HALF, scheme, mode=Reverse(memory))
    assert_same(found, hypergradient(training, ALL, estimator=Reverse(), seed=3))


@schemes
def test_a_traced_network_has_the_same_average(scheme: Scheme, trace_everything: None) -> None:
    training = all_together("mlp", steps=8, batch_size=None)
    found = averaged(training, ALL, (1, 2, 4, 8), HALF, scheme)
    assert_same(found, hypergradient(training, ALL, estimator=Reverse(), seed=3))


@schemes
def test_a_schedule_that_depends_on_the_horizon_leaves_no_bias(scheme: Scheme) -> None:
    cosine = Schedule("lr", lambda t: 0.5 * (1 + math.cos(math.pi * t / 8)))
    training = line(SGD(lr=cosine, momentum=0.5), steps=8)
    found = averaged(training, {"lr": 0.2}, (1, 2, 4, 8), HALF, scheme)
    assert_same(found, hypergradient(training, {"lr": 0.2}, estimator=Reverse(), seed=3))


@schemes
def test_the_estimator_makes_every_draw_with_its_probability(scheme: Scheme) -> None:
    problem = Quadratic(steps=8)  # without noise: the seed decides nothing but the level
    estimator = Telescoping(scheme=scheme, levels=(2, 4), tune=False)
    notes: list[Mapping[str, Any]] = []
    drawn = {}
    for seed in range(200):
        value, gradient = estimator(
            problem, {"lr": 0.1}, seed=seed, device="cpu", note=notes.append
        )
        drawn[notes[-1]["level"]] = notes[-1]["probability"], value, gradient["lr"]
    assert drawn.keys() == {2, 4, 8}
    counts = Counter(note["level"] for note in notes)
    for level, (q, _, _) in drawn.items():
        assert abs(counts[level] / 200 - q) < 4 * math.sqrt(q * (1 - q) / 200)
    value, gradient = (
        sum(q * drawn[level][i] for level, (q, _, _) in drawn.items()) for i in (1, 2)
    )
    torch.testing.assert_close(gradient, problem.exact_gradient(0.1), rtol=1e-10, atol=1e-10)
    assert float(value) == pytest.approx(problem.exact_loss(0.1), rel=1e-10)


@schemes
@pytest.mark.parametrize("seed", range(3))
def test_the_same_seed_draws_the_same_level(scheme: Scheme, seed: int) -> None:
    problem, answers = Quadratic(steps=8, noise=0.3), []
    for _ in range(2):
        answers.append(
            hypergradient(problem, {"lr": 0.1}, estimator=Telescoping(scheme), seed=seed)
        )
    assert torch.equal(answers[0][0], answers[1][0])
    assert torch.equal(answers[0][1]["lr"], answers[1][1]["lr"])


def test_a_short_run_that_does_not_use_a_hyperparameter_has_the_derivative_0() -> None:
    training, hparams = _Late(steps=8), {"lr": 0.1, "late": 0.2}
    found = averaged(training, hparams, (1, 2, 4, 8), HALF, "russian_roulette")
    assert_same(found, hypergradient(training, hparams, estimator=Reverse(), seed=3))


# what it costs


class Counting(Quadratic):
    """Counts how often a step is run, by an adjoint too."""

    calls = itertools.count()

    def step(self, state: State, hparams: HParams, t: int) -> State:
        next(Counting.calls)
        return super().step(state, hparams, t)


def steps_of(run: Any) -> int:
    Counting.calls = itertools.count()
    run()
    return next(Counting.calls)


@schemes
@pytest.mark.parametrize("memory", ["all", "activations", "sqrt", 3])
def test_a_draw_costs_what_reverse_costs_on_a_run_to_its_level(
    scheme: Scheme, memory: Memory
) -> None:
    q, levels = np.asarray(HALF), (3, 8, 15, 20)
    for n, c in enumerate(coefficients(scheme, q)):
        weights = {t: w for t, w in zip(levels, c.tolist(), strict=True) if w}
        runs = LevelRuns(
            Counting(steps=20), {"lr": 0.1}, Reverse(memory), seed=0, device=torch.device("cpu")
        )
        drawn = steps_of(functools.partial(runs.sum_of, weights))
        short = Counting(steps=levels[n])
        whole = steps_of(
            lambda short=short: hypergradient(short, {"lr": 0.1}, estimator=Reverse(memory))
        )
        assert drawn == whole


@schemes
def test_a_draw_makes_as_many_steps_forward_and_back_as_its_level_has(scheme: Scheme) -> None:
    estimator = Telescoping(scheme, tune=False, mode=Reverse("all"))
    seen = set()
    for seed in range(30):
        notes: list[Mapping[str, Any]] = []
        run = functools.partial(
            estimator, Counting(steps=16), {"lr": 0.1}, seed=seed, device="cpu", note=notes.append
        )
        checks = 2  # that a step can be made twice
        made = steps_of(run) - checks
        level = notes[0]["level"]
        seen.add(level)
        assert made == notes[0]["steps"] == 2 * level
    assert len(seen) > 2


def test_a_calibration_makes_one_run_and_a_sweep_from_every_level() -> None:
    notes: list[Mapping[str, Any]] = []
    estimator = Telescoping(levels=(3, 8, 15), mode=Reverse("all"))
    run = functools.partial(
        estimator,
        Counting(steps=20),
        {"lr": 0.1},
        seed=0,
        device="cpu",
        note=notes.append,
        plan={"do": "calibrate"},
    )
    assert steps_of(run) - 2 == notes[0]["steps"] == 20 + 3 + 8 + 15 + 20


# calibration


@pytest.mark.parametrize("memory", ["all", "activations", "sqrt", 3])
def test_a_calibration_has_the_gradient_of_every_level(memory: Memory) -> None:
    training, levels = all_together("mlp", steps=8), (1, 2, 5, 8)
    runs = LevelRuns(training, ALL, Reverse(memory), seed=3, device=torch.device("cpu"))
    for t, part in zip(levels, runs.each_of(levels), strict=True):
        short = all_together("mlp", steps=t)
        assert_same(
            (part.value, part.gradient), hypergradient(short, ALL, estimator=Reverse(), seed=3)
        )


def test_a_calibration_returns_the_exact_gradient_and_notes_the_distances() -> None:
    problem, notes = Quadratic(steps=8, noise=0.3), list[Mapping[str, Any]]()
    states: list[State] = []
    value, gradient = Telescoping(levels=(2, 5))(
        problem,
        {"lr": 0.1},
        seed=4,
        device="cpu",
        note=notes.append,
        observe=states.append,
        plan={"do": "calibrate"},
        scale={"lr": 0.5},
    )
    assert float(value) == pytest.approx(problem.exact_loss(0.1, seed=4), rel=1e-10)
    torch.testing.assert_close(gradient["lr"], problem.exact_gradient(0.1, seed=4))
    torch.testing.assert_close(states[0]["x"], problem.exact_state(0.1, seed=4))
    (note,) = notes
    G = [0.0, *(float(replace(problem, steps=t).exact_gradient(0.1, seed=4)) for t in (2, 5, 8))]
    D = [[(0.5 * (a - b)) ** 2 for b in G] for a in G]
    np.testing.assert_allclose(note["distances"], D, rtol=1e-9)
    assert note["exact"]
    assert note["levels"] == [2, 5, 8]
    assert note["loss"] == float(value)


def test_distances_that_are_not_finite_are_not_noted() -> None:
    notes: list[Mapping[str, Any]] = []
    Telescoping()(
        Quadratic(steps=400),
        {"lr": 50.0},
        seed=0,
        device="cpu",
        note=notes.append,
        plan={"do": "calibrate"},
    )
    assert notes[0]["distances"] is None


def test_an_evaluation_is_one_run_without_a_derivative() -> None:
    notes: list[Mapping[str, Any]] = []
    states: list[State] = []
    estimator = functools.partial(
        Telescoping(), seed=1, device="cpu", note=notes.append, observe=states.append
    )
    problem = Quadratic(steps=9, noise=0.3)
    value, gradient = estimator(problem, {"lr": 0.1}, plan={"do": "evaluate"})
    assert float(value) == pytest.approx(problem.exact_loss(0.1, seed=1), rel=1e-12)
    assert not gradient
    assert (notes[0]["exact"], notes[0]["steps"], len(states)) == (True, 9, 1)


@pytest.mark.parametrize("level", [4, 8])
def test_only_a_run_of_all_steps_is_exact_and_observed(level: int) -> None:
    notes: list[Mapping[str, Any]] = []
    states: list[State] = []
    plan = {"do": "draw", "levels": [4, 8], "probabilities": [0.5, 0.5]}
    problem = Quadratic(steps=8)
    for seed in range(20):
        states.clear()
        Telescoping()(
            problem,
            {"lr": 0.1},
            seed=seed,
            device="cpu",
            note=notes.append,
            observe=states.append,
            plan=plan,
        )
        if notes[-1]["level"] == level:
            break
    assert notes[-1]["exact"] == (level == 8) == bool(states)
    assert notes[-1].get("loss") == (pytest.approx(problem.exact_loss(0.1)) if level == 8 else None)


# separate runs


@dataclass(frozen=True)
class Decay:
    """``x' = -rate * x`` to time 1 in ``steps`` steps of Euler: each level is another recursion."""

    steps: int

    def with_steps(self, steps: int) -> "Decay":
        return replace(self, steps=steps)

    def init(self, hparams: HParams, *, seed: int, device: torch.device | str) -> State:
        return {"x": torch.ones((), dtype=DOUBLE)}

    def step(self, state: State, hparams: HParams, t: int) -> State:
        return {"x": state["x"] * (1 - hparams["rate"] / self.steps)}

    def loss(self, state: State, hparams: HParams) -> Tensor:
        return state["x"].square()

    def exact_gradient(self, rate: float) -> float:
        return -2 * float((1 - rate / self.steps) ** (2 * self.steps - 1))


@schemes
def test_separate_runs_average_to_the_last_level(scheme: Scheme) -> None:
    _, gradient = averaged(Decay(16), {"rate": 0.7}, (1, 4, 8, 16), HALF, scheme, separate=True)
    assert float(gradient["rate"]) == pytest.approx(Decay(16).exact_gradient(0.7), rel=1e-10)


def test_a_calibration_of_separate_runs_has_the_gradient_of_each() -> None:
    notes: list[Mapping[str, Any]] = []
    Telescoping(levels=(2, 4), separate=True, mode=Reverse("all"))(
        Decay(8), {"rate": 0.7}, seed=0, device="cpu", plan={"do": "calibrate"}, note=notes.append
    )
    G = [0.0, *(Decay(n).exact_gradient(0.7) for n in (2, 4, 8))]
    np.testing.assert_allclose(notes[0]["distances"], [[(a - b) ** 2 for b in G] for a in G])
    assert notes[0]["steps"] == 2 * (2 + 4 + 8)


def test_separate_runs_need_a_training_that_can_be_resized() -> None:
    with pytest.raises(TrainingError, match=r"Quadratic has none. Write it"):
        Telescoping(separate=True)(
            Quadratic(), {"lr": 0.1}, seed=0, device="cpu", plan={"do": "calibrate"}
        )


@dataclass(frozen=True)
class _Late(Quadratic):
    """From step 5 on, another hyperparameter moves the state."""

    def step(self, state: State, hparams: HParams, t: int) -> State:
        after = super().step(state, hparams, t)
        return {**after, "x": after["x"] + hparams["late"]} if t >= 5 else after

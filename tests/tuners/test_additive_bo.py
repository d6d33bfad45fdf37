"""`hd.AdditiveBO` in a study: what it finds, and what it learns from."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState

import hyperopt_dl as hd
from tests.tuners.bowls import SQUARE, bowl, square, tell

MIXED = hd.Space(
    x=hd.Float(2.0, 6.0),
    y=hd.Float(1e-3, 1.0, log=True),
    grid=hd.Float(0.0, 1.0, step=0.125),
    n=hd.Int(1, 9),
    wide=hd.Int(1, 10**7, log=True),
    kind=hd.Categorical(["a", "b"]),
)


def mixed_bowl(params: Mapping[str, Any]) -> float:
    terms = (
        (params["x"] - 3) ** 2,
        math.log10(params["y"] / 0.03) ** 2,
        4 * (params["grid"] - 0.75) ** 2,
        0.1 * (params["n"] - 4) ** 2,
        0.1 * math.log10(params["wide"] / 3000) ** 2,
        params["kind"] == "a",
    )
    return float(sum(terms))


# It optimises


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, marks=pytest.mark.slow),
        {"structure": "full"},
        pytest.param({"structure": "additive"}, marks=pytest.mark.slow),
        {"structure": [["x", "y"]]},
        pytest.param({"acquisition": "qlognei"}, marks=pytest.mark.slow),
        pytest.param({"acquisition": "ucb"}, marks=pytest.mark.slow),
        {"strategy": "thompson", "structure": "full"},
        {"strategy": "dpp", "batch": 3},
        {"strategy": "pe", "batch": 3},
    ],
    ids=str,
)
def test_every_way_of_choosing_comes_near_the_minimum_of_a_bowl(options: dict[str, Any]) -> None:
    study = square(**options)
    tell(study, 15)
    assert study.best.values[0] < 0.01
    assert study.tuner.diagnostics(study.optuna).fallbacks == {}  # type: ignore[attr-defined]


@pytest.mark.slow
def test_a_mixed_space_is_optimised_in_all_its_dimensions() -> None:
    study = hd.Study(MIXED, tuner=hd.AdditiveBO(), seed=0)
    proposed = tell(study, 26, mixed_bowl)
    for params in proposed:
        MIXED.validate(params)
    assert study.best.params["kind"] == "b"
    assert abs(study.best.params["n"] - 4) <= 1
    assert study.best.values[0] < 0.5


@pytest.mark.slow
def test_a_study_can_maximize() -> None:
    tuner = hd.AdditiveBO(n_startup=5)
    study = hd.Study(SQUARE, tuner=tuner, direction="maximize", seed=0)
    tell(study, 15, lambda params: -bowl(params))
    assert study.best.values[0] > -0.01


def test_a_large_scale_of_the_losses_changes_nothing() -> None:
    small, large = square(), square()
    ours = tell(small, 9)
    theirs = tell(large, 9, lambda params: 1e6 * bowl(params) + 1e4)
    for one, other in zip(ours, theirs, strict=True):
        assert one == pytest.approx(other, abs=1e-2)


@pytest.mark.slow
def test_it_tunes_in_worker_processes() -> None:
    study = hd.Study(SQUARE, tuner=hd.AdditiveBO(n_startup=4), seed=0)
    executor = hd.executors.Processes(devices=["cpu", "cpu"], threads_per_worker=1)
    study.optimize(in_a_worker, n_trials=8, executor=executor, progress=False)
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE] * 8


def in_a_worker(trial: hd.Trial) -> float:
    return bowl(trial.params)


# What it learns from


def test_points_that_are_asked_for_together_differ() -> None:
    study = square()
    tell(study, 8)
    trials = study.ask(6)
    apart = [
        math.dist(list(one.params.values()), list(other.params.values()))
        for i, one in enumerate(trials)
        for other in trials[:i]
    ]
    assert min(apart) > 0.01


def test_a_finite_space_is_not_repeated() -> None:
    space = hd.Space(a=hd.Int(0, 3), b=hd.Categorical(["p", "q", "r"]))
    study = hd.Study(space, tuner=hd.AdditiveBO(n_startup=3), seed=0)
    proposed = tell(study, 12, lambda params: params["a"] + (params["b"] == "q"))
    modelled = [tuple(params.values()) for params in proposed[3:]]
    assert len(set(modelled)) == len(modelled)


@pytest.mark.slow
def test_a_constraint_keeps_proposals_feasible() -> None:
    """The minimum on the feasible half lies on its border, x = 0.6."""
    study = square()
    for _ in range(20):
        trial = study.ask()
        trial.set_constraint("right", 0.6 - trial.params["x"])
        study.tell(trial, bowl(trial.params))
    assert study.best.params["x"] == pytest.approx(0.6, abs=0.05)
    assert study.best.values[0] == pytest.approx(bowl({"x": 0.6, "y": 0.68}), abs=0.03)
    assert sum(trial.params["x"] >= 0.55 for trial in study.trials[8:]) >= 9


@pytest.mark.slow
def test_a_failed_region_is_left() -> None:
    study = square()

    def broken(params: Mapping[str, Any]) -> float:
        return math.nan if params["x"] < 0.4 else bowl(params)

    proposed = tell(study, 22, broken)
    assert sum(params["x"] < 0.35 for params in proposed[12:]) <= 2
    assert study.best.params["x"] == pytest.approx(0.4, abs=0.1)


def test_a_study_of_failures_goes_on() -> None:
    study = square(n_startup=0)
    tell(study, 5, lambda params: math.nan)
    tell(study, 3)
    assert len(study.trials) == 8


@pytest.mark.parametrize("value", [math.inf, -math.inf, 1e300, 0.0])
def test_no_value_breaks_a_study_of_optuna(value: float) -> None:
    sampler = hd.AdditiveBO(n_startup=1, seed=0)
    study = optuna.create_study(sampler=sampler)
    values = iter([1.0, 2.0, value, value, 0.5, 3.0])
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1) * 0 + next(values), n_trials=6)
    assert sampler.diagnostics(study).fallbacks == {}


def test_a_pruned_trial_counts_as_bad_and_not_as_missing() -> None:
    tuner = hd.AdditiveBO(n_startup=5)
    study = hd.Study(SQUARE, tuner=tuner, seed=0)
    tell(study, 5)
    trial = study.ask()
    trial.report(0.0, step=1)
    study.tell(trial, state=TrialState.PRUNED)
    diagnostics = tuner.diagnostics(study.optuna)
    assert (diagnostics.losses, diagnostics.failed) == (6, 0)


def test_a_heavy_tail_is_compressed_and_a_plain_bowl_is_not() -> None:
    tuner = hd.AdditiveBO(n_startup=30)
    for function, compressed in ((bowl, False), (lambda p: math.exp(12 * bowl(p)), True)):
        study = hd.Study(SQUARE, tuner=tuner, seed=0)
        tell(study, 24, function)
        assert tuner.diagnostics(study.optuna).compressed == compressed


# Spaces that change


def test_a_conditional_dimension_is_left_to_tpe_which_is_said_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def objective(trial: optuna.Trial) -> float:
        x = trial.suggest_float("x", 0, 1)
        if trial.suggest_categorical("kind", ["a", "b"]) == "a":
            return x + trial.suggest_float("only_a", 0, 1)
        return x

    study = optuna.create_study(sampler=hd.AdditiveBO(n_startup=4, seed=0))
    study.optimize(objective, n_trials=12)
    assert study.best_value < 0.1
    assert [r.getMessage() for r in caplog.records if r.levelname == "WARNING"] == [
        "'only_a' is left to TPE, without the model: not every trial with a value has it, with the "
        "same range."
    ]


def test_conditional_dimensions_come_near_their_minimum() -> None:
    def objective(trial: optuna.Trial) -> float:
        branch = trial.suggest_categorical("branch", ["a", "b"])
        xs = [trial.suggest_float(f"{branch}{i}", 0, 1) for i in range(3)]
        return sum((x - 0.3) ** 2 for x in xs) + (branch == "b")

    study = optuna.create_study(sampler=hd.AdditiveBO(seed=0))
    study.optimize(objective, n_trials=60)
    tuned = [t for t in study.trials[30:] if t.params["branch"] == "a"]
    assert len(tuned) > 15
    misses = [abs(t.params[f"a{i}"] - 0.3) for t in tuned for i in range(3)]
    assert sum(misses) / len(misses) < 0.2  # at random 0.29


def test_a_dimension_that_is_too_fine_for_the_model_is_said(
    caplog: pytest.LogCaptureFixture,
) -> None:
    study = optuna.create_study(sampler=hd.AdditiveBO(n_startup=2, seed=0))
    study.optimize(lambda t: t.suggest_int("n", 0, 2**62) * t.suggest_float("x", 0, 1), n_trials=4)
    (said,) = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert said.startswith("'n' is drawn at random: Int needs")


def test_bounds_that_have_moved_keep_the_model(tmp_path: Path) -> None:
    def opened(low: float) -> hd.Study:
        space = hd.Space(x=hd.Float(low, 1), y=hd.Float(0, 1))
        tuner = hd.AdditiveBO(n_startup=5)
        return hd.Study(space, tuner=tuner, seed=0, storage=str(tmp_path / "moved.log"))

    tell(opened(-1.0), 14)
    study = opened(-0.5)
    proposed = tell(study, 4)
    assert all(abs(params["x"] - 0.31) < 0.15 for params in proposed)
    assert hd.AdditiveBO().structure(study).names == ("x", "y")


def test_constants_alone_need_no_model() -> None:
    tuner = hd.AdditiveBO(n_startup=2)
    study = optuna.create_study(sampler=tuner)
    study.optimize(lambda trial: trial.suggest_int("k", 5, 5), n_trials=4)
    assert tuner.diagnostics(study).losses == 4
    assert tuner.propose(study, {"k": hd.Int(5, 5)}, 2) == [{"k": 5}, {"k": 5}]
    with pytest.raises(hd.StudyError, match="a dimension of more than one value"):
        tuner.structure(study)


def test_a_value_that_was_enqueued_outside_is_passed_over() -> None:
    sampler = hd.AdditiveBO(n_startup=2, seed=0)
    study = optuna.create_study(sampler=sampler)
    study.enqueue_trial({"x": 5.0})
    with pytest.warns(UserWarning, match="out of range"):
        study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=4)
    assert sampler.diagnostics(study).losses == 3


# Starts and propose


def test_starts_are_spread_evenly_from_the_second_on() -> None:
    study = hd.Study(SQUARE, tuner=hd.AdditiveBO(n_startup=64), seed=0)
    trials = study.ask(64)
    for name in ("x", "y"):
        cells = {int(8 * trial.params[name]) for trial in trials[1:]}
        counts = [sum(int(8 * t.params[name]) == cell for t in trials[1:]) for cell in cells]
        assert len(cells) == 8
        assert max(counts) <= 9


def test_propose_leaves_the_study_as_it_is() -> None:
    tuner = hd.AdditiveBO(n_startup=5)
    space = hd.Space(**SQUARE, constant=hd.Int(3, 3))
    study = hd.Study(space, tuner=tuner, seed=0)
    tell(study, 8)
    points = tuner.propose(study.optuna, space, 3)
    assert len(study.trials) == 8
    for params in points:
        space.validate(params)
    assert points == tuner.propose(study.optuna, space.distributions(), 3)
    assert points == tuner.propose(study, space, 3)


def test_propose_is_asking_one_by_one() -> None:
    tuner = hd.AdditiveBO(n_startup=5, seed=3)
    study = optuna.create_study(sampler=tuner)
    distributions: dict[str, BaseDistribution] = {
        "x": FloatDistribution(0, 1),
        "kind": CategoricalDistribution(["a", "b"]),
    }
    for i in range(7):
        study.tell(study.ask(distributions), float(i % 3))
    points = tuner.propose(study, distributions, 3)
    assert [study.ask(distributions).params for _ in range(3)] == points

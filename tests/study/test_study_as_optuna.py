"""Pruners, several objectives, constraints, attributes and samplers of Optuna in a study."""

import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import optuna
import pytest
import torch
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import (
    BaseSampler,
    CmaEsSampler,
    PartialFixedSampler,
    RandomSampler,
    TPESampler,
)

import hyperopt_dl as hd
from hyperopt_dl.errors import ObjectivesError
from hyperopt_dl.study.optuna_study import Direction
from tests.study.runs import SPACE, TUNED, Shrinking, bowl, run, states, suggestions, supervised

# As in Optuna


def test_a_pruner_stops_a_trial_that_is_behind() -> None:
    def objective(trial: hd.Trial) -> float:
        for step in range(3):
            trial.report(float(trial.number), step)
            if trial.should_prune():
                raise hd.TrialPruned
        return float(trial.number)

    study = hd.Study(SPACE, pruner=optuna.pruners.MedianPruner(n_startup_trials=2))
    run(study, objective, 4)
    assert states(study) == ["COMPLETE", "COMPLETE", "PRUNED", "PRUNED"]
    assert study.trials[2].intermediate_values == {0: 2.0}


def test_several_objectives_have_a_pareto_front() -> None:
    study = hd.Study(hd.Space(x=hd.Float(0.0, 2.0)), directions=["minimize", "maximize"], seed=0)
    run(study, lambda trial: (trial.params["x"], -((trial.params["x"] - 1) ** 2)), 12)
    front = {trial.number for trial in study.best_trials}
    below = {trial.number for trial in study.trials if trial.params["x"] <= 1.0}
    assert front <= below | {min(study.trials, key=lambda t: abs(t.params["x"] - 1)).number}
    assert len(front) > 1
    with pytest.raises(hd.StudyError, match="best_trials"):
        _ = study.best


def fixed_around(sampler: BaseSampler) -> BaseSampler:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        return PartialFixedSampler({"n": 3}, sampler)


@pytest.mark.parametrize("stored", [False, True])
@pytest.mark.parametrize(
    ("tuner", "name"),
    [
        (hd.AdditiveBO(), "AdditiveBO"),
        (hd.Hypergradient(), "Hypergradient"),
        (CmaEsSampler(), "CmaEsSampler"),
        (fixed_around(hd.AdditiveBO()), "AdditiveBO"),
    ],
)
def test_several_objectives_are_refused_at_once_by_a_tuner_for_one(
    tuner: BaseSampler, name: str, stored: bool
) -> None:
    storage = optuna.storages.InMemoryStorage()
    directions: list[Direction] = ["minimize", "maximize"]
    if stored:
        optuna.create_study(storage=storage, study_name="s", directions=directions)
    given: Any = {} if stored else {"directions": directions}
    with pytest.raises(ObjectivesError, match=rf"{name} needs a study with one objective, got 2\."):
        hd.Study(SPACE, tuner=tuner, storage=storage, name="s", **given)
    assert len(storage.get_all_studies()) == stored


@pytest.mark.parametrize("tuner", [TPESampler(), fixed_around(RandomSampler())])
def test_several_objectives_are_left_to_a_tuner_that_can(tuner: BaseSampler) -> None:
    study = hd.Study(SPACE, tuner=tuner, directions=["minimize", "minimize"], seed=0)
    run(study, lambda trial: (1.0, 2.0), 2)
    assert states(study) == ["COMPLETE"] * 2


@pytest.mark.parametrize("call", [lambda t: t.report(1.0, 0), lambda t: t.should_prune()])
def test_several_objectives_cannot_be_pruned(call: Callable[[hd.Trial], Any]) -> None:
    def objective(trial: hd.Trial) -> tuple[float, float]:
        call(trial)
        return 1.0, 2.0

    study = hd.Study(SPACE, directions=["minimize", "minimize"], seed=0)
    run(study, objective, 1)
    assert "one objective, this one has 2" in study.trials[0].user_attrs["error"]


@pytest.mark.parametrize("value", ["1.5", None, torch.zeros(2)])
def test_a_report_that_is_no_number_says_so(value: Any) -> None:
    with pytest.raises(TypeError, match=r"Trial\.report needs a number, got (a tensor|None|'1.5')"):
        hd.Study(SPACE, seed=0).ask().report(value, 0)


def test_a_constraint_keeps_an_infeasible_trial_from_being_best() -> None:
    def objective(trial: hd.Trial) -> float:
        trial.set_constraint("at least two", 2 - trial.number)
        return float(trial.number)

    study = hd.Study(SPACE, seed=0)
    run(study, objective, 5)
    assert study.best.number == 2


def noting(note: Any) -> Callable[[hd.Trial], float]:
    def objective(trial: hd.Trial) -> float:
        trial.set_user_attr("note", note)
        return 0.0

    return objective


def test_attributes_are_recorded() -> None:
    study = hd.Study(SPACE, seed=0)
    run(study, noting([1, "two"]), 1)
    assert study.trials[0].user_attrs["note"] == [1, "two"]


def test_an_attribute_that_json_cannot_hold_fails_the_trial() -> None:
    study = hd.Study(SPACE, seed=0)
    run(study, noting({1, 2}), 1)
    assert "not JSON serializable" in study.trials[0].user_attrs["error"]


def test_the_optuna_study_is_the_real_one() -> None:
    study = hd.Study(SPACE, seed=0)
    run(study, bowl, 3)
    assert isinstance(study.optuna, optuna.Study)
    assert optuna.importance.get_param_importances(study.optuna).keys() == set(SPACE)
    study.optuna.optimize(lambda trial: trial.suggest_float("x", 2.0, 6.0), n_trials=1)
    assert len(study.trials) == 4


# Samplers of Optuna as tuners

SAMPLERS: dict[str, Callable[[], optuna.samplers.BaseSampler]] = {
    "tpe": optuna.samplers.TPESampler,
    "random": optuna.samplers.RandomSampler,
    "gp": lambda: optuna.samplers.GPSampler(n_startup_trials=3),
    "cmaes": optuna.samplers.CmaEsSampler,
    # Its scrambling is drawn when it is made, so its seed has to be given there.
    "qmc": lambda: optuna.samplers.QMCSampler(scramble=True, seed=7),
    "nsga2": lambda: optuna.samplers.NSGAIISampler(population_size=3),
    "nsga3": lambda: optuna.samplers.NSGAIIISampler(population_size=3),
    "brute force": optuna.samplers.BruteForceSampler,
    "partial": lambda: optuna.samplers.PartialFixedSampler(
        {"lr": 0.5}, optuna.samplers.TPESampler()
    ),
    "grid": lambda: optuna.samplers.GridSampler({"lr": [0.1, 0.5], "momentum": [0.0, 0.5, 0.75]}),
}


@pytest.fixture
def quiet() -> Iterator[None]:
    """Some samplers warn that they are experimental, or that a dimension is sampled alone."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    yield
    optuna.logging.set_verbosity(optuna.logging.INFO)


@pytest.mark.usefixtures("quiet")
@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
@pytest.mark.parametrize("kind", ["black box", "supervised"])
@pytest.mark.parametrize("name", SAMPLERS)
def test_a_sampler_of_optuna_is_a_tuner_whose_seed_is_the_studys(name: str, kind: str) -> None:
    workload: Any = (
        supervised() if kind == "supervised" else lambda trial: (trial.params["lr"] - 0.4) ** 2
    )

    def params() -> list[dict[str, Any]]:
        study = hd.Study(TUNED, tuner=SAMPLERS[name](), pruner=optuna.pruners.NopPruner(), seed=7)
        run(study, workload, 6)
        assert states(study) == ["COMPLETE"] * 6
        return suggestions(study)

    assert params() == params()


def test_a_grid_that_is_exhausted_stops_the_study() -> None:
    study = hd.Study(TUNED, tuner=SAMPLERS["grid"]())
    run(study, lambda trial: trial.params["lr"], 100)
    assert len(study.trials) == 6
    assert len({tuple(trial.params.items()) for trial in study.trials}) == 6


def test_a_missing_package_of_a_sampler_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cmaes", None)
    with pytest.raises(hd.StudyError, match=r"pip install 'hyperopt_dl\[cmaes\]'"):
        hd.Study(TUNED, tuner=optuna.samplers.CmaEsSampler())


def test_a_training_of_ones_own_runs_in_a_study() -> None:
    study = hd.Study(hd.Space(lr=hd.Float(0.1, 0.9)), seed=0, pruner=optuna.pruners.NopPruner())
    run(study, Shrinking(), 3)  # type: ignore[arg-type]
    for trial in study.trials:
        lr = trial.params["lr"]
        assert trial.value == pytest.approx(lr**6, rel=1e-12)
        assert trial.intermediate_values == pytest.approx({t: lr**t for t in (2, 4, 6)}, rel=1e-12)

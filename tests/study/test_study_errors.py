"""Set-ups that are refused before trial 0."""

from pathlib import Path
from typing import Any

import optuna
import pytest

import hyperopt_dl as hd
from tests.study.runs import SPACE, Shrinking, bowl, run, supervised


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tuner": optuna.samplers.TPESampler}, "tuner must be a sampler object"),
        ({"pruner": "median"}, "pruner must be a pruner object"),
        ({"direction": "down"}, "'minimize' or 'maximize'"),
        ({"directions": []}, "'minimize' or 'maximize'"),
        ({"direction": "minimize", "directions": ["minimize"]}, "not both"),
        ({"seed": "0"}, "seed must be a whole number or None, got '0'"),
        ({"storage": 3}, "storage must be None, a path"),
    ],
)
def test_a_study_that_cannot_be_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(hd.StudyError, match=message):
        hd.Study(SPACE, **options)


def test_an_array_under_a_black_box_tuner_is_refused_by_name() -> None:
    with pytest.raises(hd.StudyError, match=r"cannot propose the Array\(s\) \['w'\]"):
        hd.Study(hd.Space(w=hd.Array(3)))


@pytest.mark.parametrize(
    ("workload", "options", "message"),
    [
        (bowl, {"n_trials": 1, "total_trials": 1}, "n_trials .* or total_trials"),
        (bowl, {"n_trials": -1}, "n_trials must be a whole number of at least 0, got -1"),
        (bowl, {"n_trials": 2.5}, "n_trials must be a whole number of at least 0, got 2.5"),
        (bowl, {"executor": hd.executors.Serial}, "executor must be an object"),
        (bowl, {"executor": "processes"}, "executor must be an object .* got 'processes'"),
        (Shrinking, {}, "got the class Shrinking. Make an object of it"),
        (bowl, {"retries": -1}, "retries must be at least 0"),
        (3, {}, "a function of a trial or a Training"),
    ],
)
def test_a_run_that_cannot_be_is_refused(
    workload: Any, options: dict[str, Any], message: str
) -> None:
    study = hd.Study(SPACE)
    with pytest.raises(hd.StudyError, match=message):
        study.optimize(workload, progress=False, **options)
    assert study.trials == []


def test_a_study_cannot_optimize_inside_its_own_trial() -> None:
    def objective(trial: hd.Trial) -> float:
        run(study, bowl, 1)
        return 0.0

    study = hd.Study(SPACE, seed=0)
    run(study, objective, 1)
    assert "optimize is running already" in study.trials[0].user_attrs["error"]


@pytest.mark.parametrize(
    ("study", "message"),
    [
        (hd.Study(), "give the study a space"),
        (hd.Study(SPACE, direction="maximize"), "one direction 'minimize'"),
        (hd.Study(SPACE, directions=["minimize", "minimize"]), "one direction 'minimize'"),
    ],
    ids=["no space", "maximize", "two objectives"],
)
def test_a_training_needs_a_space_and_one_loss(study: hd.Study, message: str) -> None:
    with pytest.raises(hd.StudyError, match=message):
        study.optimize(Shrinking(), n_trials=1, progress=False)


def test_a_hyperparameter_that_the_space_lacks_is_named_before_trial_0() -> None:
    training = supervised()
    study = hd.Study(hd.Space(lr=hd.Float(0.01, 1.0)))
    with pytest.raises(hd.StudyError, match=r"hyperparameter\(s\) \['momentum'\]"):
        study.optimize(training, n_trials=1, progress=False)
    assert study.trials == []


def test_a_stored_study_keeps_its_direction(tmp_path: Path) -> None:
    hd.Study(SPACE, storage=tmp_path / "a.log")
    with pytest.raises(hd.StudyError, match=r"has the directions \['minimize'\]"):
        hd.Study(SPACE, storage=tmp_path / "a.log", direction="maximize")


def test_a_stored_study_is_opened_without_saying_its_direction(tmp_path: Path) -> None:
    hd.Study(SPACE, storage=tmp_path / "a.log", direction="maximize")
    study = hd.Study(storage=tmp_path / "a.log")
    assert [direction.name for direction in study.optuna.directions] == ["MAXIMIZE"]


def test_a_stored_study_keeps_the_choices_of_a_dimension(tmp_path: Path) -> None:
    run(hd.Study(SPACE, storage=tmp_path / "a.log"), bowl, 1)
    other = hd.Space(x=hd.Float(2.0, 6.0), n=hd.Int(1, 9), kind=hd.Categorical(["a", "c"]))
    with pytest.raises(hd.StudyError, match=r"'kind' was .* in trial 0"):
        hd.Study(other, storage=tmp_path / "a.log")


def test_a_stored_study_goes_on_with_another_range(tmp_path: Path) -> None:
    run(hd.Study(SPACE, storage=tmp_path / "a.log"), bowl, 1)
    wider = hd.Space(x=hd.Float(7.0, 8.0), n=hd.Int(1, 9), kind=hd.Categorical(["a", "b"]))
    study = hd.Study(wider, storage=tmp_path / "a.log")
    run(study, bowl, 1)
    assert 7.0 <= study.trials[1].params["x"] <= 8.0

"""The study, with trials in this process."""

import math
from typing import Any

import numpy as np
import optuna
import pytest
import torch
from optuna.trial import FrozenTrial, TrialState

import hyperopt_dl as hd
from tests.study.runs import (
    SPACE,
    bowl,
    hd_trial,
    run,
    states,
)


def _is_one(result: Any) -> bool:
    return isinstance(result, torch.Tensor) and result.numel() == 1 and bool((result == 1).all())


# Asking and telling


def test_best_is_the_smallest_value_and_its_parameters() -> None:
    study = hd.Study(SPACE, seed=0)
    run(study, bowl, 20)
    values = [bowl(hd_trial(trial)) for trial in study.trials]
    assert study.best.value == min(values)
    assert study.best.params == study.trials[int(np.argmin(values))].params


def test_best_of_a_maximization_is_the_largest_value() -> None:
    study = hd.Study(SPACE, seed=0, direction="maximize")
    run(study, bowl, 10)
    assert study.best.value == max(trial.values[0] for trial in study.trials)


def test_a_trial_has_every_parameter_of_the_space() -> None:
    trial = hd.Study(SPACE, seed=0).ask()
    SPACE.validate(trial.params)
    assert trial.params.keys() == set(SPACE)


def test_ask_returns_as_many_trials_as_wanted_and_tell_ends_each() -> None:
    study = hd.Study(SPACE, seed=0)
    trials = study.ask(4)
    assert [trial.number for trial in trials] == [0, 1, 2, 3]
    for trial in trials:
        study.tell(trial, float(trial.number))
    assert [trial.value for trial in study.trials] == [0.0, 1.0, 2.0, 3.0]


def test_tell_takes_a_number_and_a_state() -> None:
    study = hd.Study(SPACE, seed=0)
    study.ask(2)
    study.tell(0, state=TrialState.PRUNED)
    study.tell(1, state=TrialState.FAIL)
    assert states(study) == ["PRUNED", "FAIL"]


def test_telling_no_number_fails_the_trial_and_names_the_kind() -> None:
    study = hd.Study(SPACE, seed=0)
    study.tell(study.ask(), math.nan)
    assert study.trials[0].user_attrs["failure"] == "nan"


def test_a_trial_cannot_be_told_twice() -> None:
    study = hd.Study(SPACE, seed=0)
    study.tell(study.ask(), 1.0)
    with pytest.raises(hd.StudyError, match="Trial 0 must be RUNNING to be told, it is COMPLETE"):
        study.tell(0, 2.0)
    assert study.trials[0].value == 1.0


@pytest.mark.parametrize(
    ("values", "state", "message"),
    [
        (1.0, TrialState.PRUNED, "told as PRUNED has no values, got 1.0"),
        (1.0, TrialState.RUNNING, "told as COMPLETE, PRUNED or FAIL, got RUNNING"),
        (None, TrialState.COMPLETE, "told as COMPLETE has a value, got none"),
    ],
)
def test_a_state_that_contradicts_the_value_is_refused_and_the_trial_goes_on(
    values: float | None, state: TrialState, message: str
) -> None:
    study = hd.Study(SPACE, seed=0)
    trial = study.ask()
    with pytest.raises(hd.StudyError, match=message):
        study.tell(trial, values, state=state)
    assert states(study) == ["RUNNING"]


@pytest.mark.parametrize("n", [0, -1])
def test_ask_for_no_trial_is_refused(n: int) -> None:
    with pytest.raises(hd.StudyError, match="n >= 1"):
        hd.Study(SPACE).ask(n)


def test_a_trial_that_does_not_exist_cannot_be_told() -> None:
    with pytest.raises(hd.StudyError, match=r"Trial 7 .* not in the study"):
        hd.Study(SPACE).tell(7, 1.0)


def test_define_by_run_records_what_was_suggested() -> None:
    def objective(trial: hd.Trial) -> float:
        x = trial.suggest_float("x", 1e-3, 1.0, log=True)
        n = trial.suggest_int("n", 2, 8, step=2)
        kind = trial.suggest_categorical("kind", ["a", "b"])
        assert trial.params == {"x": x, "n": n, "kind": kind}
        return x

    study = hd.Study(seed=0)
    run(study, objective, 3)
    assert states(study) == ["COMPLETE"] * 3
    assert study.trials[0].distributions == {
        "x": optuna.distributions.FloatDistribution(1e-3, 1.0, log=True),
        "n": optuna.distributions.IntDistribution(2, 8, step=2),
        "kind": optuna.distributions.CategoricalDistribution(["a", "b"]),
    }


def test_an_enqueued_trial_runs_next() -> None:
    study = hd.Study(SPACE, seed=0)
    study.enqueue({"x": 2.5, "n": 4})
    run(study, bowl, 2)
    assert study.trials[0].params["x"] == 2.5
    assert study.trials[0].params["n"] == 4
    assert study.trials[1].params["x"] != 2.5


@pytest.mark.parametrize("params", [{"x": 7.0}, {"n": 0}, {"kind": "c"}, {"y": 1.0}])
def test_a_trial_outside_the_space_is_not_enqueued(params: dict[str, Any]) -> None:
    study = hd.Study(SPACE)
    with pytest.raises(hd.SpaceError):
        study.enqueue(params)
    assert study.trials == []


# Failures are data


@pytest.mark.parametrize(
    ("result", "failure"),
    [
        (math.nan, "nan"),
        (math.inf, "nan"),
        (-math.inf, "nan"),
        (None, "exception"),
        ("1.5", "exception"),
        (torch.ones(2), "exception"),
        ([1.0, 2.0], "exception"),
        ([], "exception"),
        (10**400, "exception"),
        ({"loss": 1.0}, "exception"),
    ],
    ids=str,
)
def test_a_value_that_is_no_finite_number_fails_the_trial(result: Any, failure: str) -> None:
    study = hd.Study(SPACE, seed=0)
    run(study, lambda trial: result if trial.number == 0 else 5.0, 2)
    assert states(study) == ["FAIL", "COMPLETE"]
    assert study.trials[0].user_attrs["failure"] == failure
    assert study.best.number == 1


@pytest.mark.parametrize(
    "result", [2, True, np.float32(2), np.array(2.0), torch.tensor(2.0), torch.ones(1, 1), [2.0]]
)
def test_numbers_of_every_make_are_values(result: Any) -> None:
    study = hd.Study(SPACE, seed=0)
    run(study, lambda trial: result, 1)
    assert study.trials[0].value == (1.0 if result is True or _is_one(result) else 2.0)


@pytest.mark.parametrize(
    ("error", "failure"),
    [
        (ValueError("bad"), "exception"),
        (MemoryError(), "oom"),
        (torch.OutOfMemoryError("CUDA out of memory"), "oom"),
        (TimeoutError(), "timeout"),
        (SystemExit(0), "exception"),
    ],
    ids=repr,
)
def test_an_exception_fails_its_trial_and_the_study_goes_on(
    error: BaseException, failure: str
) -> None:
    def objective(trial: hd.Trial) -> float:
        if trial.number == 1:
            raise error
        return 0.0

    study = hd.Study(SPACE, seed=0)
    run(study, objective, 3)
    assert states(study) == ["COMPLETE", "FAIL", "COMPLETE"]
    assert study.trials[1].user_attrs["failure"] == failure
    assert type(error).__name__ in study.trials[1].user_attrs["error"]


def test_an_interrupt_ends_the_study_and_no_trial_stays_running() -> None:
    def objective(trial: hd.Trial) -> float:
        if trial.number == 1:
            raise KeyboardInterrupt
        return 0.0

    study = hd.Study(SPACE, seed=0)
    with pytest.raises(KeyboardInterrupt):
        run(study, objective, 3)
    assert states(study) == ["COMPLETE", "FAIL"]
    assert study.trials[1].user_attrs["failure"] == "interrupted"


def test_an_interrupted_trial_does_not_count_towards_the_total() -> None:
    def objective(trial: hd.Trial) -> float:
        if trial.number == 1:
            raise KeyboardInterrupt
        return 0.0

    study = hd.Study(SPACE, seed=0)
    with pytest.raises(KeyboardInterrupt):
        study.optimize(objective, total_trials=3, progress=False)
    study.optimize(objective, total_trials=3, progress=False)
    assert states(study) == ["COMPLETE", "FAIL", "COMPLETE", "COMPLETE"]


def test_a_sampler_that_raises_leaves_no_running_trial() -> None:
    class Broken(optuna.samplers.RandomSampler):
        def sample_independent(self, *args: Any) -> Any:
            raise np.linalg.LinAlgError("not positive definite")

    study = hd.Study(SPACE, tuner=Broken())
    with pytest.raises(np.linalg.LinAlgError):
        run(study, bowl, 2)
    assert states(study) == ["FAIL"]


def test_without_a_complete_trial_best_says_how_the_trials_went() -> None:
    study = hd.Study(SPACE, seed=0)
    with pytest.raises(hd.StudyError, match=r"the study has no trials\.$"):
        _ = study.best
    run(study, lambda trial: 1 / 0, 2)
    with pytest.raises(hd.StudyError, match="2 FAIL; the last error: ZeroDivisionError"):
        _ = study.best


# Limits


def test_total_trials_counts_those_that_are_there() -> None:
    study = hd.Study(SPACE, seed=0)
    run(study, bowl, 3)
    study.optimize(bowl, total_trials=5, progress=False)
    assert len(study.trials) == 5
    study.optimize(bowl, total_trials=5, progress=False)
    assert len(study.trials) == 5


def test_no_trial_starts_after_the_timeout() -> None:
    study = hd.Study(SPACE, seed=0)
    study.optimize(bowl, timeout=0.0, progress=False)
    assert study.trials == []


def test_a_callback_sees_every_finished_trial_and_can_stop_the_study() -> None:
    seen: list[int] = []

    def callback(study: optuna.Study, trial: FrozenTrial) -> None:
        assert trial.state.is_finished()
        seen.append(trial.number)
        if len(seen) == 3:
            study.stop()

    study = hd.Study(SPACE, seed=0)
    run(study, bowl, 10, callbacks=[callback])
    assert seen == [0, 1, 2]


def test_callbacks_of_optuna_work() -> None:
    study = hd.Study(SPACE, seed=0)
    stop = optuna.study.MaxTrialsCallback(4, states=(TrialState.COMPLETE,))
    study.optimize(bowl, callbacks=[stop], progress=False)
    assert len(study.trials) == 4


def test_an_error_in_a_callback_ends_the_study_with_the_trial_stored() -> None:
    def callback(study: optuna.Study, trial: FrozenTrial) -> None:
        raise LookupError

    study = hd.Study(SPACE, seed=0)
    with pytest.raises(LookupError):
        run(study, bowl, 3, callbacks=[callback])
    assert states(study) == ["COMPLETE"]

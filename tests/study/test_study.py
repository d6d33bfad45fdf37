"""The study, with trials in this process."""

import math
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
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
from optuna.trial import FrozenTrial, TrialState
from torch import Tensor

import hyperopt_dl as hd
from hyperopt_dl.errors import ObjectivesError
from hyperopt_dl.study.optuna_study import Direction

SPACE = hd.Space(x=hd.Float(2.0, 6.0), n=hd.Int(1, 9), kind=hd.Categorical(["a", "b"]))


def bowl(trial: hd.Trial) -> float:
    offset = 1.0 if trial.params["kind"] == "a" else 0.0
    return float((trial.params["x"] - 3.0) ** 2 + trial.params["n"] + offset)


def run(study: hd.Study, objective: Callable[[hd.Trial], Any], n: int, **options: Any) -> None:
    study.optimize(objective, n_trials=n, progress=False, **options)


def states(study: hd.Study) -> list[str]:
    return [trial.state.name for trial in study.trials]


class Shrinking:
    """A training whose loss after t steps is ``lr ** t``."""

    steps = 6
    report_every = 2

    def init(
        self, hparams: hd.HParams, *, seed: int, device: torch.device | str
    ) -> dict[str, Tensor]:
        return {"w": torch.ones((), dtype=torch.double, device=device), "seed": torch.tensor(seed)}

    def step(self, state: dict[str, Tensor], hparams: hd.HParams, t: int) -> dict[str, Tensor]:
        return {**state, "w": state["w"] * hparams["lr"]}

    def loss(self, state: dict[str, Tensor], hparams: hd.HParams) -> Tensor:
        return state["w"]


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
    with pytest.raises(hd.StudyError, match="the study has no trials"):
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


# Reproducibility


def suggestions(study: hd.Study) -> list[dict[str, Any]]:
    return [trial.params for trial in study.trials]


def one_seed(seed: int | None, n: int = 14, pieces: Sequence[int] = ()) -> list[dict[str, Any]]:
    study = hd.Study(SPACE, seed=seed)
    for count in pieces or [n]:
        run(study, bowl, count)
    return suggestions(study)


def test_one_seed_gives_the_same_study_again() -> None:
    assert one_seed(3) == one_seed(3)


def test_another_seed_gives_another_study() -> None:
    assert one_seed(3) != one_seed(4)


def test_no_seed_gives_another_study_every_time() -> None:
    assert one_seed(None) != one_seed(None)


def test_a_study_in_pieces_equals_a_study_in_one_piece(tmp_path: Path) -> None:
    for count in (3, 4, 7):
        run(hd.Study(SPACE, seed=3, storage=tmp_path / "study.log"), bowl, count)
    assert suggestions(hd.Study(SPACE, storage=tmp_path / "study.log")) == one_seed(3)


def test_trials_have_seeds_of_their_own_that_the_study_decides() -> None:
    def seeds(seed: int) -> list[int]:
        return [trial.seed for trial in hd.Study(SPACE, seed=seed).ask(3)]

    assert len(set(seeds(0))) == 3
    assert seeds(0) == seeds(0)
    assert not set(seeds(0)) & set(seeds(1))


def test_a_study_leaves_the_global_generators_alone() -> None:
    torch.manual_seed(5)
    np.random.seed(5)
    before = torch.random.get_rng_state(), np.random.get_state()[1].copy()  # type: ignore[index]
    run(hd.Study(SPACE, seed=0), bowl, 12)
    assert torch.equal(torch.random.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])  # type: ignore[index]


# Set-up errors, before trial 0


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
TUNED = hd.Space(lr=hd.Float(0.1, 0.9, step=0.1), momentum=hd.Float(0.0, 0.75, step=0.25))


def supervised() -> hd.Supervised:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(60, 3, generator=generator)
    y = x @ torch.tensor([1.0, -2.0, 0.5])
    return hd.Supervised(
        model=torch.nn.Sequential(torch.nn.Linear(3, 1), torch.nn.Flatten(0)),
        loss=torch.nn.functional.mse_loss,
        optimizer=hd.optimizers.SGD(lr="lr", momentum="momentum"),
        train=(x[:40], y[:40]),
        validation=(x[40:], y[40:]),
        steps=5,
        batch_size=8,
    )


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


def hd_trial(frozen: FrozenTrial) -> Any:
    """Return something with the parameters of a finished trial, to evaluate it again."""
    return type("Seen", (), {"params": frozen.params})


def _is_one(result: Any) -> bool:
    return isinstance(result, torch.Tensor) and result.numel() == 1 and bool((result == 1).all())

"""What every executor must do, seen through a study that runs on it.

Subclass ``ExecutorContract`` beside a module-scoped fixture ``executor``.
"""

import math
from typing import Any

import optuna
import pytest
import torch

import hyperopt_dl as hd
from tests.problems import Quadratic

SPACE = hd.Space(x=hd.Float(2.0, 6.0), kind=hd.Categorical(["a", "b"]))
FACTOR = 10.0


def every_kind(trial: hd.Trial) -> Any:
    """Do something else in each trial, by its number."""
    match trial.number:
        case 0:
            return FACTOR * trial.params["x"] ** 2
        case 1:
            return trial.suggest_int("depth", 3, 9, step=3) + trial.suggest_float("z", 5.0, 6.0)
        case 2:
            trial.report(1.0, step=0)
            trial.report(2.0, step=4)
            raise hd.TrialPruned
        case 3:
            raise LookupError("nothing here")
        case 4:
            return math.nan
        case 5:
            trial.set_user_attr("device", str(trial.device))
            trial.set_user_attr("seed", trial.seed)
            trial.set_user_attr("global", torch.initial_seed() == trial.seed)
            trial.set_constraint("small", -1.0)
            return torch.tensor(7.0)
        case 6:
            raise SystemExit(3)
        case 7:
            raise MemoryError
        case _:
            return trial.should_prune()


class ExecutorContract:
    """The contract; the twelve trials of ``every_kind`` are run once for all its tests."""

    @pytest.fixture(scope="class")
    @classmethod
    def study(cls, executor: hd.executors.Executor) -> hd.Study:
        study = hd.Study(SPACE, seed=5, tuner=optuna.samplers.RandomSampler())
        study.optimize(every_kind, n_trials=12, executor=executor, progress=False)
        return study

    def test_every_trial_is_finished(self, study: hd.Study) -> None:
        assert len(study.trials) == 12
        assert all(trial.state.is_finished() for trial in study.trials)

    def test_a_value_comes_back(self, study: hd.Study) -> None:
        assert study.trials[0].value == FACTOR * study.trials[0].params["x"] ** 2

    def test_a_suggestion_made_in_the_trial_is_recorded(self, study: hd.Study) -> None:
        trial = study.trials[1]
        assert trial.value == trial.params["depth"] + trial.params["z"]
        assert trial.params["depth"] in (3, 6, 9)
        assert 5.0 <= trial.params["z"] <= 6.0

    def test_a_pruned_trial_keeps_its_reports(self, study: hd.Study) -> None:
        assert study.trials[2].state.name == "PRUNED"
        assert study.trials[2].intermediate_values == {0: 1.0, 4: 2.0}

    @pytest.mark.parametrize(
        ("number", "failure", "error"),
        [
            (3, "exception", "LookupError: nothing here"),
            (4, "nan", "(nan,)"),
            (6, "exception", "SystemExit: 3"),
            (7, "oom", "MemoryError"),
        ],
    )
    def test_a_failure_is_recorded_with_its_kind(
        self, study: hd.Study, number: int, failure: str, error: str
    ) -> None:
        trial = study.trials[number]
        assert trial.state.name == "FAIL"
        assert trial.user_attrs["failure"] == failure
        assert error in trial.user_attrs["error"]

    def test_attributes_and_constraints_are_recorded(self, study: hd.Study) -> None:
        trial = study.trials[5]
        assert trial.user_attrs["device"] == str(torch.device(trial.user_attrs["device"]))
        assert trial.constraints == {"small": -1.0}
        assert trial.value == 7.0

    def test_a_trials_seed_does_not_depend_on_the_executor(self, study: hd.Study) -> None:
        serial = hd.Study(SPACE, seed=5).ask(6)
        assert study.trials[5].user_attrs["seed"] == serial[5].seed

    def test_no_global_seed_is_set(self, study: hd.Study) -> None:
        assert study.trials[5].user_attrs["global"] is False

    def test_the_suggestions_are_those_of_a_serial_study(self, study: hd.Study) -> None:
        # Random search does not look at results, so even in parallel all of them are fixed.
        serial = hd.Study(SPACE, seed=5, tuner=optuna.samplers.RandomSampler()).ask(12)
        ours = [{k: t.params[k] for k in SPACE} for t in study.trials]
        assert ours == [trial.params for trial in serial]

    def test_a_training_gives_its_exact_loss(self, executor: hd.executors.Executor) -> None:
        problem = Quadratic(steps=6, noise=0.1)
        study = hd.Study(hd.Space(lr=hd.Float(0.01, 0.4)), seed=0)
        study.optimize(problem, n_trials=2, executor=executor, progress=False)
        for trial in study.trials:
            seed = trial.user_attrs["hd:run"]["seed"]
            exact = problem.exact_loss(trial.params["lr"], seed=seed)
            assert trial.value == pytest.approx(exact, rel=1e-10)

    def test_an_estimator_gives_its_exact_derivative(self, executor: hd.executors.Executor) -> None:
        problem = Quadratic(steps=6, noise=0.1)
        study = hd.Study(hd.Space(lr=hd.Float(0.01, 0.4)), tuner=hd.Hypergradient(), seed=0)
        study.optimize(problem, n_trials=2, executor=executor, progress=False)
        for trial in study.trials:
            seed = trial.user_attrs["hd:run"]["seed"]
            exact = problem.exact_gradient(trial.params["lr"], seed=seed).item()
            assert trial.user_attrs["hypergradient"]["lr"] == pytest.approx(exact, rel=1e-8)

    def test_a_workload_that_cannot_be_used_leaves_no_trial(
        self, executor: hd.executors.Executor
    ) -> None:
        study = hd.Study(SPACE)
        with pytest.raises(hd.StudyError):
            study.optimize("nothing", n_trials=1, executor=executor)  # type: ignore[arg-type]
        assert study.trials == []

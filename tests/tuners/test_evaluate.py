"""The sampler in plain Optuna."""

import logging
import math
from typing import Any

import optuna
import pytest
import torch

import hyperopt_dl as hd
from tests.problems import Quadratic
from tests.tuners.descents import bowl

PROBLEM = Quadratic(noise=0.1)


def objective(trial: optuna.Trial) -> float:
    trial.suggest_float("lr", 0.05, 0.45, log=True)
    return hd.evaluate(trial, PROBLEM, seed=3)


def test_a_study_of_optuna_descends() -> None:
    study = optuna.create_study(sampler=hd.Hypergradient(lr=0.02))
    study.enqueue_trial({"lr": 0.06})
    study.optimize(objective, n_trials=8)
    values = [trial.value or 0.0 for trial in study.trials]
    assert values == sorted(values, reverse=True)
    for trial in study.trials:
        lr = trial.params["lr"]
        assert trial.value == pytest.approx(PROBLEM.exact_loss(lr, seed=3), rel=1e-10)
        exact = PROBLEM.exact_gradient(lr, seed=3).item()
        assert trial.user_attrs["hypergradient"]["lr"] == pytest.approx(exact, rel=1e-8)


def test_optunas_loop_and_ours_propose_the_same() -> None:
    theirs = optuna.create_study(sampler=hd.Hypergradient(seed=2, chains=2))
    ours = hd.Study({"lr": hd.Float(0.05, 0.45, log=True)}, tuner=hd.Hypergradient(chains=2))
    for start in (0.1, 0.3):
        theirs.enqueue_trial({"lr": start})
        ours.enqueue({"lr": start})
    quiet = Quadratic()

    def still(trial: optuna.Trial) -> float:
        trial.suggest_float("lr", 0.05, 0.45, log=True)
        return hd.evaluate(trial, quiet)

    theirs.optimize(still, n_trials=8)
    ours.optimize(quiet, n_trials=8, progress=False)
    assert [t.params for t in theirs.trials] == [t.params for t in ours.trials]


def test_runs_have_seeds_of_their_own_that_the_sampler_decides() -> None:
    def values(seed: int) -> list[float]:
        study = optuna.create_study(sampler=hd.Hypergradient(seed=seed))
        for _ in range(3):
            study.enqueue_trial({"lr": 0.1})
        study.optimize(
            lambda t: t.suggest_float("lr", 0.05, 0.45) and hd.evaluate(t, PROBLEM), n_trials=3
        )
        return [trial.value or 0.0 for trial in study.trials]

    assert values(0) == values(0)
    assert len({*values(0), *values(1)}) == 6


def test_a_conditional_parameter_moves_with_its_chain() -> None:
    def branching(trial: optuna.Trial) -> float:
        if trial.suggest_categorical("kind", ["flat", "deep"]) == "deep":
            trial.suggest_float("y", 1e-3, 1.0, log=True)
        trial.suggest_float("x", 2.0, 6.0)
        return hd.evaluate(trial, PROBLEM)

    sampler = hd.Hypergradient(bowl, chain_length=5, lr=0.01, seed=1)
    study = optuna.create_study(sampler=sampler)
    study.optimize(branching, n_trials=30)
    chains = [study.trials[i : i + 5] for i in range(0, 30, 5)]
    assert {chain[0].params["kind"] for chain in chains} == {"flat", "deep"}
    for chain in chains:
        assert len({tuple(trial.params) for trial in chain}) == 1
        values = [trial.value or 0.0 for trial in chain]
        assert values == sorted(values, reverse=True)


def test_a_nan_fails_the_trial_and_halves_the_step() -> None:
    def estimator(training: Any, hparams: Any, **_: Any) -> Any:
        x = hparams["x"]
        return torch.tensor(x if x > 3 else math.nan), {"x": torch.tensor(1.0)}

    study = optuna.create_study(sampler=hd.Hypergradient(estimator, "sgd", lr=0.1))
    study.enqueue_trial({"x": 4.0})
    study.optimize(lambda t: t.suggest_float("x", 2.0, 6.0) and hd.evaluate(t, PROBLEM), n_trials=3)
    assert [t.params["x"] for t in study.trials] == pytest.approx([4.0, 2.4, 3.2])
    assert [t.state.name for t in study.trials] == ["COMPLETE", "FAIL", "COMPLETE"]


def test_trials_without_a_gradient_are_starts_and_are_warned_of_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    study = optuna.create_study(sampler=hd.Hypergradient(seed=0))
    with caplog.at_level(logging.WARNING):
        study.optimize(lambda trial: trial.suggest_float("x", 2.0, 6.0), n_trials=9)
    messages = [r.getMessage() for r in caplog.records if "without a hypergradient" in r.message]
    assert len(messages) == 1
    assert "hyperopt_dl.evaluate(trial, training)" in messages[0]
    x = sorted(trial.params["x"] for trial in study.trials[1:])
    cells = [int((value - 2.0) / 0.5) for value in x]  # eight Sobol points, one to each eighth
    assert cells == list(range(8))


def test_another_sampler_is_refused() -> None:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler())
    with pytest.raises(hd.StudyError, match="has an estimator, got a RandomSampler"):
        hd.evaluate(study.ask(), PROBLEM)


def test_threads_get_chains_of_their_own() -> None:
    study = optuna.create_study(sampler=hd.Hypergradient(seed=0, lr=0.01))
    study.optimize(objective, n_trials=12, n_jobs=3)
    assert [trial.state.name for trial in study.trials] == ["COMPLETE"] * 12

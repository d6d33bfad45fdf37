"""The files that a study keeps Arrays in, and their way to workers and back."""

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
import torch
from optuna.artifacts import get_all_artifact_meta

import hyperopt_dl as hd
from tests.tuners.test_arrays import (
    PROBLEM,
    SPIRAL,
    SPIRALS,
    Counting,
    W,
    everything,
    paraboloid,
    tuned,
)


def test_best_has_the_array_among_its_parameters() -> None:
    study = tuned(SPIRALS, 6, training=SPIRAL)
    best = study.best
    assert best.params.keys() == SPIRALS.keys()
    hp = {name: best.params[name] for name in ("decay", "frequency", "start")}
    state = SPIRAL.exact_state(**hp)
    error = state - torch.tensor([SPIRAL.target.real, SPIRAL.target.imag], dtype=torch.double)
    assert best.value == pytest.approx(float(error.square().sum()), rel=1e-10)
    assert [trial.params.keys() for trial in study.best_trials] == [SPIRALS.keys()]


def test_values_and_derivatives_are_artifacts_of_their_trial(tmp_path: Path) -> None:
    study = hd.Study(SPIRALS, tuner=hd.Hypergradient(), storage=tmp_path / "s.log", seed=0)
    study.optimize(SPIRAL, n_trials=2, progress=False)
    folder = tmp_path / "s.log.artifacts"
    for trial in study.trials:
        value = trial.user_attrs["hd:arrays"]["start"]
        derivative = trial.user_attrs["hypergradient"]["start"]
        known = {
            meta.artifact_id: meta.filename
            for meta in get_all_artifact_meta(trial, storage=study.optuna._storage)
        }
        assert known == {value: "start.npy", derivative: "start.gradient.npy"}
        start = torch.from_numpy(np.load(folder / value))
        assert torch.equal(start, study.params(trial.number)["start"])
        hp = trial.params
        exact = SPIRAL.exact_gradient(hp["decay"], hp["frequency"], start)["start"]
        got = torch.from_numpy(np.load(folder / derivative))
        torch.testing.assert_close(got, exact, rtol=1e-10, atol=1e-12)
    assert len(list(folder.iterdir())) == 4


def test_a_stored_study_shows_its_arrays_without_a_space(tmp_path: Path) -> None:
    study = hd.Study(W, tuner=hd.Hypergradient(paraboloid), storage=tmp_path / "s.log", seed=0)
    study.optimize(PROBLEM, n_trials=2, progress=False)
    there = hd.Study(storage=tmp_path / "s.log").best.params["w"]
    assert torch.equal(there, study.best.params["w"])


def sqlite(folder: Path) -> dict[str, Any]:
    return {"storage": f"sqlite:///{folder / 's.db'}", "artifacts": folder / "files"}


def given(folder: Path) -> dict[str, Any]:
    return {"storage": optuna.storages.InMemoryStorage(), "artifacts": Counting(folder)}


@pytest.mark.parametrize("place", [sqlite, given])
def test_a_database_or_an_object_is_told_where_the_files_are(
    place: Callable[[Path], dict[str, Any]], tmp_path: Path
) -> None:
    options = place(tmp_path)
    for _ in range(2):
        tuner = hd.Hypergradient(paraboloid)
        study = hd.Study(W, tuner=tuner, name="s", seed=0, **options)
        study.optimize(PROBLEM, n_trials=1, progress=False)
    assert everything(study) == everything(tuned(W, 2, estimator=paraboloid))


@pytest.mark.parametrize("storage", ["sqlite:///nowhere.db", optuna.storages.InMemoryStorage()])
def test_arrays_without_a_place_are_refused(storage: Any) -> None:
    with pytest.raises(hd.StudyError, match=r"Give Study\(artifacts=...\)"):
        hd.Study(W, tuner=hd.Hypergradient(), storage=storage)
    assert not Path("nowhere.db").exists()


@pytest.mark.parametrize(
    ("artifacts", "message"),
    [(3, "a folder or an artifact store of Optuna's, got 3"), ("/dev/null/x", "can be written to")],
)
def test_a_place_that_cannot_be_is_refused(artifacts: Any, message: str) -> None:
    with pytest.raises(hd.StudyError, match=message):
        hd.Study(W, tuner=hd.Hypergradient(), artifacts=artifacts)


def test_a_file_that_is_gone_is_said(tmp_path: Path) -> None:
    study = hd.Study(W, tuner=hd.Hypergradient(paraboloid), storage=tmp_path / "s.log", seed=0)
    study.optimize(PROBLEM, n_trials=1, progress=False)
    for path in (tmp_path / "s.log.artifacts").iterdir():
        path.unlink()
    with pytest.raises(hd.StudyError, match="must be in the study's artifact store"):
        _ = study.best
    with pytest.raises(hd.StudyError, match="must be in the study's artifact store"):
        hd.Study(W, tuner=hd.Hypergradient(), storage=tmp_path / "s.log")
    assert len(hd.Study(storage=tmp_path / "s.log").trials) == 1


def test_another_shape_cannot_go_on(tmp_path: Path) -> None:
    study = hd.Study(W, tuner=hd.Hypergradient(paraboloid), storage=tmp_path / "s.log", seed=0)
    study.optimize(PROBLEM, n_trials=1, progress=False)
    with pytest.raises(hd.StudyError, match=r"of shape \(3,\) and is of shape \(4,\) now"):
        hd.Study(hd.Space(w=hd.Array(4)), tuner=hd.Hypergradient(), storage=tmp_path / "s.log")


def test_enqueued_arrays_are_not_compared() -> None:
    study = hd.Study(W, tuner=hd.Hypergradient(paraboloid))
    with pytest.raises(hd.StudyError, match="skip_if_exists compares numbers and choices"):
        study.enqueue({"w": [0.0, 0.0, 0.0]}, skip_if_exists=True)


def test_a_trial_that_does_not_exist_has_no_parameters() -> None:
    study = tuned(W, 2, estimator=paraboloid)
    with pytest.raises(hd.StudyError, match="the trials 0 to 1, got 2"):
        study.params(2)


# Workers


SCRIPT = """
import os, signal, sys
import hyperopt_dl as hd
from tests.problems import Spiral
from tests.tuners.test_arrays import SPIRAL, SPIRALS, everything

class Dying(Spiral):
    def loss(self, state, hparams):
        if os.path.exists(sys.argv[2]) and len(os.listdir(sys.argv[1] + ".artifacts")) > 12:
            os.remove(sys.argv[2])
            os.kill(os.getppid() if sys.argv[3] == "workers" else os.getpid(), signal.SIGKILL)
        return super().loss(state, hparams)

study = hd.Study(SPIRALS, tuner=hd.Hypergradient(chains=2, lr=0.1), storage=sys.argv[1], seed=3)
workers = hd.executors.Processes("cpu", per_device=2, threads_per_worker=1)
executor = workers if sys.argv[3] == "workers" else hd.executors.Serial()
study.optimize(Dying(**vars(SPIRAL)), total_trials=12, executor=executor, progress=False)
"""


@pytest.mark.slow
@pytest.mark.parametrize("where", ["here", "workers"])
def test_a_study_that_was_killed_goes_on(where: str, tmp_path: Path) -> None:
    bomb = tmp_path / "bomb"
    bomb.touch()
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "s.log"), str(bomb), where]
    options: dict[str, Any] = {"cwd": Path(__file__).parents[2], "timeout": 120}
    assert subprocess.run(command, **options).returncode == -signal.SIGKILL
    cut = hd.Study(storage=tmp_path / "s.log")
    running = [t.number for t in cut.trials if t.state.name == "RUNNING"]
    before = [everything(cut)[number] for number in running]
    assert running
    assert subprocess.run(command, **options).returncode == 0
    study = hd.Study(storage=tmp_path / "s.log")
    assert [trial.state.name for trial in study.trials] == ["COMPLETE"] * 12
    assert [everything(study)[number] for number in running] == before
    if where == "here":
        tuner = hd.Hypergradient(chains=2, lr=0.1)
        whole = hd.Study(SPIRALS, tuner=tuner, seed=3)
        whole.optimize(SPIRAL, n_trials=12, progress=False)
        assert everything(study) == everything(whole)


@pytest.mark.slow
def test_arrays_travel_to_workers_and_derivatives_back() -> None:
    study = hd.Study(SPIRALS, tuner=hd.Hypergradient(chains=2), seed=0)
    workers = hd.executors.Processes("cpu", per_device=2, threads_per_worker=1)
    study.optimize(SPIRAL, n_trials=6, executor=workers, progress=False)
    assert [trial.state.name for trial in study.trials] == ["COMPLETE"] * 6
    for trial in study.trials:
        hp = study.params(trial.number)
        exact = SPIRAL.exact_gradient(hp["decay"], hp["frequency"], hp["start"])["start"]
        got = study.optuna.archive.load(  # type: ignore[attr-defined]
            trial.user_attrs["hypergradient"]["start"]
        )
        torch.testing.assert_close(got, exact, rtol=1e-10, atol=1e-12)

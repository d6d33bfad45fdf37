"""Whether a process is certainly gone."""

import dataclasses
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

import hyperopt_dl as hd
from hyperopt_dl.study.lease import Lease
from hyperopt_dl.study.ledger import RUN


def test_this_process_is_not_gone() -> None:
    lease = Lease.here()
    assert lease.pid == os.getpid()
    assert not lease.expired()


def test_a_lease_survives_json() -> None:
    assert Lease.read(json.loads(json.dumps(Lease.here().write()))) == Lease.here()


@pytest.mark.parametrize(
    "changes", [{"boot": "another boot"}, {"started": 1}, {"pid": 2**22 + 1}], ids=str
)
def test_another_boot_or_another_process_of_that_number_means_gone(
    changes: dict[str, str | int],
) -> None:
    assert dataclasses.replace(Lease.here(), **changes).expired()  # type: ignore[arg-type]


def test_nothing_is_certain_of_another_machine() -> None:
    elsewhere = dataclasses.replace(Lease.here(), host="elsewhere", boot="another", pid=2**22 + 1)
    assert not elsewhere.expired()


def test_a_killed_process_that_nobody_has_waited_for_is_gone() -> None:
    code = "import json; from hyperopt_dl.study.lease import Lease; "
    code += "print(json.dumps(Lease.here().write()))"
    command = [sys.executable, "-c", code + "; import time; time.sleep(60)"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lease = Lease.read(json.loads(process.stdout.readline()))
        assert not lease.expired()
        process.kill()
        deadline = time.monotonic() + 5
        while not lease.expired():
            assert time.monotonic() < deadline
        assert process.returncode is None


# What a study does with the trials of a dead process

SPACE = hd.Space(x=hd.Float(2.0, 6.0))


def left_running(path: Path, lease: Lease | None, seed: int = 77) -> int:
    """Leave a trial RUNNING, as a process with this lease would have, and return its number."""
    trial = hd.Study(SPACE, storage=path).optuna.ask()
    if lease is not None:
        trial.suggest_float("x", 2.0, 6.0)
        trial.set_user_attr(RUN, {"seed": seed, **lease.write()})
    return trial.number


def dead() -> Lease:
    return dataclasses.replace(Lease.here(), boot="another boot")


def test_an_orphan_is_taken_up_with_its_parameters_and_seed(tmp_path: Path) -> None:
    number = left_running(tmp_path / "a.log", dead(), seed=77)
    study = hd.Study(SPACE, storage=tmp_path / "a.log")
    x = study.trials[number].params["x"]
    seen = []

    def objective(trial: hd.Trial) -> float:
        seen.append((trial.number, trial.seed, trial.params))
        return 0.0

    study.optimize(objective, 1, progress=False)
    assert seen == [(number, 77, {"x": x})]
    assert [trial.state.name for trial in study.trials] == ["COMPLETE"]


@pytest.mark.parametrize("lease", [Lease.here(), None], ids=["alive", "unknown"])
def test_a_trial_that_may_be_somebody_elses_is_left_alone(
    tmp_path: Path, lease: Lease | None
) -> None:
    number = left_running(tmp_path / "a.log", lease)
    study = hd.Study(SPACE, storage=tmp_path / "a.log")
    study.optimize(lambda trial: 0.0, 2, progress=False)
    states = [trial.state.name for trial in study.trials]
    assert states == ["RUNNING", "COMPLETE", "COMPLETE"]
    assert number == 0


def test_an_orphan_counts_once_towards_the_total(tmp_path: Path) -> None:
    left_running(tmp_path / "a.log", dead())
    study = hd.Study(SPACE, storage=tmp_path / "a.log")
    study.optimize(lambda trial: 0.0, total_trials=3, progress=False)
    assert [trial.state.name for trial in study.trials] == ["COMPLETE"] * 3


def test_a_trial_that_died_before_it_was_claimed_is_taken_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hyperopt_dl.study.ledger.SETTLING", 0.01)
    left_running(tmp_path / "a.log", dead())
    left_running(tmp_path / "a.log", None)
    study = hd.Study(SPACE, storage=tmp_path / "a.log")
    study.optimize(lambda trial: trial.params["x"], total_trials=2, progress=False)
    assert [trial.state.name for trial in study.trials] == ["COMPLETE"] * 2


def test_a_report_of_the_earlier_attempt_is_not_made_twice(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    trial = hd.Study(SPACE, storage=path).optuna.ask()
    trial.report(5.0, step=1)
    trial.set_user_attr(RUN, {"seed": 1, **dead().write()})

    def objective(trial: hd.Trial) -> float:
        trial.report(5.0, step=1)
        trial.report(4.0, step=2)
        return 4.0

    study = hd.Study(SPACE, storage=path)
    study.optimize(objective, 1, progress=False)  # Optuna would warn, and warnings are errors here
    assert study.trials[0].intermediate_values == {1: 5.0, 2: 4.0}

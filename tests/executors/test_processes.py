"""Trials in worker processes."""

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch

import hyperopt_dl as hd
from tests.contracts.executor import ExecutorContract
from tests.problems import Quadratic

TWO = hd.executors.Processes(devices="cpu", per_device=2, threads_per_worker=1)
SPACE = hd.Space(x=hd.Float(2.0, 6.0))


@pytest.fixture(scope="module")
def executor() -> hd.executors.Executor:
    return TWO


class TestProcesses(ExecutorContract):
    pass


def first_batch(workers: int) -> list[dict[str, Any]]:
    study = hd.Study(SPACE, seed=3)
    executor = hd.executors.Processes(devices="cpu", per_device=workers, threads_per_worker=1)
    study.optimize(lambda trial: trial.params["x"], 4, executor=executor, progress=False)
    return [trial.params for trial in study.trials[:workers]]


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2, 4])
def test_one_seed_gives_the_same_first_batch_to_any_number_of_workers(workers: int) -> None:
    asked = [trial.params for trial in hd.Study(SPACE, seed=3).ask(4)]
    assert first_batch(workers) == asked[:workers]


def test_workers_run_side_by_side_with_their_own_threads(tmp_path: Path) -> None:
    def objective(trial: hd.Trial) -> float:
        (tmp_path / str(os.getpid())).touch()
        deadline = time.monotonic() + 60
        while len(list(tmp_path.iterdir())) < 2:  # until the other worker is there too
            assert time.monotonic() < deadline
            time.sleep(0.01)
        trial.set_user_attr("threads", [torch.get_num_threads(), os.environ["OMP_NUM_THREADS"]])
        return 0.0

    study = hd.Study(SPACE)
    study.optimize(objective, 2, executor=TWO, progress=False)
    assert [trial.user_attrs.get("threads") for trial in study.trials] == [[1, "1"]] * 2
    assert str(os.getpid()) not in {path.name for path in tmp_path.iterdir()}


@pytest.mark.parametrize("retries", [0, 1])
def test_a_killed_worker_costs_one_attempt_and_is_seen_at_once(
    tmp_path: Path, retries: int
) -> None:
    log = tmp_path / "attempts"

    def objective(trial: hd.Trial) -> float:
        if trial.number == 1:
            with log.open("a") as file:
                file.write(f"{trial.seed} {trial.params['x']} {time.time()}\n")
            trial.report(1.0, step=0)
            if len(log.read_text().splitlines()) == 1:
                os.kill(os.getpid(), signal.SIGKILL)
        return trial.params["x"]  # type: ignore[no-any-return]

    ended: dict[int, float] = {}
    study = hd.Study(SPACE, seed=0)
    study.optimize(
        objective,
        6,
        executor=TWO,
        retries=retries,
        progress=False,
        callbacks=[lambda _, trial: ended.setdefault(trial.number, time.time())],
    )
    attempts = [line.split() for line in log.read_text().splitlines()]
    others = [trial for trial in study.trials if trial.number != 1]
    assert [trial.state.name for trial in others] == ["COMPLETE"] * 5
    assert len(attempts) == 1 + retries
    assert len({(seed, x) for seed, x, _ in attempts}) == 1
    if retries:
        assert study.trials[1].value == float(attempts[0][1])
        assert study.trials[1].user_attrs["retries"] == 1
    else:
        assert study.trials[1].user_attrs["failure"] == "lost"
        assert "SIGKILL" in study.trials[1].user_attrs["error"]
        assert ended[1] - float(attempts[0][2]) < 5.0  # 0.02 to 0.06 on an idle machine


def crash(trial: hd.Trial) -> float:
    match trial.number:
        case 0:
            ctypes.string_at(0)
        case 1:
            os._exit(0)
    return 0.0


def test_a_segmentation_fault_and_a_silent_exit_are_lost_trials() -> None:
    study = hd.Study(SPACE)
    study.optimize(crash, 4, executor=TWO, progress=False)
    errors = [trial.user_attrs.get("error") for trial in study.trials]
    assert errors[:2] == ["The worker was killed by SIGSEGV.", "The worker ended with exit code 0."]
    assert [trial.user_attrs.get("failure") for trial in study.trials] == ["lost"] * 2 + [None] * 2


def test_an_interrupt_in_a_worker_ends_the_study_and_the_workers(tmp_path: Path) -> None:
    def objective(trial: hd.Trial) -> float:
        (tmp_path / str(os.getpid())).touch()
        if trial.number == 1:
            raise KeyboardInterrupt
        time.sleep(60)
        return 0.0

    study = hd.Study(SPACE)
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        study.optimize(objective, 4, executor=TWO, progress=False)
    assert time.monotonic() - start < 30
    assert {trial.user_attrs["failure"] for trial in study.trials} == {"interrupted"}
    assert all_gone([int(path.name) for path in tmp_path.iterdir()], 1)


def test_a_worker_that_ran_out_of_memory_is_replaced() -> None:
    def objective(trial: hd.Trial) -> float:
        trial.set_user_attr("pid", os.getpid())
        if trial.number == 0:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return 0.0

    one = hd.executors.Processes(devices="cpu", threads_per_worker=1)
    study = hd.Study(SPACE)
    study.optimize(objective, 3, executor=one, progress=False)
    pids = [trial.user_attrs["pid"] for trial in study.trials]
    assert pids[0] != pids[1] == pids[2]


def test_an_error_of_the_storages_side_reaches_the_line_that_caused_it() -> None:
    def objective(trial: hd.Trial) -> tuple[float, float]:
        try:
            trial.report(1.0, step=0)
        except hd.StudyError:
            return 1.0, 2.0
        return 0.0, 0.0

    study = hd.Study(SPACE, directions=["minimize", "minimize"])
    study.optimize(objective, 1, executor=TWO, progress=False)
    assert study.trials[0].values == [1.0, 2.0]


def test_what_cannot_be_pickled_is_an_error_before_trial_0() -> None:
    lock = threading.Lock()

    def objective(trial: hd.Trial) -> float:
        with lock:
            return 0.0

    study = hd.Study(SPACE)
    with pytest.raises(hd.ExecutorError, match=r"cannot be pickled: .*lock"):
        study.optimize(objective, 1, executor=TWO, progress=False)
    assert study.trials == []


def test_an_estimator_that_cannot_be_pickled_is_an_error_before_trial_0_that_names_it() -> None:
    class Locked:
        def __init__(self) -> None:
            self.lock = threading.Lock()

        def __call__(self, *_: Any, **__: Any) -> Any:
            raise AssertionError

    study = hd.Study(SPACE, tuner=hd.Hypergradient(Locked()))
    with pytest.raises(hd.ExecutorError, match=r"estimator Locked .* cannot be pickled: .*lock"):
        study.optimize(Quadratic(), 1, executor=TWO, progress=False)
    assert study.trials == []


class Unloadable:
    """Something that can be pickled but not loaded again."""

    def __call__(self, trial: hd.Trial) -> float:
        return 0.0

    def __reduce__(self) -> Any:
        return int, ("no number",)


def test_what_cannot_be_loaded_in_a_worker_is_an_error_before_trial_0() -> None:
    study = hd.Study(SPACE)
    with pytest.raises(hd.ExecutorError, match=r"(?s)must load in a worker .*no number"):
        study.optimize(Unloadable(), 1, executor=TWO, progress=False)
    assert study.trials == []


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"


def all_gone(pids: list[int], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while any(alive(pid) for pid in pids):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


SCRIPT = """
import os, signal, sys, time
from pathlib import Path
import hyperopt_dl as hd

# A shell has what it starts in the background ignore SIGINT, and every child inherits that.
signal.signal(signal.SIGINT, signal.default_int_handler)
pause = float(sys.argv[2])

def objective(trial):
    Path(sys.argv[1], f"pid-{os.getpid()}").touch()
    Path(sys.argv[1], f"trial-{trial.number}-{trial.seed}-{trial.params['x']}").touch()
    time.sleep(pause if trial.number > 3 else 0.0)
    return trial.params["x"]

study = hd.Study(
    hd.Space(x=hd.Float(2.0, 6.0)), storage=Path(sys.argv[1], "study.log"), seed=11,
)
study.optimize(
    objective, total_trials=20, progress=False,
    executor=hd.executors.Processes("cpu", per_device=2, threads_per_worker=1),
)
"""


@contextmanager
def started(folder: Path, pause: float) -> Iterator["subprocess.Popen[bytes]"]:
    """Run the script, and no longer than the test that waits for it."""
    (folder / "script.py").write_text(SCRIPT)  # neither a guard nor an importable objective
    command = [sys.executable, str(folder / "script.py"), str(folder), str(pause)]
    with subprocess.Popen(command, stderr=subprocess.PIPE) as process:
        try:
            yield process
        finally:
            process.kill()


def wait_for_trials(folder: Path, n: int) -> None:
    deadline = time.monotonic() + 120
    while len(list(folder.glob("trial-*"))) < n:
        assert time.monotonic() < deadline, "the trials did not start"
        time.sleep(0.02)


def workers_of(folder: Path) -> list[int]:
    return [int(path.name.removeprefix("pid-")) for path in folder.glob("pid-*")]


@pytest.mark.slow
def test_a_study_whose_process_was_killed_goes_on_as_if_nothing_had_been(tmp_path: Path) -> None:
    with started(tmp_path, 60.0) as process:
        wait_for_trials(tmp_path, 6)
        process.kill()
        process.wait()
    assert all_gone(workers_of(tmp_path), 5)
    before = hd.Study(storage=tmp_path / "study.log").trials
    running = [trial.number for trial in before if trial.state.name == "RUNNING"]
    assert running

    with started(tmp_path, 0.0) as process:
        assert process.wait(120) == 0
    after = hd.Study(storage=tmp_path / "study.log").trials
    assert [trial.state.name for trial in after] == ["COMPLETE"] * 20
    assert [trial.params for trial in after[: len(before)]] == [trial.params for trial in before]
    for number in running:  # the same parameters and the same seed: the same file
        assert len(list(tmp_path.glob(f"trial-{number}-*"))) == 1


@pytest.mark.slow
def test_ctrl_c_ends_everything_within_seconds(tmp_path: Path) -> None:
    with started(tmp_path, 60.0) as process:
        wait_for_trials(tmp_path, 6)
        process.send_signal(signal.SIGINT)
        sent = time.monotonic()
        process.wait(30)
        assert time.monotonic() - sent < 10
        assert process.stderr is not None
        assert b"KeyboardInterrupt" in process.stderr.read()
    assert all_gone(workers_of(tmp_path), 1)
    trials = hd.Study(storage=tmp_path / "study.log").trials
    assert {trial.state.name for trial in trials} == {"COMPLETE", "FAIL"}
    failures = {trial.user_attrs.get("failure") for trial in trials if trial.number > 3}
    assert failures == {"interrupted"}


@pytest.mark.slow
def test_a_worker_takes_its_own_children_with_it(tmp_path: Path) -> None:
    def objective(trial: hd.Trial) -> float:
        child = subprocess.Popen(["sleep", "300"])
        (tmp_path / f"pid-{child.pid}").touch()
        if trial.number == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return 0.0

    study = hd.Study(SPACE)
    study.optimize(objective, 3, executor=TWO, progress=False)
    assert [t.user_attrs.get("failure") for t in study.trials] == [None, "lost", None]
    assert len(workers_of(tmp_path)) == 3
    assert all_gone(workers_of(tmp_path), 2)


@pytest.mark.slow
def test_pruning_and_a_training_work_side_by_side() -> None:
    def objective(trial: hd.Trial) -> float:
        for step in range(3):
            trial.report(float(trial.number), step)
            if trial.should_prune():
                raise hd.TrialPruned
        return float(trial.number)

    pruner = optuna.pruners.MedianPruner(n_startup_trials=2)
    study = hd.Study(SPACE, pruner=pruner)
    study.optimize(objective, 10, executor=TWO, progress=False)
    states = [trial.state.name for trial in study.trials]
    assert states[:2] == ["COMPLETE"] * 2
    assert states[4:] == ["PRUNED"] * 6


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_worker_sees_one_gpu() -> None:
    def objective(trial: hd.Trial) -> float:
        assert trial.device == torch.device("cuda", 0)
        return float(torch.ones(3, device=trial.device).sum()) + torch.cuda.device_count()

    study = hd.Study(SPACE)
    study.optimize(objective, 2, executor=hd.executors.Processes(per_device=2), progress=False)
    assert [trial.value for trial in study.trials] == [4.0, 4.0]

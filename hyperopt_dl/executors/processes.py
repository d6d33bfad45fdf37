"""Trials side by side, each worker a process of its own on a device of its own.

Workers are started afresh (never forked) and do not import the user's script, so a script needs no
``if __name__ == "__main__"``; lambdas, closures and functions of a notebook travel by cloudpickle.
"""

import contextlib
import json
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing import Pipe, connection
from typing import IO, Any, Self

import cloudpickle

from hyperopt_dl.errors import ExecutorError
from hyperopt_dl.executors.devices import Slot, slots
from hyperopt_dl.executors.executor import Finished
from hyperopt_dl.hypergrad import Estimator
from hyperopt_dl.trial import Job, Link, Outcome, Workload

TICK = 0.1
"""Seconds between two looks at whether a worker is alive, where its pipe does not tell."""
GRACE = 2.0
"""Seconds that a worker gets to end by itself before it is killed."""
PROGRAM = (
    "import json, sys; arguments, sys.path[:], sys.argv[:] = json.loads(sys.argv[1]); "
    "from hyperopt_dl.executors.worker import main; main(*arguments)"
)


@dataclass(frozen=True)
class Processes:
    """Run trials in worker processes, ``per_device`` on each device.

    A worker that dies costs one trial (see ``retries`` of ``Study.optimize``), not the study; the
    workers die with the process that started them.

    Args:
        devices: ``"auto"`` (every visible GPU, else the CPU), a name, or a list such as
            ``["cuda:0", "cuda:1"]``. Each worker sees its own GPU only, as ``"cuda:0"``.
        per_device: Workers on each device; on a CPU this is the number of workers.
        threads_per_worker: Threads of torch and of the BLAS library in each worker; ``None`` shares
            the CPU's cores out evenly.

    Raises:
        ExecutorError: A device that is not there, or a number below 1.
    """

    devices: str | Sequence[str] = "auto"
    per_device: int = 1
    threads_per_worker: int | None = None

    def __post_init__(self) -> None:
        if isinstance(self.devices, int):
            raise ExecutorError(
                f"devices must be names, got {self.devices}. For so many workers on each device, "
                f"write Processes(per_device={self.devices})."
            )
        slots(self.devices, self.per_device)
        if self.threads_per_worker is not None and self.threads_per_worker < 1:
            raise ExecutorError(
                f"threads_per_worker must be at least 1, got {self.threads_per_worker}. None "
                "shares out the cores."
            )

    def start(self, workload: Workload, estimator: Estimator | None = None) -> "ProcessPool":
        """Start the workers and return when the first of them is ready."""
        if os.name != "posix":
            raise ExecutorError(
                f"Processes needs a POSIX system, this one is {os.name!r}. Use executors.Serial()."
            )
        places = slots(self.devices, self.per_device)
        threads = self.threads_per_worker or max(1, _cores() // len(places))
        return ProcessPool(_packed(workload, estimator), places, threads)


@dataclass(eq=False)
class Worker:
    """A process and what it is doing; not ``ready`` until it has said so."""

    slot: Slot
    process: "subprocess.Popen[bytes]"
    pipe: "connection.Connection[Any, Any]"
    ready: bool = False
    job: Job | None = None
    link: Link | None = None


class ProcessPool:
    """Worker processes that share one file with the pickled workload and estimator."""

    def __init__(self, workload: IO[bytes], places: Sequence[Slot], threads: int) -> None:
        self._workload = workload
        self._threads = threads
        self._workers: list[Worker] = []
        try:
            self._workers += [self._spawn(slot) for slot in places]
            while not self.free:
                self._poll(TICK)
        except BaseException:
            self.close()
            raise

    @property
    def free(self) -> int:
        """The number of workers that are ready and idle."""
        return sum(worker.ready and worker.job is None for worker in self._workers)

    def submit(self, job: Job, link: Link) -> None:
        """Send a job to a free worker."""
        worker = next(w for w in self._workers if w.ready and w.job is None)
        worker.job, worker.link = job, link
        with contextlib.suppress(OSError):  # it has just died: the next poll sees it
            # By value: a pipe's own send would put an Array into memory that processes share.
            worker.pipe.send_bytes(pickle.dumps(job))

    def wait(self, timeout: float | None = None) -> Sequence[Finished]:
        """Serve the workers until one finishes or becomes free, ``timeout`` seconds at most."""
        deadline = None if timeout is None else time.monotonic() + timeout
        before = self.free
        while True:
            left = TICK if deadline is None else max(0.0, min(TICK, deadline - time.monotonic()))
            finished = self._poll(left)
            late = deadline is not None and time.monotonic() >= deadline
            if finished or self.free > before or late:
                return finished

    def close(self) -> None:
        """End every worker: the idle ones by a word, the busy ones by a signal."""
        for worker in self._workers:
            if worker.ready and worker.job is None:
                _dismiss(worker)
            else:
                _signal(worker, signal.SIGTERM if worker.ready else signal.SIGKILL)
        deadline = time.monotonic() + GRACE
        for worker in self._workers:
            _reap(worker, max(0.0, deadline - time.monotonic()))
        self._workers.clear()
        self._workload.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _poll(self, timeout: float) -> list[Finished]:
        """Handle one message of each worker that has something to say, and notice the dead."""
        by_pipe: dict[Any, Worker] = {worker.pipe: worker for worker in self._workers}
        spoke = [by_pipe[pipe] for pipe in connection.wait(list(by_pipe), timeout)]
        finished = [self._receive(worker) for worker in spoke]
        # A child of a worker may hold the worker's pipe open after its death: ask for the process
        # too.
        silent = [w for w in self._workers if w not in spoke and w.process.poll() is not None]
        finished += [self._receive(w) if w.pipe.poll() else self._lost(w) for w in silent]
        return [each for each in finished if each is not None]

    def _receive(self, worker: Worker) -> Finished | None:
        try:
            kind, content = worker.pipe.recv()
        except (EOFError, OSError):
            return self._lost(worker)
        if kind == "call":
            _answer(worker, *content)
            return None
        if kind == "ready":
            worker.ready = True
            return None
        if kind == "broken":
            raise ExecutorError(
                f"The workload (and the estimator) must load in a worker process, but there it "
                f"failed:\n{content}\nImport "
                f"what it needs inside it, or install it where the workers run."
            )
        if kind == "interrupt":
            raise KeyboardInterrupt
        return self._finish(worker, content)

    def _finish(self, worker: Worker, outcome: Outcome) -> Finished:
        job, worker.job, worker.link = worker.job, None, None
        assert job is not None
        on_gpu = worker.slot.device.startswith("cuda")
        if outcome.failure == "oom" or (outcome.state == "failed" and on_gpu):
            # Memory may not come back, and after some errors a CUDA context never works again.
            _dismiss(worker)
            _reap(worker, GRACE)
            self._replace(worker)
        return Finished(job, outcome)

    def _lost(self, worker: Worker) -> Finished | None:
        code = _reap(worker, GRACE)
        ending = _ending(code)
        if not worker.ready:
            raise ExecutorError(
                f"A worker process must start, but it {ending} before it was ready. Its own "
                "message stands above, if it had time for one."
            )
        self._replace(worker)
        if worker.job is None:
            return None
        return Finished(
            worker.job, Outcome("failed", failure="lost", error=f"The worker {ending}.")
        )

    def _replace(self, worker: Worker) -> None:
        self._workers[self._workers.index(worker)] = self._spawn(worker.slot)

    def _spawn(self, slot: Slot) -> Worker:
        ours, theirs = Pipe()
        descriptors = (theirs.fileno(), self._workload.fileno())
        threads = str(self._threads)
        arguments = (*descriptors, slot.device, self._threads)
        names = (
            "OMP_NUM_THREADS",
            "MKL_NUM_THREADS",
            "OPENBLAS_NUM_THREADS",
            "NUMEXPR_NUM_THREADS",
        )
        process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, json.dumps([arguments, sys.path, sys.argv])],
            stdin=subprocess.PIPE,
            pass_fds=descriptors,
            env={
                **os.environ,
                "CUDA_VISIBLE_DEVICES": slot.visible,
                **dict.fromkeys(names, threads),
            },
            start_new_session=True,
        )
        theirs.close()
        return Worker(slot, process, ours)


def _packed(workload: Workload, estimator: Estimator | None) -> IO[bytes]:
    """Return both, pickled, as a file without a name, which no crash can leave behind."""
    content = _pickled("workload", workload) + _pickled("estimator", estimator)
    file = tempfile.TemporaryFile()  # noqa: SIM115 (the pool closes it)
    file.write(content)
    file.flush()
    return file


def _pickled(role: str, value: object) -> bytes:
    try:
        return bytes(cloudpickle.dumps(value))
    except Exception as error:
        named = "" if role == "workload" else f" {type(value).__name__}"
        raise ExecutorError(
            f"The {role}{named} must be able to travel to a worker process, but it cannot be "
            f"pickled: {error}. Make what it holds (open files, locks, connections) inside it, or "
            f"use executors.Serial()."
        ) from error


def _answer(worker: Worker, method: str, arguments: tuple[Any, ...]) -> None:
    call: Callable[..., Any] = getattr(worker.link, method)
    try:
        reply = (True, call(*arguments))
    except Exception as error:
        reply = (False, error)
    with contextlib.suppress(OSError):
        worker.pipe.send(reply)


def _dismiss(worker: Worker) -> None:
    with contextlib.suppress(OSError):
        worker.pipe.send(None)


def _signal(worker: Worker, number: signal.Signals) -> None:
    """Send a signal to a worker and to everything that it has started."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(worker.process.pid, number)


def _reap(worker: Worker, patience: float) -> int:
    """Wait for a worker's end, force it after ``patience`` seconds, and return its exit code."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        worker.process.wait(patience)
    _signal(worker, signal.SIGKILL)
    code = worker.process.wait()
    worker.pipe.close()
    if worker.process.stdin is not None:
        worker.process.stdin.close()
    return code


def _ending(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"was killed by signal {-code}"


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1

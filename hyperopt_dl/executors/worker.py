"""The program of a worker process: receive a workload once, then run jobs until told to stop.

The parent sends a ``Job`` at a time, ``None`` to stop, and a reply to each call. Messages from the
worker are ``(kind, content)`` pairs:

========== ============================ ============================
kind       content                      the parent's reply
========== ============================ ============================
ready      ``None``                     a job, or ``None`` to stop
broken     why the workload cannot run  none: the worker ends
call       (method of the link, args)   (succeeded, result or error)
outcome    an ``Outcome``               a job, or ``None`` to stop
interrupt  ``None``                     none: the worker ends
========== ============================ ============================
"""

import contextlib
import mmap
import os
import pickle
import signal
import threading
import traceback
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from hyperopt_dl.hypergrad import Estimator
from hyperopt_dl.trial import Distribution, Job, Trial, Workload, run_trial


class PipeLink:
    """A link that asks the parent."""

    def __init__(self, pipe: "Connection[Any, Any]") -> None:
        self._pipe = pipe

    def suggest(self, name: str, distribution: Distribution) -> Any:
        """Ask for a parameter's value."""
        return self._call("suggest", name, distribution)

    def report(self, value: float, step: int) -> None:
        """Send an intermediate value."""
        self._call("report", value, step)

    def should_prune(self) -> bool:
        """Ask the pruner."""
        return bool(self._call("should_prune"))

    def set_constraint(self, key: str, value: float) -> None:
        """Send a constraint."""
        self._call("set_constraint", key, value)

    def set_user_attr(self, key: str, value: Any) -> None:
        """Send an attribute."""
        self._call("set_user_attr", key, value)

    def _call(self, method: str, *arguments: Any) -> Any:
        self._pipe.send(("call", (method, arguments)))
        succeeded, result = self._pipe.recv()
        if not succeeded:
            raise result
        return result


def main(pipe_descriptor: int, workload_descriptor: int, device: str, threads: int) -> None:
    """Serve the parent at the other end of a pipe; the pickled workload is an open file."""
    _die_with_the_parent()
    torch.set_num_threads(threads)
    pipe: Connection[Any, Any] = Connection(pipe_descriptor)
    with contextlib.suppress(EOFError, OSError):  # the parent is gone: so is the reason to speak
        try:
            workload, estimator = _read(workload_descriptor)
        except Exception:
            pipe.send(("broken", traceback.format_exc()))
            return
        pipe.send(("ready", None))
        _serve(pipe, workload, estimator, torch.device(device))


def _serve(
    pipe: "Connection[Any, Any]",
    workload: Workload,
    estimator: Estimator | None,
    device: torch.device,
) -> None:
    link = PipeLink(pipe)
    while isinstance(job := pipe.recv(), Job):
        trial = Trial(job, link, device)
        try:
            outcome = run_trial(workload, trial, job.objectives, estimator)
        except KeyboardInterrupt:
            pipe.send(("interrupt", None))
            return
        # By value: a pipe's own send would put an Array into memory that processes share.
        pipe.send_bytes(pickle.dumps(("outcome", outcome)))


def _read(descriptor: int) -> tuple[Workload, Estimator | None]:
    # All workers share the file and so its position: map it instead of reading on.
    with mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ) as content:
        workload: Workload = pickle.load(content)
        estimator: Estimator | None = pickle.load(content)
    os.close(descriptor)
    return workload, estimator


def _die_with_the_parent() -> None:
    """Take standard input, whose other end only the parent holds, as a lifeline.

    When the parent is gone, however it went, the read ends and so does the worker with everything
    that it has started. Standard input is left empty for the workload.
    """
    lifeline = os.dup(0)
    with Path(os.devnull).open("rb") as empty:
        os.dup2(empty.fileno(), 0)

    def watch() -> None:
        while os.read(lifeline, 1):
            pass
        os.killpg(os.getpgrp(), signal.SIGKILL)

    threading.Thread(target=watch, name="lifeline", daemon=True).start()

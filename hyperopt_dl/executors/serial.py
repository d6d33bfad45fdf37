"""Trials one after the other, in this process."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch

from hyperopt_dl.executors.devices import local_device
from hyperopt_dl.executors.executor import Finished
from hyperopt_dl.hypergrad import Estimator
from hyperopt_dl.trial import Job, Link, Trial, Workload, run_trial


@dataclass(frozen=True)
class Serial:
    """Run each trial in the calling process: for debugging, for tests, for one device.

    Args:
        device: ``"auto"`` (the first GPU, else the CPU) or the name of a device.

    Raises:
        ExecutorError: The device is not there.
    """

    device: str = "auto"

    def __post_init__(self) -> None:
        local_device(self.device)

    def start(self, workload: Workload, estimator: Estimator | None = None) -> "SerialPool":
        """Return the one slot of this process."""
        return SerialPool(workload, estimator, local_device(self.device))


class SerialPool:
    """A pool whose ``wait`` is the trial itself."""

    def __init__(
        self, workload: Workload, estimator: Estimator | None, device: torch.device
    ) -> None:
        self._workload = workload
        self._estimator = estimator
        self._device = device
        self._submitted: tuple[Job, Link] | None = None

    @property
    def free(self) -> int:
        """One, unless a job waits for ``wait`` to run it."""
        return int(self._submitted is None)

    def submit(self, job: Job, link: Link) -> None:
        """Keep the job for ``wait``."""
        self._submitted = job, link

    def wait(self, timeout: float | None = None) -> Sequence[Finished]:  # noqa: ARG002
        """Run the submitted job to its end."""
        if self._submitted is None:
            return []
        job, link = self._submitted
        trial = Trial(job, link, self._device)
        outcome = run_trial(self._workload, trial, job.objectives, self._estimator)
        self._submitted = None
        return [Finished(job, outcome)]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._submitted = None

"""What an executor is: something that turns jobs into outcomes, and knows nothing of a storage."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol, Self

from hyperopt_dl.hypergrad import Estimator
from hyperopt_dl.trial import Job, Link, Outcome, Workload


class Finished(NamedTuple):
    """A job and how it ended."""

    job: Job
    outcome: Outcome


class Pool(Protocol):
    """The running workers of one ``optimize``; a context manager that leaves nothing behind."""

    @property
    def free(self) -> int:
        """How many jobs could start at once."""

    def submit(self, job: Job, link: Link) -> None:
        """Start a job on a free worker."""

    def wait(self, timeout: float | None = None) -> Sequence[Finished]:
        """Wait for a worker that finishes or becomes free, ``timeout`` seconds at most.

        Serves the links of the running jobs meanwhile. A worker that dies is an outcome with the
        failure ``"lost"``, and its slot gets a new worker.
        """

    def __enter__(self) -> Self: ...

    def __exit__(self, *exception: object) -> None:
        """End every worker, busy or not."""


class Executor(Protocol):
    """Where trials run. Describes the workers; ``start`` makes them."""

    def start(self, workload: Workload, estimator: Estimator | None = None) -> Pool:
        """Return running workers for a workload, at least one of them ready.

        Args:
            workload: What every job runs.
            estimator: Runs the workload, a ``Training``, where derivatives are wanted.

        Raises:
            ExecutorError: The workload or the estimator cannot travel to the workers, or they
                cannot start.
        """

"""The loop of a study: start trials wherever a worker is free, record those that end."""

import logging
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import optuna
from optuna.trial import FrozenTrial

from hyperopt_dl.executors import Finished, Pool
from hyperopt_dl.study.ledger import Ledger
from hyperopt_dl.study.optuna_study import TrialLink
from hyperopt_dl.study.progress import Progress, Tally
from hyperopt_dl.trial import Job, Outcome

Callback = Callable[[optuna.Study, FrozenTrial], object]
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Limits:
    """When to start no further trial; ``None`` is no limit.

    ``n_trials`` counts the trials that this loop starts, ``total_trials`` those of the study;
    ``timeout`` is in seconds. ``retries`` is how often a trial is run again when its worker dies.
    """

    n_trials: int | None = None
    total_trials: int | None = None
    timeout: float | None = None
    retries: int = 0


class Loop:
    """One call of ``optimize``: its limits, its queue and its trials in flight."""

    def __init__(self, ledger: Ledger, limits: Limits, callbacks: list[Callback]) -> None:
        self._ledger = ledger
        self._limits = limits
        self._callbacks = callbacks
        self._started = 0
        self._flying: set[int] = set()
        self._attempts: dict[int, int] = {}
        self._again: deque[tuple[Job, TrialLink]] = deque()
        self._orphans = deque(ledger.orphans())
        self._closed = False
        self._first_failure: tuple[int, Outcome] | None = None
        self.tally = self._tally()

    def may_start(self) -> bool:
        """Return whether another trial may start now."""
        if self._again:
            return True
        total = self._limits.total_trials
        full = total is not None and self._ledger.occupied() >= total
        return self._open() and (bool(self._orphans) or not full)

    def run(self, pool: Pool, progress: Progress) -> None:
        """Run trials until a limit is reached and the last one has ended."""
        while True:
            while pool.free and (started := self._next()) is not None:
                job, link = started
                self._flying.add(job.number)
                pool.submit(job, link)
            self.tally.running = len(self._flying) - len(self._again)
            progress.update()
            if not self._flying and (pool.free or not self.may_start()):
                if self._close():
                    continue
                return
            for finished in pool.wait():
                self._settle(finished, progress)

    def give_up(self) -> None:
        """Record as interrupted what an interrupt or an error has cut off."""
        for number in self._flying:
            outcome = Outcome("failed", failure="interrupted", error="The study was interrupted.")
            self._ledger.tell(number, outcome)

    def warn_of_failure(self) -> None:
        """Log a warning if trials have failed and none has ended otherwise."""
        ended = self.tally.ended
        if self._first_failure is None or ended["failed"] < sum(ended.values()):
            return
        number, outcome = self._first_failure
        _logger.warning(
            "All %d trial(s) of this call have failed; study.trials[%d].user_attrs['error'] has "
            "the first error (%s): %s",
            *(ended["failed"], number, outcome.failure, outcome.error.strip().split("\n")[-1]),
        )

    def _next(self) -> tuple[Job, TrialLink] | None:
        """Return a second attempt, an orphan or a new trial; ``None`` if none may start."""
        if self._again:
            return self._again.popleft()
        while self._orphans and self._open():
            adopted = self._ledger.adopt(self._orphans.popleft())
            if adopted is not None:
                self._started += 1
                return adopted
        if not self.may_start():
            return None
        self._started += 1
        return self._ledger.ask()

    def _close(self) -> bool:
        """Let the tuner end with trials of its own, once; return whether there are any."""
        if self._closed or self._stopped():
            return False
        self._closed = True
        closing = self._ledger.close()
        self._again.extend(closing)
        self._flying.update(job.number for job, _ in closing)
        if self.tally.target is not None:
            self.tally.target += len(closing)
        return bool(closing)

    def _open(self) -> bool:
        """Return whether neither a stop, nor the time, nor ``n_trials`` forbids another trial."""
        n = self._limits.n_trials
        return not (self._stopped() or (n is not None and self._started >= n))

    def _stopped(self) -> bool:
        """Return whether a stop or the time forbids another trial."""
        timeout = self._limits.timeout
        late = timeout is not None and time.monotonic() >= self.tally.start + timeout
        return self._ledger.study.stopping or late

    def _settle(self, finished: Finished, progress: Progress) -> None:
        job, outcome = finished
        attempts = self._attempts.get(job.number, 0)
        if outcome.failure == "lost" and attempts < self._limits.retries:
            self._attempts[job.number] = attempts + 1
            self._again.append((job, self._ledger.again(job.number, attempts + 1)))
            return
        self._ledger.tell(job.number, outcome)
        self._flying.remove(job.number)
        self.tally.ended[outcome.state] += 1
        if outcome.state == "failed":
            _logger.info("Trial %d failed (%s): %s", job.number, outcome.failure, outcome.error)
            self._first_failure = self._first_failure or (job.number, outcome)
            progress.failed(job.number, str(outcome.failure), outcome.error)
        elif outcome.state == "complete" and progress.enabled:
            self.tally.best = self._best()
        for callback in self._callbacks:
            callback(self._ledger.study, self._ledger.trials()[job.number])

    def _tally(self) -> Tally:
        n, total, timeout = self._limits.n_trials, self._limits.total_trials, self._limits.timeout
        if total is None:
            return Tally(n, timeout)
        occupied = self._ledger.occupied()
        return Tally(max(total, occupied), timeout, earlier=occupied - len(self._orphans))

    def _best(self) -> str:
        try:
            return f"{self._ledger.study.best_value:.6g}"
        except (ValueError, RuntimeError):  # no feasible trial; several objectives
            return "-"

"""Asking and telling: the one place where trials enter and leave the storage."""

import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import optuna
import torch
from optuna.distributions import BaseDistribution
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState
from torch import Tensor

from hyperopt_dl.errors import StudyError
from hyperopt_dl.online.history import OnlineRecord, to_lines
from hyperopt_dl.seeds import derive
from hyperopt_dl.study.lease import Lease
from hyperopt_dl.study.optuna_study import StoppableStudy, TrialLink
from hyperopt_dl.study.sampler_seed import reseed
from hyperopt_dl.trial import Failure, Job, Outcome
from hyperopt_dl.tuners.archive import ARRAYS, ArrayTuner, array_ids
from hyperopt_dl.tuners.closing import CLOSING, ClosingTuner
from hyperopt_dl.tuners.keywords import KEYWORDS, InformingTuner
from hyperopt_dl.tuners.moving import hold
from hyperopt_dl.tuners.record import RECORD, jsonable

RUN = "hd:run"
"""The trial attribute with the trial's seed and the process that runs it."""
ONLINE = "online"
"""The trial attribute with what an online tuner did."""
FAILURE, ERROR = "failure", "error"
"""The trial attributes with the kind of a failure and its message."""
SETTLING = 5.0
"""Seconds after which a trial without a ``RUN`` attribute will not get one any more."""


class Orphan(NamedTuple):
    """A trial left RUNNING; ``seed`` is ``None`` where its process died before it had one."""

    number: int
    seed: int | None


class Ledger:
    """A study's trials, from the point of view of the process that runs them.

    Args:
        study: The Optuna study.
        storage: The storage that it lives in.
        distributions: What is sampled for every trial before it runs, by name.
        seed: Each trial's seed, and with ``reproducible`` all that the tuner draws, come from it.
        reproducible: Whether the tuner's generators are put into a known state before each trial.
    """

    def __init__(
        self,
        study: StoppableStudy,
        storage: BaseStorage,
        distributions: Mapping[str, BaseDistribution],
        *,
        seed: int,
        reproducible: bool,
    ) -> None:
        self.study = study
        self._storage = storage
        self._distributions = distributions
        self._seed = seed
        self._reproducible = reproducible
        self._links: dict[int, TrialLink] = {}

    def trials(self, *states: TrialState) -> list[FrozenTrial]:
        """Return the trials in these states (none given: all), not copied."""
        return self.study.get_trials(deepcopy=False, states=states or None)

    def ask(self) -> tuple[Job, TrialLink]:
        """Create a trial and sample its parameters.

        If the sampler raises, the trial is a failed one, and the error goes on.
        """
        self._seed_tuner(len(self.trials()))
        trial = self.study.ask()
        seed = derive(self._seed, "trial", trial.number)
        _claim(trial, seed)
        return self._prepare(TrialLink(trial), seed)

    def enqueue(
        self, params: Mapping[str, Any], *, skip_if_exists: bool = False, closing: bool = False
    ) -> None:
        """Let the next trial have these parameters; an Array is put into a file."""
        ids = self._filed(params)
        marks = {**({ARRAYS: ids} if ids else {}), **({CLOSING: True} if closing else {})}
        self.study.enqueue_trial(
            {name: value for name, value in params.items() if name not in ids},
            user_attrs=marks or None,
            skip_if_exists=skip_if_exists,
        )

    def close(self) -> list[tuple[Job, TrialLink]]:
        """Return the trials with which the tuner wants to end, if no other trials wait."""
        sampler = self.study.sampler
        if not isinstance(sampler, ClosingTuner) or self.trials(TrialState.WAITING):
            return []
        points = sampler.closing(self.study)
        for params in points:
            self.enqueue(params, closing=True)
        return [self.ask() for _ in points]

    def again(self, number: int, attempts: int) -> TrialLink:
        """Return a new link for another attempt at a trial."""
        self._links[number] = link = self._reopen(number)
        link.set_user_attr("retries", attempts)
        return link

    def adopt(self, orphan: Orphan) -> tuple[Job, TrialLink] | None:
        """Take up a trial with its parameters and seed; ``None`` if another process was quicker."""
        self._seed_tuner(orphan.number)
        link = self._reopen(orphan.number)
        seed = derive(self._seed, "trial", orphan.number) if orphan.seed is None else orphan.seed
        _claim(link.trial, seed)
        if Lease.read(self.trials()[orphan.number].user_attrs[RUN]) != Lease.here():
            return None
        return self._prepare(link, seed)

    def tell(self, number: int, outcome: Outcome) -> None:
        """Write an outcome; a trial that another process has finished meanwhile stays as it is."""
        link = self.link(number)
        del self._links[number]
        if self.trials()[number].state.is_finished():
            return
        if outcome.online is not None:
            link.set_user_attr(ONLINE, self._online(link.trial, outcome.online))
        if outcome.state == "failed":
            link.set_user_attr(FAILURE, outcome.failure)
            link.set_user_attr(ERROR, outcome.error)
            self.study.tell(number, state=TrialState.FAIL)
        elif outcome.state == "pruned":
            self.study.tell(number, state=TrialState.PRUNED)
        else:
            if outcome.gradient is not None:
                link.set_user_attr(RECORD, self._gradient(link, outcome.gradient))
            self.study.tell(number, outcome.values)

    def add(
        self,
        outcome: Outcome,
        params: Mapping[str, Any],
        reported: Mapping[int, float],
    ) -> int:
        """Add a trial that was run elsewhere, at once and whole, and return its number.

        Args:
            outcome: How it ended, with what its online tuner did.
            params: Values of the space; an Array is put into a file.
            reported: Its intermediate values, by step.
        """
        attributes: dict[str, Any] = {RUN: {"seed": None, **Lease.here().write()}}
        if ids := self._filed(params):
            attributes[ARRAYS] = ids
        assert outcome.online is not None
        attributes[ONLINE] = record = self._online(self.study, outcome.online)
        if outcome.state == "failed":
            attributes |= {FAILURE: outcome.failure, ERROR: outcome.error}
        trial = optuna.trial.create_trial(
            state=TrialState.FAIL if outcome.state == "failed" else TrialState.COMPLETE,
            values=outcome.values,
            params={name: value for name, value in params.items() if name not in ids},
            distributions={name: self._distributions[name] for name in params if name not in ids},
            user_attrs=attributes,
            intermediate_values=dict(reported),
        )
        self.study.add_trial(trial)
        latest = reversed(self.trials())
        return next(t.number for t in latest if t.user_attrs.get(ONLINE) == record)

    def link(self, number: int) -> TrialLink:
        """Return the link of a trial, in whatever process it was asked for.

        Raises:
            StudyError: There is no such trial.
        """
        if number not in self._links:
            self._links[number] = self._reopen(number)
        return self._links[number]

    def orphans(self) -> list[Orphan]:
        """Return the RUNNING trials whose process is certainly gone.

        A process can also die between creating a trial and claiming it. Such a trial has neither
        claim nor parameters; it counts as an orphan only in a study that another dead process has
        worked on, and only if it is still like that after a few seconds.
        """
        running = self.trials(TrialState.RUNNING)
        found = [Orphan(t.number, t.user_attrs[RUN]["seed"]) for t in running if _abandoned(t)]
        if any(_bare(trial) for trial in running):
            others = [trial for trial in self.trials() if not _bare(trial)]
            if all(RUN in t.user_attrs for t in others) and any(_abandoned(t) for t in others):
                time.sleep(SETTLING)
                running = self.trials(TrialState.RUNNING)
                found += [Orphan(trial.number, None) for trial in running if _bare(trial)]
        return sorted(found)

    def occupied(self) -> int:
        """Return how many trials count towards a total: those that run, and those that have ended.

        A trial that an interrupt has cut off does not count.
        """
        return sum(
            trial.state != TrialState.WAITING and trial.user_attrs.get(FAILURE) != "interrupted"
            for trial in self.trials()
        )

    def summary(self) -> str:
        """Say in words how the trials went, with the last error."""
        trials = self.trials()
        if not trials:
            return "the study has no trials."
        counts = {state.name: sum(t.state == state for t in trials) for state in TrialState}
        told = ", ".join(f"{count} {name}" for name, count in counts.items() if count)
        errors = [trial.user_attrs[ERROR] for trial in trials if ERROR in trial.user_attrs]
        if not errors:
            return f"{told}."
        return (
            f"{told}; the last error: {errors[-1].splitlines()[-1]} (its traceback is in the "
            f"trial's user_attrs['error'])."
        )

    def _prepare(self, link: TrialLink, seed: int) -> tuple[Job, TrialLink]:
        number = link.trial.number
        self._links[number] = link
        try:
            params = self._params(link)
            keywords = self._keywords(link)
        except BaseException as error:
            kind: Failure = "exception" if isinstance(error, Exception) else "interrupted"
            self.tell(number, Outcome("failed", failure=kind, error=repr(error)))
            raise
        return Job(number, params, seed, len(self.study.directions), keywords), link

    def _params(self, link: TrialLink) -> dict[str, Any]:
        """Return a trial's hyperparameters; those that are new to it are sampled."""
        params = {name: link.suggest(name, d) for name, d in self._distributions.items()}
        sampler: Any = self.study.sampler
        if getattr(sampler, "estimator", None) is not None:
            params = hold(params, self._distributions, getattr(sampler, "fixed", ()))
        return {**params, **self._arrays(link)}

    def _keywords(self, link: TrialLink) -> dict[str, Any]:
        """Return what the tuner tells its estimator of a trial; at every attempt the same."""
        sampler, number = self.study.sampler, link.trial.number
        if not isinstance(sampler, InformingTuner):
            return {}
        kept: dict[str, Any] | None = self.trials()[number].user_attrs.get(KEYWORDS)
        if kept is None:
            kept = sampler.keywords(self.study, self.trials()[number])
            if kept:
                link.set_user_attr(KEYWORDS, kept)
        return kept

    def _arrays(self, link: TrialLink) -> dict[str, Tensor]:
        archive, sampler = self.study.archive, self.study.sampler
        ids = array_ids(link.trial)
        missing = [name for name in archive.arrays if name not in ids]
        if missing and isinstance(sampler, ArrayTuner):
            values = sampler.sample_arrays(self.study, self.trials()[link.trial.number])
            ids |= {name: archive.save(name, values[name], link.trial) for name in missing}
            link.set_user_attr(ARRAYS, ids)
        return archive.values(ids)

    def _gradient(
        self, link: TrialLink, gradient: Mapping[str, float | Tensor]
    ) -> dict[str, float | str | None]:
        """Return a gradient for JSON: a tensor is an artifact, if all of its entries are finite."""
        kept: dict[str, float | str | None] = {}
        for name, derivative in gradient.items():
            if not isinstance(derivative, Tensor):
                kept[name] = jsonable(derivative)
            elif bool(derivative.isfinite().all()):
                kept[name] = self.study.archive.save(f"{name}.gradient", derivative, link.trial)
            else:
                kept[name] = None
        return kept

    def _filed(self, params: Mapping[str, Any]) -> dict[str, str]:
        """Put the Arrays among parameters into files, and return the ids."""
        archive = self.study.archive
        return {
            name: archive.save(name, torch.as_tensor(value, dtype=torch.double), self.study)
            for name, value in params.items()
            if name in archive.arrays
        }

    def _online(self, owner: optuna.Trial | optuna.Study, record: OnlineRecord) -> dict[str, Any]:
        """Return what an online tuner did for JSON: its moves are an artifact."""
        name, lines = "online_history.jsonl", to_lines(record.history)
        return {
            "tuner": record.tuner,
            "steps": record.steps,
            "values": dict(record.history[-1].values) if record.history else {},
            "history": self.study.archive.save_text(name, lines, owner),
        }

    def _reopen(self, number: int) -> TrialLink:
        study_id = self._storage.get_study_id_from_name(self.study.study_name)
        try:
            trial_id = self._storage.get_trial_id_from_study_id_trial_number(study_id, number)
        except KeyError as error:
            raise StudyError(f"The study has no trial {number}.") from error
        reported = self._storage.get_trial(trial_id).intermediate_values
        return TrialLink(optuna.Trial(self.study, trial_id), reported)

    def _seed_tuner(self, number: int) -> None:
        if self._reproducible:
            reseed(self.study.sampler, derive(self._seed, "tuner", number))


def _claim(trial: optuna.Trial, seed: int) -> None:
    """Record that this process runs a trial, and with which seed."""
    trial.set_user_attr(RUN, {"seed": seed, **Lease.here().write()})


def _abandoned(trial: FrozenTrial) -> bool:
    record = trial.user_attrs.get(RUN)
    return record is not None and Lease.read(record).expired()


def _bare(trial: FrozenTrial) -> bool:
    return trial.state == TrialState.RUNNING and not trial.params and RUN not in trial.user_attrs

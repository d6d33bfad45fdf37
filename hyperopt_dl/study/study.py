"""The study: ask a tuner, run trials on an executor, tell the storage."""

import secrets
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, overload

import optuna
import torch
from optuna.pruners import BasePruner, NopPruner
from optuna.samplers import BaseSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState

from hyperopt_dl.errors import StudyError
from hyperopt_dl.executors import Executor, Serial
from hyperopt_dl.executors.devices import local_device
from hyperopt_dl.online import Move
from hyperopt_dl.online.history import from_lines
from hyperopt_dl.space import Array, Dimension, Space
from hyperopt_dl.study.artifacts import Artifacts, open_artifacts
from hyperopt_dl.study.checks import check_limits, check_study, check_workload, estimator_of
from hyperopt_dl.study.ledger import ONLINE, Ledger
from hyperopt_dl.study.loop import Callback, Limits, Loop
from hyperopt_dl.study.online_run import OnlineTuner, outcome_of, rates_in, reported
from hyperopt_dl.study.optuna_study import Direction, check_compatible, open_study
from hyperopt_dl.study.progress import Progress
from hyperopt_dl.study.storage import Storage, default_name, open_storage
from hyperopt_dl.trial import Outcome, Trial, Workload, read_values
from hyperopt_dl.tuners.archive import Archive, array_ids
from hyperopt_dl.tuners.objectives import check_objectives


class Study:
    """Trials of a workload, proposed by a tuner and kept in Optuna's storage.

    Args:
        space: The hyperparameters; ``None`` if the objective suggests them itself (define by run).
        tuner: Any Optuna sampler; ``None`` is Optuna's TPE. One that has an ``estimator``, such as
            ``Hypergradient`` or ``AdditiveBO(use_gradients=True)``, takes a ``Training`` as its
            workload: the estimator runs it and returns the derivatives too, which become the
            trial's attribute ``"hypergradient"``. The loss is then reported at the last step alone.
        storage: ``None`` (memory), a path (a journal file), a database URL, or an Optuna storage. A
            study that is there already is continued.
        artifacts: Where the files of ``Array`` hyperparameters and their derivatives are: a folder,
            or an artifact store of Optuna's. ``None`` is memory for a study in memory, and the
            folder ``PATH.artifacts`` for a journal ``PATH``; a study with Arrays in a database or
            in a storage object needs to be told.
        name: The study's name in the storage; ``None`` is a file's stem, else Optuna makes one up.
        direction: ``"minimize"`` or ``"maximize"``, for one objective; ``None`` is what a stored
            study has, and ``"minimize"`` for a new one.
        directions: One for each objective, in place of ``direction``.
        pruner: An Optuna pruner; ``None`` is Optuna's default, the median pruner, and none for a
            tuner with an ``estimator``.
        seed: Fixes each trial's seed and all that the tuner draws from NumPy's generators, whatever
            seed it has of its own: a study that is killed and resumed proposes what it would have
            proposed without. (A scrambled ``QMCSampler`` draws its scrambling when it is made: give
            it a seed of its own.) ``None`` leaves the tuner's generators alone.

    Raises:
        StudyError: The stored study does not fit, or an argument is none of these.
        ObjectivesError: There are several objectives, and the tuner is made for one.
    """

    def __init__(
        self,
        space: Space | Mapping[str, Dimension] | None = None,
        *,
        tuner: BaseSampler | None = None,
        storage: Storage = None,
        artifacts: Artifacts = None,
        name: str | None = None,
        direction: Direction | None = None,
        directions: Sequence[Direction] | None = None,
        pruner: BasePruner | None = None,
        seed: int | None = None,
    ) -> None:
        self.space = None if space is None else space if isinstance(space, Space) else Space(space)
        tuner = TPESampler() if tuner is None else tuner
        if direction is not None and directions is not None:
            raise StudyError("Give direction (of one objective) or directions, not both.")
        wanted = [direction] if direction is not None else directions
        check_study(self.space, tuner, pruner, wanted, seed)
        if pruner is None and estimator_of(tuner) is not None:
            pruner = NopPruner()
        dimensions = dict(self.space or {})
        arrays = {name: d for name, d in dimensions.items() if isinstance(d, Array)}
        archive = Archive(arrays, open_artifacts(artifacts, storage, needed=bool(arrays)))
        if arrays:
            archive.check_store("Arrays")
        opened = open_storage(storage)
        study = open_study(
            opened,
            name=name or default_name(storage),
            directions=wanted,
            sampler=tuner,
            pruner=pruner,
        )
        check_objectives(tuner, len(study.directions))
        study.archive = archive
        distributions = {
            name: d.distribution for name, d in dimensions.items() if not isinstance(d, Array)
        }
        check_compatible(study, distributions)
        study.stated = distributions
        study.archive.check(study.get_trials(deepcopy=False))
        self._optuna = study
        self._ledger = Ledger(
            study,
            opened,
            distributions,
            seed=secrets.randbits(63) if seed is None else seed,
            reproducible=seed is not None,
        )
        self._optimizing = False

    def __repr__(self) -> str:
        tuner = type(self._optuna.sampler).__name__
        return f"Study(name={self.name!r}, tuner={tuner}, trials={len(self.trials)})"

    @property
    def optuna(self) -> optuna.Study:
        """The Optuna study itself, on which every plot, the dashboard and the command line work."""
        return self._optuna

    @property
    def name(self) -> str:
        """The study's name in its storage."""
        return self._optuna.study_name

    @property
    def tuner(self) -> BaseSampler:
        """The sampler that proposes hyperparameters."""
        return self._optuna.sampler

    @property
    def trials(self) -> list[FrozenTrial]:
        """All trials so far, by number; of the values of Arrays see ``params``."""
        return self._optuna.trials

    @property
    def best(self) -> FrozenTrial:
        """The best finished trial; its ``params`` and ``value`` are what was looked for.

        Each Array among the ``params`` is a float64 tensor.

        Raises:
            StudyError: No trial is complete, or the study has several objectives.
        """
        if len(self._optuna.directions) > 1:
            raise StudyError(
                "A study with several objectives has no single best trial. Use study.best_trials."
            )
        try:
            best = self._optuna.best_trial
        except ValueError as error:
            raise StudyError(
                f"No trial is complete (and feasible) yet: {self._ledger.summary()}"
            ) from error
        return self._with_arrays(best)

    @property
    def best_trials(self) -> list[FrozenTrial]:
        """The trials that no other trial is better than in every objective."""
        return [self._with_arrays(trial) for trial in self._optuna.best_trials]

    def params(self, number: int) -> dict[str, Any]:
        """Return the hyperparameters of a trial, each Array as a float64 tensor.

        Raises:
            StudyError: There is no such trial, or the file of an Array is missing.
        """
        trial = self._trial(number)
        return {**trial.params, **self._optuna.archive.values(array_ids(trial))}

    @overload
    def ask(self, n: None = None) -> Trial: ...

    @overload
    def ask(self, n: int) -> list[Trial]: ...

    def ask(self, n: int | None = None) -> Trial | list[Trial]:
        """Return a new trial, or a list of ``n``, to be evaluated by the caller and told."""
        if n is not None and n < 1:
            raise StudyError(f"ask needs n >= 1 trials, got {n}.")
        trials = []
        for _ in range(1 if n is None else n):
            job, link = self._ledger.ask()
            trials.append(Trial(job, link, local_device("auto")))
        return trials[0] if n is None else trials

    def tell(
        self, trial: Trial | int, values: Any = None, *, state: TrialState | None = None
    ) -> None:
        """Record how a trial ended.

        A value that is no finite number, or none, makes it a failed trial, as in ``optimize``.

        Args:
            trial: A trial, or its number.
            values: A number, or one number for each objective.
            state: ``TrialState.PRUNED`` or ``TrialState.FAIL``, without values.

        Raises:
            StudyError: The trial is not running, or values and state contradict each other.
        """
        number = trial.number if isinstance(trial, Trial) else trial
        if state in (TrialState.RUNNING, TrialState.WAITING):
            raise StudyError(f"A trial is told as COMPLETE, PRUNED or FAIL, got {state.name}.")
        if (state in (TrialState.PRUNED, TrialState.FAIL)) and values is not None:
            raise StudyError(f"A trial told as {state.name} has no values, got {values!r}.")
        if state == TrialState.COMPLETE and values is None:
            raise StudyError("A trial told as COMPLETE has a value, got none.")
        trials = self._ledger.trials()
        if not 0 <= number < len(trials) or trials[number].state != TrialState.RUNNING:
            got = trials[number].state.name if 0 <= number < len(trials) else "not in the study"
            raise StudyError(f"Trial {number} must be RUNNING to be told, it is {got}.")
        match state:
            case TrialState.PRUNED:
                outcome = Outcome("pruned")
            case TrialState.FAIL:
                outcome = Outcome("failed", failure="exception", error="Told as FAIL.")
            case _:
                outcome = read_values(values, len(self._optuna.directions))
        self._ledger.tell(number, outcome)

    def enqueue(self, params: Mapping[str, Any], *, skip_if_exists: bool = False) -> None:
        """Run a trial with these parameters next; those that are left out are sampled.

        An Array is projected to its box and constraint.

        Raises:
            SpaceError: A name or a value that the space does not have.
            StudyError: ``skip_if_exists`` with an Array, which is not compared.
        """
        if self.space is not None:
            self.space.validate(params, partial=True)
        given = [name for name in params if name in self._optuna.archive.arrays]
        if given and skip_if_exists:
            raise StudyError(
                f"skip_if_exists compares numbers and choices, got the Array(s) {given}. Leave it "
                f"out."
            )
        self._ledger.enqueue(self._projected(params), skip_if_exists=skip_if_exists)

    def log_online(
        self,
        tuner: OnlineTuner,
        value: Any = None,
        *,
        params: Mapping[str, Any] | None = None,
    ) -> int:
        """Record a run of one's own loop, in which an online tuner moved the rates, as a trial.

        Call it once, when the run has ended. The trial's parameters are ``params``, and the last
        values of those rates that the space has, as far as they lie in it; of an optimizer with one
        group ``"lr"`` is ``"lr@0"`` too. The losses that ``ForwardTuner.step`` was given, or that a
        ``TunedRun`` has looked at, become its intermediate values. Its attribute ``"online"`` names
        the tuner, the steps, the last value of each rate and the artifact with all moves, which
        `online_history` reads.

        Args:
            tuner: The online tuner of the run.
            value: The value of the trial, as for `tell`: a number, or one for each objective.
                ``None`` is the last of these losses; the other tuners see no validation loss.
            params: What else the run was made with. What is named here is not taken from the tuner.

        Returns:
            The number of the trial.

        Raises:
            StudyError: There is no move yet, no value, or no place for the file.
            SpaceError: ``params`` has a name or a value that the space does not have.
        """
        given = dict(params or {})
        outcome = outcome_of(tuner, value, len(self._optuna.directions))
        if self.space is None and given:
            raise StudyError(
                f"log_online(params=...) needs a study with a space, which says what they are, got "
                f"{list(given)}. Give Study a space, or leave params out."
            )
        if self.space is not None:
            self.space.validate(given, partial=True)
            given = {**rates_in(self.space, tuner), **given}
        losses = reported(tuner) if len(self._optuna.directions) == 1 else {}
        return self._ledger.add(outcome, self._projected(given), losses)

    def online_history(self, number: int) -> list[Move]:
        """Return the moves of the online tuner of a trial, a number that was not finite as nan.

        Raises:
            StudyError: There is no such trial, it has no history, or its file is missing.
        """
        record = self._trial(number).user_attrs.get(ONLINE)
        if record is None:
            raise StudyError(
                f"Trial {number} must be one with an online tuner, it has no history. Such trials "
                f"are those of Supervised(online=...) and of Study.log_online."
            )
        return from_lines(self._optuna.archive.load_text(record["history"]))

    def optimize(
        self,
        workload: Workload,
        n_trials: int | None = None,
        *,
        total_trials: int | None = None,
        timeout: float | None = None,
        executor: Executor | None = None,
        retries: int = 0,
        callbacks: Iterable[Callback] = (),
        progress: bool = True,
    ) -> None:
        """Run trials until a limit is reached, the study is stopped, or for ever.

        Trials that a dead process left RUNNING are taken up first, with their parameters and seed.
        A trial that fails is recorded and the study goes on; what is wrong from the start is an
        error before the first trial.

        Args:
            workload: A ``Training``, or a function of a trial.
            n_trials: How many trials this call runs. Where a tuner's values are estimates
                (``Telescoping``), it adds a whole run at the end for each of its chains.
            total_trials: How many trials the study has in the end, those that are there included: a
                script that was killed is simply run again.
            timeout: Seconds after which no further trial starts.
            executor: Where trials run; ``None`` is ``executors.Serial()``.
            retries: How often a trial is run again, with the same seed, when its worker dies.
            callbacks: Called as ``callback(study.optuna, frozen_trial)`` after each trial.
            progress: Whether to show a line of progress on standard error.

        Raises:
            StudyError: The workload, the space and the limits do not go together.
            TrainingError: A training cannot use a dimension of the space as it names it.
            ExecutorError: The workload cannot reach the workers.
            KeyboardInterrupt: Ctrl-C; trials in flight are FAIL with the failure
                ``"interrupted"``, and do not count towards ``total_trials``.
        """
        limits = Limits(n_trials, total_trials, timeout, retries)
        if self._optimizing:
            raise StudyError("optimize is running already: a trial cannot optimize its own study.")
        check_limits(limits)
        directions = [direction.name.lower() for direction in self._optuna.directions]
        check_workload(workload, self.space, self.tuner, directions)
        if getattr(workload, "online", None) is not None:
            self._optuna.archive.check_store("Histories of online tuners")
        executor = Serial() if executor is None else executor
        if isinstance(executor, type) or not hasattr(executor, "start"):
            raise StudyError(
                f"executor must be an object such as executors.Processes(), got {executor!r}."
            )
        self._optimizing, self._optuna.stopping = True, False
        try:
            loop = Loop(self._ledger, limits, list(callbacks))
            if not loop.may_start():
                return
            with executor.start(workload, estimator_of(self.tuner)) as pool:
                try:
                    with Progress(loop.tally, enabled=progress) as shown:
                        loop.run(pool, shown)
                finally:
                    loop.give_up()
            loop.warn_of_failure()
        finally:
            self._optimizing = False

    def _trial(self, number: int) -> FrozenTrial:
        trials = self._ledger.trials()
        if not 0 <= number < len(trials):
            raise StudyError(f"The study has the trials 0 to {len(trials) - 1}, got {number}.")
        return trials[number]

    def _projected(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Return parameters with each Array projected to its box and constraint."""
        arrays = self._optuna.archive.arrays
        return {n: _projected(arrays[n], x) if n in arrays else x for n, x in params.items()}

    def _with_arrays(self, trial: FrozenTrial) -> FrozenTrial:
        """Return a trial of one's own with its Arrays among its parameters."""
        trial.params = {**trial.params, **self._optuna.archive.values(array_ids(trial))}
        return trial


def _projected(array: Array, value: Any) -> torch.Tensor:
    return array.project(torch.as_tensor(value, dtype=torch.double))

"""An Optuna study and its trials, as this package uses them: by their public face alone."""

import contextlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal, TypeAlias

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
    check_distribution_compatibility,
)
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler
from optuna.storages import BaseStorage

from hyperopt_dl.errors import StudyError
from hyperopt_dl.tuners.archive import Archive

Direction: TypeAlias = Literal["minimize", "maximize"]


class StoppableStudy(optuna.Study):
    """An Optuna study whose ``stop`` also ends the loop of ``hyperopt_dl.Study.optimize``.

    Samplers and callbacks that were written for ``optuna.Study.optimize`` call it. The study also
    carries its ``archive``, where a sampler finds what Optuna has no parameters for, and the
    ``stated`` distributions of a space, which hold for the trials to come.
    """

    stopping = False
    archive = Archive()
    stated: Mapping[str, BaseDistribution] = {}

    def stop(self) -> None:
        """Start no further trial."""
        self.stopping = True
        with contextlib.suppress(RuntimeError):  # outside of Optuna's own loop
            super().stop()


class TrialLink:
    """A trial's link to the storage, for a workload in this process or one behind a pipe.

    Args:
        trial: The live trial.
        reported: Steps that an earlier attempt has reported; a later one repeats its numbers.
    """

    def __init__(self, trial: optuna.Trial, reported: Collection[int] = ()) -> None:
        self.trial = trial
        self._reported = frozenset(reported)

    def suggest(self, name: str, distribution: BaseDistribution) -> Any:
        """Return the trial's value of a parameter, sampling it at the first call."""
        match distribution:
            case FloatDistribution(low=low, high=high, step=step, log=log):
                return self.trial.suggest_float(name, low, high, step=step, log=log)
            case IntDistribution(low=low, high=high, step=step, log=log):
                return self.trial.suggest_int(name, low, high, step=step, log=log)
            case CategoricalDistribution(choices=choices):
                return self.trial.suggest_categorical(name, choices)
        raise StudyError(f"A parameter must have a distribution of Optuna's, got {distribution!r}.")

    def report(self, value: float, step: int) -> None:
        """Record an intermediate value."""
        self._must_have_one_objective()
        if step not in self._reported:
            self.trial.report(value, step)

    def should_prune(self) -> bool:
        """Return whether the pruner would end the trial now."""
        self._must_have_one_objective()
        return self.trial.should_prune()

    def set_constraint(self, key: str, value: float) -> None:
        """Record a constraint; at most 0 is feasible."""
        self.trial.set_constraint(key, value)

    def set_user_attr(self, key: str, value: Any) -> None:
        """Record an attribute."""
        self.trial.set_user_attr(key, value)

    def _must_have_one_objective(self) -> None:
        objectives = len(self.trial.study.directions)
        if objectives > 1:
            raise StudyError(
                f"report and should_prune need a study with one objective, this one has "
                f"{objectives}: Optuna has no pruning for several. Leave them out, or keep such "
                f"numbers with set_user_attr."
            )


def open_study(
    storage: BaseStorage,
    *,
    name: str | None,
    directions: Sequence[Direction] | None,
    sampler: BaseSampler,
    pruner: BasePruner | None,
) -> StoppableStudy:
    """Open the study of that name, or create it; ``directions`` ``None`` accepts what is stored.

    Raises:
        StudyError: The stored study has other directions.
    """
    if name is None or not _exists(storage, name):
        name = _create(storage, name, directions or ["minimize"])
    study = StoppableStudy(name, storage, sampler, pruner)
    stored = [direction.name.lower() for direction in study.directions]
    if directions is not None and stored != list(directions):
        raise StudyError(
            f"The stored study {name!r} has the directions {stored}, the call says "
            f"{list(directions)}. Use those, or another name."
        )
    return study


def _exists(storage: BaseStorage, name: str) -> bool:
    try:
        storage.get_study_id_from_name(name)
    except KeyError:
        return False
    return True


def _create(storage: BaseStorage, name: str | None, directions: Sequence[Direction]) -> str:
    """Create a study without a word, and return its name; another process may have just done so."""
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        study = optuna.create_study(
            storage=storage, study_name=name, directions=directions, load_if_exists=True
        )
    finally:
        optuna.logging.set_verbosity(verbosity)
    return study.study_name


def check_compatible(study: optuna.Study, distributions: Mapping[str, BaseDistribution]) -> None:
    """Check that a space can continue the trials of a study.

    Raises:
        StudyError: A parameter has changed its kind, its scale or its choices.
    """
    for trial in study.get_trials(deepcopy=False):
        for name, old in trial.distributions.items():
            if name not in distributions or distributions[name] == old:
                continue
            try:
                check_distribution_compatibility(old, distributions[name])
            except ValueError as error:
                raise StudyError(
                    f"The space must go on from the stored study {study.study_name!r}, but "
                    f"{name!r} was {old} in trial {trial.number} and is {distributions[name]} "
                    "now. Use another study name, or another name for the dimension."
                ) from error

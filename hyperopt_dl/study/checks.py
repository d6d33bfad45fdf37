"""What must hold before trial 0: of a study's arguments, and of what it is asked to run."""

import warnings
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler, CmaEsSampler

from hyperopt_dl.errors import StudyError
from hyperopt_dl.hypergrad import Estimator
from hyperopt_dl.space import Space
from hyperopt_dl.study.abstract_step import check_step
from hyperopt_dl.study.loop import Limits
from hyperopt_dl.training import Training
from hyperopt_dl.tuners.archive import ArrayTuner
from hyperopt_dl.tuners.known_groups import check_names
from hyperopt_dl.tuners.objectives import check_objectives


def estimator_of(tuner: BaseSampler) -> Estimator | None:
    """Return what computes derivatives for a tuner; ``None`` for one that wants none."""
    estimator: Estimator | None = getattr(tuner, "estimator", None)
    return estimator


def check_study(
    space: Space | None,
    tuner: object,
    pruner: object,
    directions: Sequence[str] | None,
    seed: object,
) -> None:
    """Check the arguments of a study.

    Raises:
        StudyError: One of them is not what it must be, or the tuner cannot search the space or has
            too many objectives.
    """
    if seed is not None and not isinstance(seed, int):
        raise StudyError(f"seed must be a whole number or None, got {seed!r}.")
    if not isinstance(tuner, BaseSampler):
        raise StudyError(
            f"tuner must be a sampler object such as optuna.samplers.TPESampler(), got {tuner!r}."
        )
    if isinstance(tuner, CmaEsSampler) and find_spec("cmaes") is None:
        raise StudyError(
            "CmaEsSampler needs the package cmaes. Install it: pip install 'hyperopt_dl[cmaes]'"
        )
    if pruner is not None and not isinstance(pruner, BasePruner):
        raise StudyError(
            f"pruner must be a pruner object, such as optuna.pruners.MedianPruner(), got "
            f"{pruner!r}."
        )
    unknown = directions is not None and set(directions) - {"minimize", "maximize"}
    if unknown or directions == []:
        raise StudyError(f"A direction must be 'minimize' or 'maximize', got {directions}.")
    _check_not_wrapped(tuner)
    check_objectives(tuner, len(directions or ["minimize"]))
    if space is not None:
        _check_tuner(space, tuner)


def check_limits(limits: Limits) -> None:
    """Check the limits of a call of ``optimize``.

    Raises:
        StudyError: A number that none can be, or two limits where one belongs.
    """
    n_trials, total_trials = limits.n_trials, limits.total_trials
    if n_trials is not None and total_trials is not None:
        raise StudyError(
            f"Give n_trials (of this call) or total_trials (of the study), got {n_trials} and "
            f"{total_trials}."
        )
    for name, number in (("n_trials", n_trials), ("total_trials", total_trials)):
        if number is not None and (not isinstance(number, int) or number < 0):
            raise StudyError(f"{name} must be a whole number of at least 0, got {number!r}.")
    if limits.retries < 0:
        raise StudyError(f"retries must be at least 0, got {limits.retries}.")


def check_workload(
    workload: object, space: Space | None, tuner: BaseSampler, directions: Sequence[str]
) -> None:
    """Check that a study can run a workload.

    Args:
        workload: What ``optimize`` was given.
        space: The study's space.
        tuner: The study's tuner.
        directions: Those of the study, in small letters.

    Raises:
        StudyError: The workload is none, or does not go with the space, tuner and directions.
        TrainingError: It is a training that cannot use a dimension of the space as it names it.
    """
    if isinstance(workload, type):
        raise StudyError(
            f"A workload must be a function of a trial or a Training, got the class "
            f"{workload.__name__}. Make an object of it."
        )
    if isinstance(workload, Training):
        _check_training(workload, space, directions)
        assert space is not None
        if estimator_of(tuner) is not None:
            _check_differentiated(workload, space, tuner)
    elif not callable(workload):
        missing = [m for m in ("steps", "init", "step", "loss") if not hasattr(workload, m)]
        raise StudyError(
            f"A workload must be a function of a trial or a Training, got a "
            f"{type(workload).__name__}, which has no {', '.join(missing)}."
        )
    elif estimator_of(tuner) is not None:
        raise StudyError(
            f"{type(tuner).__name__} needs a Training, which can be differentiated, got a "
            f"function. Make it a Supervised or a Training of your own, or use another tuner."
        )


def _check_not_wrapped(tuner: BaseSampler) -> None:
    """Refuse a sampler around one that wants derivatives: they would never be computed."""
    parts: list[Any] = [part for part in vars(tuner).values() if isinstance(part, BaseSampler)]
    inside = [part for part in parts if estimator_of(part) is not None]
    if inside and estimator_of(tuner) is None:
        name = type(inside[0]).__name__
        hint = (
            f", or use {name}(fixed=('x',), starts=PartialFixedSampler({{'x': value}}, "
            f"RandomSampler()))"
        )
        raise StudyError(
            f"{name} must be the study's tuner itself, got it inside a {type(tuner).__name__}, "
            f"since it wants derivatives. To keep a hyperparameter at one value, write the value "
            f"into the training{hint if hasattr(inside[0], 'starts') else ''}."
        )


def _check_tuner(space: Space, tuner: BaseSampler) -> None:
    if space.arrays and not isinstance(tuner, ArrayTuner):
        raise StudyError(
            f"{type(tuner).__name__} proposes single numbers and choices, it cannot propose the "
            f"Array(s) {list(space.arrays)}. Use Hypergradient, a Float for each entry that "
            f"matters, or fix the array in the training."
        )
    fixed: frozenset[str] = getattr(tuner, "fixed", frozenset())
    scalars = sorted(name for name in space if name not in space.arrays)
    if unknown := sorted(fixed - set(scalars)):
        raise StudyError(
            f"{type(tuner).__name__}(fixed=...) must name numbers or choices of the space, "
            f"{scalars}, got {unknown}. An Array that does not move belongs into the training."
        )
    check_names(getattr(tuner, "structure_choice", "learned"), scalars)


def _check_training(training: Training, space: Space | None, directions: Sequence[str]) -> None:
    if space is None:
        raise StudyError("A Training needs to know its hyperparameters: give the study a space.")
    if list(directions) != ["minimize"]:
        raise StudyError(
            "The value of a Training is a loss: the study must have the one direction "
            "'minimize'. For other values, write an objective that calls hyperopt_dl.rollout."
        )
    missing = sorted(getattr(training, "hparams", frozenset()) - set(space))
    if missing:
        raise StudyError(
            f"The training names the hyperparameter(s) {missing}, which the space with "
            f"{sorted(space)} does not have. Add them, or use constants."
        )
    if hasattr(training, "check_space"):
        training.check_space(space)
    check_step(training, space)
    _warn_of_unused(training, space)


def _warn_of_unused(training: Training, space: Space) -> None:
    """Warn of what no part of a training reads, where the training says that it names all it reads.

    The warning points at the call of ``optimize``.
    """
    unused = sorted(set(space) - getattr(training, "hparams", frozenset()))
    if unused and not getattr(training, "reads_more", True):
        warnings.warn(
            f"No part of the training reads the hyperparameter(s) {unused}: they are tuned without "
            f"any effect. Name them, for example in the optimizer, or leave them out of the space.",
            UserWarning,
            stacklevel=5,
        )


def _check_differentiated(training: Training, space: Space, tuner: BaseSampler) -> None:
    fixed: frozenset[str] = getattr(tuner, "fixed", frozenset())
    if not any(d.differentiable and name not in fixed for name, d in space.items()):
        but = f" beside the fixed {sorted(fixed)}" if fixed else ""
        raise StudyError(
            f"{type(tuner).__name__} needs a Float without a step or an Array, in which the loss "
            f"is differentiated; the space has none{but}: {space!r}. Add one, or use another tuner."
        )
    if getattr(training, "online", None) is not None:
        raise StudyError(
            f"{type(tuner).__name__} differentiates the loss after all steps, but the training has "
            f"an online tuner, whose moves follow from what it has seen and cannot be replayed. "
            f"Use a tuner that wants no derivatives, such as AdditiveBO(), or leave online out."
        )
    if getattr(training, "early_stopping", None) is not None:
        raise StudyError(
            f"{type(tuner).__name__} differentiates the loss after all {training.steps} steps, but "
            f"the training has early_stopping, whose value is that of another step. Leave "
            f"early_stopping out, and choose steps for it."
        )

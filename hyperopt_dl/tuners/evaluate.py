"""The hypergradient of a trial of Optuna's own."""

from functools import partial
from typing import Any

import optuna
import torch

from hyperopt_dl.errors import StudyError
from hyperopt_dl.hypergrad import Estimator, hypergradient
from hyperopt_dl.hypergrad.estimator import Note, accepted
from hyperopt_dl.seeds import derive
from hyperopt_dl.training import Training
from hyperopt_dl.tuners.keywords import KEYWORDS, InformingTuner
from hyperopt_dl.tuners.moving import hold
from hyperopt_dl.tuners.record import RECORD, jsonable, keep_note


def evaluate(
    trial: optuna.Trial,
    training: Training,
    *,
    seed: int | None = None,
    device: torch.device | str = "cpu",
) -> float:
    """Run a training at a trial's parameters, and leave its hypergradient with the trial.

    For objectives of plain Optuna under a sampler that has an ``estimator``, ``Hypergradient`` or
    ``AdditiveBO(use_gradients=True)``; ``hyperopt_dl.Study`` does this by itself. It costs what the
    sampler's estimator costs.

    Args:
        trial: A trial that has suggested everything that the training needs.
        training: The dynamical system; it is given ``trial.params``.
        seed: Seed of the run; ``None`` derives one from the sampler's seed and the trial's number.
        device: Device of the run.

    Returns:
        The outer loss after the run, which the objective should return. An estimate of it is kept
        by a constraint from being ``study.best_trial``.

    Raises:
        StudyError: The study's sampler has no estimator.
        TrainingError: What is to be tuned cannot be differentiated.

    Example:
        >>> import optuna, hyperopt_dl as hd
        >>> def objective(trial: optuna.Trial) -> float:
        ...     trial.suggest_float("lr", 1e-4, 1.0, log=True)
        ...     return hd.evaluate(trial, training)
        >>> study = optuna.create_study(sampler=hd.Hypergradient(seed=0))
        >>> study.optimize(objective, n_trials=20)  # doctest: +SKIP
    """
    sampler: Any = trial.study.sampler
    estimator: Estimator | None = getattr(sampler, "estimator", None)
    if estimator is None:
        raise StudyError(
            f"evaluate needs a study whose sampler has an estimator, got a "
            f"{type(sampler).__name__} without. Use hyperopt_dl.Hypergradient() or "
            f"hyperopt_dl.AdditiveBO(use_gradients=True), or hyperopt_dl.rollout where no gradient "
            f"is wanted."
        )
    if seed is None:
        seed = derive(sampler.seed or 0, "trial", trial.number)
    notes: list[Note] = []
    offered: dict[str, Any] = {"note": notes.append}
    if isinstance(sampler, InformingTuner):
        frozen = trial.study.get_trials(deepcopy=False)[trial.number]
        keywords = sampler.keywords(trial.study, frozen)
        trial.set_user_attr(KEYWORDS, keywords)
        offered |= keywords
    value, gradient = hypergradient(
        training,
        hold(trial.params, trial.distributions, sampler.fixed),
        estimator=partial(estimator, **accepted(estimator, offered)),
        seed=seed,
        device=device,
    )
    for note in notes:
        keep_note(trial, note)
        value = note.get("loss", value)
    trial.set_user_attr(RECORD, {name: jsonable(float(d)) for name, d in gradient.items()})
    return float(value)

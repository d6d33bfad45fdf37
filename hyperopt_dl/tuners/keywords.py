"""What a tuner tells its estimator about a trial, beside the hyperparameters."""

from collections.abc import Collection
from typing import Any, Protocol, runtime_checkable

import optuna
import torch
from optuna.trial import FrozenTrial, TrialState

from hyperopt_dl.hypergrad import Estimator
from hyperopt_dl.hypergrad.estimator import Learner, accepted
from hyperopt_dl.tuners.archive import archive_of, array_ids
from hyperopt_dl.tuners.closing import is_closing
from hyperopt_dl.tuners.moving import continuous
from hyperopt_dl.tuners.record import NOTE, note_of

KEYWORDS = "hd:keywords"
"""The user attribute of a trial with the keywords that its estimator is given."""


@runtime_checkable
class InformingTuner(Protocol):
    """A sampler that has something to tell its estimator."""

    def keywords(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, Any]:
        """Return keywords for the estimator, for JSON, after a trial's parameters are drawn."""


def keywords_for(
    estimator: Estimator, study: optuna.Study, trial: FrozenTrial, fixed: Collection[str]
) -> dict[str, Any]:
    """Return the keywords of a trial that an estimator takes: its ``scale`` and its ``plan``.

    Args:
        estimator: What runs the trial.
        study: Whose trials the estimator may learn from.
        trial: The trial, with its parameters.
        fixed: Names that do not move.
    """
    found: dict[str, Any] = {}
    if accepted(estimator, {"scale": None}):
        found["scale"] = _scale(study, trial, fixed)
    if isinstance(estimator, Learner):
        found["plan"] = (
            estimator.last_plan() if is_closing(trial) else _plan(estimator, study, trial)
        )
    return found


def _plan(learner: Learner, study: optuna.Study, trial: FrozenTrial) -> dict[str, Any]:
    others = [t for t in study.get_trials(deepcopy=False) if t.number != trial.number]
    notes = [note_of(t) for t in others if t.state.is_finished() and NOTE in t.user_attrs]
    kept = (t.user_attrs.get(KEYWORDS, {}) for t in others if t.state == TrialState.RUNNING)
    return dict(learner.next_plan(notes, [k["plan"] for k in kept if "plan" in k]))


def _scale(study: optuna.Study, trial: FrozenTrial, fixed: Collection[str]) -> dict[str, float]:
    """Return dλ/du by name, u the coordinates that a descent moves in."""
    archive, ids = archive_of(study), array_ids(trial)
    values = {**trial.params, **{name: archive.arrays[name].start for name in ids}}
    scale = {}
    for name, dimension in continuous(trial, archive, fixed).items():
        with torch.enable_grad():
            u = dimension.to_unit(values[name]).detach().requires_grad_()
            (slope,) = torch.autograd.grad(dimension.from_unit(u).sum(), u)
        scale[name] = float(slope.reshape(-1)[0])  # one number for all entries of an Array
    return scale

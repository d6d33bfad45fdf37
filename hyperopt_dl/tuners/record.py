"""How a hypergradient, and what its estimator noted, are kept with the trial they belong to."""

import math
from collections.abc import Mapping
from typing import Any, Protocol, TypeAlias

from optuna.trial import FrozenTrial

from hyperopt_dl.hypergrad.estimator import Note

RECORD = "hypergradient"
"""The user attribute of a trial with dE/dλ by name, in loss per unit of the hyperparameter."""
NOTE = "estimator"
"""The user attribute of a trial with what its estimator noted."""
ESTIMATE = "value_is_an_estimate"
"""The constraint that keeps an estimate from being the best value of a study."""
Gradient: TypeAlias = Mapping[str, float | str | None]
"""A number; for an Array the id of an artifact; ``None`` where it is not finite."""


class Notebook(Protocol):
    """A trial that can be written to, Optuna's or ours."""

    def set_user_attr(self, key: str, value: Any) -> None:
        """Record an attribute."""

    def set_constraint(self, key: str, value: float) -> None:
        """Record a constraint; at most 0 is feasible."""


def jsonable(derivative: float) -> float | None:
    """Return a derivative for JSON, which has no nan and no inf: such a one is ``None``."""
    return derivative if math.isfinite(derivative) else None


def recorded(attributes: Mapping[str, Any]) -> Gradient | None:
    """Return the gradient among a trial's user attributes; ``None`` if there is none."""
    gradient: Gradient | None = attributes.get(RECORD)
    return gradient


def keep_note(trial: Notebook, note: Note) -> None:
    """Write down what an estimator noted.

    An estimate does not meet the constraint that a value is the loss after all steps: so Optuna
    does not take it for the best one.
    """
    kept = {k: jsonable(v) if isinstance(v, float) else v for k, v in note.items()}
    trial.set_user_attr(NOTE, kept)
    if not is_exact(kept):
        trial.set_constraint(ESTIMATE, 1.0)


def note_of(trial: FrozenTrial) -> Note:
    """Return what the estimator of a trial noted; of most there is nothing."""
    note: Note = trial.user_attrs.get(NOTE, {})
    return note


def is_exact(note: Note) -> bool:
    """Return whether a trial's value is the loss after all steps, not an estimate of it."""
    return bool(note.get("exact", True))

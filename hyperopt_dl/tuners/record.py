"""How a hypergradient is kept with the trial that it belongs to."""

import math
from collections.abc import Mapping
from typing import Any, TypeAlias

RECORD = "hypergradient"
"""The user attribute of a trial with dE/dλ by name, in loss per unit of the hyperparameter."""
Gradient: TypeAlias = Mapping[str, float | str | None]
"""A number; for an Array the id of an artifact; ``None`` where it is not finite."""


def jsonable(derivative: float) -> float | None:
    """Return a derivative for JSON, which has no nan and no inf: such a one is ``None``."""
    return derivative if math.isfinite(derivative) else None


def recorded(attributes: Mapping[str, Any]) -> Gradient | None:
    """Return the gradient among a trial's user attributes; ``None`` if there is none."""
    gradient: Gradient | None = attributes.get(RECORD)
    return gradient

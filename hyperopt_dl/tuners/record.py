"""How a hypergradient is kept with the trial that it belongs to."""

import math
from collections.abc import Mapping
from typing import Any, TypeAlias

RECORD = "hypergradient"
"""The user attribute of a trial with dE/dλ by name, in loss per unit of the hyperparameter."""
Gradient: TypeAlias = Mapping[str, float | None]


def jsonable(gradient: Mapping[str, float]) -> dict[str, float | None]:
    """Return a gradient for JSON, which has no nan and no inf: such a derivative is ``None``."""
    return {name: float(d) if math.isfinite(d) else None for name, d in gradient.items()}


def recorded(attributes: Mapping[str, Any]) -> Gradient | None:
    """Return the gradient among a trial's user attributes; ``None`` if there is none."""
    gradient: Gradient | None = attributes.get(RECORD)
    return gradient

"""What a numeric option of an optimizer may be, and the check of its constants."""

import math
import numbers
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from torch import Tensor

from hyperopt_dl.errors import TrainingError
from hyperopt_dl.optimizers.schedule import Schedule

Option: TypeAlias = float | str | Schedule
"""As written by the user: a constant, the name of a hyperparameter, or a schedule."""

Value: TypeAlias = float | Tensor
"""As an update takes it: a number, a 0-dim tensor, or a `p` tensor (one entry a parameter)."""


@dataclass(frozen=True)
class Interval:
    """The finite numbers ``low <= x < high``, and ``high`` too if it is closed."""

    low: float
    high: float
    closed: bool = False

    def __contains__(self, x: object) -> bool:
        if not isinstance(x, numbers.Real):
            return False
        x = float(x)
        below = x <= self.high if self.closed else x < self.high
        return math.isfinite(x) and self.low <= x and below

    def condition(self, name: str) -> str:
        """The interval as an inequality on ``name``, for messages."""
        if math.isinf(self.low):
            return f"a finite {name}"
        return f"{name} >= {self.low:g}" + (
            ""
            if math.isinf(self.high)
            else f" and {name} {'<=' if self.closed else '<'} {self.high:g}"
        )


NON_NEGATIVE = Interval(0.0, math.inf)
FRACTION = Interval(0.0, 1.0)
MOMENTUM = Interval(0.0, 1.0, closed=True)
"""Above 1 a buffer grows by itself with every step, whatever the gradients are."""
FINITE = Interval(-math.inf, math.inf)


def check_option(owner: str, name: str, option: Any, interval: Interval) -> None:
    """Check one option; of a schedule nothing is known before it is evaluated.

    Args:
        owner: What the message names, e.g. ``SGD`` or ``SGD.groups['*.bias']``.
        name: The option's name.
        option: What the user gave.
        interval: Where a constant must lie.

    Raises:
        TrainingError: The option is no number, name or ``Schedule``, or lies outside.
    """
    if isinstance(option, str | Schedule):
        return
    if isinstance(option, bool) or not isinstance(option, numbers.Real):
        raise TrainingError(
            f"{owner} needs a number, the name of a hyperparameter or a Schedule as {name}, "
            f"got {name}={option!r}. To differentiate in it, give its name and pass the tensor "
            "as that hyperparameter's value."
        )
    if float(option) not in interval:
        raise TrainingError(
            f"{owner} needs {interval.condition(name)}, got {name}={option!r}. "
            f"Give such a number, or the name of a hyperparameter."
        )


def split_betas(owner: str, betas: object) -> tuple[Option, Option]:
    """``betas`` as two options, which `check_option` has yet to see.

    Raises:
        TrainingError: ``betas`` is not a pair.
    """
    if isinstance(betas, tuple | list) and len(betas) == 2:
        return betas[0], betas[1]
    raise TrainingError(
        f"{owner} needs a pair as betas, got betas={betas!r}. Write for example "
        'betas=("beta1", 0.999).'
    )


def is_zero(value: object) -> bool:
    """Whether this is the number 0, as opposed to a hyperparameter that happens to be 0.

    A term whose weight is the number 0 can be left out; one whose weight is a tensor of value 0
    cannot, because it still has a derivative.
    """
    return not isinstance(value, Tensor) and bool(value == 0)


def names_in(options: Iterable[Option]) -> frozenset[str]:
    """The hyperparameters that options name; what a factor ``(t, hparams)`` uses is not known."""
    bare = (option.value if isinstance(option, Schedule) else option for option in options)
    return frozenset(name for name in bare if isinstance(name, str))


def known(owner: str, given: Mapping[str, object], intervals: Mapping[str, Interval]) -> None:
    """Check that every given option is one that the optimizer has.

    Raises:
        TrainingError: One is not.
    """
    for name in given:
        if name not in intervals:
            raise TrainingError(
                f"{owner} may set {', '.join(intervals)}, got {name!r}. The other arguments of the "
                "optimizer hold for all of its parameters."
            )

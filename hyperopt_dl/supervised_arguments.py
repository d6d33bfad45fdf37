"""What some arguments of a ``Supervised`` must be."""

from numbers import Integral
from typing import Any

from hyperopt_dl.errors import TrainingError
from hyperopt_dl.training import Online


def steps_of(steps: int | None, epochs: int | None, steps_per_epoch: int) -> int:
    """Return the number of steps of a run, from the one of ``steps`` and ``epochs`` that is given.

    Raises:
        TrainingError: Both or none are given, or it is no positive whole number.
    """
    if (steps is None) == (epochs is None):
        raise TrainingError(
            f"Supervised needs the length of a run: either steps or epochs, got steps={steps} and "
            f"epochs={epochs}."
        )
    if steps is not None:
        return positive("steps", steps)
    return positive("epochs", epochs) * steps_per_epoch


def positive(name: str, count: Any) -> int:
    """Return a count.

    Raises:
        TrainingError: It is no positive whole number.
    """
    if isinstance(count, bool) or not isinstance(count, Integral) or count < 1:
        raise TrainingError(f"{name} must be a whole number of at least 1, got {count!r}.")
    return int(count)


def checked_online(online: object) -> Online:
    """Return an online tuner.

    Raises:
        TrainingError: It is none.
    """
    if isinstance(online, type) or not isinstance(online, Online):
        raise TrainingError(
            f"online must be an object such as hyperopt_dl.online.Forward(tune), got {online!r}."
        )
    return online


def described(value: object) -> str:
    """Return what an object is, for a message."""
    return f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__

"""What some arguments of a ``Supervised`` must be."""

from collections.abc import Mapping
from numbers import Integral
from typing import Any

from hyperopt_dl.early_stopping import EarlyStopping
from hyperopt_dl.errors import TrainingError
from hyperopt_dl.optimizers import Optimizer
from hyperopt_dl.training import Online


def check_parts(
    model: object,
    loss: object,
    optimizer: object,
    weights: object,
    metrics: Any,
    early_stopping: object,
    buffers: object,
) -> None:
    """Check what a training is made of.

    Raises:
        TrainingError: One of them is of a wrong kind.
    """
    if not callable(model) or not callable(loss) or isinstance(loss, type):
        raise TrainingError(
            f"model must be an nn.Module or a factory, and loss a function; got "
            f"{type(model).__name__} and {loss!r}."
        )
    if isinstance(optimizer, type) or not isinstance(optimizer, Optimizer):
        raise TrainingError(
            f"optimizer must be a twin such as hyperopt_dl.optimizers.SGD(lr='lr'), got "
            f"{described(optimizer)}. torch.optim writes in place and cannot be replayed."
        )
    if not (weights is None or isinstance(weights, str)):
        raise TrainingError(
            f"weights must be the name of a hyperparameter, got {type(weights).__name__}. "
            f"Pass the weights as that hyperparameter's value."
        )
    if not (metrics is None or isinstance(metrics, Mapping)) or "loss" in (metrics or {}):
        raise TrainingError(
            f"metrics must map names other than 'loss', which is there anyway, to functions; "
            f"got {metrics!r}."
        )
    if not (early_stopping is None or isinstance(early_stopping, EarlyStopping)):
        raise TrainingError(
            f"early_stopping must be EarlyStopping(patience=...), got {early_stopping!r}."
        )
    if buffers not in ("state", "constant"):
        raise TrainingError(f"buffers must be 'state' or 'constant', got {buffers!r}.")


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

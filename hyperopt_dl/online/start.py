"""What a run of a training is given, checked before its first step as a study checks a space."""

import numbers
from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor

from hyperopt_dl.errors import SpaceError, TrainingError
from hyperopt_dl.hypergrad.constant import Constant
from hyperopt_dl.online.coordinates import Coordinate, continuous
from hyperopt_dl.space import Categorical, Dimension, Float, Int
from hyperopt_dl.training import NOT_REPLAYED, HParams, Training


def coordinates_from(
    training: Training, hparams: HParams, tune: Mapping[str, Float]
) -> tuple[Coordinate, ...]:
    """Return the coordinates that ``tune`` names, in its order.

    Raises:
        TrainingError: There is no training, or one whose steps follow an online tuner; a name is
            none that ``hparams`` has; or a start, a bound or a value that stays is out of range.
        SpaceError: A dimension is no continuous ``Float``, or does not hold where it starts.
    """
    _check_training(training)
    if not tune:
        raise TrainingError("tune must name a hyperparameter, got none. Write tune={'lr': ...}.")
    named: frozenset[str] = getattr(training, "hparams", frozenset())
    for name, dimension in tune.items():
        continuous(name, dimension)
        if name not in hparams:
            has = f"the training names {sorted(named)}, " if named else ""
            raise TrainingError(
                f"hparams must say where {name!r} starts, but {has}hparams {sorted(hparams)}. "
                f"Correct the name, or add it."
            )
        _check_start(name, hparams[name], dimension)
    if missing := sorted(named - set(hparams)):
        raise TrainingError(
            f"hparams must have all that the training names, {sorted(named)}, got "
            f"{sorted(hparams)} without {missing}. Add them."
        )
    if hasattr(training, "check_space"):
        held = {n: _only(n, v) for n, v in hparams.items() if n in named and n not in tune}
        training.check_space({**held, **tune})
    return tuple(Coordinate(name, name, (), dimension) for name, dimension in tune.items())


def constant(name: str, value: Any) -> Any:
    """Return a hyperparameter that stays where it is as what is not differentiated.

    Raises:
        TrainingError: It is a tensor.
    """
    if isinstance(value, Tensor) and value.is_floating_point():
        raise TrainingError(
            f"A hyperparameter that is not tuned must be a number or a choice, got a tensor of "
            f"shape {tuple(value.shape)} for {name!r}. Put it into the loss or the model itself."
        )
    return Constant(value) if isinstance(value, float) else value


def _check_training(training: object) -> None:
    if isinstance(training, type) or not isinstance(training, Training):
        kind = training.__name__ if isinstance(training, type) else type(training).__name__
        raise TrainingError(
            f"from_training needs a Training, such as an hd.Supervised(...), got {kind}. For an "
            f"optimizer of torch in a loop of your own, write ForwardTuner(optimizer, tune)."
        )
    if getattr(training, "online", None) is not None:
        raise TrainingError(NOT_REPLAYED)


def _check_start(name: str, value: object, dimension: Float) -> None:
    if isinstance(value, bool) or not isinstance(value, numbers.Real | Tensor | np.generic):
        raise TrainingError(
            f"{name!r} must start at a number, got {value!r} in hparams, a "
            f"{type(value).__name__}. Give a float."
        )
    if not dimension.contains(value):
        raise SpaceError(
            f"{name!r} must start inside {dimension!r}, got {value!r}. Widen the bounds, or start "
            f"elsewhere."
        )


def _only(name: str, value: Any) -> Dimension:
    """Return the dimension that has one value and no other."""
    constant(name, value)
    if isinstance(value, float):
        return Float(value, value)
    if isinstance(value, int) and not isinstance(value, bool):
        return Int(value, value)
    return Categorical([value])

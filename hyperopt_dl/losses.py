"""What a user's loss function takes and returns."""

import copy
import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

from torch import Tensor, nn

from hyperopt_dl.errors import TrainingError
from hyperopt_dl.space import Array, Dimension
from hyperopt_dl.training import HParams

Loss: TypeAlias = Callable[..., Tensor]
"""``loss(output, target)`` or ``loss(output, target, hp)``."""


def takes_hparams(loss: Loss) -> bool:
    """Return whether ``loss`` wants the hyperparameters as its third argument.

    It does if it has three positional parameters without a default, or if its third one is called
    ``hp`` or ``hparams``: the third parameter of ``torch.nn.functional.cross_entropy`` is neither.
    """
    third = _positional(loss)[2:3]
    return bool(third) and (
        third[0].default is inspect.Parameter.empty or third[0].name in ("hp", "hparams")
    )


def with_hparams(loss: Loss) -> Loss:
    """Return ``loss`` as a function of ``(output, target, hparams)``."""
    return loss if takes_hparams(loss) else _Indifferent(loss)


def reads_hparams(loss: Loss) -> bool:
    """Return whether a loss of ``with_hparams`` looks at the hyperparameters."""
    return not isinstance(loss, _Indifferent)


def per_example(loss: Loss) -> Loss:
    """Return ``loss`` without its reduction: one value for each example of the batch.

    A loss of ``torch.nn`` or ``torch.nn.functional`` is asked by its ``reduction``; any other must
    return a vector by itself, which ``weighted_mean`` checks.
    """
    if isinstance(loss, nn.Module) and hasattr(loss, "reduction"):
        unreduced = copy.copy(loss)
        setattr(unreduced, "reduction", "none")  # noqa: B010 (a module's type has no such field)
        return unreduced
    if "reduction" in {parameter.name for parameter in _parameters(loss)}:
        return functools.partial(loss, reduction="none")
    return loss


def weights_of(name: str, hparams: HParams, size: int) -> Tensor:
    """Return the hyperparameter ``name``, which must have one entry for each of ``size`` examples.

    Raises:
        TrainingError: It is no tensor of that shape.
    """
    weights = hparams.get(name)
    if not isinstance(weights, Tensor) or weights.shape != (size,):
        got = f"shape {tuple(weights.shape)}" if isinstance(weights, Tensor) else repr(weights)
        raise TrainingError(
            f"weights={name!r} must name an Array with one entry for each of the {size} training "
            f"examples, got {got}."
        )
    return weights


def check_weights(name: str, dimension: Dimension, size: int) -> None:
    """Check that a dimension has one entry for each of ``size`` examples.

    Raises:
        TrainingError: It is no Array of that shape.
    """
    if not isinstance(dimension, Array) or dimension.shape != (size,):
        raise TrainingError(
            f"weights={name!r} must name an Array with one entry for each of the {size} training "
            f"examples, of shape ({size},), got {dimension!r}. Write {name}=Array({size}, low=0.0)."
        )


def weighted_mean(losses: Tensor, weights: Tensor) -> Tensor:
    """Return ``1/B * sum_i weights[i] * losses[i]`` over the B examples of a batch.

    Further dimensions of ``losses`` are averaged first.

    Raises:
        TrainingError: The losses do not have one entry (or more) for each example.
    """
    if losses.ndim == 0 or len(losses) != len(weights):
        raise TrainingError(
            f"With weights, the loss must return one value for each of the {len(weights)} "
            f"examples of a batch, got shape {tuple(losses.shape)}. Leave out its reduction, or "
            "give it a parameter 'reduction'."
        )
    each = losses.flatten(1).mean(1) if losses.ndim > 1 else losses
    return (weights.to(each) * each).mean()


def scalar(loss: Tensor) -> Tensor:
    """Return a loss.

    Raises:
        TrainingError: It is no 0-dim tensor.
    """
    if not isinstance(loss, Tensor) or loss.ndim != 0:
        got = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
        raise TrainingError(
            f"The loss must return a 0-dim tensor, got {got}. Average over the examples of the "
            f"batch, and leave it a tensor."
        )
    return loss


@dataclass(frozen=True)
class _Indifferent:
    """A loss that is handed the hyperparameters and does not look at them."""

    loss: Loss

    def __call__(self, output: Any, target: Any, hparams: HParams) -> Tensor:  # noqa: ARG002
        return self.loss(output, target)


def _parameters(loss: Loss) -> list[inspect.Parameter]:
    target = loss.forward if isinstance(loss, nn.Module) else loss
    try:
        return list(inspect.signature(target).parameters.values())
    except ValueError:  # a function written in C shows no signature
        return []


def _positional(loss: Loss) -> list[inspect.Parameter]:
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return [parameter for parameter in _parameters(loss) if parameter.kind in kinds]

"""One step of a training without data, which finds Arrays of a wrong shape before trial 0.

On torch's device "meta" tensors have shapes and no entries, so that a step costs next to nothing.
What fails there may be a fault of the device, which has no values to look at. So only that counts
which fails in an operation on an Array, or on what was made from one, and for its shapes.
"""

from collections.abc import Callable, Iterable, Mapping
from copy import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from hyperopt_dl.errors import TrainingError
from hyperopt_dl.space import Array, Space
from hyperopt_dl.supervised import Supervised
from hyperopt_dl.training import Training


def check_arrays(training: Training, space: Space) -> None:
    """Check the shapes of a space's Arrays, where the training is a ``Supervised`` on tensors.

    A model factory is called once more. Nothing is raised where some of three points of the space
    give no error: a number may decide about the shape that is needed.

    Raises:
        TrainingError: A step, or the validation loss, cannot be computed with such Arrays.
    """
    if not (space.arrays and isinstance(training, Supervised) and training.all_in_memory):
        return
    if training.online is not None:
        return
    misfit = None
    for u in (0.5, 0.0, 1.0):
        if (misfit := _try(training, space, u)) is None:
            return
    assert misfit is not None
    names = ", ".join(f"{name}={space[name]!r}" for name in misfit.names)
    raise TrainingError(
        f"An Array must have the shape that the training needs, got {names}: {misfit.operation} "
        f"was given the shapes {', '.join(map(str, misfit.shapes))}, and says: {misfit.error}. "
        f"Give the Array another shape."
    )


@dataclass(frozen=True)
class _Misfit:
    """An operation that failed on Arrays of these names, and the shapes of all it was given."""

    names: list[str]
    operation: str
    shapes: list[tuple[int, ...]]
    error: Exception


def _try(training: Supervised, space: Space, u: float) -> _Misfit | None:
    """Return what goes wrong with the Arrays where all numbers and choices have coordinate u."""
    own = copy(training)  # it keeps its networks to itself
    arrays = {name: _empty(d) for name, d in space.items() if isinstance(d, Array)}
    numbers = {n: _plain(d.from_unit(u)) for n, d in space.items() if not isinstance(d, Array)}
    hparams = {**numbers, **arrays}
    watch = _Watch(arrays)
    try:
        with watch:
            state = own.init(hparams, seed=0, device="meta")
            own.loss(state, hparams)
            own.step(state, hparams, 0)
    except Exception:
        return watch.misfit
    return None


class _Watch(TorchFunctionMode):
    """Follows Arrays through torch's operations, up to the first that fails on one."""

    def __init__(self, arrays: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.misfit: _Misfit | None = None
        self._made_from = {id(array): {name} for name, array in arrays.items()}
        self._kept = list(arrays.values())  # so that no other tensor gets one of their ids

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        given = _tensors((args, dict(kwargs or {})))
        names = set().union(*(self._made_from.get(id(tensor), set()) for tensor in given))
        try:
            result = func(*args, **(kwargs or {}))
        except Exception as error:
            if names and self.misfit is None and not _of_the_device(error):
                shapes = [tuple(tensor.shape) for tensor in given]
                name = getattr(func, "__name__", repr(func))
                self.misfit = _Misfit(sorted(names), name, shapes, error)
            raise
        if names:
            for tensor in _tensors(result):
                self._made_from[id(tensor)] = names
                self._kept.append(tensor)
        return result


def _of_the_device(error: Exception) -> bool:
    """Return whether an operation failed since there are no values, or another device is near."""
    return isinstance(error, NotImplementedError) or "meta" in str(error).lower()


def _tensors(value: Any) -> list[Tensor]:
    """Return the tensors in nested tuples, lists and dictionaries."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, (tuple, list)):
        return [tensor for part in value for tensor in _tensors(part)]
    return []


def _empty(array: Array) -> Tensor:
    assert isinstance(array.shape, tuple)
    return torch.empty(array.shape, dtype=torch.double, device="meta")


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, Tensor) else value

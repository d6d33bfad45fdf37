"""One step of a training without data, which finds what fails in every trial before trial 0.

On torch's device "meta" tensors have shapes and no entries, so that a step costs next to nothing.
What fails there may be a fault of the device, which has no values to look at: that does not count.
"""

import re
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

DEVICES = {"device", "devices", "backend", "cpu", "gpu", "cuda", "hip", "xpu", "triton"}
"""Words of an error by which a fault of the device is known."""


def check_step(training: Training, space: Space) -> None:
    """See that a step and the losses can be computed, for a ``Supervised`` on tensors.

    A model factory is called once more; a metric is not called, for it may keep what it is given.
    Nothing is raised where some of three points of the space give no error, or another one: a
    number may decide about it.

    Raises:
        TrainingError: They cannot; an Array whose shape does not fit is named.
    """
    if not (isinstance(training, Supervised) and training.all_in_memory):
        return
    if training.online is not None:
        return
    failures = []
    for u in (0.5, 0.0, 1.0):
        failure = _try(training, space, u)
        if failure is None:
            return
        failures.append(failure)
    misfit, error = failures[-1].misfit, failures[-1].error
    if all(failure.misfit is not None for failure in failures):
        assert misfit is not None
        names = ", ".join(f"{name}={space[name]!r}" for name in misfit.names)
        raise TrainingError(
            f"An Array must have the shape that the training needs, got {names}: "
            f"{misfit.operation} was given the shapes {', '.join(map(str, misfit.shapes))}, and "
            f"says: {misfit.error}. Give the Array another shape."
        )
    if len({(failure.part, repr(failure.error)) for failure in failures}) == 1:
        raise TrainingError(
            f"{failures[-1].part} must be computable with the hyperparameters {sorted(space)}, but "
            f"fails at each of {len(failures)} points of the space, with "
            f"{type(error).__name__}: {error}"
        ) from error


@dataclass(frozen=True)
class _Failure:
    """What could not be computed, and why; ``misfit`` is where an Array has the wrong shape."""

    part: str
    error: Exception
    misfit: "_Misfit | None"


@dataclass(frozen=True)
class _Misfit:
    """An operation that failed on Arrays of these names, and the shapes of all it was given."""

    names: list[str]
    operation: str
    shapes: list[tuple[int, ...]]
    error: Exception


def _try(training: Supervised, space: Space, u: float) -> _Failure | None:
    """Return what fails where all numbers and choices have the coordinate u."""
    own = copy(training)  # it keeps its networks to itself
    arrays = {name: _empty(d) for name, d in space.items() if isinstance(d, Array)}
    numbers = {n: _plain(d.from_unit(u)) for n, d in space.items() if not isinstance(d, Array)}
    hparams = {**numbers, **arrays}
    watch, state = _Watch(arrays), dict[str, Tensor]()
    parts: dict[str, Callable[[], object]] = {
        "The model": lambda: state.update(own.init(hparams, seed=0, device="meta")),
        "The validation loss": lambda: own.loss(state, hparams),
        "A training step": lambda: own.step(state, hparams, 0),
        "The loss of the test data": lambda: own.test_metrics(state, hparams),
    }
    for part, call in parts.items():
        try:
            with watch:
                call()
        except Exception as error:
            if watch.misfit is not None or not _of_the_device(error):
                return _Failure(part, error, watch.misfit)
            if not state:
                return None
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
            if names and self.misfit is None and not _for_want_of_values(error):
                shapes = [tuple(tensor.shape) for tensor in given]
                name = getattr(func, "__name__", repr(func))
                self.misfit = _Misfit(sorted(names), name, shapes, error)
            raise
        if names:
            for tensor in _tensors(result):
                self._made_from[id(tensor)] = names
                self._kept.append(tensor)
        return result


def _for_want_of_values(error: BaseException) -> bool:
    """Return whether an operation failed since there are no values, or another device is near."""
    return isinstance(error, NotImplementedError) or "meta" in str(error).lower()


def _of_the_device(error: BaseException | None) -> bool:
    """Return whether anything failed for want of values, or of another device.

    An assertion may be about either, and does not say.
    """
    if error is None:
        return False
    words = re.findall(r"[a-z]+", str(error).lower())
    here = isinstance(error, AssertionError) or not DEVICES.isdisjoint(words)
    return (
        here or _for_want_of_values(error) or _of_the_device(error.__cause__ or error.__context__)
    )


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

"""Batches addressed by step, so that any segment of a run can be replayed.

Step t lies in epoch ``t // steps_per_epoch``; ``(seed, epoch)`` decides the epoch's permutation of
the examples, and t which stretch of it is the batch.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from numbers import Integral
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.utils.data import TensorDataset, default_collate

from hyperopt_dl.errors import TrainingError
from hyperopt_dl.nested import mapped, only_tensors, tensors_in
from hyperopt_dl.seeds import derive

Source: TypeAlias = Any
"""A tuple of tensors, or of mappings and tuples of tensors, with the target last; or an object with
``__len__`` and ``__getitem__``."""


class Batch(NamedTuple):
    """Examples on their device; ``examples`` says which of the data set's they are."""

    inputs: tuple[Any, ...]
    target: Any
    examples: Tensor


class Batches:
    """A data set, cut into batches by (seed, step).

    Args:
        source: A tuple ``(x, ..., y)`` of tensors with one first dimension, or of mappings and
            tuples of such; a ``TensorDataset``; or an indexable data set of tuples ``(x, ..., y)``.
        name: What the source is called in an error.
        batch_size: Examples a batch; ``None`` makes every batch the whole set, in order.
        drop_last: Whether an epoch leaves out its last batch when that is smaller than the others.

    Raises:
        TrainingError: An empty source, tensors of different lengths, a batch size that does not
            fit.
    """

    def __init__(
        self, source: Source, *, name: str, batch_size: int | None = None, drop_last: bool = False
    ) -> None:
        self._source = source.tensors if isinstance(source, TensorDataset) else source
        self.in_memory = _is_in_memory(self._source)
        self._flat = self.in_memory and all(isinstance(part, Tensor) for part in self._source)
        self._name = name
        self.size = self._count()
        self._cut(batch_size, drop_last=drop_last)
        self._placed: dict[torch.device, tuple[Any, ...]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_placed": {}}

    def resized(self, batch_size: int | None) -> "Batches":
        """Return the same data in batches of another size; those that are placed are shared."""
        other = copy.copy(self)
        other._placed = self._placed  # a copy leaves out what is not to be sent to a process
        other._cut(batch_size, drop_last=False)
        return other

    def at(self, seed: int, t: int, device: torch.device, *, shared: bool = False) -> Batch:
        """Return the batch of step ``t`` of the run with this seed, on ``device``.

        ``shared`` spares the copy where a batch is the whole set: nobody may write into it then.
        """
        epoch, position = divmod(t, self.steps_per_epoch)
        order = _order(self.size, (seed, epoch) if self._shuffled else None, device)
        if not self._shuffled:
            return self._take(order, device, whole=True, shared=shared)
        start = position * self.batch_size
        return self._take(order[start : start + self.batch_size], device)

    def chunks(self, size: int, device: torch.device) -> Iterator[Batch]:
        """Yield the whole set in order, ``size`` examples at a time."""
        order = _order(self.size, None, device)
        if size >= self.size:
            yield self._take(order, device, whole=True)
            return
        for index in torch.split(order, size):
            yield self._take(index, device)

    def _cut(self, batch_size: int | None, *, drop_last: bool) -> None:
        if batch_size is not None and not _fits(batch_size, self.size):
            raise TrainingError(
                f"batch_size must lie between 1 and the {self.size} examples of {self._name}, "
                f"got {batch_size!r}. None takes the whole set at every step; to tune it, make the "
                f"Supervised in an objective."
            )
        self.batch_size = batch_size or self.size
        self._shuffled = batch_size is not None
        whole, rest = divmod(self.size, self.batch_size)
        self.steps_per_epoch = whole + (1 if rest and not drop_last else 0)

    def _take(
        self, index: Tensor, device: torch.device, *, whole: bool = False, shared: bool = False
    ) -> Batch:
        if self.in_memory and whole and shared:
            parts = self._on(device)
        elif self.in_memory:
            # Copies in either case: a model may write into its input.
            placed = self._on(device)
            if self._flat:  # a structure takes longer to walk through than a small batch to take
                parts = tuple(part.clone() if whole else part[index] for part in placed)
            else:
                parts = mapped(placed, torch.clone if whole else lambda part: part[index])
        else:
            collated = tuple(self._collate(index.tolist()))
            parts = mapped(collated, lambda part: part.to(device, non_blocking=True))
        return Batch(parts[:-1], parts[-1], index)

    def _collate(self, index: list[int]) -> Sequence[Any]:
        fetch = getattr(self._source, "__getitems__", None)
        examples = fetch(index) if fetch else [self._source[i] for i in index]
        if not isinstance(examples[0], (tuple, list)) or len(examples[0]) < 2:
            raise TrainingError(
                f"An example of {self._name} must be a tuple (input, ..., target), got "
                f"{_short(examples[0])}."
            )
        parts: Sequence[Any] = default_collate(examples)
        return parts

    def _on(self, device: torch.device) -> tuple[Any, ...]:
        if device not in self._placed:
            self._placed[device] = mapped(tuple(self._source), lambda part: part.to(device))
        return self._placed[device]

    def _count(self) -> int:
        source, name = self._source, self._name
        if self.in_memory:
            if len(source) < 2:
                raise TrainingError(
                    f"{name} must hold the inputs and, last, the target: (x, y). Got {len(source)} "
                    f"tensor(s)."
                )
            tensors = tensors_in(tuple(source))
            lengths = [len(part) if part.ndim else 0 for part in tensors]
            if len(set(lengths)) > 1:
                raise TrainingError(
                    f"The tensors of {name} must have the same first dimension, got {lengths}."
                )
            size = lengths[0]
        elif (
            isinstance(source, (tuple, list))
            and source
            and not isinstance(source[0], (tuple, list))
        ):
            kinds = [type(part).__name__ for part in source]
            raise TrainingError(
                f"{name} must be a tuple of tensors (x, y), got {kinds}. Use torch.as_tensor on "
                f"each."
            )
        elif not _indexable(source):
            raise TrainingError(
                f"{name} must be a tuple of tensors (x, y) or a data set with len() and indexing, "
                f"got {type(source).__name__}. A DataLoader or an iterable data set cannot be "
                f"replayed by step: give the data set behind it."
            )
        else:
            size = len(source)
        if size == 0:
            raise TrainingError(f"{name} must have at least one example, got none.")
        return size


def _is_in_memory(source: Any) -> bool:
    """Return whether this is a tuple of tensors, or of mappings and tuples of them.

    A sequence of nothing but tuples is a data set of examples.
    """
    if not isinstance(source, Sequence) or isinstance(source, str):
        return False
    if not len(source):
        return isinstance(source, tuple)
    kinds = (Tensor, Mapping) if isinstance(source, tuple) else Tensor
    return any(isinstance(part, kinds) for part in source) and only_tensors(tuple(source))


def _fits(batch_size: Any, size: int) -> bool:
    return isinstance(batch_size, Integral) and 1 <= int(batch_size) <= size


def _indexable(source: Any) -> bool:
    """Return whether this is a data set, and not an array, a dictionary or a text."""
    return (
        hasattr(source, "__len__")
        and hasattr(source, "__getitem__")
        and not hasattr(source, "ndim")
        and not isinstance(source, (Mapping, str, bytes))
    )


@lru_cache(maxsize=8)
def _order(size: int, epoch: tuple[int, int] | None, device: torch.device) -> Tensor:
    """Return the order of one epoch, made on the CPU so that it is the same on every device."""
    if epoch is None:
        return torch.arange(size, device=device)
    seed, number = epoch
    generator = torch.Generator().manual_seed(derive(seed, "epoch", number))
    return torch.randperm(size, generator=generator).to(device)


def _short(example: Any) -> str:
    kind = type(example).__name__
    return f"a {kind} of length {len(example)}" if isinstance(example, (tuple, list)) else kind

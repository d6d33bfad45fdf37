"""Tensors in nested tuples, lists and mappings, as batches of users are made of them."""

import copy
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from typing import Any

import torch
from torch import Tensor


def tensors_in(value: Any) -> list[Tensor]:
    """Return the tensors inside of a value, in order."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, (tuple, list)):
        return [tensor for part in value for tensor in tensors_in(part)]
    return []


def only_tensors(value: Any) -> bool:
    """Return whether there is nothing but tensors inside of a value."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, (tuple, list)):
        return all(map(only_tensors, value))
    return isinstance(value, Tensor)


def with_tensors(value: Any, tensors: Iterator[Tensor]) -> Any:
    """Return the value with other tensors in the place of its own, in the order of ``tensors_in``.

    Mappings and tuples keep their kind; a mapping that cannot be changed becomes a dictionary.
    """
    if isinstance(value, Tensor):
        return next(tensors)
    if isinstance(value, Mapping):
        parts = {name: with_tensors(part, tensors) for name, part in value.items()}
        if type(value) is dict or not isinstance(value, MutableMapping):
            return parts
        changed = copy.copy(value)
        changed.update(parts)
        return changed
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(with_tensors(part, tensors) for part in value))
    if isinstance(value, (tuple, list)):
        return type(value)(with_tensors(part, tensors) for part in value)
    return value


def mapped(value: Any, function: Any) -> Any:
    """Return the value with ``function`` of each of its tensors."""
    return with_tensors(value, iter([function(tensor) for tensor in tensors_in(value)]))


def joined(values: Sequence[Any]) -> Any:
    """Return values of one structure as one, their tensors joined along the first dimension.

    Raises:
        ValueError: There is something else than tensors inside, or a tensor without dimensions.
    """
    first = values[0]
    parts = [tensors_in(value) for value in values]
    if not only_tensors(first) or any(part.ndim == 0 for part in parts[0]):
        raise ValueError("only tensors with a first dimension can be joined")
    return with_tensors(first, iter([torch.cat(each) for each in zip(*parts, strict=True)]))

"""Hyperparameters as a model factory sees them."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor


class Reads(Mapping[str, Any]):
    """Hyperparameters as a model factory sees them, and a record of what it looked at.

    Scalars are plain numbers and arrays are detached: structure is not differentiable.
    """

    def __init__(self, hparams: Mapping[str, Any]) -> None:
        self._hparams = hparams
        self._seen: dict[str, Any] = {}
        self._listed: frozenset[str] | None = None

    def __getitem__(self, name: str) -> Any:
        self._seen[name] = value = _look(self._hparams, name)
        if value is _ABSENT:
            raise KeyError(name)
        return value

    def __iter__(self) -> Iterator[str]:
        self._listed = frozenset(self._hparams)
        return iter(self._hparams)

    def __len__(self) -> int:
        self._listed = frozenset(self._hparams)
        return len(self._hparams)

    @property
    def seen(self) -> frozenset[str]:
        """The names that were looked at."""
        return frozenset(self._seen)

    def turn_to(self, hparams: Mapping[str, Any]) -> None:
        """Answer from these hyperparameters now: a model may look when it is called."""
        self._hparams = hparams

    def agree(self, hparams: Mapping[str, Any]) -> bool:
        """Return whether the factory would have seen the same in ``hparams``."""
        return self._listed in (None, frozenset(hparams)) and all(
            _same(value, _look(hparams, name)) for name, value in self._seen.items()
        )


_ABSENT = object()


def _look(hparams: Mapping[str, Any], name: str) -> Any:
    return _plain(hparams[name]) if name in hparams else _ABSENT


def _plain(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.item() if value.ndim == 0 else value.detach()
    return value


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return isinstance(a, Tensor) and isinstance(b, Tensor) and torch.equal(a, b)
    return type(a) is type(b) and bool(a == b)

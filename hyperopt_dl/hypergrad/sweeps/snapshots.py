"""Where the stored states of a reverse sweep live: in memory, in the host's memory, on disk.

States are never written to, so that to keep one is to keep its tensors. A tensor that is part of
many states, such as a frozen parameter, is held, copied to the host and written to disk only once.
One object serves one sweep, as a ``with`` block that leaves nothing behind, however it ends.
"""

import itertools
import weakref
from collections import Counter
from collections.abc import MutableMapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Generic, Protocol, Self, TypeVar

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary, WeakIdRef

from hyperopt_dl.errors import TrainingError
from hyperopt_dl.hypergrad.memory import size_of, storages_of
from hyperopt_dl.training import State


class Snapshots(Protocol):
    """The states before chosen steps: what the actions of a schedule store, restore and free."""

    def put(self, t: int, state: State) -> None:
        """Store the state before step ``t``, of which none is stored yet."""

    def get(self, t: int) -> State:
        """Return the stored state before step ``t``: the same bits, each tensor on its device."""

    def free(self, t: int) -> None:
        """Forget the stored state before step ``t``."""

    def __enter__(self) -> Self:
        """Return the object itself."""

    def __exit__(self, *exception: object) -> None:
        """Forget every state, and remove what was written."""


class InMemory:
    """Keep states by reference, without a copy.

    Args:
        offload: Move tensors on a CUDA device to pinned memory of the host, and back when they are
            asked for. Neither makes the host wait; both belong on the same CUDA stream.
    """

    def __init__(self, *, offload: bool = False) -> None:
        self._offload = offload
        self._states: dict[int, State] = {}
        self._devices: dict[int, dict[str, torch.device]] = {}
        self._copies = _Twins[Tensor]()

    def put(self, t: int, state: State) -> None:
        """Store the state before step ``t``."""
        if self._offload:
            self._devices[t] = {name: tensor.device for name, tensor in state.items()}
            state = {name: self._keep(tensor) for name, tensor in state.items()}
        self._states[t] = state

    def get(self, t: int) -> State:
        """Return the stored state before step ``t``."""
        state = self._states[t]
        if not self._offload:
            return state
        devices = self._devices[t]
        return {name: self._fetch(kept, devices[name]) for name, kept in state.items()}

    def free(self, t: int) -> None:
        """Forget the stored state before step ``t``."""
        self._devices.pop(t, None)
        del self._states[t]

    def held(self, t: int) -> State:
        """Return the tensors that stand for the state before step ``t`` here."""
        return self._states[t]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        for t in list(self._states):
            self.free(t)

    def _keep(self, tensor: Tensor) -> Tensor:
        if not (self._offload and tensor.is_cuda):
            return tensor
        copy = self._copies.twin(tensor)
        if copy is None:
            copy = torch.empty_like(tensor, device="cpu", pin_memory=True, requires_grad=False)
            copy.copy_(tensor.detach(), non_blocking=True)
            self._copies.tie(tensor, copy)
        return copy

    def _fetch(self, kept: Tensor, device: torch.device) -> Tensor:
        if kept.device == device:
            return kept
        tensor = self._copies.tensor(kept)
        if tensor is None:
            tensor = kept.to(device, non_blocking=True)
            self._copies.tie(tensor, kept)
        return tensor


@dataclass(frozen=True, eq=False)
class _File:
    """A file that is removed with the last that refers to it."""

    path: Path

    def __post_init__(self) -> None:
        weakref.finalize(self, self.path.unlink, missing_ok=True)


@dataclass(frozen=True, eq=False)
class _Place:
    """One tensor of a file."""

    file: _File
    name: str


class OnDisk:
    """Write states to files in a fresh folder of their own, which is removed at the end.

    Tensors come back with their strides, to the device that they were on. A process that is killed
    leaves its folder ``snapshots-*`` behind.

    Args:
        folder: The existing folder that the fresh one is made in, on a fast disk.

    Raises:
        TrainingError: Nothing can be written into the folder, or no more.
    """

    def __init__(self, folder: str | Path) -> None:
        try:
            self._folder = TemporaryDirectory(prefix="snapshots-", dir=folder)
        except OSError as error:
            raise TrainingError(
                f"OnDisk needs an existing folder that it may write into, got {str(folder)!r} "
                f"({error.strerror}). Make the folder, or name another."
            ) from error
        self._files = itertools.count()
        self._states: dict[int, dict[str, _Place]] = {}
        self._places = _Twins[_Place]()

    def put(self, t: int, state: State) -> None:
        """Store the state before step ``t``: one file with the tensors not on disk yet."""
        places = {name: self._places.twin(tensor) for name, tensor in state.items()}
        new = {name: state[name].detach() for name, place in places.items() if place is None}
        file = self._write(new)
        self._states[t] = {name: place or _Place(file, name) for name, place in places.items()}
        for name, place in self._states[t].items():
            self._places.tie(state[name], place)

    def get(self, t: int) -> State:
        """Return the stored state before step ``t``, reading only what is not in memory anyway."""
        places = self._states[t]
        alive = {name: self._places.tensor(place) for name, place in places.items()}
        files = {places[name].file for name, tensor in alive.items() if tensor is None}
        read = {file: torch.load(file.path, weights_only=True) for file in files}
        state: State = {}
        for name, place in places.items():
            tensor = alive[name]
            state[name] = read[place.file][place.name] if tensor is None else tensor
            self._places.tie(state[name], place)
        return state

    def free(self, t: int) -> None:
        """Forget the stored state before step ``t``, and remove files that no other state needs."""
        del self._states[t]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._states.clear()
        self._folder.cleanup()

    def _write(self, state: State) -> _File:
        path = Path(self._folder.name, f"{next(self._files)}.pt")
        if state:
            part = path.with_suffix(".part")
            try:
                torch.save(state, part)
                part.replace(path)
            except (OSError, RuntimeError) as error:
                raise TrainingError(
                    f"OnDisk could not write a state of {size_of(state)} bytes to {str(path)!r}: "
                    f"{error}. Free space there, name another folder, or use fewer snapshots."
                ) from error
        return _File(path)


class TwoLevel:
    """Keep states in memory up to a number of bytes, and the others on disk.

    The states stored longest ago, which a schedule restores last, are the ones that go to disk.

    Args:
        folder: The existing folder for those on disk.
        budget_bytes: The most that those in memory take; the state being stored comes on top.
        offload: Whether memory is the host's, as for ``InMemory``.

    Raises:
        TrainingError: As ``OnDisk``, or a negative budget.
    """

    def __init__(self, folder: str | Path, budget_bytes: int, *, offload: bool = False) -> None:
        if budget_bytes < 0:
            raise TrainingError(
                f"TwoLevel needs budget_bytes >= 0, got {budget_bytes}. 0 puts every state on disk."
            )
        self._budget = budget_bytes
        self._disk = OnDisk(folder)
        self._memory = InMemory(offload=offload)
        self._in_memory: list[int] = []
        self._uses: Counter[int] = Counter()
        self.held_bytes = 0
        """The bytes that the states in memory take."""

    def put(self, t: int, state: State) -> None:
        """Store the state before step ``t``, and move to disk what memory has no room for."""
        self._memory.put(t, state)
        self._in_memory.append(t)
        for storage, size in storages_of(self._memory.held(t)).items():
            self.held_bytes += 0 if self._uses[storage] else size
            self._uses[storage] += 1
        while self.held_bytes > self._budget:
            oldest = self._in_memory.pop(0)
            self._disk.put(oldest, self._memory.get(oldest))
            self._free_memory(oldest)

    def get(self, t: int) -> State:
        """Return the stored state before step ``t``."""
        return self._memory.get(t) if t in self._in_memory else self._disk.get(t)

    def free(self, t: int) -> None:
        """Forget the stored state before step ``t``."""
        if t in self._in_memory:
            self._in_memory.remove(t)
            self._free_memory(t)
        else:
            self._disk.free(t)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        with ExitStack() as levels:
            levels.push(self._disk)
            levels.push(self._memory)
        self._in_memory.clear()
        self._uses.clear()
        self.held_bytes = 0

    def _free_memory(self, t: int) -> None:
        for storage, size in storages_of(self._memory.held(t)).items():
            self._uses[storage] -= 1
            self.held_bytes -= 0 if self._uses[storage] else size
        self._memory.free(t)


Twin = TypeVar("Twin", Tensor, _Place)


class _Twins(Generic[Twin]):
    """What stands for a tensor elsewhere, by identity; keeps neither of the two alive.

    So a tensor is moved once for all states that it is part of, and while anybody still holds it,
    comes back as itself.
    """

    def __init__(self) -> None:
        self._twins: MutableMapping[Tensor, WeakIdRef] = WeakIdKeyDictionary()
        self._tensors: MutableMapping[Twin, WeakIdRef] = WeakIdKeyDictionary()

    def tie(self, tensor: Tensor, twin: Twin) -> None:
        self._twins[tensor] = WeakIdRef(twin)
        self._tensors[twin] = WeakIdRef(tensor)

    def twin(self, tensor: Tensor) -> Twin | None:
        reference = self._twins.get(tensor)
        return None if reference is None else reference()

    def tensor(self, twin: Twin) -> Tensor | None:
        reference = self._tensors.get(twin)
        return None if reference is None else reference()

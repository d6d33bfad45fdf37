"""How much memory is free, and how much states take."""

import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def available_bytes(device: torch.device) -> int:
    """Return the bytes that are free on a device, or in the host's memory.

    On a system that does not tell, four gigabytes are assumed.
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if hasattr(os, "sysconf") and "SC_AVPHYS_PAGES" in os.sysconf_names:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return 4 * 2**30


def size_of(*states: Mapping[Any, Tensor]) -> int:
    """Return the bytes that states take in memory together; what they share counts once.

    A tensor that is a view keeps the whole of what it looks into. What each further state of a run
    takes is ``size_of(first, second) - size_of(first)``.
    """
    storages: dict[int, int] = {}
    for state in states:
        storages |= storages_of(state)
    return sum(storages.values())


def storages_of(state: Mapping[Any, Tensor]) -> dict[int, int]:
    """Return the bytes of every storage that a state keeps, by its address."""
    parts = (part for tensor in state.values() for part in _strided(tensor))
    storages = (part.untyped_storage() for part in parts)
    return {storage.data_ptr(): storage.nbytes() for storage in storages}


def _strided(tensor: Tensor) -> tuple[Tensor, ...]:
    """Return the tensors with memory of their own that a tensor is made of."""
    if tensor.layout == torch.sparse_coo:
        return tensor._indices(), tensor._values()
    if tensor.layout == torch.sparse_csr:
        return tensor.crow_indices(), tensor.col_indices(), tensor.values()
    return (tensor,) if tensor.layout == torch.strided else (tensor.to_dense(),)

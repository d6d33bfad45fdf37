"""How much memory is free, and how much states take."""

import os

import torch

from hyperopt_dl.training import State


def available_bytes(device: torch.device) -> int:
    """Return the bytes that are free on a device, or in the host's memory.

    On a system that does not tell, four gigabytes are assumed.
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if hasattr(os, "sysconf") and "SC_AVPHYS_PAGES" in os.sysconf_names:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return 4 * 2**30


def size_of(*states: State) -> int:
    """Return the bytes that states take in memory together; what they share counts once.

    A tensor that is a view keeps the whole of what it looks into. What each further state of a run
    takes is ``size_of(first, second) - size_of(first)``.
    """
    storages: dict[int, int] = {}
    for state in states:
        storages |= storages_of(state)
    return sum(storages.values())


def storages_of(state: State) -> dict[int, int]:
    """Return the bytes of every storage that a state keeps, by its address."""
    storages = (tensor.untyped_storage() for tensor in state.values())
    return {storage.data_ptr(): storage.nbytes() for storage in storages}

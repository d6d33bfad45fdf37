"""Which devices there are, and how a worker is pinned to one of them."""

import os
from collections.abc import Sequence
from typing import NamedTuple

import torch

from hyperopt_dl.errors import ExecutorError


class Slot(NamedTuple):
    """A place for one worker.

    ``visible`` is the worker's ``CUDA_VISIBLE_DEVICES``, ``device`` its name in the worker.
    """

    visible: str
    device: str


def local_device(device: str) -> torch.device:
    """Return the device for a trial in this process; ``"auto"`` is the first GPU, else the CPU.

    Raises:
        ExecutorError: It is not there.
    """
    if device == "auto":
        return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    return _present(device)


def slots(devices: str | Sequence[str], per_device: int) -> list[Slot]:
    """Return the slots of worker processes, ``per_device`` on each device, devices taking turns.

    Args:
        devices: ``"auto"`` (every visible GPU, else the CPU), or names: ``"cpu"``, ``"cuda:1"``.
        per_device: Workers on each device.

    Raises:
        ExecutorError: No device, a device that is not there, or fewer than one worker on each.
    """
    if per_device < 1:
        raise ExecutorError(f"per_device must be at least 1 worker, got {per_device}.")
    if devices == "auto":
        devices = [f"cuda:{i}" for i in range(torch.cuda.device_count())] or ["cpu"]
    elif isinstance(devices, str):
        devices = [devices]
    if not devices:
        raise ExecutorError("devices must name at least one device, got none. 'auto' finds them.")
    return [_slot(name) for _ in range(per_device) for name in devices]


def _slot(name: str) -> Slot:
    device = _present(name)
    if device.type != "cuda":
        return Slot("", name)
    index = device.index or 0
    # A scheduler may have given this process some of the machine's devices: count within those.
    given = [part for part in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if part]
    return Slot(given[index] if given else str(index), "cuda:0")


def _present(name: str) -> torch.device:
    """Return the device of a name; of CUDA, only one that is there."""
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ExecutorError(f"{name!r} is not the name of a device: {error}") from error
    count = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= count:
        raise ExecutorError(
            f"{name} must be one of the {count} visible CUDA device(s). Look at nvidia-smi and "
            f"CUDA_VISIBLE_DEVICES."
        )
    return device

"""How much memory is free."""

import os

import torch


def available_bytes(device: torch.device) -> int:
    """Return the bytes that are free on a device, or in the host's memory.

    On a system that does not tell, four gigabytes are assumed.
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if hasattr(os, "sysconf") and "SC_AVPHYS_PAGES" in os.sysconf_names:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return 4 * 2**30

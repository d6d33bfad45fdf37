"""Whether a step is made by a ``GradScaler``, which shows in no tensor that it writes to."""

import sys

import torch


def by_scaler(optimizer: torch.optim.Optimizer) -> bool:
    """Return whether the step that calls this is made by a ``GradScaler`` that is enabled.

    Optimizers with fused kernels are given the scale as an attribute; for the others the scaler
    divides the gradients by kernels that do not count as writes, and then calls ``step``.
    """
    if any(getattr(optimizer, name, None) is not None for name in ("grad_scale", "found_inf")):
        return True
    frame = sys._getframe(1)
    for _ in range(_DEPTH):
        if frame.f_code is _STEP:
            return True
        if frame.f_back is None:
            return False
        frame = frame.f_back
    return False


def overflown(optimizer: torch.optim.Optimizer) -> bool:
    """Return whether a fused kernel is told to leave this step out."""
    found = getattr(optimizer, "found_inf", None)
    return found is not None and bool(found)


_DEPTH = 16
"""How many calls may lie between a scaler and a hook of the optimizer: other hooks, counters."""
_STEP = getattr(torch.amp.GradScaler._maybe_opt_step, "__code__", None)
"""What every enabled scaler calls ``optimizer.step`` from, unless the kernel knows of scales."""

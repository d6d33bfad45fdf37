"""Whether a step is made by a ``GradScaler``, which shows in no tensor that it writes to."""

import sys

import torch


def by_scaler(optimizer: torch.optim.Optimizer) -> bool:
    """Return whether the step that calls this is made by a ``GradScaler`` that is enabled.

    Optimizers with fused kernels are given the scale as an attribute; for the others the scaler
    divides the gradients by kernels that do not count as writes, and then calls ``step``.
    """
    own = optimizer.__dict__
    if own.get("found_inf") is not None or own.get("grad_scale") is not None:
        return True
    frame, depth = sys._getframe(1).f_back, 0
    while frame is not None and depth < _DEPTH:
        if frame.f_code is _STEP:
            return True
        frame, depth = frame.f_back, depth + 1
    return False


def overflown(optimizer: torch.optim.Optimizer) -> bool:
    """Return whether a fused kernel is told to leave this step out."""
    found = getattr(optimizer, "found_inf", None)
    return found is not None and bool(found)


_DEPTH = 10
"""How many calls may lie between a scaler and a hook of the optimizer: other hooks, counters."""
_STEP = getattr(torch.amp.GradScaler._maybe_opt_step, "__code__", None)
"""What every enabled scaler calls ``optimizer.step`` from, unless the kernel knows of scales."""

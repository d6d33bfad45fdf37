"""The first backward pass of a step, and what acts in it alone.

A step's gradient g is what ``loss.backward()`` makes, with all that a user puts in its way: a hook
scales it, ``detach()`` stops it, an embedding leaves out its padding. A hypergradient takes the
derivative of g itself. Through what was stopped, g still moves with the parameters: so in every
later pass such an operation is the plain function that it computes. Taken for a constant in the
second pass too, as autograd does by itself, ``((o - t)**2).detach() * (o - t)**2`` gives a
derivative of the wrong sign.

With anything of this, g is no longer the gradient of the loss that was written down, and its
derivative is no symmetric matrix.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class FirstPass:
    """A block in which the first backward pass of one step runs.

    Attributes:
        running: Whether it does.
        met: Whether anything of the step acts in its first pass alone.
    """

    def __init__(self) -> None:
        self.running = False
        self.met = False

    def __enter__(self) -> None:
        self.running = True

    def __exit__(self, *exception: object) -> None:
        self.running = False

    def stopped(self, x: Tensor) -> Tensor:
        """Return x, which is a constant to the first pass and x to those after it."""
        if not x.requires_grad:
            return x.detach()
        self.met = True
        apply: Any = _Stopped.apply
        stopped: Tensor = apply(x, self)
        return stopped

    def stopped_in_place(self, x: Tensor) -> None:
        """Make of x, which has been written into, a constant to the first pass."""
        if x.requires_grad:
            self.met = True
            apply: Any = _StoppedInPlace.apply
            apply(x, self)

    def once(self, hook: Callable[..., Any]) -> Callable[..., Any]:
        """Return a hook on gradients that does nothing in the passes after the first."""
        self.met = True

        def in_first_pass(*args: Any) -> Any:
            return hook(*args) if self.running else None

        return in_first_pass

    def scaled(self, x: Tensor, scale: Tensor) -> Tensor:
        """Return x, whose adjoint is multiplied with ``scale`` in the first pass."""
        if not x.requires_grad:
            return x
        self.met = True
        apply: Any = _Scaled.apply
        scaled: Tensor = apply(x, scale, self)
        return scaled


class _Stopped(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, first: FirstPass) -> Tensor:
        ctx.first = first
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return None if ctx.first.running else grads[0], None


class _StoppedInPlace(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, first: FirstPass) -> Tensor:
        ctx.first = first
        ctx.mark_dirty(x)
        return x

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return None if ctx.first.running else grads[0], None


class _Scaled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, first: FirstPass) -> Tensor:
        ctx.first = first
        ctx.save_for_backward(scale)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (scale,) = ctx.saved_tensors
        return (grads[0] * scale if ctx.first.running else grads[0]), None, None

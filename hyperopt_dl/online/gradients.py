"""The plain gradients in ``.grad``, and a watch on who else writes to them.

The tangents of the gradient are right for the gradient that was put into ``.grad``, and for no
other. So whoever changes it between ``backward`` and ``optimizer.step()`` is found out: a tensor
counts the writes to it, and at some steps it is held to a copy, for the sake of writes that do not
count. A write that changes nothing, as a clip to an infinite norm, does no harm; a loop that begins
with such writes is held to copies at every step.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from hyperopt_dl.errors import TrainingError
from hyperopt_dl.online.products import outsiders


class _Mark(NamedTuple):
    grad: Tensor
    version: int
    copy: Tensor | None


class Gradients:
    """The ``.grad`` of the trained parameters.

    Args:
        params: The parameters.
    """

    def __init__(self, params: Sequence[Tensor]) -> None:
        self._params = params
        self._marks: list[_Mark | None] = [None] * len(params)
        self._fresh = self._watched = self._always = False

    def check_leaves(self, loss: Tensor, known: Sequence[Tensor]) -> None:
        """Raise a TrainingError where the loss has leaves beside the parameters and ``known``."""
        if others := outsiders(loss, [*self._params, *known]):
            raise TrainingError(
                f"backward() fills the gradients of the optimizer's parameters only, but the loss "
                f"depends on {len(others)} more tensors that require a gradient, of shapes "
                f"{others[:3]}. Give them to the optimizer too, or set requires_grad_(False)."
            )

    def add(self, g: Sequence[Tensor | None], *, watched: bool = False) -> list[bool]:
        """Add to ``.grad`` as ``backward()`` does; None where there is nothing to add.

        Args:
            g: What is added.
            watched: Whether the numbers are to be held to a copy, too, until the step.

        Returns:
            For each parameter, whether it had no gradient before, so that what was gathered for it
            is to be forgotten.

        Raises:
            TrainingError: A gradient was changed since the last call.
        """
        stale = []
        with torch.no_grad():
            for param, mark, part in zip(self._params, self._marks, g, strict=True):
                grad = param.grad
                stale.append(grad is None or not self._untouched(grad, mark))
                if grad is not None and stale[-1] and bool(grad.count_nonzero()):
                    raise _changed()
                if part is not None:
                    if part.is_sparse:
                        raise TrainingError(
                            "Online tuning needs dense gradients, got a sparse one. Use "
                            "nn.Embedding(sparse=False)."
                        )
                    if grad is None:
                        param.grad = part.detach().clone()
                    else:
                        grad += part
        self._watched = watched or self._always
        self.mark()
        self._fresh = True
        return stale

    def mark(self) -> None:
        """Take the gradients as they are now for right."""
        grads = [param.grad for param in self._params]
        self._marks = [
            None
            if grad is None
            else _Mark(grad, grad._version, grad.clone() if self._watched else None)
            for grad in grads
        ]

    def check(self, grads: Sequence[Tensor | None]) -> None:
        """Check the gradients that an optimizer is about to step with, and hold them for used.

        Args:
            grads: Of all parameters of the optimizer, of which some may not be trained.

        Raises:
            TrainingError: They are not what the calls of `add` since the last step have left.
        """
        if not self._fresh:
            raise TrainingError(
                "optimizer.step() needs gradients of tuner.backward(loss), got others or those of "
                "the step before. Call tuner.backward(loss) in place of loss.backward(), once or "
                "more before each step."
            )
        own = [param.grad for param in self._params]
        known = all(
            (grad is None and mark is None) or (grad is not None and self._untouched(grad, mark))
            for grad, mark in zip(own, self._marks, strict=True)
        )
        if not known or _count(grads) != _count(own):
            raise _changed()
        self._fresh = False

    def _untouched(self, grad: Tensor, mark: _Mark | None) -> bool:
        if mark is None or grad is not mark.grad:
            return False
        written = grad._version != mark.version
        if mark.copy is None:
            return not written
        same = _same(grad, mark.copy)
        self._always = self._always or (same and written)
        return same


def _same(a: Tensor, b: Tensor) -> bool:
    return bool(((a == b) | (a.isnan() & b.isnan())).all())


def _count(grads: Sequence[Tensor | None]) -> int:
    return sum(grad is not None for grad in grads)


def _changed() -> TrainingError:
    return TrainingError(
        "The gradients must reach optimizer.step() as tuner.backward() left them, but something "
        "changed .grad in between. Clip with tuner.clip_grad_norm_(max_norm), scale the loss "
        "instead of the gradients, and leave a GradScaler out (bfloat16 needs none)."
    )

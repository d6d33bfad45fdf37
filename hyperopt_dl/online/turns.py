"""The turns of a tuner and its optimizer: new gradients, one ``tuner.step()``, one step.

A tuner that moves on what a gradient says, before the optimizer takes it, is wrong on gradients
that were used already, or that the optimizer will not get: those that a ``GradScaler`` has scaled.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from hyperopt_dl.errors import TrainingError
from hyperopt_dl.online.fingerprints import Fingerprint, alike, due, fingerprint
from hyperopt_dl.online.kept import params_of
from hyperopt_dl.online.scaler import by_scaler, overflown


class Turns:
    """Who comes next.

    Args:
        optimizer: Whose steps these are.

    Attributes:
        made: Steps of the optimizer that were made.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self._optimizer = optimizer
        self.made = 0
        self._moved = self._has_scaler = False
        self._seen: list[Fingerprint] | None = None
        self._used: tuple[list[tuple[Tensor, int]], list[Fingerprint]] | None = None

    def see(self) -> None:
        """Take the turn of the tuner.

        Raises:
            TrainingError: It is the optimizer's, or there are no new gradients.
        """
        if self._moved:
            raise TrainingError(
                "tuner.step() must be called once before each optimizer.step(), got a second call "
                "without one. Call it where the optimizer steps, once for all batches of a step; "
                "of an optimizer with several steps in one, as SAM, give the tuner the inner one."
            )
        grads = self._grads()
        looks = self._has_scaler or due(self.made, "turns")
        self._seen = [fingerprint(grad) for grad in grads] if looks else None
        if self._used is not None and grads:
            marks, before = self._used
            same = len(marks) == len(grads) and all(
                grad is old and grad._version == version
                for grad, (old, version) in zip(grads, marks, strict=True)
            )
            if same and alike(before, [fingerprint(grad) for grad in grads]):
                raise TrainingError(
                    "tuner.step() needs new gradients, got those that the last optimizer.step() "
                    "has used. Call it between loss.backward() and optimizer.step()."
                )

    def moved(self, yes: bool) -> None:
        """End the turn of the tuner: whether it has moved, so that it must not again."""
        self._moved = yes

    def make(self) -> bool:
        """Take the turn of the optimizer, and return whether it makes its step.

        Raises:
            TrainingError: A ``GradScaler`` makes it, with other gradients than the tuner saw.
        """
        grads = self._grads()
        if by_scaler(self._optimizer):
            saw, self._has_scaler = self._moved or self._seen is not None, True
            now = [fingerprint(grad) for grad in grads]
            if saw and (self._seen is None or not _same(self._seen, now)):
                raise TrainingError(
                    "tuner.step() must see the gradients that the optimizer gets, got those that a "
                    "GradScaler had scaled, or got to know of the scaler in mid-run. Call "
                    "scaler.unscale_(optimizer) before tuner.step(), from the first step on, or "
                    "use torch.autocast with torch.bfloat16, which needs no scaler."
                )
            if getattr(self._optimizer, "grad_scale", None) is not None:
                raise TrainingError(
                    "A fused optimizer must get gradients that are unscaled, got a GradScaler's "
                    "scale beside them. Call scaler.unscale_(optimizer) before tuner.step()."
                )
        self._moved, self._seen = False, None
        if overflown(self._optimizer):
            return False
        looks = due(self.made, "turns")
        marks = [(grad, grad._version) for grad in grads]
        self._used = (marks, [fingerprint(grad) for grad in grads]) if looks else None
        self.made += 1
        return True

    def _grads(self) -> list[Tensor]:
        params = params_of(self._optimizer)
        return [p.grad for p in params if p.grad is not None and not p.grad.is_sparse]


def _same(a: Sequence[Fingerprint], b: Sequence[Fingerprint]) -> bool:
    return len(a) == len(b) and alike(a, b)

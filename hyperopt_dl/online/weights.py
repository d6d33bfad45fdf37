"""A watch on the weights and the optimizer's slots, between its steps.

Tangents are the derivative of what ``optimizer.step()`` does, and of nothing else. A write to the
weights in between, as a clip or an average that is swapped in, would have a derivative of its own.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from hyperopt_dl.errors import TrainingError
from hyperopt_dl.online.fingerprints import Fingerprint, alike, due, fingerprint
from hyperopt_dl.online.layout import called


class _Mark(NamedTuple):
    slot: str
    param: Tensor
    tensor: Tensor
    version: int
    place: int


class Weights:
    """The weights and slots as the last step left them.

    Args:
        optimizer: Whose these are.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self._optimizer = optimizer
        self._marks: list[_Mark] | None = None
        self._fingerprints: list[Fingerprint] | None = None

    def accept(self) -> None:
        """Take whatever there is at the next step for right."""
        self._marks = self._fingerprints = None

    def mark(self, step: int) -> None:
        """Remember what a step has left; its numbers, too, where the step is one to look at."""
        self._marks = list(self._now())
        seen = due(step, "weights")
        self._fingerprints = [fingerprint(mark.tensor) for mark in self._marks] if seen else None

    def mark_again(self) -> None:
        """Take the tensors as they are now for what the step has left, with the same numbers."""
        if self._marks is not None:
            self._marks = list(self._now())

    def check(self, way_out: str) -> None:
        """Raise a TrainingError where somebody else has written since the last step.

        Args:
            way_out: What is said to be done about it.
        """
        if self._marks is None:
            return
        now = list(self._now())
        if len(now) != len(self._marks):
            raise _written("the state of the optimizer", way_out)
        for old, new in zip(self._marks, now, strict=True):
            if old.tensor is not new.tensor or old[3:] != new[3:]:
                raise _written(self._name(new), way_out)
        for i, before in enumerate(self._fingerprints or ()):
            if not alike([before], [fingerprint(now[i].tensor)]):
                raise _written(self._name(now[i]), way_out)

    def _now(self) -> Iterator[_Mark]:
        state = self._optimizer.state
        for group in self._optimizer.param_groups:
            for param in group["params"]:
                yield _Mark("", param, param, param._version, param.data_ptr())
                for name, slot in state[param].items() if param in state else ():
                    if isinstance(slot, Tensor):
                        yield _Mark(name, param, slot, slot._version, slot.data_ptr())

    def _name(self, mark: _Mark) -> str:
        slot = f"{mark.slot!r} of " if mark.slot else ""
        return slot + called(self._optimizer, mark.param)


def _written(what: str, way_out: str) -> TrainingError:
    return TrainingError(
        f"Weights and optimizer state must stay as optimizer.step() left them, for no derivative "
        f"leads through another write, got a write to {what}. {way_out}"
    )

"""A watch on the weights and the optimizer's slots, between its steps.

Tangents are the derivative of what ``optimizer.step()`` does, and of nothing else. A write to the
weights in between, as a clip or an average that is swapped in, would have a derivative of its own.
"""

import operator
from typing import Any

import torch
from torch import Tensor

from hyperopt_dl.errors import TrainingError
from hyperopt_dl.online.fingerprints import Fingerprint, alike, due, fingerprint
from hyperopt_dl.online.kept import params_of
from hyperopt_dl.online.layout import called


class Weights:
    """The weights and slots as the last step left them.

    Args:
        optimizer: Whose these are.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self._optimizer = optimizer
        self.accept()

    def accept(self) -> None:
        """Take whatever there is at the next step for right."""
        self._left: _Left | None = None
        self._fingerprints: list[Fingerprint] = []

    def mark(self, step: int) -> None:
        """Remember what a step has left; its numbers, too, where the step is one to look at."""
        self._left = _Left(params_of(self._optimizer), self._optimizer.state)
        seen = due(step, "weights")
        self._fingerprints = [fingerprint(t) for t in self._left.tensors] if seen else []

    def mark_again(self) -> None:
        """Take the tensors as they are now for what the step has left, with the same numbers."""
        if self._left is not None:
            self._left = _Left(self._left.params, self._optimizer.state)

    def check(self, way_out: str) -> None:
        """Raise a TrainingError where somebody else has written since the last step.

        Args:
            way_out: What is said to be done about it.
        """
        if self._left is None:
            return
        # Parameters that came later have nothing to be held to.
        left, now = self._left, _Left(self._left.params, self._optimizer.state)
        if not _same(left.slots, now.slots) or not _same(left.tensors, now.tensors):
            raise _written("the state of the optimizer", way_out)
        if left.versions != now.versions:
            pairs = zip(left.versions, now.versions, strict=True)
            raise self._error([a != b for a, b in pairs].index(True), way_out)
        for i, before in enumerate(self._fingerprints):
            if not alike([before], [fingerprint(now.tensors[i])]):
                raise self._error(i, way_out)

    def _error(self, i: int, way_out: str) -> TrainingError:
        assert self._left is not None
        tensor = self._left.tensors[i]
        for param, slots in self._optimizer.state.items():
            for name, slot in slots.items():
                if slot is tensor:
                    return _written(f"{name!r} of {called(self._optimizer, param)}", way_out)
        return _written(called(self._optimizer, tensor), way_out)


class _Left:
    """Tensors and how often they have been written to; made twice a step, so it is in a hurry."""

    def __init__(self, params: list[Tensor], state: Any) -> None:
        self.params = params
        self.slots = [state, *state.values()]
        self.tensors = params + [
            slot
            for slots in self.slots[1:]
            for slot in slots.values()
            if type(slot) is Tensor or isinstance(slot, Tensor)
        ]
        self.versions = [tensor._version for tensor in self.tensors]


def _same(a: list[Any], b: list[Any]) -> bool:
    return len(a) == len(b) and all(map(operator.is_, a, b))


def _written(what: str, way_out: str) -> TrainingError:
    return TrainingError(
        f"Weights and optimizer state must stay as optimizer.step() left them, for no derivative "
        f"leads through another write, got a write to {what}. {way_out}"
    )

"""The last good weights: copies of parameters and optimizer state, to go back to."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hyperopt_dl.online.kept import params_of


class Snapshot(NamedTuple):
    """Copies, in the order of the optimizer's parameters; ``state`` is empty before a first step.

    Buffers of the model, such as BatchNorm's statistics, are not the optimizer's and not in it.
    """

    params: list[Tensor]
    state: list[dict[str, Any]]

    def to(self, optimizer: torch.optim.Optimizer) -> "Snapshot":
        """Return a copy on the devices of the optimizer's parameters."""
        params = params_of(optimizer)
        return Snapshot(
            [value.to(p, copy=True) for value, p in zip(self.params, params, strict=True)],
            [_copied(state, p.device) for state, p in zip(self.state, params, strict=True)],
        )


def taken(optimizer: torch.optim.Optimizer) -> Snapshot:
    """Copy the parameters and the state of an optimizer."""
    params = params_of(optimizer)
    state = [_copied(optimizer.state[p]) if p in optimizer.state else {} for p in params]
    return Snapshot([p.detach().clone() for p in params], state)


def put_back(snapshot: Snapshot, optimizer: torch.optim.Optimizer) -> None:
    """Give parameters and state the values of the snapshot, and take the gradients away.

    The parameter groups keep their options. Without gradients the next ``optimizer.step()`` leaves
    everything as it is.
    """
    for param, value, state in zip(params_of(optimizer), *snapshot, strict=True):
        with torch.no_grad():
            param.copy_(value)
        param.grad = None
        optimizer.state.pop(param, None)
        if state:
            optimizer.state[param] = _copied(state)


def _copied(state: Mapping[str, Any], device: torch.device | None = None) -> dict[str, Any]:
    """Copy the slots of one parameter, to its device; a count of steps stays where it is."""
    return {
        name: entry.to(None if name == "step" else device, copy=True)
        if isinstance(entry, Tensor)
        else entry
        for name, entry in state.items()
    }

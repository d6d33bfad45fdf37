"""What the parameters of an optimizer are, as they were when a tuner was made for it."""

import operator
from typing import NamedTuple

import torch
from torch import Tensor

from hyperopt_dl.errors import TrainingError
from hyperopt_dl.online.kept import params_of


class _Kind(NamedTuple):
    trained: bool
    dtype: torch.dtype
    device: torch.device
    shape: torch.Size


class Layout:
    """The parameters by group, and whether each is trained, its dtype, device and shape.

    Args:
        optimizer: Whose parameters these are.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self._optimizer = optimizer
        self._sizes = [len(group["params"]) for group in optimizer.param_groups]
        self._params = params_of(optimizer)
        self._kinds = [_kind(param) for param in self._params]
        self._trained = [param.requires_grad for param in self._params]
        self._dtypes = [param.dtype for param in self._params]

    def check(self) -> None:
        """Raise a TrainingError where a parameter came, went, or is another than it was.

        Of a device or a shape that are others torch has something to say itself.
        """
        self.check_members()
        trained = [param.requires_grad for param in self._params]
        dtypes = [param.dtype for param in self._params]
        if trained != self._trained or dtypes != self._dtypes:
            self.check_kinds()

    def check_members(self) -> None:
        """Raise a TrainingError where a parameter or a group came or went."""
        groups = self._optimizer.param_groups
        now = params_of(self._optimizer)
        same = len(now) == len(self._params) and all(map(operator.is_, now, self._params))
        if not same or len(groups) != len(self._sizes):
            raise TrainingError(
                f"The optimizer must keep the {len(self._sizes)} parameter groups that it had and "
                f"their parameters, {self._sizes} of them, got "
                f"{[len(group['params']) for group in groups]}. Make a new ForwardTuner after "
                f"add_param_group."
            )

    def check_kinds(self) -> None:
        """Raise a TrainingError where a parameter is another kind of tensor than it was."""
        for param, kind in zip(self._params, self._kinds, strict=True):
            if _kind(param) != kind:
                raise TrainingError(_changed(self._optimizer, param, kind))


def called(optimizer: torch.optim.Optimizer, param: Tensor) -> str:
    """Return what a message calls a parameter: its name where the optimizer has it, its place."""
    for number, group in enumerate(optimizer.param_groups):
        for i, other in enumerate(group["params"]):
            if other is param:
                name = f"{group['param_names'][i]!r}, " if "param_names" in group else ""
                shape = tuple(param.shape)
                return f"{name}parameter {i} of group {number}, of shape {shape}"
    return f"a parameter of shape {tuple(param.shape)}"


def _kind(param: Tensor) -> _Kind:
    return _Kind(param.requires_grad, param.dtype, param.device, param.shape)


def _changed(optimizer: torch.optim.Optimizer, param: Tensor, before: _Kind) -> str:
    now = _kind(param)
    if now.trained != before.trained:
        what = "frozen" if before.trained else "trained"
        return (
            f"A parameter must stay frozen or trained as it was when the tuner was made, got "
            f"{called(optimizer, param)}, which is {what} now. Make a new tuner after "
            f"requires_grad_(): its tangents begin at zero."
        )
    return (
        f"A parameter must keep its dtype, device and shape, got {called(optimizer, param)} in "
        f"{now.dtype} on {now.device}, which had {before.dtype} on {before.device} and shape "
        f"{tuple(before.shape)} when the tuner was made. Convert the model before, or make "
        f"optimizer and tuner anew."
    )

"""The learning rates of an optimizer's parameter groups, with or without a torch scheduler.

Without one, the rate is ``group["lr"]``. A torch scheduler marks its groups with ``"initial_lr"``
and rewrites ``group["lr"]`` as it likes; there the rate that is tuned is the base rate, ``scale *
initial_lr``, and a step takes the scheduled rate times the same scale. The scaled rate stands in
the group only while ``optimizer.step()`` runs, so that every scheduler finds what it left.

An optimizer has the rates of one tuner: those of a tuner that is made later take their place, as
when the cell of a notebook is run twice.
"""

from collections.abc import Callable, Mapping
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch.utils.hooks import RemovableHandle

from hyperopt_dl.errors import TrainingError

_HOOKS: WeakKeyDictionary[torch.optim.Optimizer, tuple[RemovableHandle, ...]] = WeakKeyDictionary()
"""What the tuner that was made last has hung into an optimizer; a handle keeps neither alive."""


def lr_of(number: int) -> str:
    """Return the name of the learning rate of a parameter group."""
    return f"lr@{number}"


class Rates:
    """Reads and moves learning rates, and gives the scaled ones to each step.

    What an earlier object has hung into the optimizer is taken away.

    Args:
        optimizer: Whose rates these are.
        before_step: Called when the gradients of a step are there and the scaled rates in place.

    Attributes:
        scales: The factor on the scheduled rate, by group; 1 where there is no scheduler.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, before_step: Callable[[], None] = lambda: None
    ) -> None:
        self._optimizer = optimizer
        self._before_step = before_step
        self._scheduled: dict[int, float] = {}
        self.scales = [1.0] * len(optimizer.param_groups)
        for hook in _HOOKS.get(optimizer, ()):
            hook.remove()
        self._hooks = (
            optimizer.register_step_pre_hook(self._enter),
            optimizer.register_step_post_hook(lambda *_: self._leave()),
        )
        _HOOKS[optimizer] = self._hooks

    def check_in_use(self) -> None:
        """Raise a TrainingError where another tuner has been made for the optimizer since."""
        if _HOOKS.get(self._optimizer) is not self._hooks:
            raise TrainingError(
                "An optimizer has one tuner, the one that was made last, got a call of one that "
                "was made before. Call the last one, which may tune several hyperparameters, or "
                "make this one anew."
            )

    def check_state(self, state: Mapping[str, Any], own: Mapping[str, Any]) -> None:
        """Raise a TrainingError unless a state has the entries of one's own, and as many groups."""
        groups = len(self.scales)
        if state.keys() != own.keys() or len(state["scales"]) != groups:
            raise TrainingError(
                f"A state must have {sorted(own)} of a tuner of {groups} parameter group(s), got "
                f"{sorted(state)} of {len(state.get('scales', ()))}. Build model, optimizer and "
                f"tuner as they were."
            )

    def base(self, number: int) -> float:
        """Return the rate of a group that is tuned; of a scheduled group, the base rate."""
        group = self._optimizer.param_groups[number]
        if "initial_lr" in group:
            return float(group["initial_lr"]) * self.scales[number]
        return float(group["lr"])

    def set_base(self, number: int, value: float) -> None:
        """Give a group another rate."""
        group = self._optimizer.param_groups[number]
        if "initial_lr" in group:
            self.scales[number] = value / group["initial_lr"]
        else:
            group["lr"] = value

    def schedule(self, number: int) -> float:
        """Return what the scheduler multiplies the base rate of a group with, 1 without one."""
        group = self._optimizer.param_groups[number]
        return float(group["lr"]) / float(group["initial_lr"]) if "initial_lr" in group else 1.0

    def last(self) -> list[float]:
        """Return the rate of each group, as a step takes it."""
        groups = self._optimizer.param_groups
        return [float(g["lr"]) * scale for g, scale in zip(groups, self.scales, strict=True)]

    def _enter(self, _: object, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        # A closure, as Lightning passes one, makes the gradients inside of step(), before the
        # update reads the rates: what belongs before the update goes to the end of the closure.
        itself, *rest = args
        closure = kwargs.get("closure", rest[0] if rest else None)
        if closure is None:
            self._ready()
            return None

        def then_ready() -> Any:
            loss = closure()
            self._ready()
            return loss

        return (itself, then_ready), {}

    def _ready(self) -> None:
        with torch.no_grad():
            self._before_step()
        for number, (group, scale) in enumerate(
            zip(self._optimizer.param_groups, self.scales, strict=True)
        ):
            if scale != 1:
                self._scheduled[number] = group["lr"]
                group["lr"] = group["lr"] * scale

    def _leave(self) -> None:
        for number, lr in self._scheduled.items():
            self._optimizer.param_groups[number]["lr"] = lr
        self._scheduled.clear()

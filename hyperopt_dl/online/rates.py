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
from torch import Tensor
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
        before_step: Called once a step, when its gradients are there.
        after_step: Called when it has been made.

    Attributes:
        scales: The factor on the scheduled rate, by group; 1 where there is no scheduler.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        before_step: Callable[[], None] = lambda: None,
        after_step: Callable[[], None] = lambda: None,
    ) -> None:
        self._optimizer = optimizer
        self._before_step, self._after_step = before_step, after_step
        self._scheduled: dict[int, Any] = {}
        self.scales = [1.0] * len(optimizer.param_groups)
        for hook in _HOOKS.get(optimizer, ()):
            hook.remove()
        self._hooks = (
            optimizer.register_step_pre_hook(self._enter),
            optimizer.register_step_post_hook(self._end),
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
        self._follow_groups()
        group = self._optimizer.param_groups[number]
        if "initial_lr" in group:
            return float(group["initial_lr"]) * self.scales[number]
        return float(group["lr"])

    def set_base(self, number: int, value: float) -> None:
        """Give a group another rate; into the tensor, where it is one."""
        self._follow_groups()
        group = self._optimizer.param_groups[number]
        if "initial_lr" in group:
            self.scales[number] = value / _initial(group)
        else:
            _set_lr(group, value)

    def schedule(self, number: int) -> float:
        """Return what the scheduler multiplies the base rate of a group with, 1 without one."""
        group = self._optimizer.param_groups[number]
        return float(group["lr"]) / _initial(group) if "initial_lr" in group else 1.0

    def last(self) -> list[float]:
        """Return the rate of each group, as a step takes it."""
        self._follow_groups()
        groups = self._optimizer.param_groups
        return [float(g["lr"]) * scale for g, scale in zip(groups, self.scales, strict=True)]

    def _follow_groups(self) -> None:
        """Give groups that came later a scale."""
        groups = len(self._optimizer.param_groups)
        if groups < len(self.scales):
            raise TrainingError(
                f"The optimizer must keep the {len(self.scales)} parameter groups that it had, got "
                f"{groups}. Make a new tuner."
            )
        self.scales += [1.0] * (groups - len(self.scales))

    def _enter(self, _: object, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        # A closure, as Lightning passes one, makes the gradients inside of step(), before the
        # update reads the rates: what belongs before the update goes to the end of the closure.
        itself, *rest = args
        closure = kwargs.get("closure", rest[0] if rest else None)
        self._leave()  # what a step that failed may have left
        if closure is None:
            self._prepare()
            self._apply()
            return None
        # LBFGS reads the rate before the closure, and calls that many times: each of them finds the
        # scheduled rates, the first ends with what is done once a step, and all with the scale.
        ready = False
        self._apply()

        def then_ready() -> Any:
            nonlocal ready
            self._leave()
            loss = closure()
            if not ready:
                self._prepare()
                ready = True
            self._apply()
            return loss

        return (itself, then_ready), {}

    def _prepare(self) -> None:
        with torch.no_grad():
            self._before_step()

    def _apply(self) -> None:
        self._follow_groups()
        for number, (group, scale) in enumerate(
            zip(self._optimizer.param_groups, self.scales, strict=True)
        ):
            if scale != 1:
                lr = group["lr"]
                self._scheduled[number] = float(lr) if isinstance(lr, Tensor) else lr
                _set_lr(group, lr * scale)

    def _leave(self) -> None:
        for number, lr in self._scheduled.items():
            _set_lr(self._optimizer.param_groups[number], lr)
        self._scheduled.clear()

    def _end(self, *_: object) -> None:
        self._leave()
        with torch.no_grad():
            self._after_step()


def _set_lr(group: dict[str, Any], lr: Any) -> None:
    """Set the rate of a group; a tensor, which a captured graph may read, stays the same one."""
    if isinstance(group["lr"], Tensor):
        with torch.no_grad():
            group["lr"].fill_(float(lr))
    else:
        group["lr"] = lr


def _initial(group: Mapping[str, Any]) -> float:
    initial = float(group["initial_lr"])
    if initial == 0:
        raise TrainingError(
            "A rate beside a scheduler must start above 0, for the tuner moves it by a factor, got "
            "initial_lr=0. Give the optimizer a small positive rate before the scheduler is made."
        )
    return initial

"""Learning rates that descend the hypergradient of one step (Baydin et al. 2018).

The step before was ``x' = x - η n``. So the derivative of the present loss in the rate of that step
is ``-g · n``, g the present gradient: two vectors that are there anyway.
"""

import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from hyperopt_dl.errors import TrainingError
from hyperopt_dl.online.directions import check_family, keeps_gradient, last_direction, penalised
from hyperopt_dl.online.history import Move, figure, packed, unpacked
from hyperopt_dl.online.kept import from_list, params_of, to_list
from hyperopt_dl.online.layout import called
from hyperopt_dl.online.rates import Rates, lr_of
from hyperopt_dl.online.turns import Turns
from hyperopt_dl.online.weights import Weights
from hyperopt_dl.optimizers.options import FRACTION, NON_NEGATIVE


class HypergradientDescent:
    """Move the learning rate of each parameter group before each step, from its gradients alone.

    Call ``tuner.step()`` between ``loss.backward()`` and ``optimizer.step()``. There is no second
    backward pass and no validation data: it follows the training loss, one step ahead. SGD without
    momentum or with nesterov costs a copy of the gradient, everything else nothing.

    A gradient that is not finite moves nothing, and a rate does not go below 0. A torch scheduler
    may run beside: its base rate is moved, as by `ForwardTuner`. With a ``GradScaler``, call
    ``scaler.unscale_(optimizer)`` first. What else changes from step to step is followed: options,
    rates set by hand, parameter groups that come later, parameters without gradients.

    Args:
        optimizer: ``torch.optim.SGD``, ``Adam`` or ``AdamW``.
        hyper_lr: The learning rate of the learning rate.
        rule: ``"multiplicative"`` is ``lr *= 1 + hyper_lr * cos``, cos that of the angle between g
            and n, whatever their lengths; ``"additive"`` is ``lr += hyper_lr * g · n``.

    Raises:
        TrainingError: The optimizer is of another kind, or an argument is wrong.

    Attributes:
        steps: Calls of `step` so far.
        history: The moves so far; their ``gradient`` is ``-g · n``, by ``"lr@0"`` and so on.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        hyper_lr: float = 0.02,
        rule: Literal["multiplicative", "additive"] = "multiplicative",
    ) -> None:
        check_family(type(optimizer))
        check_rule(hyper_lr, rule)
        self.optimizer, self.hyper_lr, self.rule = optimizer, hyper_lr, rule
        self.steps = 0
        self.history: list[Move] = []
        self._turns, self._weights = Turns(optimizer), Weights(optimizer)
        self._rates = Rates(optimizer, self._before_step, self._after_step)
        self._stepped: dict[Tensor, Tensor | None] = {}
        self._used: list[float] = []
        self._options: list[dict[str, Any]] = []

    def step(self) -> None:
        """Move the rates for the step that the optimizer is about to make.

        Raises:
            TrainingError: Another tuner has been made for the optimizer since; there are no new
                gradients, or they are scaled; the tuner has moved for this step already; or
                somebody else has written to the weights since the last step.
        """
        self._rates.check_in_use()
        self._turns.see()
        self._weights.check(_TO_WRITE)
        self.steps += 1
        gradients, values = {}, {}
        moved = False
        for number, group in enumerate(self.optimizer.param_groups):
            h, size = self._hypergradient(number, group)
            before = self._rates.base(number)
            if self.hyper_lr and math.isfinite(h) and h != 0:
                by = -self.hyper_lr * h * self._rates.schedule(number)
                if self.rule == "multiplicative":
                    by = -self.hyper_lr * h / size * before
                self._rates.set_base(number, max(before + by, 0.0))
                moved = True
            gradients[lr_of(number)], values[lr_of(number)] = h, self._rates.base(number)
        self._turns.moved(moved)
        self.history.append(Move(self.steps, gradients, values))

    def get_last_lr(self) -> list[float]:
        """Return the learning rate of each parameter group, as the next step takes it."""
        return self._rates.last()

    def plot(self) -> Any:
        """Return a plotly figure of the learning rates over the steps."""
        return figure(self.history, log={lr_of(n): True for n in range(len(self.get_last_lr()))})

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs, beside the states of model and optimizer."""
        return {
            "steps": self.steps,
            "scales": list(self._rates.scales),
            "used": list(self._used),
            "options": [dict(options) for options in self._options],
            "stepped": [param in self._stepped for param in params_of(self.optimizer)],
            "kept": to_list(self._stepped, self.optimizer),
            "history": packed(self.history),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up a run where ``state_dict`` left it; model and optimizer load their own.

        Raises:
            TrainingError: The state is of another kind of tuner, or of other parameter groups.
        """
        self._rates.check_state(state, self.state_dict())
        self.steps, self.history = state["steps"], unpacked(state["history"])
        self._rates.scales, self._used = list(state["scales"]), list(state["used"])
        self._options = [dict(options) for options in state["options"]]
        kept = from_list(state["kept"], self.optimizer)
        pairs = zip(params_of(self.optimizer), state["stepped"], strict=True)
        self._stepped = {param: kept.get(param) for param, stepped in pairs if stepped}
        self._weights.accept()

    def _before_step(self) -> None:
        """Keep what the direction of the step that is about to be made will be read off."""
        if not self._turns.make():
            return
        self._used = self._rates.last()
        self._stepped, self._options = {}, []
        for group in self.optimizer.param_groups:
            self._options.append({n: v for n, v in group.items() if n not in _NOT_OPTIONS})
            for param in group["params"]:
                if param.grad is not None:
                    self._stepped[param] = (
                        _own(penalised(param, group), param) if keeps_gradient(group) else None
                    )

    def _after_step(self) -> None:
        self._weights.mark(self._turns.made)

    def _hypergradient(self, number: int, group: Mapping[str, Any]) -> tuple[float, float]:
        """Return ``-g · n`` over a group, and the product of their lengths."""
        products = []
        for param in group["params"]:
            if param.grad is None or param not in self._stepped:
                continue
            d, state = penalised(param, group), self.optimizer.state.get(param, {})
            own = (self._options[number], self._used[number], self._stepped[param])
            n = last_direction(param, state, *own)
            if n.shape != d.shape:
                raise TrainingError(
                    f"A parameter must keep its shape, got {called(self.optimizer, param)}, which "
                    f"had shape {tuple(n.shape)} at the last step. Make optimizer and tuner anew."
                )
            a, b = d.reshape(-1), n.to(d).reshape(-1)
            products.append(torch.stack([a.dot(b), a.dot(a), b.dot(b)]))
        if not products:
            return 0.0, 0.0
        along, g_square, n_square = torch.stack(products).sum(dim=0).tolist()
        return -along, math.sqrt(g_square * n_square)


def check_rule(hyper_lr: float, rule: str) -> None:
    """Raise a TrainingError unless these can be arguments of `HypergradientDescent`."""
    if rule not in ("multiplicative", "additive"):
        raise TrainingError(f"rule must be 'multiplicative' or 'additive', got {rule!r}.")
    if hyper_lr not in (FRACTION if rule == "multiplicative" else NON_NEGATIVE):
        raise TrainingError(
            f"hyper_lr must be a number >= 0, with the multiplicative rule below 1, got "
            f"{hyper_lr!r}. Try 0.02."
        )


def _own(d: Tensor, param: Tensor) -> Tensor:
    """Return d where it is no tensor that others write to, else a copy."""
    return d.clone() if d is param.grad else d


_NOT_OPTIONS = ("params", "param_names", "lr", "initial_lr")
"""What a group holds that is none of the options a direction depends on."""
_TO_WRITE = (
    "The derivative in the last rate is that of a step alone. Keep averages in a copy of the "
    "model, decay by weight_decay, and after weights were loaded, make a new tuner."
)

"""Learning rates by the agreement of successive gradients (Jacobs 1988, the delta-bar-delta rule).

For each parameter group δ is its gradient and δ̄ a running mean of it. Where they agree the rate
grows by a constant, where they disagree it shrinks by a factor. Jacobs gives each weight a rate of
its own and compares signs; for a group the sign is that of the inner product ``δ̄ · δ``.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from hyperopt_dl.errors import TrainingError
from hyperopt_dl.online.history import Move, figure, packed, unpacked
from hyperopt_dl.online.kept import from_list, to_list
from hyperopt_dl.online.layout import called
from hyperopt_dl.online.rates import Rates, lr_of
from hyperopt_dl.online.turns import Turns
from hyperopt_dl.optimizers.options import FRACTION, NON_NEGATIVE


class DeltaBarDelta:
    """Move the learning rate of each parameter group before each step, by the sign of ``δ̄ · δ``.

    Call ``tuner.step()`` between ``loss.backward()`` and ``optimizer.step()``. It works with every
    optimizer, and costs a copy of the gradient. A gradient that is not finite moves nothing, and is
    none of those in the mean. With a ``GradScaler``, call ``scaler.unscale_(optimizer)`` first.

    Args:
        optimizer: Any optimizer with learning rates.
        kappa: What a rate grows by in a step where the gradients agree, in the unit of the rate.
            There is no default, because no number suits all rates: with a hundredth of the rate
            that you start from, a rate doubles in 100 such steps.
        phi: The part of a rate that is taken away where the gradients disagree.
        theta: The weight of the past in δ̄.

    Raises:
        TrainingError: A number is out of range.

    Attributes:
        steps: Calls of `step` so far.
        history: The moves so far; their ``gradient`` is ``-δ̄ · δ``, by ``"lr@0"`` and so on.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        kappa: float,
        phi: float = 0.1,
        theta: float = 0.7,
    ) -> None:
        if kappa not in NON_NEGATIVE or phi not in FRACTION or theta not in FRACTION:
            raise TrainingError(
                f"DeltaBarDelta needs numbers kappa >= 0 and phi and theta from 0 to below 1, got "
                f"kappa={kappa!r}, phi={phi!r}, theta={theta!r}."
            )
        self.optimizer = optimizer
        self.kappa, self.phi, self.theta = kappa, phi, theta
        self.steps = 0
        self.history: list[Move] = []
        self._turns = Turns(optimizer)
        self._rates = Rates(optimizer, self._before_step)
        self._mean: dict[Tensor, Tensor] = {}

    def step(self) -> None:
        """Move the rates for the step that the optimizer is about to make.

        Raises:
            TrainingError: Another tuner has been made for the optimizer since; there are no new
                gradients, or they are scaled; or the tuner has moved for this step already.
        """
        self._rates.check_in_use()
        self._turns.see()
        self.steps += 1
        gradients, values = {}, {}
        moved = False
        for number, group in enumerate(self.optimizer.param_groups):
            agreement = self._agreement(group["params"])
            before = self._rates.base(number)
            if agreement > 0:
                self._rates.set_base(number, before + self.kappa)
            elif agreement < 0:
                self._rates.set_base(number, before * (1 - self.phi))
            moved = moved or agreement != 0
            gradients[lr_of(number)], values[lr_of(number)] = -agreement, self._rates.base(number)
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
            "mean": to_list(self._mean, self.optimizer),
            "history": packed(self.history),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up a run where ``state_dict`` left it; model and optimizer load their own.

        Raises:
            TrainingError: The state is of another kind of tuner, or of other parameter groups.
        """
        self._rates.check_state(state, self.state_dict())
        self.steps, self.history = state["steps"], unpacked(state["history"])
        self._rates.scales = list(state["scales"])
        self._mean = from_list(state["mean"], self.optimizer)

    def _before_step(self) -> None:
        self._turns.make()

    def _agreement(self, params: list[Tensor]) -> float:
        """Return ``δ̄ · δ``, 0 at the first step and where it is not finite; and update δ̄."""
        products, means = [], {}
        for param in params:
            g = param.grad
            if g is None:
                continue
            if param not in self._mean:
                products.append((0 * g).sum())
                means[param] = g.clone()
                continue
            mean = self._mean[param].to(g)
            if mean.shape != g.shape:
                raise TrainingError(
                    f"A parameter must keep its shape, got {called(self.optimizer, param)}, which "
                    f"had shape {tuple(mean.shape)} before. Make optimizer and tuner anew."
                )
            products.append((mean * g).sum())
            means[param] = torch.lerp(g, mean, self.theta)
        agreement = float(torch.stack(products).sum()) if products else 0.0
        if not math.isfinite(agreement):
            return 0.0
        self._mean |= means
        return agreement

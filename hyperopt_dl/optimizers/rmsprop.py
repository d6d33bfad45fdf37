"""RMSprop, the twin of ``torch.optim.RMSprop``.

g gradient (with weight decay), v its mean square, a its mean, b momentum buffer.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from hyperopt_dl.optimizers.combinations import (
    add_quotient,
    add_scaled,
    average,
    average_square,
    scale,
)
from hyperopt_dl.optimizers.flat_sqrt import flat_sqrt
from hyperopt_dl.optimizers.groups import NO_GROUPS, GroupsLike, check_all, everywhere, names_of
from hyperopt_dl.optimizers.options import (
    FRACTION,
    MOMENTUM,
    NON_NEGATIVE,
    Interval,
    Option,
    Value,
    is_zero,
)
from hyperopt_dl.optimizers.weight_decay import penalised

_INTERVALS = {
    "lr": NON_NEGATIVE,
    "alpha": FRACTION,
    "eps": NON_NEGATIVE,
    "weight_decay": NON_NEGATIVE,
    "momentum": MOMENTUM,
}


@dataclass(frozen=True)
class RMSprop:
    """RMSprop (Hinton 2012, lecture 6).

    ``centered`` divides by the standard deviation of the gradient (Graves 2013). As in torch,
    ``eps`` is added outside of the square root. The square root of a mean square that is 0 has
    derivative 0 (`flat_sqrt`). Where a schedule takes the momentum through 0 the buffer becomes the
    scaled gradient, as the formula says (torch leaves it as it was).

    Every number may instead be the name of a hyperparameter or a ``Schedule``; ``groups`` maps
    fnmatch patterns of parameter names to numeric options that differ there.

    Raises:
        TrainingError: A constant is out of range, or a group has an unknown option.

    Example:
        >>> rule = RMSprop(lr="lr", alpha="alpha", momentum=0.9)
    """

    lr: Option = 1e-2
    alpha: Option = 0.99
    eps: Option = 1e-8
    weight_decay: Option = 0.0
    momentum: Option = 0.0
    centered: bool = False
    maximize: bool = False
    groups: GroupsLike = NO_GROUPS

    def __post_init__(self) -> None:
        groups = check_all("RMSprop", self.options(), self.groups, _INTERVALS)
        object.__setattr__(self, "groups", groups)

    def options(self) -> dict[str, Option]:
        """The numeric options, as given."""
        return {
            "lr": self.lr,
            "alpha": self.alpha,
            "eps": self.eps,
            "weight_decay": self.weight_decay,
            "momentum": self.momentum,
        }

    def intervals(self) -> Mapping[str, Interval]:
        """Where each option must lie."""
        return _INTERVALS

    def names(self) -> frozenset[str]:
        """The hyperparameters that options and groups name."""
        return names_of(self.options(), self.groups)

    def slots(self, params: Tensor) -> dict[str, Tensor]:
        """The mean square; a buffer unless every momentum is the constant 0; a mean if centered."""
        slots = {"square_avg": torch.zeros_like(params)}
        if not all(map(is_zero, everywhere("momentum", self.options(), self.groups))):
            slots["momentum_buffer"] = torch.zeros_like(params)
        if self.centered:
            slots["grad_avg"] = torch.zeros_like(params)
        return slots

    def update(
        self,
        params: Tensor,
        grad: Tensor,
        slots: Mapping[str, Tensor],
        options: Mapping[str, Value],
        t: int,  # noqa: ARG002 — no part of this rule depends on the step
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """One step, as `Optimizer.update`."""
        alpha = options["alpha"]
        g = penalised(params, grad, options["weight_decay"], maximize=self.maximize)
        v = average_square(alpha, slots["square_avg"], g)
        new_slots = {"square_avg": v}
        if self.centered:
            new_slots["grad_avg"] = a = average(alpha, slots["grad_avg"], g)
            v = torch.addcmul(v, a, a, value=-1)
        denominator = flat_sqrt(v) + options["eps"]
        if "momentum_buffer" not in slots:
            return add_quotient(params, -options["lr"], g, denominator), new_slots
        b = scale(options["momentum"], slots["momentum_buffer"])
        new_slots["momentum_buffer"] = b = add_quotient(b, 1.0, g, denominator)
        return add_scaled(params, -options["lr"], b), new_slots

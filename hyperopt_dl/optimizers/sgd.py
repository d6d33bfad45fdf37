"""Gradient descent with momentum, the twin of ``torch.optim.SGD``.

g gradient (with weight decay), b momentum buffer, mu momentum, tau dampening, d direction.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from hyperopt_dl.errors import TrainingError
from hyperopt_dl.optimizers.combinations import add_scaled, scale
from hyperopt_dl.optimizers.groups import NO_GROUPS, GroupsLike, check_all, everywhere, names_of
from hyperopt_dl.optimizers.options import (
    FINITE,
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
    "momentum": MOMENTUM,
    "dampening": FINITE,
    "weight_decay": NON_NEGATIVE,
}


@dataclass(frozen=True)
class SGD:
    """``b = momentum * b + (1 - dampening) * g`` and ``params - lr * b``, as ``torch.optim.SGD``.

    Two differences, neither visible in a run whose momentum is constant: the first buffer keeps
    its graph (torch detaches it, and loses part of the hypergradient), and where a schedule takes
    the momentum through 0 the buffer becomes the gradient, as the formula says (torch leaves it as
    it was).

    Every number may instead be the name of a hyperparameter or a ``Schedule``; ``groups`` maps
    fnmatch patterns of parameter names to numeric options that differ there.

    Raises:
        TrainingError: A constant is out of range, a group has an unknown option, or ``nesterov``
            comes without momentum or with dampening.

    Example:
        >>> rule = SGD(lr="lr", momentum=0.9, groups={"*.bias": {"weight_decay": 0.0}})
    """

    lr: Option = 1e-3
    momentum: Option = 0.0
    dampening: Option = 0.0
    weight_decay: Option = 0.0
    nesterov: bool = False
    maximize: bool = False
    groups: GroupsLike = NO_GROUPS

    def __post_init__(self) -> None:
        groups = check_all("SGD", self.options(), self.groups, _INTERVALS)
        object.__setattr__(self, "groups", groups)
        dampening = everywhere("dampening", self.options(), groups)
        if self.nesterov and (is_zero(self.momentum) or not all(map(is_zero, dampening))):
            raise TrainingError(
                "SGD(nesterov=True) needs a momentum and no dampening, got "
                f"momentum={self.momentum!r}, dampening={self.dampening!r} and groups={groups!r}. "
                "Set momentum=0.9 and leave dampening at 0, or use nesterov=False."
            )

    def options(self) -> dict[str, Option]:
        """The numeric options, as given."""
        return {
            "lr": self.lr,
            "momentum": self.momentum,
            "dampening": self.dampening,
            "weight_decay": self.weight_decay,
        }

    def intervals(self) -> Mapping[str, Interval]:
        """Where each option must lie."""
        return _INTERVALS

    def names(self) -> frozenset[str]:
        """The hyperparameters that options and groups name."""
        return names_of(self.options(), self.groups)

    def slots(self, params: Tensor) -> dict[str, Tensor]:
        """A momentum buffer, unless every momentum is the constant 0."""
        if all(map(is_zero, everywhere("momentum", self.options(), self.groups))):
            return {}
        return {"momentum_buffer": torch.zeros_like(params)}

    def update(
        self,
        params: Tensor,
        grad: Tensor,
        slots: Mapping[str, Tensor],
        options: Mapping[str, Value],
        t: int,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """One step, as `Optimizer.update`."""
        g = penalised(params, grad, options["weight_decay"], maximize=self.maximize)
        if "momentum_buffer" not in slots:
            return add_scaled(params, -options["lr"], g), {}
        mu = options["momentum"]
        b = _buffer(slots["momentum_buffer"], g, mu, options["dampening"], t)
        d = add_scaled(g, mu, b) if self.nesterov else b
        return add_scaled(params, -options["lr"], d), {"momentum_buffer": b}


def _buffer(b: Tensor, g: Tensor, mu: Value, tau: Value, t: int) -> Tensor:
    """The new buffer: torch dampens neither the first gradient nor where there is no momentum."""
    if t == 0:
        return g.clone()  # not an alias of the caller's gradient
    if isinstance(mu, Tensor) and not is_zero(tau):
        # Masks the dampening, not the buffer: d(buffer)/d(momentum) = b also at momentum 0.
        tau = tau * (mu != 0).to(mu.dtype)
    elif is_zero(mu):
        tau = 0.0
    return add_scaled(scale(mu, b), 1 - tau, g)

"""Adagrad, the twin of ``torch.optim.Adagrad``.

g gradient (with weight decay), s the sum of its squares.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from hyperopt_dl.errors import TrainingError
from hyperopt_dl.optimizers.combinations import add_quotient
from hyperopt_dl.optimizers.flat_sqrt import flat_sqrt
from hyperopt_dl.optimizers.groups import NO_GROUPS, GroupsLike, check_all, names_of
from hyperopt_dl.optimizers.options import NON_NEGATIVE, Interval, Option, Value, check_option
from hyperopt_dl.optimizers.schedule import Schedule
from hyperopt_dl.optimizers.weight_decay import penalised

_INTERVALS = {
    "lr": NON_NEGATIVE,
    "lr_decay": NON_NEGATIVE,
    "weight_decay": NON_NEGATIVE,
    "eps": NON_NEGATIVE,
}


@dataclass(frozen=True)
class Adagrad:
    """Adagrad (Duchi, Hazan & Singer 2011); the learning rate is ``lr / (1 + t * lr_decay)``.

    The square root of a sum that is 0 has derivative 0 (`flat_sqrt`).

    Every number may instead be the name of a hyperparameter or a ``Schedule``, except
    ``initial_accumulator_value``, which is spent before the first step; ``groups`` maps fnmatch
    patterns of parameter names to the other numeric options that differ there.

    Raises:
        TrainingError: A constant is out of range, or a group has an unknown option.

    Example:
        >>> rule = Adagrad(lr="lr", lr_decay="lr_decay")
    """

    lr: Option = 1e-2
    lr_decay: Option = 0.0
    weight_decay: Option = 0.0
    initial_accumulator_value: float = 0.0
    eps: Option = 1e-10
    maximize: bool = False
    groups: GroupsLike = NO_GROUPS

    def __post_init__(self) -> None:
        start: object = self.initial_accumulator_value
        if isinstance(start, str | Schedule):
            raise TrainingError(
                f"Adagrad needs a number as initial_accumulator_value, got {start!r}. "
                "It is spent before the first step: give a constant."
            )
        check_option("Adagrad", "initial_accumulator_value", start, NON_NEGATIVE)
        groups = check_all("Adagrad", self.options(), self.groups, _INTERVALS)
        object.__setattr__(self, "groups", groups)

    def options(self) -> dict[str, Option]:
        """The numeric options of an update, as given."""
        return {
            "lr": self.lr,
            "lr_decay": self.lr_decay,
            "weight_decay": self.weight_decay,
            "eps": self.eps,
        }

    def intervals(self) -> Mapping[str, Interval]:
        """Where each option must lie."""
        return _INTERVALS

    def names(self) -> frozenset[str]:
        """The hyperparameters that options and groups name."""
        return names_of(self.options(), self.groups)

    def slots(self, params: Tensor) -> dict[str, Tensor]:
        """The sum of squares, which starts at ``initial_accumulator_value``."""
        return {"sum": torch.full_like(params, self.initial_accumulator_value, requires_grad=False)}

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
        s = torch.addcmul(slots["sum"], g, g)
        step_size = options["lr"] / (1 + t * options["lr_decay"])
        return add_quotient(params, -step_size, g, flat_sqrt(s) + options["eps"]), {"sum": s}

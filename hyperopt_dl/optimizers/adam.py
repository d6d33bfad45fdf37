"""Adam and AdamW, the twins of ``torch.optim.Adam`` and ``torch.optim.AdamW``.

g gradient, m and v its first and second moment (with amsgrad, v becomes the largest so far).
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from hyperopt_dl.optimizers.combinations import (
    add_quotient,
    average,
    average_square,
    scale,
)
from hyperopt_dl.optimizers.flat_sqrt import flat_sqrt
from hyperopt_dl.optimizers.groups import NO_GROUPS, GroupsLike, check_all, names_of
from hyperopt_dl.optimizers.options import (
    FRACTION,
    NON_NEGATIVE,
    Interval,
    Option,
    Value,
    is_zero,
    split_betas,
)
from hyperopt_dl.optimizers.weight_decay import penalised

_INTERVALS = {
    "lr": NON_NEGATIVE,
    "beta1": FRACTION,
    "beta2": FRACTION,
    "eps": NON_NEGATIVE,
    "weight_decay": NON_NEGATIVE,
}


@dataclass(frozen=True)
class Adam:
    """Adam (Kingma & Ba 2015, algorithm 1), with weight decay as an L2 penalty.

    ``amsgrad`` divides by the largest second moment so far (Reddi, Kale & Kumar 2018). The square
    root of a second moment that is 0 has derivative 0 (`flat_sqrt`).

    Every number may instead be the name of a hyperparameter or a ``Schedule``; ``groups`` maps
    fnmatch patterns of parameter names to numeric options that differ there (``betas``, or
    ``beta1`` and ``beta2`` alone).

    Raises:
        TrainingError: A constant is out of range, or a group has an unknown option.

    Example:
        >>> rule = Adam(lr="lr", betas=("beta1", 0.999), groups={"*.bias": {"weight_decay": 0.0}})
    """

    lr: Option = 1e-3
    betas: tuple[Option, Option] = (0.9, 0.999)
    eps: Option = 1e-8
    weight_decay: Option = 0.0
    amsgrad: bool = False
    maximize: bool = False
    groups: GroupsLike = NO_GROUPS

    def __post_init__(self) -> None:
        object.__setattr__(self, "betas", split_betas("Adam", self.betas))
        groups = check_all("Adam", self.options(), self.groups, _INTERVALS)
        object.__setattr__(self, "groups", groups)

    def options(self) -> dict[str, Option]:
        """The numeric options, as given; ``betas`` are ``beta1`` and ``beta2``."""
        return _options(self.lr, self.betas, self.eps, self.weight_decay)

    def intervals(self) -> Mapping[str, Interval]:
        """Where each option must lie."""
        return _INTERVALS

    def names(self) -> frozenset[str]:
        """The hyperparameters that options and groups name."""
        return names_of(self.options(), self.groups)

    def slots(self, params: Tensor) -> dict[str, Tensor]:
        """Two moments, and the largest second moment with ``amsgrad``."""
        return _slots(params, self.amsgrad)

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
        return _step(params, g, slots, options, t)


@dataclass(frozen=True)
class AdamW:
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019): ``params *= 1 - lr * decay``.

    Options and groups as `Adam`.

    Raises:
        TrainingError: A constant is out of range, or a group has an unknown option.

    Example:
        >>> rule = AdamW(lr="lr", weight_decay="weight_decay")
    """

    lr: Option = 1e-3
    betas: tuple[Option, Option] = (0.9, 0.999)
    eps: Option = 1e-8
    weight_decay: Option = 1e-2
    amsgrad: bool = False
    maximize: bool = False
    groups: GroupsLike = NO_GROUPS

    def __post_init__(self) -> None:
        object.__setattr__(self, "betas", split_betas("AdamW", self.betas))
        groups = check_all("AdamW", self.options(), self.groups, _INTERVALS)
        object.__setattr__(self, "groups", groups)

    def options(self) -> dict[str, Option]:
        """The numeric options, as given; ``betas`` are ``beta1`` and ``beta2``."""
        return _options(self.lr, self.betas, self.eps, self.weight_decay)

    def intervals(self) -> Mapping[str, Interval]:
        """Where each option must lie."""
        return _INTERVALS

    def names(self) -> frozenset[str]:
        """The hyperparameters that options and groups name."""
        return names_of(self.options(), self.groups)

    def slots(self, params: Tensor) -> dict[str, Tensor]:
        """Two moments, and the largest second moment with ``amsgrad``."""
        return _slots(params, self.amsgrad)

    def update(
        self,
        params: Tensor,
        grad: Tensor,
        slots: Mapping[str, Tensor],
        options: Mapping[str, Value],
        t: int,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """One step, as `Optimizer.update`."""
        decay = options["weight_decay"]
        shrunk = params if is_zero(decay) else scale(1 - options["lr"] * decay, params)
        return _step(shrunk, -grad if self.maximize else grad, slots, options, t)


def _options(
    lr: Option, betas: tuple[Option, Option], eps: Option, weight_decay: Option
) -> dict[str, Option]:
    beta1, beta2 = betas
    return {"lr": lr, "beta1": beta1, "beta2": beta2, "eps": eps, "weight_decay": weight_decay}


def _slots(params: Tensor, amsgrad: bool) -> dict[str, Tensor]:
    names = ["exp_avg", "exp_avg_sq", *(["max_exp_avg_sq"] if amsgrad else [])]
    return {name: torch.zeros_like(params) for name in names}


def _step(
    params: Tensor,
    g: Tensor,
    slots: Mapping[str, Tensor],
    options: Mapping[str, Value],
    t: int,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The step that both share, once the weight decay has been dealt with."""
    beta1, beta2 = options["beta1"], options["beta2"]
    m = average(beta1, slots["exp_avg"], g)
    v = average_square(beta2, slots["exp_avg_sq"], g)
    new_slots = {"exp_avg": m, "exp_avg_sq": v}
    if "max_exp_avg_sq" in slots:
        v = torch.maximum(slots["max_exp_avg_sq"], v)
        new_slots["max_exp_avg_sq"] = v
    denominator = flat_sqrt(v) / _bias_correction(beta2, t) ** 0.5 + options["eps"]
    step_size = options["lr"] / _bias_correction(beta1, t)
    return add_quotient(params, -step_size, m, denominator), new_slots


def _bias_correction(beta: Value, t: int) -> Value:
    """``1 - beta^(t+1)`` in double: the power of a float32 beta2 would lose half of its digits."""
    if not isinstance(beta, Tensor):
        return 1.0 - beta ** (t + 1)
    correction = 1.0 - beta.double() ** (t + 1)
    return correction if beta.ndim == 0 else correction.to(beta.dtype)

"""Which of torch's optimizers can be tuned online, in which options, and by which tangents."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from hyperopt_dl.errors import TrainingError
from hyperopt_dl.hypergrad.closed_forms.tangents import Advance, adagrad, adam, rmsprop, sgd
from hyperopt_dl.optimizers.options import FINITE, FRACTION, MOMENTUM, NON_NEGATIVE, Interval


@dataclass(frozen=True)
class Rule:
    """What is known of an optimizer of torch.

    Attributes:
        advance: The tangents of one step.
        slots: From a group's options to the names of the vectors that its state holds.
        options: Where each option that can be tuned must lie.
    """

    advance: Advance
    slots: Callable[[Mapping[str, Any]], tuple[str, ...]]
    options: Mapping[str, Interval]


_ADAM = Rule(
    adam,
    lambda o: ("exp_avg", "exp_avg_sq", *(["max_exp_avg_sq"] if o["amsgrad"] else [])),
    {
        "lr": NON_NEGATIVE,
        "beta1": FRACTION,
        "beta2": FRACTION,
        "eps": NON_NEGATIVE,
        "weight_decay": NON_NEGATIVE,
    },
)
_RULES: Mapping[type[torch.optim.Optimizer], Rule] = {
    torch.optim.SGD: Rule(
        sgd,
        lambda o: ("momentum_buffer",) if o["momentum"] else (),
        {
            "lr": NON_NEGATIVE,
            "momentum": MOMENTUM,
            "dampening": FINITE,
            "weight_decay": NON_NEGATIVE,
        },
    ),
    torch.optim.Adam: _ADAM,
    torch.optim.AdamW: _ADAM,
    torch.optim.RMSprop: Rule(
        rmsprop,
        lambda o: (
            "square_avg",
            *(["momentum_buffer"] if o["momentum"] > 0 else []),
            *(["grad_avg"] if o["centered"] else []),
        ),
        {
            "lr": NON_NEGATIVE,
            "alpha": FRACTION,
            "eps": NON_NEGATIVE,
            "weight_decay": NON_NEGATIVE,
            "momentum": MOMENTUM,
        },
    ),
    torch.optim.Adagrad: Rule(
        adagrad,
        lambda o: ("sum",),  # noqa: ARG005 (whatever the options are)
        {
            "lr": NON_NEGATIVE,
            "lr_decay": NON_NEGATIVE,
            "weight_decay": NON_NEGATIVE,
            "eps": NON_NEGATIVE,
        },
    ),
}


def rule_of(kind: type[torch.optim.Optimizer]) -> Rule:
    """Return what is known of an optimizer, by its class.

    Raises:
        TrainingError: It is none of those that are known, or a subclass, which may step otherwise.
    """
    if kind not in _RULES:
        raise TrainingError(
            f"Online tuning knows the steps of torch.optim."
            f"{', '.join(known.__name__ for known in _RULES)}, got {kind.__name__}. "
            f"Use one of these; of a wrapper, pass the torch optimizer inside it."
        )
    return _RULES[kind]


def options_of(group: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options and flags of a parameter group, ``betas`` as beta1 and beta2."""
    options = {name: value for name, value in group.items() if name not in ("params", "betas")}
    if "betas" in group:
        options["beta1"], options["beta2"] = group["betas"]
    return options

"""From a twin of a ``torch.optim`` optimizer to the optimizer itself."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from hyperopt_dl.errors import TrainingError
from hyperopt_dl.optimizers import SGD, Adagrad, Adam, AdamW, ClipNorm, Optimizer, RMSprop, Schedule
from hyperopt_dl.optimizers.resolve import evaluate, first_match

_KINDS: Mapping[type, type[torch.optim.Optimizer]] = {
    SGD: torch.optim.SGD,
    Adam: torch.optim.Adam,
    AdamW: torch.optim.AdamW,
    RMSprop: torch.optim.RMSprop,
    Adagrad: torch.optim.Adagrad,
}


def kind_of(twin: Optimizer) -> type[torch.optim.Optimizer]:
    """Return the class of torch that a twin is the twin of, inside a ``ClipNorm`` too.

    Raises:
        TrainingError: There is none, or an option is a schedule, which would move what is tuned.
    """
    rule = twin.rule if isinstance(twin, ClipNorm) else twin
    if type(rule) not in _KINDS:
        raise TrainingError(
            f"An online tuner needs an optimizer of hyperopt_dl.optimizers that torch.optim has "
            f"too, alone or in one ClipNorm, got {type(rule).__name__}. Use one of these."
        )
    options = [twin.options(), *twin.groups.values()]
    for name, option in [pair for some in options for pair in some.items()]:
        if isinstance(option, Schedule):
            raise TrainingError(
                f"An online tuner moves the options of the optimizer, which must be numbers or "
                f"names of hyperparameters, got {name}={option!r}. Leave the schedule out."
            )
    return _KINDS[type(rule)]


def has_twin(rule: Optimizer) -> bool:
    """Return whether torch has an optimizer that makes the first step of a rule."""
    inner = rule.rule if isinstance(rule, ClipNorm) else rule
    options = [inner.options(), *inner.groups.values()]
    scheduled = any(isinstance(each, Schedule) for some in options for each in some.values())
    return type(inner) in _KINDS and not scheduled


def torch_optimizer(
    twin: Optimizer, params: Mapping[str, Tensor], hparams: Mapping[str, Any]
) -> torch.optim.Optimizer:
    """Return the optimizer of torch with the options that a twin has at these hyperparameters.

    Its first parameter group has the parameters that no pattern takes; the others are those of the
    patterns, in order. A group without parameters is left out.

    Args:
        twin: Alone, or in a ``ClipNorm``, which is left to the caller.
        params: The leaves to be trained, by name.
        hparams: The hyperparameters that the twin may name.

    Raises:
        TrainingError: A hyperparameter is missing or no scalar.
    """
    rule = twin.rule if isinstance(twin, ClipNorm) else twin
    own = rule.options()
    groups = []
    for pattern in (None, *rule.groups):
        members = [p for name, p in params.items() if first_match(rule.groups, name) == pattern]
        if members:
            changes = {} if pattern is None else rule.groups[pattern]
            groups.append({"params": members, **_numbers({**own, **changes}, hparams)})
    flags = {field.name: getattr(rule, field.name) for field in fields(rule)}  # type: ignore[arg-type]
    for name in (*own, "betas", "groups"):
        flags.pop(name, None)
    return kind_of(twin)(groups, **_numbers(own, hparams), **flags)


def max_norm(twin: Optimizer, hparams: Mapping[str, Any]) -> float | None:
    """Return the norm that a twin clips gradients to, ``None`` where it does not."""
    if not isinstance(twin, ClipNorm):
        return None
    return float(evaluate("max_norm", twin.max_norm, hparams, 0))


def _numbers(options: Mapping[str, Any], hparams: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of options as the constructors of torch take them."""
    values: dict[str, Any] = {
        name: float(evaluate(name, option, hparams, 0)) for name, option in options.items()
    }
    if "beta1" in values:
        values["betas"] = (values.pop("beta1"), values.pop("beta2"))
    return values

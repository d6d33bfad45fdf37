"""From options, groups and schedules to the numbers of one step."""

import fnmatch
import functools
import numbers
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from hyperopt_dl.errors import TrainingError
from hyperopt_dl.optimizers.groups import Groups, GroupsLike
from hyperopt_dl.optimizers.optimizer import Optimizer
from hyperopt_dl.optimizers.options import Option, Value
from hyperopt_dl.optimizers.schedule import Schedule

Layout: TypeAlias = Sequence[tuple[str, int]]
"""(parameter name, number of entries), in the order of the flat vector."""

_Runs: TypeAlias = tuple[tuple[Option, int], ...]


def resolve(
    optimizer: Optimizer,
    hparams: Mapping[str, float | Tensor],
    t: int,
    layout: Layout,
    like: Tensor,
) -> dict[str, Value]:
    """The options of ``optimizer`` at step ``t``, as its ``update`` takes them.

    An option is a number or a 0-dim tensor, unless groups give parts of the vector different
    values: then it is a `p` tensor, on the device and in the dtype of ``like``, or in float32 if
    that is narrower (0.999 is 1 in bfloat16). Everything is differentiable in ``hparams``.

    Args:
        optimizer: The rule.
        hparams: Numbers or 0-dim tensors by name; float64 tensors do not widen the vector.
        t: The absolute step, 0 at the first update.
        layout: The names and sizes of the parameters, in the order of the flat vector.
        like: The `p` parameter vector.

    Raises:
        TrainingError: A hyperparameter is missing or no scalar, a pattern decides for no parameter,
            or the layout does not have `p` entries.
    """
    options = optimizer.options()
    if not optimizer.groups:
        return {name: evaluate(name, option, hparams, t) for name, option in options.items()}
    runs_of, entries = _split(tuple(options.items()), _frozen(optimizer.groups), tuple(layout))
    if entries != like.numel():
        raise TrainingError(
            f"The layout must have as many entries as the parameter vector, got {entries} for a "
            f"vector of {like.numel()}. Build both from the same module."
        )
    return {name: _join(name, runs, hparams, t, like) for name, runs in runs_of}


def evaluate(
    name: str, option: Option, hparams: Mapping[str, float | Tensor], t: int
) -> float | Tensor:
    """The value of one option at step ``t``, a number or a 0-dim tensor.

    Raises:
        TrainingError: It names a hyperparameter that is missing or no scalar.
    """
    if isinstance(option, Schedule):
        return evaluate(name, option.value, hparams, t) * option.factor_at(t, hparams)
    if not isinstance(option, str):
        return float(option)
    if option not in hparams:
        raise TrainingError(
            f"The option {name} needs the hyperparameter {option!r}, got only "
            f"{sorted(hparams)}. Add it to the space, or give {name} a number."
        )
    value: Any = hparams[option]
    if isinstance(value, Tensor) and value.ndim == 0:
        return value
    if isinstance(value, numbers.Real):
        return float(value)
    got = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)
    raise TrainingError(
        f"The hyperparameter {option!r} must be one number (or a 0-dim tensor), because the option "
        f"{name} uses it; got {got}. For one value a step use a Schedule with a factor of "
        "(t, hparams); for one value a layer use groups."
    )


def _join(
    name: str, runs: _Runs, hparams: Mapping[str, float | Tensor], t: int, like: Tensor
) -> Value:
    if len(runs) == 1:
        return evaluate(name, runs[0][0], hparams, t)
    dtype = torch.promote_types(like.dtype, torch.float32)
    once: dict[Option, Tensor] = {}
    for option, _ in runs:
        if option not in once:
            value = evaluate(name, option, hparams, t)
            once[option] = torch.as_tensor(value, dtype=dtype, device=like.device)
    return torch.cat([once[option].expand(entries) for option, entries in runs])


@functools.lru_cache(maxsize=64)
def _split(
    options: tuple[tuple[str, Option], ...], groups: Groups, layout: tuple[tuple[str, int], ...]
) -> tuple[tuple[tuple[str, _Runs], ...], int]:
    """For each option the runs (option, entries) along the vector, and the entries in all."""
    decided = [first_match(groups, parameter) for parameter, _ in layout]
    for pattern in groups:
        if pattern not in decided:
            raise TrainingError(_useless(pattern, [parameter for parameter, _ in layout]))
    runs_of = []
    for name, default in options:
        runs: list[tuple[Option, int]] = []
        for match, (_, entries) in zip(decided, layout, strict=True):
            option = default if match is None else groups[match].get(name, default)
            if runs and runs[-1][0] == option:
                entries += runs.pop()[1]
            runs.append((option, entries))
        runs_of.append((name, tuple(runs)))
    return tuple(runs_of), sum(entries for _, entries in layout)


def first_match(groups: GroupsLike, parameter: str) -> str | None:
    """The pattern of the group that decides for a parameter, ``None`` where none does."""
    return next((p for p in groups if fnmatch.fnmatchcase(parameter, p)), None)


def _useless(pattern: str, parameters: list[str]) -> str:
    if fnmatch.filter(parameters, pattern):
        return (
            f"Every group must decide for some parameter, got {pattern!r} after patterns that "
            "take all of its parameters; the first match wins. Put the narrower pattern first."
        )
    return (
        f"Every group must match a parameter, got {pattern!r} for the parameters {parameters}. "
        "Patterns are fnmatch's, on the names of nn.Module.named_parameters."
    )


def _frozen(groups: object) -> Groups:
    if isinstance(groups, Groups):
        return groups
    raise TrainingError(
        f"An optimizer must hold its groups as `Groups`, got {groups!r}. Return what `check_all` "
        "returns."
    )

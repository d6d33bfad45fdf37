"""What a module is in beside its tensors while it makes a step: modes, hooks, hidden state."""

import sys
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from hyperopt_dl.second_derivatives.first_pass import FirstPass

Attribute: TypeAlias = tuple[nn.Module, str, Any]
"""An attribute of a part of a module, and what it was."""
ABSENT = object()
"""The value of an attribute that was not there."""
_NO_STATE = {"_parameters", "_buffers", "_modules", "training"}


def training_flags(module: nn.Module, parts: list[nn.Module]) -> list[bool]:
    """Return which parts are in training mode while the module trains.

    A module that comes in training mode is left as it is: some of its parts may have been put into
    evaluation mode to stay there. One that says itself what ``train()`` means is asked.
    """
    before = [each.training for each in parts]
    own = any(type(each).train is not nn.Module.train for each in parts)
    if module.training and not own:
        return before
    module.train()
    flags = [each.training for each in parts]
    set_flags(parts, flags, before)
    return flags


def set_flags(parts: list[nn.Module], now: list[bool], wanted: list[bool]) -> None:
    """Put parts that are in the modes ``now`` into other ones."""
    if now != wanted:
        for each, flag in zip(parts, wanted, strict=True):
            each.training = flag


@contextmanager
def acting_once(hooks: list[dict[Any, Any]], first: FirstPass) -> Iterator[None]:
    """Let hooks on gradients act in the first backward pass alone."""
    before = [dict(each) for each in hooks]
    try:
        for each in hooks:
            each.update({key: first.once(hook) for key, hook in each.items()})
        yield
    finally:
        for each, own in zip(hooks, before, strict=True):
            each.update(own)


def not_compiled() -> AbstractContextManager[Any]:
    """Run what the user has compiled as it was written: a compiled backward pass has no graph."""
    if "torch._dynamo" not in sys.modules:  # nothing is compiled, and to ask takes seconds
        return nullcontext()
    stance: AbstractContextManager[Any] = torch.compiler.set_stance("force_eager")
    return stance


def hooks_on_gradients(
    parts: Iterable[nn.Module], params: Iterable[Tensor]
) -> list[dict[Any, Any]]:
    """Return the tables of hooks that act on gradients, of parameters and of modules."""
    tables = [getattr(each, "_backward_hooks", None) for each in (*params, *parts)]
    tables += [getattr(each, "_backward_pre_hooks", None) for each in parts]
    return [table for table in tables if table]


def hidden_state(parts: Iterable[nn.Module]) -> list[dict[str, Any]]:
    """Return what the parts hold beside parameters, buffers and parts."""
    return [{n: v for n, v in vars(each).items() if n not in _NO_STATE} for each in parts]


def changed(parts: Iterable[nn.Module], before: Iterable[dict[str, Any]]) -> list[Attribute]:
    """Return the attributes that are others than before, with what they were."""
    found = []
    for part, old in zip(parts, before, strict=True):
        now = {n: v for n, v in vars(part).items() if n not in _NO_STATE}
        found += [(part, n, v) for n, v in old.items() if now.get(n, ABSENT) is not v]
        found += [(part, n, ABSENT) for n in now.keys() - old.keys()]
    return found


def put_back(attributes: Iterable[Attribute]) -> None:
    """Make attributes what they were."""
    for part, name, value in attributes:
        if value is ABSENT:
            vars(part).pop(name, None)
        else:
            vars(part)[name] = value


def has_generator(parts: Iterable[nn.Module]) -> bool:
    """Return whether a part keeps a generator of its own, which every step moves on."""
    return any(
        isinstance(value, torch.Generator) for part in parts for value in vars(part).values()
    )

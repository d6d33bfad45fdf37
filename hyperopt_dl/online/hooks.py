"""Hooks on parameters, which edit a gradient before it is in ``.grad``, and their derivative.

``loss.backward()`` calls them once. A gradient that is differentiated again would meet them in both
backward passes; so they are kept out of these, called once on the plain gradient, and what they
make of it is carried by its derivative, exactly.

Letters: g the plain gradient of a parameter, e(g) what its hooks make of it, t a tangent of g.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hyperopt_dl.errors import TrainingError


class Edit(NamedTuple):
    """What hooks make of a gradient: e(g), and the map from t to its derivative along t."""

    g: Tensor
    along: Callable[[Tensor], Tensor]


@contextmanager
def silenced(params: Sequence[Tensor]) -> Iterator[None]:
    """Keep the hooks of parameters out of what is computed inside."""
    kept = [(hooks, dict(hooks)) for param in params if (hooks := param._backward_hooks)]
    for hooks, _ in kept:
        hooks.clear()
    try:
        yield
    finally:
        for hooks, own in kept:
            hooks.update(own)


def edited(param: Tensor, g: Tensor, name: str) -> Edit | None:
    """Return what a parameter's hooks make of its gradient; ``None`` where that is g itself.

    Args:
        param: The parameter.
        g: Its plain gradient.
        name: What a message calls the parameter.

    Raises:
        TrainingError: What they make of it has no derivative.
    """
    hooks: dict[int, Callable[[Tensor], Any]] = dict(param._backward_hooks or {})
    if not hooks:
        return None
    with torch.enable_grad():
        given = g.detach().requires_grad_()
        before = out = given.clone()
        version = before._version
        for hook in hooks.values():
            found = hook(out)
            out = out if found is None else found
        if out is before and before._version == version:
            return None
        if not isinstance(out, Tensor) or out.shape != g.shape or not out.requires_grad:
            raise TrainingError(
                f"A hook on a parameter must make of the gradient something of its shape that can "
                f"be differentiated, got a hook on {name} that does not. Write it with torch's "
                f"operations, outside of no_grad() and without detach(), or set discount=0."
            )
        v = torch.zeros_like(out, requires_grad=True)
        (pulled,) = torch.autograd.grad(out, given, v, create_graph=True, materialize_grads=True)
    return Edit(out.detach(), lambda t: _pushed(pulled, v, t))


def check_no_later_hooks(params: Sequence[Tensor], name: Callable[[Tensor], str]) -> None:
    """Raise a TrainingError where a hook waits for ``loss.backward()`` to have filled ``.grad``."""
    for param in params:
        if getattr(param, "_post_accumulate_grad_hooks", None):
            raise TrainingError(
                f"tuner.backward() fills .grad itself, and does not call hooks that wait for "
                f"autograd to have done it, got one from register_post_accumulate_grad_hook on "
                f"{name(param)}. Remove it, or set discount=0, which calls loss.backward()."
            )


def _pushed(pulled: Tensor, v: Tensor, t: Tensor) -> Tensor:
    """The derivative of e along t: e's transposed derivative is linear in v, and this its own."""
    if not pulled.requires_grad:
        return torch.zeros_like(t)
    (along,) = torch.autograd.grad(pulled, v, t, retain_graph=True, materialize_grads=True)
    return along

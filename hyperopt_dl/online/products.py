"""A gradient with its graph, and Hessian–vector products on it.

The Hessian is symmetric, so H z is a vector–Jacobian product of the gradient: one backward pass on
a graph that is recorded once, about 1.2 plain training steps a tangent. Forward-mode products cost
three times as much, and many kernels have none.

Letters: g gradient, z a tangent of the parameters, H Hessian of the loss.
"""

from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.utils.checkpoint import CheckpointFunction

from hyperopt_dl.errors import TrainingError
from hyperopt_dl.hypergrad.traces.eager import functions_of, lacking_operator
from hyperopt_dl.recorded_step import is_reentrant

Parts: TypeAlias = tuple[Tensor | None, ...]
"""One tensor a parameter, in its shape; ``None`` where the loss does not depend on it."""

_KERNELS = {
    "attention": "Run the model under torch.nn.attention.sdpa_kernel(SDPBackend.MATH).",
    "rnn": "Run the model with torch.backends.mkldnn.enabled (on CUDA: cudnn.enabled) False.",
}

_REENTRANT = (
    "A tuner takes gradients by torch.autograd.grad, got a loss through "
    "torch.utils.checkpoint(use_reentrant=True), which works with loss.backward() alone. Write "
    "use_reentrant=False."
)


def checked(loss: Tensor) -> float:
    """Return the value of a loss.

    Raises:
        TrainingError: It is no tensor of one number, or has no graph.
    """
    if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.requires_grad:
        got = (
            f"shape {tuple(loss.shape)}, requires_grad={loss.requires_grad}"
            if isinstance(loss, Tensor)
            else f"the {type(loss).__name__} {loss!r}"
        )
        raise TrainingError(
            f"A loss must be one number, in a tensor, that depends on the optimizer's parameters, "
            f"got {got}. Take its mean, and take away a detach(), .item() or no_grad() between the "
            f"model and it."
        )
    return float(loss.detach())


def gradient(loss: Tensor, params: Sequence[Tensor], *, graph: bool) -> Parts:
    """Return dloss/dparams, with the graph of it where ``graph`` is true.

    Raises:
        TrainingError: The loss does not depend on any of the parameters, or runs through a
            checkpoint that only ``loss.backward()`` can differentiate.
    """
    try:
        found = torch.autograd.grad(loss, params, create_graph=graph, allow_unused=True)
    except RuntimeError as error:
        if is_reentrant(error):
            raise TrainingError(_REENTRANT) from error
        raise
    if any(part is None for part in found) and any(_is_checkpoint(f) for f in functions_of(loss)):
        raise TrainingError(_REENTRANT)  # what is inside of it is not reached, without an error
    if all(part is None for part in found):
        raise TrainingError(
            "A loss must depend on the optimizer's parameters, got one that depends on none of "
            "them. Give the optimizer the parameters of the model that the loss is computed by."
        )
    return found


def product(g: Parts, params: Sequence[Tensor], z: Sequence[Tensor | None], *, last: bool) -> Parts:
    """Return H z from the graph of g, which is freed with the ``last`` one.

    g and z may go on beyond the parameters: H then has columns for what L depends on beside them.

    Raises:
        TrainingError: An operation in the model can be differentiated only once.
    """
    pairs = [
        (a, b)
        for a, b in zip(g, z, strict=True)
        if a is not None and b is not None and a.requires_grad
    ]
    if not pairs:  # the loss is linear
        return (None,) * len(g)
    outputs, along = zip(*pairs, strict=True)
    try:
        return torch.autograd.grad(outputs, params, along, retain_graph=not last, allow_unused=True)
    except RuntimeError as error:
        if operator := lacking_operator(error):
            raise _once_only(operator) from error
        raise


def says_nothing(loss: Tensor, params: Sequence[Tensor]) -> bool:
    """Return whether the gradient of a loss is there and zero, as where all targets are ignored.

    The graph is kept. Such a loss may be nan: a mean over nothing.
    """
    try:
        found = torch.autograd.grad(loss, params, retain_graph=True, allow_unused=True)
    except RuntimeError as error:
        if is_reentrant(error):  # it says so where it is differentiated
            return False
        raise
    return vanishes(found)


def vanishes(g: Sequence[Tensor | None]) -> bool:
    """Return whether a gradient has entries, and all of them are 0."""
    found = [part for part in g if part is not None]
    return bool(found) and not any(bool(part.count_nonzero()) for part in found)


def outsiders(loss: Tensor, params: Iterable[Tensor]) -> list[tuple[int, ...]]:
    """Return the shapes of leaves that ``loss.backward()`` would reach beside ``params``."""
    own = {id(param) for param in params}
    leaves = (getattr(function, "variable", None) for function in functions_of(loss))
    return [tuple(leaf.shape) for leaf in leaves if leaf is not None and id(leaf) not in own]


def _is_checkpoint(function: Any) -> bool:
    return getattr(function, "_forward_cls", None) is CheckpointFunction


def _once_only(operator: str) -> TrainingError:
    remedies = [remedy for part, remedy in _KERNELS.items() if part in operator.lower()]
    return TrainingError(
        f"Tangents need second derivatives of the training loss, and {operator} has none. "
        + " ".join(remedies or ["Replace it by elementary operations."])
        + " Or set discount=0, or use HypergradientDescent: these need none."
    )

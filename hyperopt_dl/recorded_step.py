"""A step of a network with the graph of its gradient.

The module holds the weights of the step while its loss is computed, while the first backward pass
runs, and whenever the graph is read again: what it runs again then finds the same weights.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple

import torch
from torch import Tensor

from hyperopt_dl.errors import TrainingError
from hyperopt_dl.network import Held, Network
from hyperopt_dl.second_derivatives.first_pass import FirstPass
from hyperopt_dl.second_derivatives.gradient_graph import GradientGraph
from hyperopt_dl.second_derivatives.substitutes import Substitutes
from hyperopt_dl.weights import Weights


class Extra(NamedTuple):
    """What a step is differentiated in beside the parameters, as a part of x.

    ``value`` returns the loss from that of the step and from what it has made beside it.
    """

    leaves: Sequence[Tensor]
    value: Callable[[Tensor, Weights], Tensor]


class RecordedStep(NamedTuple):
    """A step.

    Attributes:
        graph: The graph of its gradient, and of all of ``moved``.
        value: Its loss, with the graph that leads to it.
        after: Frozen parameters and buffers after it, cut from the graph.
    """

    graph: GradientGraph
    value: Tensor
    after: Weights


def record_step(
    network: Network,
    weights: Weights,
    pieces: Sequence[Tensor],
    loss: Callable[[], Tensor],
    *,
    moved: Sequence[str] = (),
    c: Sequence[Tensor] = (),
    extra: Extra | None = None,
    training: bool = True,
    pushed: bool = False,
) -> RecordedStep:
    """Record a step.

    Args:
        network: The module.
        weights: Frozen parameters and buffers, of which those with a derivative require one.
        pieces: The trainable parameters.
        loss: Computes the loss by the module as it is when it is called.
        moved: The names of the frozen parameters and buffers whose values after the step have a
            derivative.
        c: The leaves beside the parameters that the graph is read in.
        extra: More of x.
        training: Whether the module is in training mode.
        pushed: Whether tangents may be pushed through the graph, not only adjoints pulled back.

    Raises:
        TrainingError: The step writes into its parameters, or its loss does not depend on them.
    """
    first, held = FirstPass(), Held(network, [each.detach().clone() for each in pieces])

    def again() -> AbstractContextManager[object]:
        return network.recording(weights, first, held, training=training)

    with again(), torch.enable_grad():
        with Substitutes(first, pushed=pushed, written=network.now().values()):
            value = loss()
        check_value(value)
        if name := held.written():
            raise writes_into(name)
        after = network.after()
        others = {**after.frozen, **after.buffers}
        x: Sequence[Tensor] = held.params
        differentiated = value
        if extra is not None:
            x, differentiated = [*x, *extra.leaves], extra.value(value, after)
        graph = GradientGraph(differentiated, x, [others[n] for n in moved], c, first, again)
    cut = [{n: tensor.detach() for n, tensor in part.items()} for part in after[1:]]
    return RecordedStep(graph, value, Weights(after.params, *cut))


def check_value(value: Tensor) -> None:
    """Raise a TrainingError unless a loss has a graph."""
    if not value.requires_grad:
        raise TrainingError(
            "The training loss must depend on the model's parameters, got a value without a "
            "graph. Take away the detach(), .item() or no_grad() between the model and it."
        )


def writes_into(name: str) -> TrainingError:
    """Return the error for a forward pass that changes a parameter."""
    return TrainingError(
        f"A step that is differentiated must not write into its parameters, but its forward pass "
        f"writes into {name!r}, as nn.Embedding(max_norm=...) does. Compute the changed weight "
        f"from the parameter, for example by a parametrization; samplers without derivatives tune "
        f"this training as it is."
    )


def record_value(
    network: Network,
    weights: Weights,
    pieces: Sequence[Tensor],
    loss: Callable[[], Tensor],
    leaves: Sequence[Tensor],
) -> GradientGraph:
    """Record a loss in evaluation mode as a function of the parameters and of other leaves.

    Args:
        network: The module.
        weights: Frozen parameters and buffers.
        pieces: The trainable parameters.
        loss: Computes the loss by the module as it is when it is called.
        leaves: What it depends on beside the parameters.
    """
    first, held = FirstPass(), Held(network, [each.detach().clone() for each in pieces])

    def again() -> AbstractContextManager[object]:
        return network.recording(weights, first, held, training=False)

    with again(), torch.enable_grad():
        with Substitutes(first):
            value = loss()
        if not value.requires_grad:
            raise TrainingError(
                "The outer loss must depend on the state in a differentiable way, got a value "
                "without a graph. Remove the detach(), .item(), argmax or no_grad() between them."
            )
        return GradientGraph(value, (), [value], [*held.params, *leaves], first, again)


def plain_gradient(
    loss: Tensor, params: Sequence[Tensor], *, by_backward: bool = False
) -> tuple[list[Tensor], list[bool]]:
    """Return the gradient of a loss as ``loss.backward()`` makes it, dense and without a graph.

    And for each parameter whether the loss does not depend on it: it would have no ``.grad``.

    ``by_backward`` goes by ``.grad``, as a checkpoint with ``use_reentrant=True`` wants it.
    """
    found: Sequence[Tensor | None] = (
        _by_backward(loss, params)
        if by_backward
        else torch.autograd.grad(loss, params, allow_unused=True)
    )
    missed = [g is None for g in found]
    return [_dense(g, p) for g, p in zip(found, params, strict=True)], missed


def _dense(g: Tensor | None, like: Tensor) -> Tensor:
    if g is None:
        return torch.zeros_like(like)
    return g.to_dense() if g.is_sparse else g


def is_reentrant(error: RuntimeError) -> bool:
    """Return whether an error says that a checkpoint needs ``loss.backward()``."""
    return "use_reentrant" in str(error)


def _by_backward(loss: Tensor, params: Sequence[Tensor]) -> list[Tensor | None]:
    before = [each.grad for each in params]
    try:
        for each in params:
            each.grad = None
        loss.backward()  # type: ignore[no-untyped-call]
        return [each.grad for each in params]
    finally:
        for each, grad in zip(params, before, strict=True):
            each.grad = grad

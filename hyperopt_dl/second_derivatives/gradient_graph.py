"""The graph of a step's gradient, and the derivatives that are read off it.

A step makes a gradient g and new values b of what it carries on beside the parameters, such as
running statistics. Both are functions of the parameters x and of other tensors c. From the graph
that is recorded once come products with their Jacobian J from either side: ``pull`` gives
``(ḡ, b̄) J`` by one backward pass; ``push`` gives ``J (ẋ, ċ)`` by two, of which the second reads
the first as a linear function of ḡ and b̄.

Letters: x parameters, g gradient, both by pieces in the shapes of the module's parameters; b what
else moves, c what else it depends on; a bar is an adjoint, a dot a tangent.
"""

import functools
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.graph import get_gradient_edge

from hyperopt_dl.errors import TrainingError
from hyperopt_dl.second_derivatives.first_pass import FirstPass

Record = Callable[[tuple[Tensor, ...], bool], "GradientGraph"]
Again = Callable[[], AbstractContextManager[Any]]
"""Puts a module back to where the graph was recorded, for what runs again inside of it."""


class GradientGraph:
    """The graph of g and b.

    Args:
        value: The loss of the step.
        x: The leaves that g is the gradient in; none where there is no g.
        b: The tensors that the step has made beside it and that have a derivative.
        c: The other leaves.
        first: The first backward pass, which is made here.
        again: As ``Again``.

    Attributes:
        g: The pieces of the gradient, cut from the graph.
        missed: For each of x, whether the loss does not depend on it.
        acts_once: Whether something acts in the first backward pass alone.
    """

    def __init__(
        self,
        value: Tensor,
        x: Sequence[Tensor],
        b: Sequence[Tensor],
        c: Sequence[Tensor],
        first: FirstPass,
        again: Again,
    ) -> None:
        made: tuple[Tensor, ...] = ()
        self.missed: list[bool] = []
        if x:
            with first:
                found = torch.autograd.grad(value, x, create_graph=True, allow_unused=True)
            self.missed = [g is None for g in found]
            made = tuple(
                torch.zeros_like(leaf, requires_grad=False) if g is None else g
                for g, leaf in zip(found, x, strict=True)
            )
        self._leaves, self._again = (*x, *c), again
        # A parameter that gets other memory, of another dtype or device, ends no longer the graph
        # that it did: where the graph ends is kept instead.
        self._edges = tuple(map(get_gradient_edge, self._leaves))
        self._outputs = (*made, *b)
        self.acts_once = first.met
        self.g = tuple(piece.detach() for piece in made)

    def pull(self, bars: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Return the adjoints of x and c, from those of g and b."""
        pairs = [(y, bar) for y, bar in zip(self._outputs, bars, strict=True) if y.requires_grad]
        found: Sequence[Tensor | None] = [None] * len(self._edges)
        with self._again():
            if pairs:  # else the loss is linear
                outputs, given = zip(*pairs, strict=True)
                found = torch.autograd.grad(
                    outputs, self._edges, given, retain_graph=True, allow_unused=True
                )
            return tuple(
                torch.zeros_like(leaf, requires_grad=False) if part is None else part
                for part, leaf in zip(found, self._leaves, strict=True)
            )

    def push(self, dots: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Return the tangents of g and b, from those of x and c."""
        bars = tuple(torch.zeros_like(y, requires_grad=True) for y in self._outputs)
        pairs = [(y, bar) for y, bar in zip(self._outputs, bars, strict=True) if y.requires_grad]
        nothing = tuple(torch.zeros_like(y, requires_grad=False) for y in self._outputs)
        if not pairs:
            return nothing
        outputs, given = zip(*pairs, strict=True)
        with self._again(), torch.enable_grad():
            pulled = torch.autograd.grad(
                outputs, self._edges, given, create_graph=True, allow_unused=True
            )
            along = [
                (bar, dot)
                for bar, dot in zip(pulled, dots, strict=True)
                if bar is not None and bar.requires_grad
            ]
            if not along:
                return nothing
            x_bars, tangents = zip(*along, strict=True)
            return torch.autograd.grad(x_bars, bars, tangents, materialize_grads=True)

    def outputs(self) -> tuple[Tensor, ...]:
        """Return g and b with their graph."""
        return self._outputs


def differentiable(record: Record, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Return g and b as functions of the inputs, for a graph that goes on before and after.

    Args:
        record: Makes the graph of g and b; it is given the inputs, cut from their graph, and has
            to take them for x and c in this order; and whether the graph is to be pushed through.
        inputs: x and c, pieces of which may be views of something else.

    Returns:
        The pieces of g, then b, differentiable twice more: once for a pull, and in the adjoints of
        that for a push.
    """
    apply: Any = _Gradient.apply
    outputs: tuple[Tensor, ...] = apply(record, *inputs)
    return outputs


class _Graphs:
    """The graph of a step to be pulled through, and that to be pushed through, if it is needed."""

    def __init__(self, record: Record, inputs: tuple[Tensor, ...]) -> None:
        self._record, self._inputs = record, inputs
        self.pulled = self._recorded(False)

    @functools.cached_property
    def pushed(self) -> GradientGraph:
        return self._recorded(True)

    def _recorded(self, pushed: bool) -> GradientGraph:
        with torch.enable_grad():
            return self._record(self._inputs, pushed)


class _Gradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, record: Any, *inputs: Tensor) -> Any:
        ctx.graphs = _Graphs(record, tuple(each.detach() for each in inputs))
        ctx.save_for_backward(*inputs)
        return tuple(each.detach().clone() for each in ctx.graphs.pulled.outputs())

    @staticmethod
    def backward(ctx: Any, *bars: Any) -> Any:
        guard, pull = cast("Any", _NoMore).apply, cast("Any", _Pull).apply
        guarded = (guard(each) for each in ctx.saved_tensors)
        return None, *pull(ctx.graphs, len(bars), *bars, *guarded)


class _Pull(torch.autograd.Function):
    """A pull, linear in the adjoints that it is given."""

    @staticmethod
    def forward(ctx: Any, graphs: "_Graphs", outputs: int, *given: Tensor) -> Any:
        ctx.graphs = graphs
        ctx.save_for_backward(*given[outputs:])
        return graphs.pulled.pull(given[:outputs])

    @staticmethod
    def backward(ctx: Any, *dots: Any) -> Any:
        zeros = (torch.zeros_like(each) for each in ctx.saved_tensors)
        return None, None, *ctx.graphs.pushed.push(dots), *zeros


class _NoMore(torch.autograd.Function):
    """Where a third derivative would go on."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # noqa: ARG004
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:  # noqa: ARG004
        raise TrainingError(
            "A training step of a Supervised can be differentiated twice, once for its gradient "
            "and once for a hypergradient, and no third time. Take the second derivative in the "
            "hyperparameters by differences of hypergradients."
        )

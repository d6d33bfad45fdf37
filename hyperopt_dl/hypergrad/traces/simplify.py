"""Shorter ways to the same numbers in the trace of a step.

Autograd writes a derivative down as it meets the pieces of it: it transposes what it has just
transposed, adds to zeros, expands what an addition would have expanded, and computes in the second
backward pass what the first one has computed. On a small network these are half of all operators.

A rule takes a node and returns another one for the same values, or ``None``. All rules hold for
real and complex tensors of every dtype; only ``_fused`` may change a result, in its last bit.
Memory that anything writes into is left alone. What ``pooling`` does looks further than at a node
and its inputs, and so comes after them.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from hyperopt_dl.hypergrad.traces.aliases import draws, memory_of, written_by
from hyperopt_dl.hypergrad.traces.pooling import mask_what_is_pooled

aten = torch.ops.aten
Rule = Callable[[fx.Node], fx.Node | None]

_BROADCASTING = (aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor, aten.div.Tensor)
_ZEROS = (aten.zeros_like.default, aten.zeros.default)


def simplify(graph: fx.Graph) -> None:
    """Shorten the graph of a trace in place."""
    while _pass(graph) or mask_what_is_pooled(graph):
        pass


def _pass(graph: fx.Graph) -> bool:
    """Apply the first rule that fits to each node; return whether one did."""
    nodes = list(graph.nodes)
    memory = memory_of(nodes)
    touched = {memory[target] for node in nodes for target in written_by(node)}
    near: list[Rule] = [*_NEAR, _Common()]
    rules = [*_RULES, *near]
    changed = False
    for node in nodes:
        if node.op != "call_function" or draws(node) or not node.users:
            continue
        inputs = node.all_input_nodes
        far = [each for input_ in inputs for each in input_.all_input_nodes]
        if touched and any(memory.get(each) in touched for each in (node, *inputs)):
            continue
        whole = not (touched and any(memory.get(each) in touched for each in far))
        fitting = rules if whole else near
        new = next((new for rule in fitting if (new := rule(node)) is not None), None)
        if new is not None:
            node.replace_all_uses_with(new)
            _erase(node)
            changed = True
    return changed


def _erase(node: fx.Node) -> None:
    """Take out a node that nothing uses, and what only it has used."""
    if node.op == "call_function" and not (node.users or draws(node) or written_by(node)):
        inputs = node.all_input_nodes
        node.graph.erase_node(node)
        for each in inputs:
            _erase(each)


class _Common:
    """The first of the nodes that compute the same from the same."""

    def __init__(self) -> None:
        self._known: dict[str, fx.Node] = {}

    def __call__(self, node: fx.Node) -> fx.Node | None:
        key = repr((str(node.target), node.args, sorted(node.kwargs.items())))
        first = self._known.get(key)
        if first is None or not first.users:  # the latter has been replaced since
            self._known[key] = node
            return None
        return first


def _transposed_twice(node: fx.Node) -> fx.Node | None:
    """``xᵀᵀ = x``."""
    source = _source(node, aten.t.default)
    return None if source is None else _source(source, aten.t.default)


def _viewed_as_it_is(node: fx.Node) -> fx.Node | None:
    """A view in the shape that its source has."""
    for view in (aten.view.default, aten._unsafe_view.default, aten.expand.default):
        source = _source(node, view)
        if source is not None and _shape(source) == _shape(node):
            return source
    return None


def _viewed_twice(node: fx.Node) -> fx.Node | None:
    """A view of a view of contiguous memory."""
    middle = _source(node, aten.view.default)
    source = None if middle is None else _source(middle, aten.view.default)
    if source is None or not _value(source).is_contiguous():
        return None
    return _new(node, aten.view.default, (source, node.args[1]), like=node)


def _added_to_zeros(node: fx.Node) -> fx.Node | None:
    """``0 + x = x``."""
    for zeros, x in _terms(node):
        if not (isinstance(zeros, fx.Node) and zeros.target in _ZEROS and isinstance(x, fx.Node)):
            continue
        if _alike(x, node) and _value(x).stride() == _value(node).stride():
            return x
    return None


def _expanded_for_nothing(node: fx.Node) -> fx.Node | None:
    """``expand(x) + y = x + y``, where y has the full shape."""
    if node.target not in _BROADCASTING or node.kwargs:
        return None
    x, y = node.args
    for expanded, other, swap in ((x, y, False), (y, x, True)):
        source = _source(expanded, aten.expand.default)
        if source is not None and isinstance(other, fx.Node) and _alike(other, node):
            pair = (other, source) if swap else (source, other)
            return _new(node, node.target, pair, like=node)
    return None


def _transposed_before_added(node: fx.Node) -> fx.Node | None:
    """``xᵀ + yᵀ = (x + y)ᵀ``."""
    for left, right in _terms(node)[:1]:
        x, y = _source(left, aten.t.default), _source(right, aten.t.default)
        if x is not None and y is not None and _alike(x, y):
            total = _new(node, aten.add.Tensor, (x, y), like=x)
            return _new(node, aten.t.default, (total,), like=node)
    return None


def _fused(node: fx.Node) -> fx.Node | None:
    """``x + a b`` for matrices as one product that starts from x."""
    for x, product in _terms(node):
        if (
            _is(product, aten.mm.default)
            and len(product.users) == 1
            and isinstance(x, fx.Node)
            and _alike(product, node)
            and _value(x).dtype == _value(node).dtype
        ):
            return _new(node, aten.addmm.default, (x, *product.args), like=node)
    return None


_RULES: tuple[Rule, ...] = (
    _transposed_twice,
    _viewed_twice,
    _expanded_for_nothing,
    _transposed_before_added,
    _fused,
)
"""These look at a node, its inputs, and theirs."""
_NEAR: tuple[Rule, ...] = (_viewed_as_it_is, _added_to_zeros)
"""These, and ``_Common``, look at a node and its inputs."""


def _terms(node: fx.Node) -> list[tuple[Any, Any]]:
    """Return the two terms of a sum, in either order; nothing for another operator."""
    if node.target is not aten.add.Tensor or node.kwargs:
        return []
    x, y = node.args
    return [(x, y), (y, x)]


def _source(node: Any, target: Any) -> fx.Node | None:
    """Return what the node is a view of, if it is a node of this operator."""
    return node.args[0] if _is(node, target) else None


def _is(node: Any, target: Any) -> bool:
    return isinstance(node, fx.Node) and node.target is target


def _alike(a: fx.Node, b: fx.Node) -> bool:
    return _shape(a) == _shape(b) and _value(a).dtype == _value(b).dtype


def _shape(node: fx.Node) -> torch.Size:
    return _value(node).shape


def _value(node: fx.Node) -> torch.Tensor:
    """Return the tensor without data that the tracer has left with the node."""
    value: torch.Tensor = node.meta["val"]
    return value


def _new(before: fx.Node, target: Any, args: tuple[Any, ...], *, like: fx.Node) -> fx.Node:
    with before.graph.inserting_before(before):
        node = before.graph.call_function(target, args)
    node.meta["val"] = _value(like)
    return node

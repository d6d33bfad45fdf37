"""Which nodes of a trace share memory, write into it, depend on one, or draw random numbers."""

import functools
import operator
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import fx

_SILENT = frozenset(
    {"aten::native_batch_norm", "aten::cudnn_batch_norm", "aten::miopen_batch_norm"}
)
"""Operators that write into running statistics, and whose schema does not say so."""


def memory_of(nodes: Iterable[fx.Node]) -> dict[fx.Node, fx.Node]:
    """Return for each node the one that made the memory which it holds."""
    memory: dict[fx.Node, fx.Node] = {}
    for node in nodes:
        viewed = [argument for argument, _ in _aliased(node)]
        if node.target is operator.getitem:
            viewed = node.all_input_nodes
        memory[node] = memory[viewed[0]] if viewed else node
    return memory


def written_by(node: fx.Node) -> list[fx.Node]:
    """Return the arguments that the node writes into."""
    if _name(node.target) in _SILENT:
        return [node for node in node.args[3:5] if isinstance(node, fx.Node)]
    return [argument for argument, written in _aliased(node) if written]


def _aliased(node: fx.Node) -> list[tuple[fx.Node, bool]]:
    """Return the arguments that share memory with a result, and whether they are written into."""
    found: list[tuple[fx.Node, bool]] = []
    for i, name, written in _marked(node.target):
        value: Any = node.args[i] if i < len(node.args) else node.kwargs.get(name)
        values = value if isinstance(value, (list, tuple)) else [value]
        found += [(each, written) for each in values if isinstance(each, fx.Node)]
    return found


@functools.cache
def _marked(target: Any) -> tuple[tuple[int, str, bool], ...]:
    """Return place and name of an operator's arguments that share memory, and whether it writes.

    A schema takes longer to read than all else here, and a trace has few operators.
    """
    if not isinstance(target, torch._ops.OpOverload):
        return ()
    arguments = enumerate(target._schema.arguments)
    return tuple(
        (i, argument.name, argument.alias_info.is_write)
        for i, argument in arguments
        if argument.alias_info is not None
    )


def dependent_on(
    source: fx.Node, nodes: Iterable[fx.Node], memory: Mapping[fx.Node, fx.Node]
) -> set[fx.Node]:
    """Return the nodes that depend on one: by reading it, or by sharing memory with what does.

    Memory that a dependent node writes into is so from its making: a backward pass has to leave
    what was saved as it found it.
    """
    dependent, touched = {source}, {source}
    size = 0
    while size < len(dependent):
        size = len(dependent)
        for node in nodes:
            if memory[node] in touched or not dependent.isdisjoint(node.all_input_nodes):
                dependent.add(node)
                touched.update(memory[target] for target in written_by(node))
    return dependent


def draws(node: fx.Node) -> bool:
    """Return whether the node draws random numbers."""
    return _draws(node.target)


def name_of(node: fx.Node) -> str:
    """Return the operator's name without its overload, such as ``aten::add``."""
    return _name(node.target)


@functools.cache
def _draws(target: Any) -> bool:
    return torch.Tag.nondeterministic_seeded in getattr(target, "tags", ())


@functools.cache
def _name(target: Any) -> str:
    schema = getattr(target, "_schema", None)
    return "" if schema is None else str(schema.name)

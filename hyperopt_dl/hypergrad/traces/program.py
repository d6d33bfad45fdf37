"""Nodes of a trace as one Python function, with as little as possible around each operator.

A step of a small network spends more time on the way to its kernels than in them. ``fx`` would
write ``torch.ops.aten.add.Tensor(a, b)``: three lookups, and a call in Python around the one in
C++. Here every operator is bound once, to the innermost callable that torch offers.
"""

import functools
import operator
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx

from hyperopt_dl.hypergrad.traces.aliases import name_of
from hyperopt_dl.hypergrad.traces.compiled import Compiled

_METHODS = {
    torch.ops.aten.view.default: "view",
    torch.ops.aten.t.default: "t",
    torch.ops.aten.expand.default: "expand",
}
"""Operators that a method of a tensor reaches faster, with the same arguments in the same order."""
_LITERALS = (type(None), bool, int)


@dataclass(frozen=True)
class Program:
    """A function of tensors, and what it was made of.

    Attributes:
        run: From the inputs to the tuple of the outputs.
        source: Its text.
        operators: The operators that it calls, in their order, such as ``"aten::add"``, or ``""``
            where an item is taken.
        graph: Makes the graph that it was made of, for a compiler.
    """

    run: Callable[..., tuple[Tensor, ...]]
    source: str
    operators: tuple[str, ...]
    graph: Callable[[], fx.GraphModule]

    def compiled(self) -> "Program":
        """Return the same program, which TorchInductor compiles when it is first run."""
        return replace(self, run=Compiled(self.graph()))


def program(
    root: torch.nn.Module,
    members: Iterable[fx.Node],
    inputs: Sequence[fx.Node],
    outputs: Sequence[fx.Node],
) -> Program:
    """Return the members, in their order, as a function from the inputs to the outputs.

    A value is let go of after its last use.

    Args:
        root: Holds the constants of the trace.
        members: The nodes to compute.
        inputs: The function's arguments; may be among the members.
        outputs: The nodes to return; each a member or an input.
    """
    given = set(inputs)
    body = [node for node in members if node not in given]
    scope = _Scope()
    reads = [(node, node.all_input_nodes) for node in body]
    last: dict[fx.Node, fx.Node | None]
    last = {used: node for node, read in reads for used in read}
    last.update(dict.fromkeys(outputs))
    lines = []
    for node, read in reads:
        lines.append(f"    {node.name} = {_call(root, node, scope)}")
        done = [used.name for used in read if last[used] is node]
        if done:
            lines.append(f"    del {', '.join(done)}")
    arguments, results = (", ".join(node.name for node in part) for part in (inputs, outputs))
    source = "\n".join([f"def run({arguments}):", *lines, f"    return ({results},)"])
    exec(source, scope.values)
    called = (node for node in body if node.op == "call_function")
    return Program(
        scope.values["run"],
        source,
        tuple(name_of(node) for node in called),
        functools.partial(_graph, root, body, inputs, outputs),
    )


def replay(graph: Program, *tensors: Tensor) -> tuple[Tensor, ...]:
    """Run a program that was traced with all of its casts, and record nothing for autograd."""
    device = tensors[0].device.type
    with torch.no_grad():
        if not torch.is_autocast_enabled(device):
            return graph.run(*tensors)
        with torch.autocast(device, enabled=False):
            return graph.run(*tensors)


def _graph(
    root: torch.nn.Module,
    body: Iterable[fx.Node],
    inputs: Sequence[fx.Node],
    outputs: Sequence[fx.Node],
) -> fx.GraphModule:
    graph = fx.Graph()
    copies = {node: graph.placeholder(node.name) for node in inputs}
    for node in body:
        copies[node] = graph.node_copy(node, copies.__getitem__)
    graph.output(tuple(copies[node] for node in outputs))
    return fx.GraphModule(root, graph)


class _Scope:
    """What a program refers to, by the names that it has for it."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}
        self._names: dict[int, str] = {}

    def name(self, value: Any) -> str:
        """Return a name for a value, the same for the same object."""
        if id(value) not in self._names:
            self._names[id(value)] = name = f"_{len(self.values)}"
            self.values[name] = value
        return self._names[id(value)]


def _call(root: torch.nn.Module, node: fx.Node, scope: _Scope) -> str:
    """Return the expression of a node; what it refers to is put into the scope."""
    if node.op == "get_attr":
        return scope.name(operator.attrgetter(str(node.target))(root))
    arguments = [_text(argument, scope) for argument in node.args]
    if node.target is operator.getitem:
        return f"{arguments[0]}[{arguments[1]}]"
    target: Any = node.target
    method = None if node.kwargs else _METHODS.get(target)
    if method is not None:
        return f"{arguments[0]}.{method}({', '.join(arguments[1:])})"
    arguments += [f"{name}={_text(value, scope)}" for name, value in node.kwargs.items()]
    # What an OpOverload calls, after a frame of Python; a version of torch without it is slower.
    function = getattr(target, "_op", target)
    return f"{scope.name(function)}({', '.join(arguments)})"


def _text(value: Any, scope: _Scope) -> str:
    """Return a value as Python writes it."""
    if isinstance(value, fx.Node):
        return value.name
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(_text(each, scope) for each in value)}]"
    return repr(value) if type(value) in _LITERALS else scope.name(value)

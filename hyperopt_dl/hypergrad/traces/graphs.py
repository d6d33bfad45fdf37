"""One trace of a training step, divided into the graphs that the sweeps replay.

J(u, x, tensors) -> ((g, aux), (Hu, mixed)) is traced once: x the parameters, g the gradient of the
loss there, aux what else the loss returns, u the adjoint of g, Hu = d(g·u)/dx, mixed the
d(g·u)/dtensors[i]. Its nodes are early, if g or aux need them, or late::

    early  x, tensors ── forward pass ── backward pass ──▶ g, aux
                                │ saved │
    late                        ▼       ▼
                   u ── back through both of them ───────▶ Hu, mixed

    G  early           x, tensors    -> g, aux
    A  early           x, tensors    -> g, aux, saved
    B  late            u, saved      -> Hu, mixed      (and early ones that cost less than to save)
    H  early and late  u, x, tensors -> Hu, mixed      (without what only g and aux need)

A node with an effect stays where it is, needed or not: a draw of random numbers moves the generator
for those after it.
"""

import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor, fx

from hyperopt_dl.hypergrad.traces.aliases import dependent_on, draws, memory_of, name_of, written_by
from hyperopt_dl.hypergrad.traces.program import Program, program, replay
from hyperopt_dl.hypergrad.traces.recording import record
from hyperopt_dl.hypergrad.traces.remat import with_repeated
from hyperopt_dl.hypergrad.traces.row_pulls import RowPulls
from hyperopt_dl.hypergrad.traces.simplify import simplify

Tensors: TypeAlias = tuple[Tensor, ...]
Joint: TypeAlias = Callable[..., tuple[Tensors, Tensors]]
"""``J(u, x, *tensors) -> ((g, *aux), (Hu, *mixed))``."""

_SAME = frozenset({"aten::detach", "aten::alias"})


class CutError(RuntimeError):
    """A graph that cannot be divided; the text is the reason."""


@dataclass(frozen=True)
class Graphs:
    """The four graphs of a training step; no call records anything for autograd."""

    G: Program
    A: Program
    B: Program
    H: Program
    rows: RowPulls
    """B for several adjoints at once."""
    outputs: int
    """How many of A's outputs are g and aux; the others are saved."""
    draws: bool
    """Whether a step draws random numbers."""
    writes: bool
    """Whether a step writes into what it is given."""

    def compiled(self) -> "Graphs":
        """Return the same graphs, each compiled when it is first replayed."""
        G, A, B, H = (part.compiled() for part in (self.G, self.A, self.B, self.H))
        return replace(self, G=G, A=A, B=B, H=H, rows=RowPulls(B, together=False))

    def gradient(self, x: Tensor, tensors: Tensors) -> tuple[Tensor, Tensors]:
        """Return g and aux."""
        g, *aux = replay(self.G, x, *tensors)
        return g, tuple(aux)

    def linearize(self, x: Tensor, tensors: Tensors) -> tuple[Tensor, Tensors, "Activations"]:
        """Return g, aux and what B reads of the step."""
        values = replay(self.A, x, *tensors)
        saved = Activations(values[self.outputs :], self.B, self.rows)
        return values[0], values[1 : self.outputs], saved

    def product(self, x: Tensor, tensors: Tensors, u: Tensor) -> tuple[Tensor, Tensors]:
        """Return Hu and the mixed products."""
        Hu, *mixed = replay(self.H, u, x, *tensors)
        return Hu, tuple(mixed)


@dataclass(frozen=True)
class Activations:
    """What one step saved, and the graph that reads it."""

    saved: Tensors
    B: Program
    rows: RowPulls

    def pull(self, u: Tensor) -> tuple[Tensor, Tensors]:
        """Return Hu and the mixed products."""
        Hu, *mixed = replay(self.B, u, *self.saved)
        return Hu, tuple(mixed)

    def pull_rows(self, rows: Tensor) -> Tensor:
        """Return Hu for each row."""
        return self.rows(rows, self.saved)

    def tensors(self) -> Tensors:
        """Return the tensors that are held."""
        return self.saved


def trace(joint: Joint, u: Tensor, x: Tensor, tensors: Tensors) -> Graphs:
    """Trace J on example tensors, which must be distinct objects, and divide it.

    Two inputs that are one object would become one input of the graph, silently. Draws from the
    default generators, and writes into what it is given as the traced function does.

    Raises:
        CutError: The trace cannot be divided by dependence on u.
        Exception: Whatever the tracer raises where the function looks at the value of a tensor.
    """
    # Modes are local to a thread, and on a GPU the backward pass runs in one of its own.
    with torch.autograd.set_multithreading_enabled(False):
        return split(*record(joint, u, x, *tensors))


def split(root: torch.nn.Module, joint: fx.Graph) -> Graphs:
    """Divide the trace of J, whose constants the root holds."""
    _drop_same(joint)
    simplify(joint)
    *nodes, output = joint.nodes
    _check_shapes(nodes)
    u, *inputs = (node for node in nodes if node.op == "placeholder")
    first, second = output.args[0]
    memory = memory_of(nodes)
    of_u = dependent_on(u, nodes, memory)
    if not of_u.isdisjoint((*first, *inputs)):
        raise CutError("the second backward pass writes into what the first one returns")
    both = _needed(nodes, second)
    early = _needed([node for node in nodes if node not in of_u], (*first, *inputs))
    members = {*early, *_items_of(early, both)}
    early = [node for node in nodes if node in members]
    late = [node for node in both if node not in members]
    _check_order(nodes, members, set(late), memory)
    late = with_repeated(late, early, (first, second), memory)
    read = {*second, *(argument for node in late for argument in node.all_input_nodes)}
    read.difference_update(late)
    saved = [node for node in early if node in read]
    B = program(root, late, (u, *saved), second)
    return Graphs(
        G=program(root, early, inputs, first),
        A=program(root, early, inputs, (*first, *saved)),
        B=B,
        H=program(root, both, (u, *inputs), second),
        rows=RowPulls(B),
        outputs=len(first),
        draws=any(map(draws, early)),
        writes=any(memory[target] in {u, *inputs} for node in nodes for target in written_by(node)),
    )


def _check_shapes(nodes: Iterable[fx.Node]) -> None:
    """Raise where the values of a tensor decide the shape of another one.

    What Python makes of that shape, such as to leave out an expert without examples, stands in the
    trace as it was once.
    """
    for node in nodes:
        if torch.Tag.dynamic_output_shape in getattr(node.target, "tags", ()):
            masks = [each for each in _flat(node.args[1:]) if _is_mask(each)]
            if name_of(node) != "aten::index" or masks:
                raise CutError(f"the shape of what {name_of(node)} returns depends on values")


def _flat(values: Any) -> list[Any]:
    if isinstance(values, (list, tuple)):
        return [each for part in values for each in _flat(part)]
    return [values]


def _is_mask(value: Any) -> bool:
    found = value.meta.get("val") if isinstance(value, fx.Node) else None
    return found is not None and found.dtype in (torch.bool, torch.uint8)


def _items_of(early: Sequence[fx.Node], both: Iterable[fx.Node]) -> list[fx.Node]:
    """Return the items of early results: one of them is saved without the others."""
    sources = set(early)
    return [n for n in both if n.target is operator.getitem and n.args[0] in sources]


def _drop_same(graph: fx.Graph) -> None:
    """Take out what only guards against autograd: at replay there is none."""
    for node in list(graph.nodes):
        if name_of(node) in _SAME:
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)


def _check_order(
    nodes: Iterable[fx.Node],
    early: set[fx.Node],
    late: set[fx.Node],
    memory: Mapping[fx.Node, fx.Node],
) -> None:
    """Raise if it matters that all early nodes now come before all late ones."""
    read: set[fx.Node] = set()
    for node in nodes:
        if node in late:
            if draws(node):
                raise CutError(f"{name_of(node)} draws random numbers in the second backward pass")
            read.update(memory[argument] for argument in node.all_input_nodes)
        elif node in early and not read.isdisjoint(memory[target] for target in written_by(node)):
            raise CutError(f"{name_of(node)} writes into what the second backward pass has read")


def _needed(members: Sequence[fx.Node], outputs: Iterable[fx.Node]) -> list[fx.Node]:
    """Return the members that the outputs need, and those with an effect and what these need."""
    needed = {*outputs, *(node for node in members if draws(node) or written_by(node))}
    for node in reversed(members):
        if node in needed:
            needed.update(node.all_input_nodes)
    return [node for node in members if node in needed]

"""Adjoints of what a max-pool is given, which are computed again rather than saved.

Such an adjoint has the size of the activations, and is that of the maxima, a quarter of it or less,
put to their places. These are kept anyway, for the second backward pass has a use of its own for
them; and to put them there again takes less time than to have held the whole in memory.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import fx

from hyperopt_dl.hypergrad.traces.aliases import written_by

aten = torch.ops.aten


def with_repeated(
    late: Sequence[fx.Node],
    early: Iterable[fx.Node],
    results: tuple[Sequence[fx.Node], Sequence[fx.Node]],
    memory: Mapping[fx.Node, fx.Node],
) -> list[fx.Node]:
    """Return the late nodes, and each early one that is to be repeated before the first to read it.

    A node is repeated if its inputs, as far as they are not saved anyway, are smaller; if nothing
    is written into it or them; and if nothing else keeps its memory.

    Args:
        late: Nodes of the second backward pass, in their order.
        early: Those of the first one and of the forward pass.
        results: What these return, and what those return.
        memory: As ``memory_of`` gives it for all nodes.
    """
    first, second = results
    read = {*second, *(argument for node in late for argument in node.all_input_nodes)}
    saved = {node for node in early if node in read}
    holders = Counter(memory[node] for node in {*first, *saved})
    written = {memory[target] for node in memory for target in written_by(node)}
    repeated: dict[fx.Node, list[fx.Node]] = {}
    for node in saved:
        if node.target is aten.max_pool2d_with_indices_backward.default and node not in first:
            blank = [each for each in node.all_input_nodes if _is_blank(each)]
            inputs = {*node.all_input_nodes} - {*blank}
            more = sum(_size(each) for each in inputs if memory[each] not in holders)
            fixed = written.isdisjoint(memory[each] for each in (node, *inputs))
            if fixed and holders[memory[node]] == 1 and more < _size(node):
                repeated[node] = [*blank, node]
    ordered: dict[fx.Node, None] = {}
    for node in late:
        for each in node.all_input_nodes:
            ordered.update(dict.fromkeys(repeated.get(each, [])))
        ordered[node] = None
    for node in second:
        ordered.update(dict.fromkeys(repeated.get(node, [])))
    return [*ordered]


def _is_blank(node: fx.Node) -> bool:
    """Return whether the node is memory without values."""
    return node.target is aten.new_empty_strided.default


def _size(node: fx.Node) -> int:
    value: torch.Tensor = node.meta["val"]
    return value.nbytes

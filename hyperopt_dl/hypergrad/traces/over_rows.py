"""A graph of one vector, computed for the m rows of a matrix at once.

``torch.vmap`` does this for a function of autograd's, and pays for it with views, copies and moved
dimensions; on a small network these cost as much as they save. Of a graph that has been traced and
shortened, a dimension of m in front of what depends on the vector is nearly free: its operators
mostly take one as they are. What depends on nothing but the other inputs is computed once.

Letters: m rows.
"""

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, fx

from hyperopt_dl.hypergrad.traces.aliases import dependent_on, memory_of

aten = torch.ops.aten
Rule: TypeAlias = Callable[..., Tensor]
"""An operator with m in front: from m, which arguments have it, and the arguments."""


def over_rows(graph: fx.GraphModule, rows: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
    """Return the outputs of a graph for every row of what is its first input.

    Can be traced: the operators are those of the graph, or take their place.

    Args:
        graph: A function of tensors, which draws no random numbers.
        rows: A row for each first input, `m x ...`.
        others: The other inputs, which all rows share.

    Returns:
        Each output with m in front.

    Raises:
        ValueError: The graph writes into what all rows share.
        Exception: Whatever an operator raises that cannot be computed so.
    """
    outputs: tuple[Tensor, ...] = _OverRows(graph, len(rows)).run(rows, *others)
    return outputs


class _OverRows(fx.Interpreter):
    """Runs a graph; the value of a node that depends on the first input has m in front."""

    def __init__(self, graph: fx.GraphModule, m: int) -> None:
        super().__init__(graph)
        self._m = m
        first, *nodes = graph.graph.nodes
        self._many = dependent_on(first, nodes, memory_of([first, *nodes]))
        given = [node for node in nodes if node.op in ("placeholder", "get_attr")]
        if written := self._many.intersection(given):
            raise ValueError(f"The rows would all be written into {written}.")

    def run_node(self, n: fx.Node) -> Any:
        """Return the value of a node."""
        if n.op == "output":
            results: Any = n.args[0]
            return tuple(self._full(node) for node in results)
        if n not in self._many or n.op == "placeholder":
            return super().run_node(n)
        if self._many.isdisjoint(n.all_input_nodes):  # memory that the rows are written into
            return self._repeated(super().run_node(n)).clone()
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        if n.target is operator.getitem:
            return args[0][args[1]]
        many = [isinstance(each, fx.Node) and each in self._many for each in n.args]
        if n.target in _RULES:
            return _RULES[n.target](self._m, many, *args, **kwargs)
        if _is_pointwise(n, args, kwargs):
            rank = max(_rank(each, front) for each, front in zip(args, many, strict=True))
            aligned = (_aligned(*each, rank) for each in zip(args, many, strict=True))
            return n.target(*aligned, **kwargs)  # type: ignore[operator]
        return self._mapped(n)

    def _mapped(self, n: fx.Node) -> Any:
        """Return the value of a node by ``torch.vmap`` of its operator."""
        inputs = [node for node in n.all_input_nodes if node in self._many]
        missing: list[int] = []

        def one(*values: Tensor) -> Any:
            given = {**self.env, **dict(zip(inputs, values, strict=True))}
            args, kwargs = fx.map_arg((n.args, n.kwargs), given.__getitem__)
            found = n.target(*args, **kwargs)  # type: ignore[operator]
            if isinstance(found, Tensor):
                return found
            missing[:] = [i for i, each in enumerate(found) if each is None]
            return tuple(each for each in found if each is not None)

        found = torch.vmap(one)(*(self.env[node] for node in inputs))
        if isinstance(found, Tensor):
            return found
        values = list(found)
        for i in missing:
            values.insert(i, None)
        return values

    def _full(self, node: fx.Node) -> Tensor:
        value: Tensor = self.env[node]
        return value if node in self._many else self._repeated(value)

    def _repeated(self, value: Tensor) -> Tensor:
        return value.expand(self._m, *value.shape)


def _is_pointwise(n: fx.Node, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Return whether the operator broadcasts its arguments, and makes of them what it is to make.

    A dimension in front turns a tensor without dimensions into one that decides the dtype.
    """
    target: Any = n.target
    if torch.Tag.pointwise not in target.tags:
        return False
    dtypes = {each.dtype for each in (*args, *kwargs.values()) if isinstance(each, Tensor)}
    return len(dtypes) == 1 and not any(isinstance(each, Tensor) for each in kwargs.values())


def _rank(value: Any, front: bool) -> int:
    """Return the number of dimensions behind m."""
    return value.ndim - front if isinstance(value, Tensor) else 0


def _aligned(value: Any, front: bool, rank: int) -> Any:
    """Return the value so that broadcasting finds m in front of ``rank`` dimensions."""
    if not front or value.ndim > rank:
        return value
    return value.view(len(value), *[1] * (rank + 1 - value.ndim), *value.shape[1:])


def _product(m: int, many: Sequence[bool], a: Tensor, b: Tensor) -> Tensor:
    return torch.bmm(_repeated(m, many[0], a), _repeated(m, many[1], b))


def _sum_and_product(
    m: int, many: Sequence[bool], x: Tensor, a: Tensor, b: Tensor, **factors: Any
) -> Tensor:
    a, b = _repeated(m, many[1], a), _repeated(m, many[2], b)
    return torch.baddbmm(_aligned(x, many[0], 2), a, b, **factors)


def _transposed(m: int, many: Sequence[bool], x: Tensor) -> Tensor:  # noqa: ARG001
    return x.transpose(1, 2) if x.ndim == 3 else x


def _viewed(m: int, many: Sequence[bool], x: Tensor, shape: Sequence[int]) -> Tensor:  # noqa: ARG001
    """A view, or a copy where an operator has left m somewhere else in memory."""
    return x.reshape(m, *shape)


def _repeated(m: int, front: bool, matrix: Tensor) -> Tensor:
    """Return a matrix for each row; a product reads the one that they share where it is."""
    return matrix if front else matrix.expand(m, *matrix.shape)


_RULES: dict[Any, Rule] = {
    aten.mm.default: _product,
    aten.addmm.default: _sum_and_product,
    aten.t.default: _transposed,
    aten.view.default: _viewed,
}

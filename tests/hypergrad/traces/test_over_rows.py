"""A graph for many rows at once: the numbers of one row after another, by few operators."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.functional import conv2d

from hyperopt_dl.hypergrad.traces.over_rows import over_rows

aten = torch.ops.aten
M = 3
Function = Callable[..., Any]


def values(*shape: int, seed: int = 0, dtype: torch.dtype = torch.double) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.double).to(dtype)


def written_into_new_memory(u: Tensor, x: Tensor) -> Tensor:
    total = torch.zeros_like(x)
    total[1].add_(u[0])
    total.mul_(x)
    return total + x


def convolved_back(u: Tensor, x: Tensor) -> Any:
    weight = u.view(2, 1, 2, 2)
    given, _, bias = torch.ops.aten.convolution_backward(
        conv2d(x, weight), x, weight, [2], [1, 1], [0, 0], [1, 1], False, [0, 0], 1,
        [True, False, True],
    )  # fmt: skip
    return given, bias


A, B = values(4, 5, seed=1), values(5, 2, seed=2)
SQUARE = values(5, 5, seed=3)
# A function of a row and of tensors that all rows share; the shape of a row; these tensors.
CASES: dict[str, tuple[Function, tuple[int, ...], tuple[Tensor, ...]]] = {
    "row times shared matrix": (lambda u, a: aten.mm(u, a), (4, 5), (B,)),
    "shared matrix times row": (lambda u, a: aten.mm(a, u), (5, 2), (A,)),
    "row times row": (lambda u: aten.mm(u, u), (4, 4), ()),
    "transposed": (lambda u, a: aten.mm(a, aten.t(u)), (2, 5), (A,)),
    "vector transposed": (lambda u: aten.t(u).exp(), (5,), ()),
    "product added to a matrix": (lambda u, a, b: aten.addmm(u, a, b), (4, 2), (A, B)),
    "product added to a vector": (lambda u, a, b: aten.addmm(u, a, b), (2,), (A, B)),
    "product added to a number": (lambda u, a, b: aten.addmm(u, a, b), (), (A, B)),
    "product of a row added": (lambda u, a, b: aten.addmm(b, a, u), (5, 2), (A, B[:4])),
    "scaled sum and product": (
        lambda u, a: aten.addmm(a, u, a, beta=2, alpha=-0.5), (5, 5), (SQUARE,),
    ),
    "viewed": (lambda u: aten.view(u, [2, -1]).exp(), (6,), ()),
    "viewed where m is not in front in memory": (
        lambda u, a: aten.view(aten.embedding_dense_backward(u, a, 5, -1, False), [15]),
        (4, 3), (torch.tensor([1, 4, 1, 0]),),
    ),
    "smaller than what is shared": (lambda u, a: a * u + u, (5,), (A,)),
    "number and matrix": (lambda u, a: a / u.exp(), (), (A,)),
    "where it is positive": (lambda u, a: aten.threshold_backward(u, a, 0), (4, 5), (A,)),
    "of another dtype": (lambda u, a: u * a, (), (A.float(),)),
    "chosen by a mask": (lambda u, a: torch.where(a > 0, u, a), (5,), (A,)),
    "keyword": (lambda u, a: torch.add(u, a, alpha=3), (4, 5), (A,)),
    "summed": (lambda u: u.sum(0, keepdim=True), (4, 5), ()),
    "joined with what is shared": (lambda u, a: torch.cat([u, a.view(-1)]), (3,), (A,)),
    "split": (lambda u: u.split([2, 3])[1].exp(), (5,), ()),
    "several outputs": (lambda u, a: (u + 1, a * a, u), (5,), (A,)),
    "written into new memory": (written_into_new_memory, (2,), (A,)),
    "written in place": (lambda u, a: (u * 2).add_(a).relu_(), (4, 5), (A,)),
    "an output that is not made": (convolved_back, (8,), (values(2, 1, 4, 4),)),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_the_rows_at_once_are_those_one_by_one(name: str) -> None:
    function, shape, others = CASES[name]
    graph = make_fx(function)(values(*shape, seed=9), *others)
    rows = values(M, *shape, seed=10)
    found = over_rows(_with_tuple(graph), rows, *others)
    each = [_tuple(function(row.clone(), *others)) for row in rows]
    for result, expected in zip(found, zip(*each, strict=True), strict=True):
        torch.testing.assert_close(result, torch.stack(expected), rtol=1e-13, atol=1e-13)


def test_what_the_rows_share_is_computed_once_and_not_copied() -> None:
    def function(u: Tensor, a: Tensor) -> Tensor:
        product: Tensor = aten.mm(a.exp(), u)
        return product.relu() * a.sin().sum(1, keepdim=True)

    graph = _with_tuple(make_fx(function)(B.clone(), A))
    traced = make_fx(lambda rows, a: over_rows(graph, rows, a)[0])(values(M, 5, 2), A)
    shapes = {
        str(node.target).removeprefix("aten.").partition(".")[0]: tuple(node.meta["val"].shape)
        for node in traced.graph.nodes
        if node.op == "call_function"
    }
    assert shapes == {
        "exp": (4, 5), "expand": (M, 4, 5), "bmm": (M, 4, 2), "relu": (M, 4, 2),
        "sin": (4, 5), "sum": (4, 1), "mul": (M, 4, 2),
    }  # fmt: skip


def test_what_the_rows_share_is_not_written_into() -> None:
    graph = _with_tuple(make_fx(lambda u, a: a.copy_(u))(values(M), values(M)))
    with pytest.raises(ValueError, match="would all be written into"):
        over_rows(graph, values(M, M), values(M))


def _tuple(results: Any) -> tuple[Tensor, ...]:
    return (results,) if isinstance(results, Tensor) else tuple(results)


def _with_tuple(graph: torch.fx.GraphModule) -> torch.fx.GraphModule:
    """Return the graph with its results in a tuple, as a program's graph has them."""
    output = next(iter(reversed(graph.graph.nodes)))
    results = output.args[0]
    if isinstance(results, torch.fx.Node):
        output.args = ((results,),)
        graph.recompile()
    return graph

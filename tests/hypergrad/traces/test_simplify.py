"""Each rule on a function that it shortens, and on one that it must leave alone."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

from hyperopt_dl.hypergrad.traces.program import Program, program
from hyperopt_dl.hypergrad.traces.simplify import simplify

Function = Callable[..., Tensor]
MATRICES = tuple(torch.linspace(-2, 3, 6 * n, dtype=torch.double) for n in (1, 2, 3))
X, Y, Z = MATRICES[0].view(2, 3), MATRICES[1].view(4, 3), MATRICES[2].view(3, 6)


def written(graph_module: fx.GraphModule) -> Program:
    *nodes, output = graph_module.graph.nodes
    inputs = [node for node in nodes if node.op == "placeholder"]
    return program(graph_module, nodes, inputs, [output.args[0]])


def shortened(function: Function, *tensors: Tensor) -> tuple[list[str], list[str]]:
    """Return the operators before and after, once the results have been seen to be equal."""
    traced = make_fx(function)(*(tensor.clone() for tensor in tensors))
    before = written(traced)
    simplify(traced.graph)
    traced.graph.lint()
    after = written(traced)
    expected = function(*(tensor.clone() for tensor in tensors))
    for each in (before, after):
        (found,) = each.run(*(tensor.clone() for tensor in tensors))
        torch.testing.assert_close(found, expected, rtol=1e-14, atol=1e-14)
    short = [[name.removeprefix("aten::") for name in each.operators] for each in (before, after)]
    return short[0], short[1]


CASES: dict[str, tuple[Function, tuple[Tensor, ...], list[str]]] = {
    "transposed twice": (lambda x: x.t().t().exp(), (X,), ["exp"]),
    "viewed as it is": (lambda x: x.view(2, 3).exp(), (X,), ["exp"]),
    "expanded as it is": (lambda x: x.expand(2, 3).exp(), (X,), ["exp"]),
    "viewed twice": (lambda x: x.view(6).view(3, 2).exp(), (X,), ["view", "exp"]),
    "added to zeros": (lambda x: torch.zeros_like(x) + x.exp(), (X,), ["exp"]),
    "zeros added": (lambda x: x.exp() + torch.zeros_like(x), (X,), ["exp"]),
    "zeros by their shape": (
        lambda x: x.exp() + torch.zeros(2, 3, dtype=torch.double),
        (X,),
        ["exp"],
    ),
    "zeros beside what is written elsewhere": (
        lambda x: torch.zeros_like(x.clone().mul_(2)) + x.exp(),
        (X,),
        ["clone", "mul_", "exp"],
    ),
    "expanded for a sum": (lambda x: x[:1].expand(2, 3) + x, (X,), ["slice", "add"]),
    "expanded for a quotient": (lambda x: x / x[1:].expand(2, 3), (X,), ["slice", "div"]),
    "the same twice": (lambda x: x.exp() * x.exp(), (X,), ["exp", "mul"]),
    "transposed before added": (
        lambda x: x.exp().t() + x.sin().t(),
        (X,),
        ["exp", "sin", "add", "t"],
    ),
    "a product and a sum": (
        lambda x, y: y.sin() + y @ x.t().exp(),
        (Z[:, :3], X),
        ["sin", "t", "exp", "addmm"],
    ),
    "a product and a row": (
        lambda x, y: (y @ x) + x[:1],
        (Z[:, :3], X),
        ["slice", "addmm"],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_rule_shortens_and_changes_no_number(name: str) -> None:
    function, tensors, expected = CASES[name]
    before, after = shortened(function, *tensors)
    assert after == expected
    assert len(before) > len(after)


def written_between(x: Tensor) -> Tensor:
    y = x.clone()
    early = y.exp()
    y.mul_(2)
    return early + y.exp()


def product_of_what_changes(x: Tensor, y: Tensor) -> Tensor:
    z = y.clone()
    product = z @ x
    z.add_(1)
    return z + product


def used_twice(x: Tensor, y: Tensor) -> Tensor:
    product = y @ x
    return (y + product) * product


LEFT_ALONE: dict[str, tuple[Function, tuple[Tensor, ...]]] = {
    "memory that is written between": (written_between, (X,)),
    "a factor that is written": (product_of_what_changes, (Z[:, :3], X)),
    "a product that is used elsewhere": (used_twice, (Z[:, :3], X)),
    "a view of memory with gaps": (lambda x: x.t()[:2].reshape(4).view(2, 2), (X,)),
    "zeros that make the shape": (lambda x: torch.zeros_like(x) + x[:1].exp(), (X,)),
    "zeros that make the dtype": (lambda x: torch.zeros_like(x) + x.float().exp(), (X,)),
    "zeros that make the order in memory": (
        lambda x: (torch.zeros(2, 3, dtype=torch.double) + x).view(6),
        (MATRICES[0].view(3, 2).t(),),
    ),
    "two transposed terms of other shapes": (lambda x: x.t() + x[:, :1].t(), (X[:, :2],)),
    "an expansion that makes the shape": (
        lambda x, y: x[:1].expand(2, 3) + y[:1].sin(),
        (X, Y),
    ),
    "a scaled sum": (lambda x, y: torch.add(y, y @ x, alpha=2), (Z[:, :3], X)),
}


@pytest.mark.parametrize("name", LEFT_ALONE)
def test_what_a_rule_does_not_fit_is_left_alone(name: str) -> None:
    function, tensors = LEFT_ALONE[name]
    before, after = shortened(function, *tensors)
    assert before == after


def test_two_draws_stay_two() -> None:
    traced = make_fx(lambda x: torch.rand_like(x) - torch.rand_like(x))(X.clone())
    simplify(traced.graph)
    assert written(traced).operators.count("aten::rand_like") == 2


def test_a_program_lets_go_of_what_it_no_longer_needs() -> None:
    traced = make_fx(lambda x: x.exp().sin() + 1)(X.clone())
    source = written(traced).source.splitlines()
    sine = next(i for i, line in enumerate(source) if " sin = " in line)
    assert source[sine + 1].strip() == "del exp"


def test_a_program_passes_on_lists_keywords_and_constants() -> None:
    constant = torch.tensor([1.0, float("inf")], dtype=torch.double)

    def function(x: Tensor) -> Tensor:
        whole = torch.cat([x, x.sum(0, keepdim=True)]).to(torch.float32, copy=True)
        return torch.where(whole > 1, float("inf"), whole)[:, :2] + constant

    traced: Any = make_fx(function)(X.clone())
    (found,) = written(traced).run(X)
    assert torch.equal(found, function(X))

"""Recorded operators against those that ``make_fx`` finds, and what a recording refuses."""

import operator
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

from hyperopt_dl.hypergrad.traces.recording import record
from hyperopt_dl.seeds import seeded
from tests.hypergrad.step_losses import CPU, NETS, build

X = torch.linspace(-2, 3, 6, dtype=torch.double)
Y = torch.linspace(1, 4, 6, dtype=torch.double)


def written(graph: fx.Graph) -> list[str]:
    """Return each operator with its arguments, but for items of a result that nothing uses."""
    places: dict[fx.Node, str] = {}
    lines: list[str] = []
    for node in graph.nodes:
        places[node] = (
            f"constant or input {len(places)}" if node.op == "placeholder" else "constant"
        )
        if node.op == "call_function" and (node.users or node.target is not operator.getitem):
            places[node] = f"%{len(lines)}"
            lines.append(f"{node.target}{fx.map_arg((node.args, node.kwargs), places.get)}")
    return lines


def replayed(function: Callable[..., Any], *tensors: Tensor) -> fx.GraphModule:
    """Return the recording of a function as a function."""
    return fx.GraphModule(*record(function, *(tensor.clone() for tensor in tensors)))


@pytest.mark.parametrize("name", NETS)
def test_the_operators_of_a_second_derivative_are_those_that_make_fx_finds(name: str) -> None:
    problem = build(name)
    eager = problem.eager()

    def joint(u: Tensor, x: Tensor, *tensors: Tensor) -> Any:
        g, aux, saved = eager.linearize(x, tensors)
        return (g, *aux), saved.pull(u)

    def example() -> tuple[Tensor, ...]:
        x, tensors, u = problem.example(0)
        return u, x, *tensors

    with seeded(0, CPU):
        _, found = record(joint, *example())
    with seeded(0, CPU):
        expected = make_fx(joint)(*example()).graph
    assert written(found) == written(expected)
    assert "get_attr" not in {node.op for node in found.nodes}


def test_a_node_knows_the_shape_the_strides_and_the_dtype_of_its_result() -> None:
    _, graph = record(lambda x: x.view(2, 3).t().float().exp(), X.clone())
    values = {node.name: node.meta["val"] for node in graph.nodes if node.op == "call_function"}
    assert values["exp"].shape == (3, 2)
    assert values["exp"].dtype == torch.float32
    assert values["t"].stride() == (1, 3)


def test_a_write_is_replayed_in_its_order() -> None:
    def function(x: Tensor) -> Tensor:
        y = x.clone()
        before = y.exp()
        y[:3].mul_(2)
        y += 1
        return before * y

    torch.testing.assert_close(replayed(function, X)(Y), function(Y), rtol=0, atol=0)


def test_several_results_of_an_operator_are_told_apart() -> None:
    def function(x: Tensor) -> tuple[Tensor, ...]:
        values, places = x.sort(descending=True)
        a, b = torch.split(values, 3)
        return a - b, places

    torch.testing.assert_close(replayed(function, X)(Y.sin()), function(Y.sin()), rtol=0, atol=0)


def test_sparse_matrices_between_are_recorded() -> None:
    def function(x: Tensor) -> Tensor:
        places = torch.tensor([[0, 1], [2, 0]])
        sparse = torch.sparse_coo_tensor(places, x[:2], (2, 3), check_invariants=False)
        return sparse @ x.view(3, 2)

    torch.testing.assert_close(replayed(function, X)(Y), function(Y))


def test_a_tensor_from_elsewhere_is_a_constant_and_is_held_once() -> None:
    root, graph = record(lambda x: (x + Y) * Y, X.clone())
    assert sum(node.op == "get_attr" for node in graph.nodes) == 1
    assert torch.equal(fx.GraphModule(root, graph)(X), (X + Y) * Y)


def test_a_tensor_of_numbers_is_made_anew_at_each_replay() -> None:
    def function(x: Tensor) -> Tensor:
        total = torch.tensor([1.0, 2.0], dtype=torch.double)
        total += x[:2]
        return total

    function_again = replayed(function, X)
    for _ in range(2):
        assert torch.equal(function_again(Y), function(Y))


def test_numbers_may_be_looked_at() -> None:
    def function(x: Tensor) -> Tensor:
        half = torch.tensor(1.0) / 2
        return x * half.item() if half > 0 else x

    assert torch.equal(replayed(function, X)(Y), Y / 2)


def of_an_input(x: Tensor) -> Tensor:
    return x * x.sum().item()


def a_branch(x: Tensor) -> Tensor:
    return x if x.sum() > 0 else -x


def numbers_that_an_input_is_written_into(x: Tensor) -> Tensor:
    total = torch.tensor([0.0, 1.0], dtype=torch.double)
    total[:1].add_(x[0])
    return x * total[0].item()


def numbers_drawn(x: Tensor) -> Tensor:
    return x * torch.tensor(0.5).bernoulli().item()


@pytest.mark.parametrize(
    "function", [of_an_input, a_branch, numbers_that_an_input_is_written_into, numbers_drawn]
)
def test_other_values_may_not_be_looked_at(function: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(RuntimeError, match="looks at the value of a tensor"):
        record(function, X.clone())


def test_a_generator_of_its_own_is_refused() -> None:
    generator = torch.Generator().manual_seed(0)
    with pytest.raises(NotImplementedError, match="Generator"):
        record(lambda x: x * torch.rand(6, generator=generator), X.clone())


def test_what_autograd_saves_is_known_when_nothing_else_holds_it() -> None:
    """Python's object of a tensor goes, and comes back in the backward pass as another one."""

    def function(x: Tensor) -> Tensor:
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            y = leaf
            for _ in range(20):
                y = (y.sin() * y.exp()).tanh()
            (g,) = torch.autograd.grad(y.sum(), leaf)
        return g

    root, graph = record(function, X.clone())
    assert "get_attr" not in {node.op for node in graph.nodes}
    assert torch.equal(fx.GraphModule(root, graph)(Y), function(Y))


def test_what_is_made_between_is_let_go_of() -> None:
    made: list[weakref.ref[Tensor]] = []

    def function(x: Tensor) -> Tensor:
        y = x.exp()
        made.append(weakref.ref(y))
        y = y.sin()
        assert made[0]() is None
        return y

    record(function, X.clone())


def test_casts_from_before_are_no_constants() -> None:
    weight = torch.ones(6, 6, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        weight @ X.float()  # leaves a cast of the weight in autocast's cache
        _, graph = record(lambda x, w: w @ x, X.float(), weight)
    assert "get_attr" not in {node.op for node in graph.nodes}

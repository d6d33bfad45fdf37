"""The division of one trace into the graphs of the sweeps, on functions small enough to read."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from hyperopt_dl.hypergrad.traces.graphs import CutError, Graphs, trace
from hyperopt_dl.hypergrad.traces.program import Program
from hyperopt_dl.seeds import seeded

CPU = torch.device("cpu")
Result = tuple[tuple[Tensor, ...], tuple[Tensor, ...]]


def vector(seed: int) -> Tensor:
    return torch.rand(4, dtype=torch.double, generator=torch.Generator().manual_seed(seed)) + 0.5


def traced(joint: Callable[..., Result], *tensors: Tensor) -> Graphs:
    return trace(joint, vector(0), vector(1), tensors)


def operators(program: Program) -> list[str]:
    """The names of a program's operators, in their order."""
    return [name.removeprefix("aten::") for name in program.operators if name]


def exponential(u: Tensor, x: Tensor, c: Tensor) -> Result:
    """The derivatives of (c exp x).sum(), with respect to x and to c."""
    g = c * x.exp()
    return (g.detach(), c + 1), (u * g, u * x.exp(), c.sin())


def test_each_graph_gives_its_part() -> None:
    graphs = traced(exponential, vector(2))
    u, x, c = vector(3), vector(4), vector(5)
    g, aux = graphs.gradient(x, (c,))
    torch.testing.assert_close((g, *aux), (c * x.exp(), c + 1))
    expected = (u * c * x.exp(), (u * x.exp(), c.sin()))
    torch.testing.assert_close(graphs.product(x, (c,), u), expected)
    g, aux, saved = graphs.linearize(x, (c,))
    torch.testing.assert_close((g, *aux), (c * x.exp(), c + 1))
    torch.testing.assert_close(saved.pull(u), expected)
    assert len(aux) == 1


def test_nothing_is_computed_that_is_not_needed() -> None:
    graphs = traced(exponential, vector(2))
    assert operators(graphs.G) == ["exp", "mul", "add"]
    assert operators(graphs.A) == operators(graphs.G)
    assert sorted(operators(graphs.B)) == ["mul", "mul", "sin"]
    assert sorted(operators(graphs.H)) == ["exp", "mul", "mul", "mul", "sin"]


def test_what_is_saved_are_values_of_the_first_pass_that_the_second_reads() -> None:
    def joint(u: Tensor, x: Tensor) -> Result:
        a, b = x.exp(), x.sin()
        return (a * b * b,), (u * a,)

    graphs = traced(joint)
    _, _, saved = graphs.linearize(vector(4), ())
    (activation,) = saved.tensors()
    torch.testing.assert_close(activation, vector(4).exp())


def test_a_graph_knows_whether_it_writes_into_its_inputs() -> None:
    def joint(u: Tensor, x: Tensor, c: Tensor) -> Result:
        g = x * c.view(2, 2).relu_().view(4)
        return (g,), (u * x,)

    assert traced(joint, vector(2)).writes
    assert not traced(exponential, vector(2)).writes


def test_a_replay_records_nothing() -> None:
    graphs, x = traced(exponential, vector(2)), vector(4).requires_grad_()
    g, aux, saved = graphs.linearize(x, (vector(5),))
    Hu, mixed = saved.pull(vector(3))
    assert not any(each.requires_grad for each in (g, *aux, Hu, *mixed))


def test_draws_keep_their_number_and_order_in_every_graph_and_none_is_late() -> None:
    def joint(u: Tensor, x: Tensor) -> Result:
        torch.rand_like(x)
        mask = torch.bernoulli(x / 2)
        torch.randn(3)
        g = mask * x.exp()
        return (g,), (u * g,)

    graphs = traced(joint)
    drawn = {"rand_like", "bernoulli", "randn"}
    for function in (graphs.G, graphs.A, graphs.H):
        assert [o for o in operators(function) if o in drawn] == ["rand_like", "bernoulli", "randn"]
    assert drawn.isdisjoint(operators(graphs.B))
    with seeded(1, CPU):
        torch.rand(4, dtype=torch.double)
        expected = torch.bernoulli(vector(4) / 2) * vector(4).exp()
    with seeded(1, CPU):
        torch.testing.assert_close(graphs.gradient(vector(4), ())[0], expected)


def test_guards_against_autograd_are_taken_out() -> None:
    def joint(u: Tensor, x: Tensor) -> Result:
        g = torch.ops.aten.alias(x.detach().exp().detach())
        return (g,), (u * g.detach(),)

    graphs = traced(joint)
    assert operators(graphs.G) == ["exp"]
    assert operators(graphs.B) == ["mul"]


def test_writes_into_what_the_first_pass_made_stay_in_their_order() -> None:
    def joint(u: Tensor, x: Tensor) -> Result:
        a = x * 2
        view = a.view(2, 2)
        view.mul_(3)
        b = a.exp()
        a.add_(1)
        return (b,), (u * a * b,)

    graphs, x = traced(joint), vector(4)
    torch.testing.assert_close(graphs.gradient(x, ())[0], (6 * x).exp())
    expected = vector(3) * (6 * x + 1) * (6 * x).exp()
    torch.testing.assert_close(graphs.product(x, (), vector(3))[0], expected)
    torch.testing.assert_close(graphs.linearize(x, ())[2].pull(vector(3))[0], expected)


def test_memory_that_the_second_pass_writes_into_is_made_in_it() -> None:
    def joint(u: Tensor, x: Tensor) -> Result:
        g = x.exp()
        room = torch.zeros(2, 4, dtype=x.dtype)
        room[0].add_(u * g)
        return (g,), (room.sum(0),)

    graphs = traced(joint)
    _, _, saved = graphs.linearize(vector(4), ())
    for _ in range(2):
        torch.testing.assert_close(saved.pull(vector(3))[0], vector(3) * vector(4).exp())


def test_running_statistics_are_updated_where_no_output_needs_the_norm() -> None:
    def joint(u: Tensor, x: Tensor, mean: Tensor, var: Tensor) -> Result:
        mean, var = mean.clone(), var.clone()
        torch.nn.functional.batch_norm(x.view(4, 1), mean, var, training=True, momentum=1.0)
        return (x.exp(), mean, var), (u * x,)

    graphs = traced(joint, torch.zeros(1).double(), torch.ones(1).double())
    _, aux = graphs.gradient(vector(4), (torch.zeros(1).double(), torch.ones(1).double()))
    torch.testing.assert_close(aux, (vector(4).mean()[None], vector(4).var()[None]))


def overwritten(u: Tensor, x: Tensor) -> Result:
    g = x.exp()
    Hu = u * g
    return (g.mul_(2),), (Hu,)


def overwritten_through_a_piece(u: Tensor, x: Tensor) -> Result:
    whole = x.exp()
    Hu = u * whole
    torch.split(whole, 2)[0].mul_(2)
    return (whole,), (Hu,)


def returned(u: Tensor, x: Tensor) -> Result:
    g = x.exp()
    return (g,), (g.mul_(u),)


def into_an_input(u: Tensor, x: Tensor) -> Result:
    return (x.exp(),), (x.mul_(u),)


def drawn_late(u: Tensor, x: Tensor) -> Result:
    return (x.exp(),), (u * torch.bernoulli(u / 4),)


@pytest.mark.parametrize(
    ("joint", "reason"),
    [
        (overwritten, "mul_ writes into what the second backward pass has read"),
        (overwritten_through_a_piece, "mul_ writes into what the second backward pass has read"),
        (returned, "writes into what the first one returns"),
        (into_an_input, "writes into what the first one returns"),
        (drawn_late, "bernoulli draws random numbers in the second"),
    ],
)
def test_a_trace_that_cannot_be_divided_is_refused(
    joint: Callable[..., Result], reason: str
) -> None:
    with pytest.raises(CutError, match=reason):
        traced(joint)

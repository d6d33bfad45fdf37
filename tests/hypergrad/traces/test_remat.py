"""What is computed again in the second backward pass, on steps small enough to read."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from hyperopt_dl.hypergrad.traces.graphs import Graphs, trace

Result = tuple[tuple[Tensor, ...], tuple[Tensor, ...]]
aten = torch.ops.aten
X = torch.randn(2, 16, generator=torch.Generator().manual_seed(0), dtype=torch.double)
WINDOWS = ([2, 2], [2, 2], [0, 0], [1, 1], False)


def pooled(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return a picture, the squares of its maxima, and their places."""
    picture = x.view(1, 1, 4, 4)
    y, i = aten.max_pool2d_with_indices(picture, *WINDOWS[:-1])
    return picture, y.square(), i


def scattered(picture: Tensor, y: Tensor, i: Tensor) -> Tensor:
    whole: Tensor = aten.max_pool2d_with_indices_backward(y, picture, *WINDOWS, i)
    return whole


def read_late(u: Tensor, x: Tensor) -> Result:
    picture, y, i = pooled(x)
    whole = scattered(picture, y, i)
    return (whole.sin().view(16),), ((u.view_as(whole) * whole.cos() * picture).view(16),)


def returned_late(u: Tensor, x: Tensor) -> Result:
    picture, y, i = pooled(x)
    whole = scattered(picture, y, i)
    return (whole.sin().view(16),), (u * picture.view(16), whole)


def returned(u: Tensor, x: Tensor) -> Result:
    picture, y, i = pooled(x)
    whole = scattered(picture, y, i)
    return (whole,), ((u.view_as(whole) * whole.cos() * picture).view(16),)


def with_larger_inputs(u: Tensor, x: Tensor) -> Result:
    whole = scattered(*pooled(x.clone()))
    return (whole.sin().view(16),), (u * whole.cos().view(16),)


def written_into(u: Tensor, x: Tensor) -> Result:
    picture, y, i = pooled(x)
    whole = scattered(picture, y, i)
    whole.add_(1)
    return (whole.sin().view(16),), ((u.view_as(whole) * whole.cos() * picture).view(16),)


def with_an_input_that_is_written(u: Tensor, x: Tensor) -> Result:
    picture, y, i = pooled(x)
    whole = scattered(picture, y, i)
    y.mul_(2)
    return (whole.sin().view(16) + y.sum(),), ((u.view_as(whole) * whole.cos() * picture).view(16),)


def traced(joint: Callable[[Tensor, Tensor], Result]) -> Graphs:
    """Return the graphs of J, once they have been seen to give its numbers."""
    graphs = trace(joint, torch.ones(16, dtype=torch.double), X[0].clone(), ())
    u, x = X
    expected = joint(u, x.clone())
    g, aux, saved = graphs.linearize(x, ())
    for _ in range(2):  # what is saved is left as it is
        Hu, mixed = saved.pull(u)
        torch.testing.assert_close(((g, *aux), (Hu, *mixed)), expected, rtol=0, atol=0)
    Hu, mixed = graphs.product(x, (), u)
    torch.testing.assert_close((Hu, *mixed), expected[1], rtol=0, atol=0)
    return graphs


SCATTER = "aten::max_pool2d_with_indices_backward"


@pytest.mark.parametrize("joint", [read_late, returned_late])
def test_what_is_pooled_is_put_to_its_places_again(joint: Callable[..., Result]) -> None:
    graphs = traced(joint)
    assert graphs.B.operators.count(SCATTER) == 1
    large = [each for each in graphs.linearize(X[1], ())[2].tensors() if each.numel() == 16]
    assert {each.data_ptr() for each in large} == {X[1].data_ptr()}


@pytest.mark.parametrize(
    "joint", [returned, with_larger_inputs, written_into, with_an_input_that_is_written]
)
def test_what_costs_more_or_may_have_changed_is_saved(joint: Callable[..., Result]) -> None:
    assert SCATTER not in traced(joint).B.operators


def test_an_item_is_saved_without_the_others() -> None:
    def joint(u: Tensor, x: Tensor) -> Result:
        large, small = torch.split(x.exp(), [15, 1])
        return (torch.cat([large, large[:1]]),), (u * small,)

    saved = traced(joint).linearize(X[1], ())[2].tensors()
    assert [each.numel() for each in saved] == [1]


def test_it_is_put_there_before_the_first_use_only() -> None:
    def joint(u: Tensor, x: Tensor) -> Result:
        picture, y, i = pooled(x)
        whole = scattered(picture, y, i)
        v = (u.exp().view_as(whole) * picture).sin()
        return (whole.sin().view(16),), ((v * whole.cos() + whole).view(16),)

    names = [name.removeprefix("aten::") for name in traced(joint).B.operators]
    assert names.count("max_pool2d_with_indices_backward") == 1
    assert names.index("sin") < names.index("max_pool2d_with_indices_backward")

"""Masks behind max-pools: a trace with them there gives the same to the bit, and keeps less."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from hyperopt_dl.hypergrad.traces import simplify
from hyperopt_dl.hypergrad.traces.graphs import Graphs, trace
from hyperopt_dl.hypergrad.traces.pooling import mask_what_is_pooled
from hyperopt_dl.hypergrad.traces.program import program
from hyperopt_dl.hypergrad.traces.recording import record
from hyperopt_dl.second_derivatives.batch_norm import batch_norm

Result = tuple[tuple[Tensor, ...], tuple[Tensor, ...]]
aten = torch.ops.aten


class Norm(nn.Module):
    """Batch normalization as it is in the trace of a step."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Return x normalized."""
        return batch_norm(x, self.weight, self.bias, 1e-5)[0]


@dataclass(frozen=True)
class Step:
    """The gradient of a network's loss and its product with the Hessian."""

    model: nn.Module
    data: Tensor

    def __call__(self, u: Tensor, x: Tensor, data: Tensor) -> Result:
        """Return J(u, x, data)."""
        leaf = x.detach().requires_grad_()
        named = dict(self.model.named_parameters())
        parts = torch.split(leaf, [each.numel() for each in named.values()])
        given = {n: part.view(named[n].shape) for n, part in zip(named, parts, strict=True)}
        with torch.enable_grad():
            out = functional_call(self.model, given, (data,))
            (g,) = torch.autograd.grad((out.sin() * out).mean(), leaf, create_graph=True)
            (Hu,) = torch.autograd.grad(g, leaf, u)
        return (g.detach(),), (Hu,)

    def vectors(self) -> tuple[Tensor, Tensor]:
        """Return u and x."""
        generator = torch.Generator().manual_seed(0)
        size = sum(each.numel() for each in self.model.parameters())
        u, x = torch.randn(2, size, generator=generator, dtype=torch.double).to(self.data.dtype)
        return u, x

    def traced(self) -> Graphs:
        """Return its graphs."""
        u, x = self.vectors()
        return trace(self, u, x, (self.data.clone(),))


def pictures(*shape: int, levels: int | None = None) -> Tensor:
    """Pictures with entries of both signs; of few levels, many of which are the maximum."""
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=torch.double)
    return x if levels is None else (x * levels).round() / levels


def network(*pool: nn.Module, norm: nn.Module | None = None, inplace: bool = False) -> nn.Module:
    middle = nn.Identity() if norm is None else norm
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), middle, nn.ReLU(inplace), *pool, nn.Conv2d(4, 3, 1)
    )


PICTURES = pictures(3, 2, 8, 8)
DEEP = nn.Sequential(
    nn.Conv2d(2, 4, 3, padding=1), Norm(4), nn.ReLU(), nn.MaxPool2d(2),
    nn.Conv2d(4, 6, 3, padding=1), Norm(6), nn.ReLU(), nn.MaxPool2d(2),
    nn.Flatten(), nn.Linear(24, 5),
)  # fmt: skip
FLAT = nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(2, 3, 1))
STEPS = {
    "plain": Step(network(nn.MaxPool2d(2)), PICTURES),
    "two levels with norms": Step(DEEP, PICTURES),
    "a norm of torch's": Step(
        network(nn.MaxPool2d(2), norm=nn.BatchNorm2d(4, track_running_stats=False)), PICTURES
    ),
    "windows that overlap": Step(network(nn.MaxPool2d(3, 2, 1)), PICTURES),
    "windows that leave gaps": Step(network(nn.MaxPool2d(2, 3)), PICTURES),
    "oblong windows": Step(network(nn.MaxPool2d((1, 3), (2, 1))), PICTURES),
    "dilated windows": Step(network(nn.MaxPool2d(2, dilation=3)), PICTURES),
    "windows over the edge": Step(network(nn.MaxPool2d(3, 2, ceil_mode=True)), PICTURES),
    "ties": Step(FLAT, pictures(3, 1, 8, 8, levels=1)),
    "ties in windows that overlap": Step(
        nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU(), nn.MaxPool2d(3, 2), nn.Conv2d(2, 3, 1)),
        pictures(3, 1, 9, 9, levels=1),
    ),
    "nothing active": Step(network(nn.MaxPool2d(2)), PICTURES * 0),
    "no batch": Step(network(nn.MaxPool2d(2)), PICTURES[0]),
    "single precision": Step(network(nn.MaxPool2d(2)), PICTURES.float()),
    "half precision": Step(network(nn.MaxPool2d(3, 2)), PICTURES.bfloat16()),
    "in place": Step(network(nn.MaxPool2d(2), inplace=True), PICTURES),
    "pooled twice": Step(network(nn.MaxPool2d(2), nn.MaxPool2d(2)), PICTURES),
}


def without(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave masks where autograd has them."""
    monkeypatch.setattr(simplify, "mask_what_is_pooled", lambda _: False)


def results(graphs: Graphs, step: Step) -> tuple[Tensor, ...]:
    """Return g, and Hu by either way."""
    u, x = step.vectors()
    g, _, saved = graphs.linearize(x, (step.data,))
    return (
        g,
        graphs.gradient(x, (step.data,))[0],
        graphs.product(x, (step.data,), u)[0],
        saved.pull(u)[0],
    )


def kept(graphs: Graphs, step: Step) -> int:
    """Return the bytes between the two passes."""
    tensors = graphs.linearize(step.vectors()[1], (step.data,))[2].tensors()
    return sum({each.data_ptr(): each.nbytes for each in tensors}.values())


@pytest.mark.parametrize("name", STEPS)
def test_a_step_is_the_same_to_the_bit_and_what_autograd_computes(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = STEPS[name]
    found = results(step.traced(), step)
    (g,), (Hu,) = step(*step.vectors(), step.data)
    tolerance = {torch.double: 1e-12, torch.float32: 1e-5}.get(step.data.dtype, 0.02)
    for each, eager in zip(found, (g, g, Hu, Hu), strict=True):
        torch.testing.assert_close(each, eager, rtol=0, atol=tolerance * float(eager.abs().max()))
    without(monkeypatch)
    for each, plain in zip(found, results(step.traced(), step), strict=True):
        assert torch.equal(each, plain)


@pytest.mark.parametrize("name", STEPS)
def test_a_step_keeps_less(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    step = STEPS[name]
    less = kept(step.traced(), step)
    without(monkeypatch)
    assert less < kept(step.traced(), step)


@pytest.mark.parametrize("name", STEPS)
def test_no_activation_before_a_pool_is_masked_or_kept(name: str) -> None:
    step = STEPS[name]
    graphs = step.traced()
    for graph in (graphs.G, graphs.A, graphs.B, graphs.H):
        nodes = graph.graph().graph.nodes
        of = {node.args[0] for node in nodes if node.target is aten.max_pool2d_with_indices.default}
        masks = [node for node in nodes if node.target is aten.threshold_backward.default]
        assert masks
        assert of.isdisjoint(node.args[1] for node in masks)
    assert "relu" not in graphs.B.source.splitlines()[0]


class Reading(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        """Return what is pooled beside what is not."""
        return nn.functional.max_pool2d(x, 2) * x[..., ::2, ::2]


OTHERS = {
    "as many windows as places": network(nn.MaxPool2d(3, 1, 1)),
    "the mean of a window": network(nn.AvgPool2d(2)),
    "windows that fit": network(nn.AdaptiveMaxPool2d(3)),
    "activations that are read elsewhere": network(Reading()),
    "another activation": nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.LeakyReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 3, 1)
    ),
    "pooled before the mask": nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.MaxPool2d(2), nn.ReLU(), nn.Conv2d(4, 3, 1)
    ),
    "a function between": network(nn.Softplus(), nn.MaxPool2d(2)),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_networks_are_left_alone(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    step = Step(OTHERS[name], PICTURES)
    found = [getattr(step.traced(), part).source for part in "GABH"]
    without(monkeypatch)
    assert found == [getattr(step.traced(), part).source for part in "GABH"]


Write = Callable[[Tensor, Tensor, Tensor], Tensor | None]
WINDOWS = ([2, 2], [2, 2], [0, 0], [1, 1], False)
A = pictures(2, 3, 8, 8, levels=2)


def nothing(x: Tensor, y: Tensor, i: Tensor) -> None:
    pass


def scattered(a: Tensor, *, threshold: float = 0, write: Write = nothing) -> Tensor:
    x = a.relu()
    y, i = aten.max_pool2d_with_indices(x, *WINDOWS[:-1])
    g = a[..., 1::2, ::2].contiguous()
    write(x, y, i)
    scatter = aten.max_pool2d_with_indices_backward(g, x, *WINDOWS, i)
    masked: Tensor = aten.threshold_backward(scatter, x, threshold)
    return masked


def gathered(a: Tensor, *, threshold: float = 0, write: Write = nothing) -> Tensor:
    x = a.relu()
    y, i = aten.max_pool2d_with_indices(x, *WINDOWS[:-1])
    v = a.flip(-1)
    write(x, y, i)
    masked = aten.threshold_backward(v, x, threshold).view(2, 3, -1)
    picked: Tensor = masked.gather(-1, i.view(2, 3, -1))
    return picked


BOTH = pytest.mark.parametrize("function", [scattered, gathered])


def moved(function: Callable[[Tensor], Tensor], a: Tensor) -> bool:
    """Return whether a mask is moved, once the results have been seen to be the same."""
    root, graph = record(lambda a: (function(a),), a.clone())
    found = mask_what_is_pooled(graph)
    graph.lint()
    *nodes, output = graph.nodes
    (after,) = program(root, nodes, nodes[:1], output.args[0]).run(a.clone())
    torch.testing.assert_close(after, function(a.clone()), rtol=0, atol=0, equal_nan=True)
    return found


@BOTH
@pytest.mark.parametrize("threshold", [0, 0.5, -1])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf, -0.0])
def test_masks_are_moved_for_every_number(
    function: Callable[..., Tensor], threshold: float, value: float
) -> None:
    a = A.where(A != 1, value)
    assert moved(lambda a: function(a, threshold=threshold), a)


WRITES: dict[str, Write] = {
    "x": lambda x, y, i: x.mul_(0.5).sub_(0.4),
    "x through a view": lambda x, y, i: x.view(-1)[::2].neg_(),
    "y": lambda x, y, i: y.neg_(),
    "i": lambda x, y, i: i.zero_(),
}


@BOTH
@pytest.mark.parametrize("what", WRITES)
def test_masks_stay_behind_what_is_written_after_the_pool(
    function: Callable[..., Tensor], what: str
) -> None:
    assert not moved(lambda a: function(a, write=WRITES[what]), A)


@BOTH
def test_masks_are_moved_where_all_else_is_written(function: Callable[..., Tensor]) -> None:
    def result(a: Tensor) -> Tensor:
        found = function(a.mul_(2).clone().neg_())
        a.zero_()
        return found.mul_(3)

    assert moved(result, A)


def shared(a: Tensor) -> Tensor:
    """A mask of v that is needed whole."""
    x = a.relu()
    _, i = aten.max_pool2d_with_indices(x, *WINDOWS[:-1])
    masked: Tensor = aten.threshold_backward(a.flip(-1), x, 0)
    return masked.view(2, 3, -1).gather(-1, i.view(2, 3, -1)).sum() + masked


def by_other_activations(a: Tensor) -> Tensor:
    x = a.relu()
    _, i = aten.max_pool2d_with_indices(x, *WINDOWS[:-1])
    scatter = aten.max_pool2d_with_indices_backward(a[..., ::2, ::2], x, *WINDOWS, i)
    masked: Tensor = aten.threshold_backward(scatter, a.flip(0), 0)
    return masked


def at_other_places(a: Tensor) -> Tensor:
    x = a.relu()
    _, i = aten.max_pool2d_with_indices(x, *WINDOWS[:-1])
    masked: Tensor = aten.threshold_backward(a.flip(-1), x, 0).view(2, 3, -1)
    return masked.gather(1, (i % 3).view(2, 3, -1)) + masked.gather(1, i.view(2, 3, -1) % 3)


@pytest.mark.parametrize("function", [shared, by_other_activations, at_other_places])
def test_what_only_looks_like_it_is_left_alone(function: Callable[[Tensor], Tensor]) -> None:
    assert not moved(function, A)


def test_rows_are_pulled_as_each_of_them_is() -> None:
    step = STEPS["two levels with norms"]
    graphs, (u, x) = step.traced(), step.vectors()
    saved = graphs.linearize(x, (step.data,))[2]
    rows = torch.stack([u, u.flip(0), x])
    expected = torch.stack([saved.pull(row)[0] for row in rows])
    torch.testing.assert_close(saved.pull_rows(rows), expected, rtol=1e-12, atol=1e-12)

"""Steps that cannot be traced: an error, or the eager step and a warning."""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from hyperopt_dl.errors import TrainingError
from hyperopt_dl.hypergrad.traces.eager import Eager
from hyperopt_dl.hypergrad.traces.traced import Traced, probe
from tests.hypergrad.step_losses import PureLoss, Tensors, chosen, close, eager_of


def cube(scale: Callable[[Tensor], Any]) -> PureLoss:
    def loss(x: Tensor, tensors: Tensors) -> tuple[Tensor, Tensors]:
        return (scale(x) * x**3).sum(), ()

    return loss


def three() -> list[tuple[Tensor, Tensors, Tensor]]:
    rows = torch.randn(3, 2, 5, dtype=torch.double, generator=torch.Generator().manual_seed(1))
    return [(x, (), u) for x, u in rows]


calls = iter(range(1, 10**6))
OWN = torch.Generator()
HIDDEN: dict[str, Callable[[Tensor], Any]] = {
    "numpy": lambda x: np.random.default_rng().random(),
    "counter": lambda x: next(calls),
    "coin": lambda x: 1.0 if next(calls) % 2 else 2.0,
    "generator": lambda x: torch.rand(5, generator=OWN, dtype=x.dtype),
}


@pytest.mark.parametrize("source", HIDDEN)
def test_a_step_that_does_not_replay_is_an_error(source: str) -> None:
    with pytest.raises(TrainingError, match=r"computed again .* numpy\.random") as caught:
        chosen(cube(HIDDEN[source]), three(), [0, 1, 2])
    assert "the gradient by" in str(caught.value)


def positive(values: Any) -> int:
    return sum(value > 0 for value in values)


BRANCHES: dict[str, tuple[Callable[[Tensor], Any], str]] = {
    "branch": (lambda x: 2 if x.sum() > 0 else 3, "RuntimeError"),
    "item": (lambda x: 2 if x.sum().item() > 0 else 3, "RuntimeError"),
    "list": (lambda x: 1 + positive(x.detach().tolist()), "the gradient by"),
    "numpy": (lambda x: 1 + positive(x.detach().numpy()), ""),
    "unique": (
        lambda x: 1 + len(torch.unique((3 * x.detach()).round())),
        "what aten::_unique2 returns depends on values",
    ),
}


@pytest.mark.parametrize("name", BRANCHES)
def test_a_step_that_looks_at_values_runs_eagerly_with_one_warning(name: str) -> None:
    scale, fragment = BRANCHES[name]
    with pytest.warns(UserWarning, match="without tracing") as caught:
        derivatives = chosen(cube(scale), three(), [0, 1, 2])
    assert isinstance(derivatives, Eager)
    assert len(caught) == 1
    assert fragment in str(caught[0].message)


@pytest.mark.parametrize(
    "scale",
    [lambda x: x.sum().item(), lambda x: sum(x.detach().tolist()), lambda x: x.detach().sum()],
    ids=["item", "list", "detach"],
)
def test_a_value_that_leaves_the_graph_and_comes_back_is_an_error(scale: Any) -> None:
    with pytest.raises(TrainingError, match=r"off by .*values that leave torch"):
        chosen(cube(scale), three(), [0, 1, 2])


def test_a_trace_that_fails_later_is_replaced_by_the_eager_step_and_a_warning() -> None:
    traced = Traced(eager_of(cube(BRANCHES["branch"][0])))
    x, tensors, u = three()[0]
    with pytest.warns(UserWarning, match="without tracing") as caught:
        close(traced.product(x, tensors, u)[0], (12 if x.sum() > 0 else 18) * x * u)
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        close(traced.product(-x, tensors, u)[0], (12 if x.sum() < 0 else 18) * -x * u)


def test_a_trace_made_in_a_sweep_is_compared_once() -> None:
    loss = cube(lambda x: 1 + sum(x.detach().abs().tolist()))
    x, tensors, u = three()[0]
    with pytest.warns(UserWarning, match="does not give the numbers"):
        found = Traced(eager_of(loss)).product(x, tensors, u)
    close(found, eager_of(loss).product(x, tensors, u))


def test_the_probe_says_what_differs() -> None:
    loss = cube(BRANCHES["list"][0])
    eager = eager_of(loss)
    assert probe(eager, Traced(eager), three()[:1], [0]) is None
    reason = probe(eager, Traced(eager), three(), [0, 1, 2])
    assert reason is not None
    assert "the gradient by" in reason


class Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.exp()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        x: Tensor = ctx.saved_tensors[0]
        return grad * x.exp()


def pairs(x: Tensor) -> Tensor:
    result: Tensor = functional.pdist(x.view(2, 2))
    return result


def bags(x: Tensor) -> Tensor:
    return functional.embedding_bag(torch.tensor([[0, 1]]), x.view(2, 2), mode="sum").square()


def once(x: Tensor) -> Tensor:
    apply: Any = Once.apply
    result: Tensor = apply(x)
    return result


def distance(x: Tensor) -> Tensor:
    result: Tensor = torch.cdist(x.view(2, 2), x.view(2, 2).square() + 1)
    return result.square()


@pytest.mark.parametrize(
    ("function", "operator", "remedy"),
    [
        (pairs, "_pdist_backward", "elementary operations"),
        (bags, "_embedding_bag_backward", "nn.Embedding"),
        (distance, "_cdist_backward", "Write the distance out"),
        (lambda x: once(x).square(), "once_differentiable", "undecorated"),
        (once, "Once, once_differentiable", "undecorated"),
    ],
)
def test_an_operator_without_a_second_derivative_is_an_error_that_names_it(
    function: Any, operator: str, remedy: str
) -> None:
    def loss(x: Tensor, tensors: Tensors) -> tuple[Tensor, Tensors]:
        return function(x).sum(), ()

    x, u = torch.rand(2, 4, dtype=torch.double)
    with pytest.raises(TrainingError) as caught:
        chosen(loss, [(x, (), u)], [0])
    assert operator in str(caught.value)
    assert remedy in str(caught.value)


def test_a_loss_without_the_parameters_is_an_error() -> None:
    with pytest.raises(TrainingError, match="must depend on the model's parameters"):
        chosen(lambda x, tensors: (x.detach().sum(), ()), three(), [0, 1, 2])

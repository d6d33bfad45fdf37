"""Losses of one step, of networks of many kinds, to be traced."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from hyperopt_dl.hypergrad.traces.agreement import Example
from hyperopt_dl.hypergrad.traces.eager import Eager, Made
from hyperopt_dl.hypergrad.traces.traced import Traced, checked, choose
from hyperopt_dl.network import Network
from hyperopt_dl.recorded_step import check_value
from hyperopt_dl.second_derivatives.first_pass import FirstPass
from hyperopt_dl.second_derivatives.gradient_graph import GradientGraph
from hyperopt_dl.seeds import seeded
from hyperopt_dl.weights import Weights

CPU = torch.device("cpu")
Tensors = tuple[Tensor, ...]
PureLoss = Callable[[Tensor, Tensors], tuple[Tensor, Tensors]]


class Pure:
    """A loss that is a pure function ``(x, tensors) -> (value, aux)``."""

    moved: Sequence[int] = ()

    def __init__(self, loss: PureLoss) -> None:
        self.loss = loss

    def gradient(self, x: Tensor, tensors: Tensors) -> tuple[Tensor, Tensors]:
        leaf, value, aux = self._recorded(x, tuple(t.detach() for t in tensors))
        (g,) = torch.autograd.grad(value, leaf, materialize_grads=True)
        return g, tuple(each.detach() for each in aux)

    def record(self, x: Tensor, tensors: Tensors, wrt: Sequence[int]) -> Made:
        given = tuple(t.detach().requires_grad_(i in wrt) for i, t in enumerate(tensors))
        leaf, value, aux = self._recorded(x, given)
        c = [given[i] for i in wrt]
        graph = GradientGraph(value, [leaf], [], c, FirstPass(), nullcontext)
        return Made(graph, tuple(each.detach() for each in aux), value)

    def stand_in(self, x: Tensor, tensors: Tensors, body: Any, first: FirstPass) -> Any:
        value, aux = self.loss(x, tensors)
        return body(value, aux, ())

    def _recorded(self, x: Tensor, tensors: Tensors) -> tuple[Tensor, Tensor, Tensors]:
        leaf = x.detach().requires_grad_()
        with torch.enable_grad():
            value, aux = self.loss(leaf, tensors)
        check_value(value)
        return leaf, value, aux


def eager_of(loss: PureLoss, *, wrt: Sequence[int] = (), recurrent: bool = False) -> Eager:
    return Eager(Pure(loss), wrt=wrt, recurrent=recurrent)


def chosen(
    loss: PureLoss, examples: Sequence[Example], seeds: Sequence[int], **how: Any
) -> Eager | Traced:
    """The derivatives, once they have been checked."""
    eager = eager_of(loss, **how)
    checked(eager, examples[0], seeds[0])
    return choose(eager, examples, seeds)


@dataclass
class Problem:
    """A classifier's weighted, smoothed cross-entropy with an L2 term, as a pure function.

    ``tensors`` are the frozen parameters, the buffers, then: input, target, example weights,
    smoothing, L2 coefficient.
    """

    module: nn.Module
    inputs: Callable[[torch.Generator, int], Tensor]
    recurrent: bool = False
    dtype: torch.dtype = torch.float64

    def __post_init__(self) -> None:
        self.network = Network(self.module.to(self.dtype))
        self.weights = self.network.weights()

    @property
    def wrt(self) -> tuple[int, ...]:
        fixed = len(self.weights.frozen) + len(self.weights.buffers)
        return (fixed + 2, fixed + 3, fixed + 4)

    def loss(self, x: Tensor, tensors: Tensors) -> tuple[Tensor, Tensors]:
        frozen, buffers = self.weights.frozen, self.weights.buffers
        given = iter(tensors)
        weights = Weights(
            x, {name: next(given) for name in frozen}, {name: next(given) for name in buffers}
        )
        inputs, target, importance, smoothing, l2 = given
        network = self.network

        def forward() -> tuple[Tensor, Weights]:
            return network.module(inputs), network.after()

        output, after = network.standing_in(weights, forward, FirstPass(), training=True)
        logp = functional.log_softmax(output, -1)
        hit = logp.gather(1, target[:, None])[:, 0]
        each = (1 - smoothing) * hit + smoothing * logp.mean(-1)
        return l2 * (x * x).sum() - (importance * each).mean(), (
            *after.frozen.values(),
            *after.buffers.values(),
        )

    def example(self, seed: int, size: int = 5) -> tuple[Tensor, Tensors, Tensor]:
        g = torch.Generator().manual_seed(seed)

        def noise(like: Tensor) -> Tensor:
            return torch.randn(like.shape, generator=g, dtype=like.dtype)

        x, frozen, buffers = self.weights
        moved = [
            b + noise(b).square() if b.is_floating_point() else b + seed for b in buffers.values()
        ]
        inputs = self.inputs(g, size)
        tensors = (
            *(q + 0.1 * noise(q) for q in frozen.values()),
            *moved,
            inputs.to(self.dtype) if inputs.is_floating_point() else inputs,
            torch.randint(3, (size,), generator=g),
            torch.rand(size, generator=g, dtype=self.dtype),
            torch.rand((), generator=g, dtype=self.dtype) / 5,
            torch.rand((), generator=g, dtype=self.dtype),
        )
        return x + 0.1 * noise(x), tensors, noise(x)

    def eager(self) -> Eager:
        return eager_of(self.loss, wrt=self.wrt, recurrent=self.recurrent)


def vectors(g: torch.Generator, size: int) -> Tensor:
    return torch.randn(size, 6, generator=g)


def images(g: torch.Generator, size: int) -> Tensor:
    return torch.randn(size, 2, 6, 6, generator=g)


def series(g: torch.Generator, size: int) -> Tensor:
    return torch.randn(size, 4, 6, generator=g)


def words(g: torch.Generator, size: int) -> Tensor:
    return torch.randint(7, (size, 4), generator=g)


def mlp(*middle: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), *middle, nn.Linear(8, 3))


class Last(nn.Module):
    """The last output of a recurrent layer."""

    def forward(self, output: tuple[Tensor, Any]) -> Tensor:
        return output[0][:, -1]


class Transformer(nn.Module):
    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 8, padding_idx=0)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, dropout, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        result: Tensor = self.head(self.layer(self.embedding(tokens)).mean(1))
        return result


def tied() -> nn.Module:
    first, second = nn.Linear(6, 6), nn.Linear(6, 6)
    second.weight = first.weight
    return nn.Sequential(first, nn.Tanh(), second, nn.Tanh(), nn.Linear(6, 3))


def partly_frozen() -> nn.Module:
    module = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3))
    module[2].requires_grad_(False)
    return module


class Branch(nn.Module):
    """A head with statistics that the loss does not see."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(6, 3)
        self.other = nn.BatchNorm1d(6)

    def forward(self, inputs: Tensor) -> Tensor:
        self.other(inputs)
        result: Tensor = self.head(inputs)
        return result


class Draws(nn.Module):
    """Two masks, of which the loss sees the second."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(6, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        functional.dropout(inputs, 0.5)
        result: Tensor = self.head(functional.dropout(inputs, 0.5))
        return result


def cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(16, 3),
    )  # fmt: skip


NETS: dict[str, Callable[[], Problem]] = {
    "relu": lambda: Problem(mlp(nn.ReLU()), vectors),
    "tanh": lambda: Problem(mlp(nn.Tanh()), vectors),
    "relu in place": lambda: Problem(mlp(nn.ReLU(inplace=True)), vectors),
    "in place on the batch": lambda: Problem(
        nn.Sequential(nn.ReLU(inplace=True), nn.Linear(6, 3)), vectors
    ),
    "BatchNorm2d": lambda: Problem(cnn(), images),
    "dropout": lambda: Problem(mlp(nn.Dropout(0.4), nn.ReLU(), nn.Dropout(0.2)), vectors),
    "AlphaDropout and RReLU": lambda: Problem(mlp(nn.AlphaDropout(0.3), nn.RReLU()), vectors),
    "LayerNorm": lambda: Problem(mlp(nn.LayerNorm(8), nn.GELU()), vectors),
    "GroupNorm": lambda: Problem(mlp(nn.GroupNorm(2, 8), nn.Tanh()), vectors),
    "LSTM": lambda: Problem(
        nn.Sequential(nn.LSTM(6, 5, batch_first=True), Last(), nn.Linear(5, 3)), series, True
    ),
    "GRU with dropout": lambda: Problem(
        nn.Sequential(
            nn.GRU(6, 5, num_layers=2, dropout=0.3, batch_first=True), Last(), nn.Linear(5, 3)
        ),
        series,
        True,
    ),
    "transformer": lambda: Problem(Transformer(0.2), words),
    "fused attention": lambda: Problem(Transformer(0.0), words),
    "tied weights": lambda: Problem(tied(), vectors),
    "frozen parameters": lambda: Problem(partly_frozen(), vectors),
    "unused branch": lambda: Problem(Branch(), vectors),
    "unused draw": lambda: Problem(Draws(), vectors),
    "linear": lambda: Problem(nn.Linear(6, 3), vectors),
}


def build(name: str) -> Problem:
    with seeded(0, CPU):
        return NETS[name]()


def trace_of(problem: Problem) -> Traced:
    result = Traced(problem.eager())
    x, tensors, _ = problem.example(0)
    result.trace(x, tensors)
    return result


def close(found: Any, expected: Any) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-13)

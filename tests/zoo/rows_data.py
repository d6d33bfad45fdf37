"""What goes in and comes out, randomness, and control flow that looks at numbers."""

import random
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.utils.data import Dataset, TensorDataset

from tests.zoo.nets import (
    CLASSES,
    HELD_OUT,
    TRAIN,
    Net,
    case_of,
    classify,
    integers,
    mlp,
    normal,
    tokens,
)
from tests.zoo.row import Case, Kind

SHAPES = Kind("Inputs and outputs")
RANDOM = Kind("Randomness")
FLOW = Kind("Control flow")
N = TRAIN + HELD_OUT
X, Z, Y = normal(N, 4), normal(N, 4, seed=3), integers(CLASSES, N, seed=1)


class Examples(Dataset[Any]):
    """A data set that makes its examples by a function of their number."""

    def __init__(self, numbers: range, make: Any) -> None:
        self.numbers, self.make = numbers, make

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, i: int) -> Any:
        return self.make(self.numbers[i])


def _examples(model: Any, make: Any, loss: Any = F.cross_entropy, held_out: Any = None) -> Case:
    return Case(
        model, Examples(range(TRAIN), make), Examples(range(TRAIN, N), held_out or make), loss
    )


def _out(make: Any, loss: Any) -> Case:
    """A network whose output is made of that of another."""
    return classify(Net(lambda m, x: make(m.net(x)), net=mlp()), loss=loss)


class Answer(NamedTuple):
    logits: Tensor
    size: Tensor


@dataclass
class Output:
    """An output with names, as transformers has it."""

    logits: Tensor
    size: Tensor


SHAPES.exact(
    "two inputs",
    lambda: case_of(Net(lambda m, a, b: m.net(a + 0.5 * b), net=mlp()), (X, Z), Y),
)
SHAPES.exact(
    "a TensorDataset",
    lambda: Case(
        mlp(),
        TensorDataset(X[:TRAIN], Y[:TRAIN]),
        TensorDataset(X[TRAIN:], Y[TRAIN:]),
        F.cross_entropy,
    ),
)
SHAPES.exact("a data set of tuples", lambda: _examples(mlp(), lambda i: (X[i], Y[i])))
SHAPES.exact(
    "inputs in a dict",
    lambda: _examples(
        Net(lambda m, given: m.net(given["a"] + 0.5 * given["b"]), net=mlp()),
        lambda i: ({"a": X[i], "b": Z[i]}, Y[i]),
    ),
)
SHAPES.exact(
    "inputs in nested tuples",
    lambda: _examples(
        Net(lambda m, given: m.net(given[0] + 0.5 * given[1][0]), net=mlp()),
        lambda i: ((X[i], (Z[i],)), Y[i]),
    ),
)
SHAPES.exact(
    "targets in a dict (several tasks)",
    lambda: _examples(
        mlp(),
        lambda i: (X[i], {"label": Y[i], "size": X[i].sum()}),
        lambda out, y: F.cross_entropy(out, y["label"]) + 0.1 * F.mse_loss(out.sum(1), y["size"]),
    ),
)
SHAPES.exact(
    "targets in a tuple",
    lambda: _examples(
        mlp(),
        lambda i: (X[i], (Y[i], X[i].sum())),
        lambda out, y: F.cross_entropy(out, y[0]) + 0.1 * F.mse_loss(out.sum(1), y[1]),
    ),
)
SHAPES.exact(
    "numpy arrays from a data set",
    lambda: _examples(mlp(), lambda i: (X[i].numpy(), int(Y[i]))),
)
SHAPES.exact(
    "a dict out",
    lambda: _out(lambda h: {"logits": h}, lambda out, y: F.cross_entropy(out["logits"], y)),
)
SHAPES.exact(
    "a tuple out",
    lambda: _out(lambda h: (h, h.sum(1)), lambda out, y: F.cross_entropy(out[0], y)),
)
SHAPES.exact(
    "a named tuple out",
    lambda: _out(
        lambda h: Answer(h, h.square().mean()),
        lambda out, y: F.cross_entropy(out.logits, y) + 0.1 * out.size,
    ),
)
SHAPES.exact(
    "a dataclass out",
    lambda: _out(
        lambda h: Output(h, h.square().mean()),
        lambda out, y: F.cross_entropy(out.logits, y) + 0.1 * out.size,
    ),
)
SHAPES.exact(
    "the loss comes out of the module",
    lambda: case_of(
        Net(lambda m, x, y: F.cross_entropy(m.net(x), y), net=mlp()),
        (X, Y),
        Y,
        loss=lambda out, y: out,
    ),
)
SHAPES.exact("the whole set at every step", lambda: classify(mlp(), batch_size=None))
SHAPES.exact(
    "an input that the first layer overwrites",
    lambda: classify(nn.Sequential(nn.ReLU(inplace=True), *mlp())),
)
SHAPES.exact(
    "a table of categories and numbers",
    lambda: case_of(
        Net(
            lambda m, c, x: m.net(
                torch.cat([m.words[i](c[:, i]) for i in range(2)] + [m.norm(x)], 1)
            ),
            words=nn.ModuleList([nn.Embedding(5, 2), nn.Embedding(5, 2)]),
            norm=nn.LayerNorm(4),
            net=mlp(inputs=8),
        ),
        (integers(5, N, 2), X),
        Y,
    ),
)

# --- randomness ---


def _layer_drop(draw: Any) -> nn.Module:
    """LayerDrop: a block is left out when a number is below a half."""

    def run(m: Any, x: Tensor) -> Any:
        for block in m.blocks:
            if not m.training or draw() < 0.6:
                x = x + torch.tanh(block(x))
        return m.head(x)

    blocks = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])
    return Net(run, blocks=blocks, head=nn.Linear(4, CLASSES))


def _noisy_examples(draw: Any) -> Case:
    """Augmentation in the data set."""
    return _examples(
        mlp(), lambda i: (X[i] * (1 + 0.2 * draw()), Y[i]), held_out=lambda i: (X[i], Y[i])
    )


def _sampled_weights() -> nn.Module:
    """Bayes by backprop: weights are drawn at every step."""

    def run(m: Any, x: Tensor) -> Any:
        w = m.mean + F.softplus(m.scale) * torch.randn_like(m.mean) * m.training
        return m.head(torch.tanh(x @ w))

    return Net(
        run,
        mean=nn.Parameter(torch.randn(4, 5)),
        scale=nn.Parameter(torch.full((4, 5), -2.0)),
        head=nn.Linear(5, CLASSES),
    )


def _variational() -> Case:
    """A variational autoencoder."""

    def run(m: Any, x: Tensor) -> Any:
        mean, logvar = m.encoder(x).chunk(2, 1)
        z = mean + torch.exp(logvar / 2) * torch.randn_like(mean)
        return m.decoder(z), mean, logvar

    def loss(output: tuple[Tensor, Tensor, Tensor], target: Tensor) -> Tensor:
        out, mean, logvar = output
        divergence = -0.5 * (1 + logvar - mean**2 - logvar.exp()).sum(1).mean()
        return F.mse_loss(out, target) + 0.1 * divergence

    net = Net(run, encoder=nn.Linear(4, 4), decoder=nn.Linear(2, 4))
    return case_of(net, X, X, loss=loss)


def _rsample() -> Case:
    net = Net(
        lambda m, x: m.head(
            torch.distributions.Normal((h := m.first(x))[:, :3], F.softplus(h[:, 3:])).rsample()
        ),
        first=nn.Linear(4, 6),
        head=nn.Linear(3, CLASSES),
    )
    return classify(net)


def _policy() -> Case:
    """REINFORCE: an action is drawn, and its logarithm is weighed by a reward."""

    def run(m: Any, x: Tensor) -> Any:
        policy: Any = torch.distributions.Categorical(logits=m.net(x))
        action = policy.sample()
        return policy.log_prob(action), action

    def loss(output: tuple[Tensor, Tensor], target: Tensor) -> Tensor:
        logp, action = output
        reward = (action == target).to(logp.dtype)
        return -(logp * (reward - reward.mean())).mean()

    return classify(Net(run, net=mlp()), loss=loss, validation_loss=_hit)


def _hit(output: tuple[Tensor, Tensor], target: Tensor) -> Tensor:
    return -(output[0].exp() * (output[1] + 1)).mean()


RANDOM.exact(
    "torch.rand in the forward pass", lambda: classify(_layer_drop(lambda: torch.rand(())))
)
RANDOM.exact("LayerDrop by random.random", lambda: classify(_layer_drop(random.random)))
RANDOM.exact("LayerDrop by numpy.random", lambda: classify(_layer_drop(np.random.rand)))
RANDOM.exact(
    "augmentation by torch in __getitem__", lambda: _noisy_examples(lambda: torch.randn(4).double())
)
RANDOM.exact("augmentation by random in __getitem__", lambda: _noisy_examples(random.random))
RANDOM.exact("augmentation by numpy in __getitem__", lambda: _noisy_examples(np.random.rand))
RANDOM.exact("Bayes by backprop", lambda: classify(_sampled_weights()))
RANDOM.exact("a variational autoencoder", _variational)
RANDOM.exact("rsample of a distribution", _rsample)
RANDOM.exact("REINFORCE, a drawn action", _policy)
RANDOM.exact(
    "torch.randperm in the forward pass (mixup)",
    lambda: classify(
        Net(
            lambda m, x: m.net(0.8 * x + 0.2 * x[torch.randperm(len(x))] if m.training else x),
            net=mlp(),
        )
    ),
)
RANDOM.exact(
    "weights that numpy drew in the factory",
    lambda: classify(lambda hp: _drawn_by_numpy()),
)
RANDOM.exact(
    "torch.bernoulli and multinomial",
    lambda: classify(
        Net(
            lambda m, x: m.net(
                x * torch.bernoulli(torch.full_like(x, 0.8))
                + 0.1 * torch.multinomial(torch.ones(4), 1).to(x.dtype)
                if m.training
                else x
            ),
            net=mlp(),
        )
    ),
)


def _drawn_by_numpy() -> Any:
    net: Any = mlp()
    with torch.no_grad():
        net[0].weight.copy_(torch.from_numpy(np.random.randn(5, 4)))
    return net


# --- control flow ---


def _by_norm() -> nn.Module:
    """A branch by .item(): large activations take another way."""

    def run(m: Any, x: Tensor) -> Any:
        h = m.first(x)
        h = torch.tanh(h) if h.norm().item() > 2.0 else torch.sin(h)
        return m.head(h)

    return Net(run, first=nn.Linear(4, 5), head=nn.Linear(5, CLASSES))


def _until_small() -> nn.Module:
    """A loop whose end depends on a number."""

    def run(m: Any, x: Tensor) -> Any:
        h, rounds = m.first(x), 0
        while bool(h.abs().max() > 0.4) and rounds < 6:
            h, rounds = 0.6 * torch.tanh(m.again(h)), rounds + 1
        return m.head(h)

    return Net(run, first=nn.Linear(4, 5), again=nn.Linear(5, 5), head=nn.Linear(5, CLASSES))


def _numpy_order() -> nn.Module:
    """An assignment found by numpy, as a matching is found by scipy."""

    def run(m: Any, x: Tensor) -> Any:
        h = torch.tanh(m.first(x))
        order = np.argsort(h.detach().numpy(), axis=1).copy()
        return m.head(h.gather(1, torch.from_numpy(order)))

    return Net(run, first=nn.Linear(4, 5), head=nn.Linear(5, CLASSES))


def _lengths() -> nn.Module:
    """A loop over lengths that are read by .tolist()."""

    def run(m: Any, x: Tensor) -> Any:
        lengths = (x != 0).sum(1).tolist()
        h = torch.tanh(m.words(x))
        return m.head(torch.stack([row[:n].mean(0) for row, n in zip(h, lengths, strict=True)]))

    return Net(run, words=nn.Embedding(7, 4), head=nn.Linear(4, CLASSES))


def _experts() -> nn.Module:
    """A mixture of experts: the two best of a gate, and only these are computed."""

    def run(m: Any, x: Tensor) -> Any:
        weight, chosen = m.gate(x).softmax(1).topk(2)
        out = torch.zeros(len(x), CLASSES, dtype=x.dtype)
        for i, expert in enumerate(m.experts):
            rows, place = torch.where(chosen == i)
            if len(rows):
                out = out.index_add(0, rows, weight[rows, place, None] * expert(x[rows]))
        return out

    experts = nn.ModuleList([nn.Linear(4, CLASSES) for _ in range(3)])
    return Net(run, gate=nn.Linear(4, 3), experts=experts)


def _net(run: Any) -> Case:
    """A network with a function between its two layers."""
    return classify(
        Net(
            lambda m, x: m.head(run(torch.tanh(m.first(x)))),
            first=nn.Linear(4, 5),
            head=nn.Linear(5, CLASSES),
        )
    )


FLOW.exact("a branch by .item()", lambda: classify(_by_norm()))
FLOW.exact("a while loop by bool()", lambda: classify(_until_small()))
FLOW.exact("an order found by numpy", lambda: classify(_numpy_order()))
FLOW.exact("lengths by .tolist()", lambda: tokens(_lengths()))
FLOW.exact("a mixture of experts, the two best", lambda: classify(_experts()))
FLOW.exact(
    "a boolean mask in the loss",
    lambda: classify(
        mlp(),
        loss=lambda out, y: F.cross_entropy(out[y != 0], y[y != 0]) + 0.1 * out.square().mean(),
    ),
)
FLOW.exact("a boolean mask of activations", lambda: _net(lambda h: h + 0.1 * h[h > 0].mean()))
FLOW.exact(
    "unique",
    lambda: tokens(
        Net(
            lambda m, x: m.head(
                (lambda u: torch.tanh(m.words(u[0]))[u[1]].mean(1))(
                    torch.unique(x, return_inverse=True)
                )
            ),
            words=nn.Embedding(7, 4),
            head=nn.Linear(4, CLASSES),
        )
    ),
)
FLOW.exact("topk", lambda: _net(lambda h: torch.cat([h.topk(2).values, h[:, :3]], 1)))
FLOW.exact("sort and cumsum", lambda: _net(lambda h: h.sort(1).values.cumsum(1)))
FLOW.exact("kthvalue and median", lambda: _net(lambda h: h - h.median(1, keepdim=True).values))
FLOW.exact(
    "where, clamp and masked_fill",
    lambda: _net(
        lambda h: torch.where(h > 0.1, h, 0.3 * h).clamp(-0.6, 0.6).masked_fill(h > 0.9, 0.5)
    ),
)
FLOW.exact(
    "scatter_add and index_select",
    lambda: _net(
        lambda h: torch.zeros_like(h).scatter_add(
            1, torch.tensor([[0, 1, 1, 2, 4]]).expand(len(h), -1), h
        )
    ),
)
FLOW.exact(
    "hard examples: the largest losses of a batch",
    lambda: classify(
        mlp(), loss=lambda out, y: F.cross_entropy(out, y, reduction="none").topk(2).values.mean()
    ),
)
FLOW.exact(
    "nonzero and a sum over what was found",
    lambda: _net(lambda h: h * 0.5 + 0.1 * h[torch.nonzero(h[:, 0] > 0)[:, 0]].sum(0)),
)
ROWS = [*SHAPES.rows, *RANDOM.rows, *FLOW.rows]

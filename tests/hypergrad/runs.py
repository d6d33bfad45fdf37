"""Networks, data and the oracle of the tests of reverse mode: autograd through the whole run."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import cross_entropy

from hyperopt_dl.optimizers import SGD
from hyperopt_dl.optimizers.groups import GroupsLike
from hyperopt_dl.supervised import Supervised
from hyperopt_dl.training import State, Training, rollout
from tests.contracts.training import assert_close_vector
from tests.supervised_runs import Transformer

DOUBLE = torch.double
N, FEATURES, CLASSES = 10, 5, 3
Data = tuple[Tensor, Tensor]
Answer = tuple[Tensor, dict[str, Tensor]]


def vectors(seed: int = 0, dtype: torch.dtype = DOUBLE, n: int = N) -> Data:
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, FEATURES, generator=g, dtype=DOUBLE).to(dtype)
    return x, torch.randint(0, CLASSES, (n,), generator=g)


def images(seed: int = 0, dtype: torch.dtype = DOUBLE) -> Data:
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(N, 1, 5, 5, generator=g, dtype=DOUBLE).to(dtype)
    return x, torch.randint(0, CLASSES, (N,), generator=g)


def tokens(seed: int = 0, dtype: torch.dtype = DOUBLE) -> Data:
    g = torch.Generator().manual_seed(seed)
    x = torch.randint(0, 7, (N, 3), generator=g)
    return x, torch.randint(0, CLASSES, (N,), generator=g)


def mlp(*middle: nn.Module, hidden: int = 4) -> nn.Module:
    middle = middle or (nn.Tanh(),)
    return nn.Sequential(nn.Linear(FEATURES, hidden), *middle, nn.Linear(hidden, CLASSES))


def cnn() -> nn.Module:
    convolution = (nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(inplace=True))
    return nn.Sequential(*convolution, nn.MaxPool2d(2), nn.Flatten(), nn.Linear(3, CLASSES))


class Recurrent(nn.Module):
    def __init__(self, cell: type[nn.GRU] | type[nn.LSTM]) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 3)
        self.cell = cell(3, 4, batch_first=True)
        self.head = nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.cell(self.embedding(x))[0][:, -1])
        return out


class Tied(nn.Module):
    """One weight under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(FEATURES, FEATURES), nn.Linear(FEATURES, FEATURES)
        self.second.weight = self.first.weight
        self.head = nn.Linear(FEATURES, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(torch.tanh(self.second(torch.tanh(self.first(x)))))
        return out


def frozen() -> nn.Module:
    model = mlp(nn.Tanh(), nn.Linear(4, 4), nn.Tanh())
    model.get_parameter("2.weight").requires_grad_(False)
    model.get_parameter("4.bias").requires_grad_(False)
    return model


NETS: dict[str, tuple[Callable[[], nn.Module], Callable[..., Data]]] = {
    "mlp": (mlp, vectors),
    "relu": (lambda: mlp(nn.ReLU()), vectors),
    "dropout": (lambda: mlp(nn.Tanh(), nn.Dropout(0.4)), vectors),
    "layer norm": (lambda: mlp(nn.LayerNorm(4), nn.Tanh()), vectors),
    "batch norm": (cnn, images),
    "lstm": (functools.partial(Recurrent, nn.LSTM), tokens),
    "gru": (functools.partial(Recurrent, nn.GRU), tokens),
    "transformer": (functools.partial(Transformer, 0.0), tokens),
    "transformer with dropout": (functools.partial(Transformer, 0.1), tokens),
    "tied weights": (Tied, vectors),
    "frozen parameters": (frozen, vectors),
}


def fresh(make: Callable[[], nn.Module], dtype: torch.dtype = DOUBLE) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make().to(dtype)


def smoothed(output: Tensor, target: Tensor, hp: Mapping[str, Any]) -> Tensor:
    """Cross-entropy with label smoothing and a penalty, for each example."""
    logp = output.log_softmax(1)
    hit, s = logp.gather(1, target[:, None])[:, 0], hp["smoothing"]
    each: Tensor = -(1 - s) * hit - s * logp.mean(1) + hp["penalty"] * output.square().mean(1)
    return each


def mean_smoothed(output: Tensor, target: Tensor, hp: Mapping[str, Any]) -> Tensor:
    return smoothed(output, target, hp).mean()


def supervised(model: Any, data: Data, held_out: Data, **settings: Any) -> Supervised:
    defaults: dict[str, Any] = {
        "loss": cross_entropy,
        "validation_loss": cross_entropy,
        "optimizer": SGD(lr="lr"),
        "batch_size": 4,
        "steps": 5,
    }
    return Supervised(model=model, train=data, validation=held_out, **{**defaults, **settings})


def all_together(net: str, dtype: torch.dtype = DOUBLE, **settings: Any) -> Supervised:
    """A net with hyperparameters in the optimizer, its groups, the loss and the data."""
    make, data_of = NETS[net]
    model = fresh(make, dtype)
    part = "0.*" if isinstance(model, nn.Sequential) else "head.*"
    groups: GroupsLike = {"*bias*": {"weight_decay": 0.0}, part: {"lr": "part_lr"}}
    rule = SGD(lr="lr", momentum="momentum", weight_decay="decay", groups=groups)
    settings = {"loss": smoothed, "weights": "w", "optimizer": rule, **settings}
    return supervised(model, data_of(0, dtype), data_of(1, dtype), **settings)


ALL: dict[str, Any] = {
    "lr": 0.3,
    "part_lr": 0.2,
    "momentum": 0.6,
    "decay": 0.05,
    "smoothing": 0.1,
    "penalty": 0.2,
    "w": torch.linspace(0.2, 2.0, N, dtype=DOUBLE),
}


def leaves(hparams: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: torch.as_tensor(value, dtype=DOUBLE).clone().requires_grad_()
        if isinstance(value, (float, Tensor))
        else value
        for name, value in hparams.items()
    }


def unroll(training: Training, hparams: Mapping[str, Any], *, seed: int, last: int = 0) -> Answer:
    """Autograd through the whole run, or through the last steps of it."""
    given = leaves(hparams)
    state: State | None = None
    with sdpa_kernel(SDPBackend.MATH):
        if last:
            with torch.no_grad():
                state = rollout(training, given, seed=seed, stop=training.steps - last)
        start = training.steps - last if last else 0
        state = rollout(training, given, seed=seed, state=state, start=start)
        value = training.loss(state, given)
    wanted = {name: leaf for name, leaf in given.items() if isinstance(leaf, Tensor)}
    return value.detach(), dict(
        zip(wanted, torch.autograd.grad(value, [*wanted.values()]), strict=True)
    )


def assert_close(found: Answer, expected: Answer, rtol: float) -> None:
    assert found[1].keys() == expected[1].keys()
    torch.testing.assert_close(found[0], expected[0], rtol=rtol, atol=0)
    for name, gradient in expected[1].items():
        assert_close_vector(found[1][name], gradient, rtol=rtol)

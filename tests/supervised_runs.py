"""Data, networks and an ordinary loop to compare a ``Supervised`` with."""

import copy
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from hyperopt_dl.optimizers import SGD, Adam, Optimizer
from hyperopt_dl.seeds import derive
from hyperopt_dl.supervised import Supervised
from hyperopt_dl.training import State

DOUBLE = torch.double
N, FEATURES, CLASSES = 10, 6, 3
Data = tuple[Tensor, ...]


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def vectors(seed: int = 0, dtype: torch.dtype = DOUBLE, n: int = N) -> Data:
    g = generator(seed)
    x = torch.randn(n, FEATURES, generator=g, dtype=DOUBLE).to(dtype)
    return x, torch.randint(0, CLASSES, (n,), generator=g)


def images(seed: int = 0, dtype: torch.dtype = DOUBLE) -> Data:
    g = generator(seed)
    x = torch.randn(N, 1, 6, 6, generator=g, dtype=DOUBLE).to(dtype)
    return x, torch.randint(0, CLASSES, (N,), generator=g)


def tokens(seed: int = 0, dtype: torch.dtype = DOUBLE) -> Data:
    g = generator(seed)
    x = torch.randint(0, 9, (N, 5), generator=g)
    return x, torch.randint(0, CLASSES, (N,), generator=g)


def mlp(hidden: int = 5, dropout: float = 0.0) -> nn.Module:
    return nn.Sequential(
        nn.Linear(FEATURES, hidden), nn.Tanh(), nn.Dropout(dropout), nn.Linear(hidden, CLASSES)
    )


class Recurrent(nn.Module):
    def __init__(self, cell: type[nn.GRU] | type[nn.LSTM]) -> None:
        super().__init__()
        self.embedding = nn.Embedding(9, 4)
        self.cell = cell(4, 5, num_layers=2, dropout=0.3, batch_first=True)
        self.head = nn.Linear(5, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.cell(self.embedding(x))[0][:, -1])
        return out


class Transformer(nn.Module):
    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.embedding = nn.Embedding(9, 4)
        self.layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=dropout, batch_first=True)
        self.head = nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.layer(self.embedding(x)).mean(1))
        return out


class Tied(nn.Module):
    """One weight under two names, and one module under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(FEATURES, FEATURES)
        self.second = nn.Linear(FEATURES, FEATURES)
        self.second.weight = self.first.weight
        self.norm = self.again = nn.BatchNorm1d(FEATURES)
        self.head = nn.Linear(FEATURES, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(torch.tanh(self.first(x)))
        out: Tensor = self.head(self.again(torch.tanh(self.second(x))))
        return out


class TiedBuffers(nn.Module):
    """One buffer under two names, written to through both."""

    def __init__(self) -> None:
        super().__init__()
        count = torch.zeros(())
        self.left, self.right = Count(count), Count(count)
        self.head = nn.Linear(FEATURES, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.right(self.left(x)))
        return out


class Count(nn.Module):
    count: Tensor

    def __init__(self, count: Tensor) -> None:
        super().__init__()
        self.register_buffer("count", count)

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        return x / self.count.to(x)


class Rebinding(nn.Module):
    """A buffer that is assigned to, and not written into."""

    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(FEATURES))
        self.head = nn.Linear(FEATURES, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        self.mean = 0.9 * self.mean.to(x) + 0.1 * x.mean(0)
        out: Tensor = self.head(x - self.mean)
        return out


def frozen() -> nn.Module:
    model = nn.Sequential(nn.Linear(FEATURES, 5), nn.Tanh(), nn.Linear(5, CLASSES))
    model.get_parameter("0.weight").requires_grad_(False)
    model.get_parameter("2.bias").requires_grad_(False)
    return model


def cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 3, 3),
        nn.BatchNorm2d(3),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Dropout2d(0.2),
        nn.Flatten(),
        nn.Linear(12, CLASSES),
    )


NETS: dict[str, tuple[Callable[[], nn.Module], Callable[..., Data]]] = {
    "mlp": (mlp, vectors),
    "dropout": (functools.partial(mlp, dropout=0.4), vectors),
    "layer norm": (lambda: nn.Sequential(mlp(), nn.LayerNorm(CLASSES)), vectors),
    "cnn with batch norm": (cnn, images),
    "gru": (functools.partial(Recurrent, nn.GRU), tokens),
    "lstm": (functools.partial(Recurrent, nn.LSTM), tokens),
    "transformer": (functools.partial(Transformer, 0.2), tokens),
    "tied weights": (Tied, vectors),
    "tied buffers": (TiedBuffers, vectors),
    "rebound buffer": (Rebinding, vectors),
    "frozen parameters": (frozen, vectors),
}
RULES: dict[str, tuple[Optimizer, Callable[[Any], torch.optim.Optimizer]]] = {
    "sgd": (
        SGD(lr=0.1, momentum=0.9, weight_decay=0.01),
        functools.partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=0.01),
    ),
    "adam": (Adam(lr=0.01), functools.partial(torch.optim.Adam, lr=0.01)),
}
TOLERANCE = {torch.float32: 2e-5, torch.float64: 1e-11}


def fresh(make: Callable[[], nn.Module], dtype: torch.dtype = DOUBLE, seed: int = 0) -> nn.Module:
    """A module with weights of this seed, made without touching the global generator's state."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make().to(dtype)


def ordinary(
    model: nn.Module,
    optimizer: Callable[[Any], torch.optim.Optimizer],
    data: Data,
    *,
    seed: int,
    steps: int,
    batch_size: int | None,
    drop_last: bool = False,
) -> nn.Module:
    """Train a copy of the module as anybody would; batches and masks come from the seed."""
    model = copy.deepcopy(model).train()
    rule = optimizer([q for q in model.parameters() if q.requires_grad])
    with torch.random.fork_rng(devices=[]):
        for t, index in zip(range(steps), indices(seed, batch_size, drop_last), strict=False):
            torch.manual_seed(derive(seed, "step", t))
            rule.zero_grad()
            loss = cross_entropy(model(data[0][index]), data[1][index])
            loss.backward()  # type: ignore[no-untyped-call]
            rule.step()
    return model


def indices(seed: int, batch_size: int | None, drop_last: bool) -> Iterator[Tensor]:
    epoch = 0
    while True:
        if batch_size is None:
            yield torch.arange(N)
            continue
        order = torch.randperm(N, generator=generator(derive(seed, "epoch", epoch)))
        for index in torch.split(order, batch_size):
            if len(index) == batch_size or not drop_last:
                yield index
        epoch += 1


def named(training: Supervised, state: State, model: nn.Module) -> dict[str, Tensor]:
    """The state's parameters and buffers under the names that the module gives them."""
    params = [(name, q) for name, q in model.named_parameters() if q.requires_grad]
    pieces = torch.split(state["params"], [q.numel() for _, q in params])
    values = {name: piece.view(q.shape) for (name, q), piece in zip(params, pieces, strict=True)}
    for kind in ("frozen/", "buffer/"):
        values |= {k.removeprefix(kind): v for k, v in state.items() if k.startswith(kind)}
    return values


def assert_same_weights(values: Mapping[str, Tensor], model: nn.Module, tolerance: float) -> None:
    expected = dict(model.named_parameters()) | dict(model.named_buffers())
    assert values.keys() == expected.keys()
    for name, value in expected.items():
        rtol = tolerance if value.dtype.is_floating_point else 0.0
        torch.testing.assert_close(values[name], value.detach(), rtol=rtol, atol=rtol)


def supervised(model: Any, data: Data, **settings: Any) -> Supervised:
    defaults = {
        "loss": cross_entropy,
        "optimizer": SGD(lr=0.1),
        "train": data,
        "validation": data,
        "batch_size": 4,
    }
    if "epochs" not in settings:
        defaults["steps"] = 6
    return Supervised(model=model, **{**defaults, **settings})


def by_width(hp: Mapping[str, Any]) -> nn.Module:
    return mlp(int(hp["hidden"])).double()

"""Supervised, against an ordinary PyTorch loop, finite differences and runs of its own."""

import copy
import functools
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import cloudpickle
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, linear

from hyperopt_dl.early_stopping import EarlyStopping
from hyperopt_dl.errors import TrainingError
from hyperopt_dl.optimizers import SGD, Adam, Optimizer, Schedule
from hyperopt_dl.seeds import derive
from hyperopt_dl.supervised import Supervised
from hyperopt_dl.training import State, rollout
from tests.contracts.training import (
    Case,
    assert_close_vector,
    assert_same_bits,
    central_difference,
)

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


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(9, 4)
        self.layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.2, batch_first=True)
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
    "transformer": (Attention, tokens),
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


# ------------------------------------------------------------------ the same as an ordinary loop


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("net", NETS, ids=lambda name: name.replace(" ", "_"))
def test_a_run_ends_at_the_weights_of_an_ordinary_loop(
    net: str, rule: str, dtype: torch.dtype
) -> None:
    make, data_of = NETS[net]
    model, data = fresh(make, dtype), data_of(dtype=dtype)
    twin, original = RULES[rule]
    training = supervised(model, data, optimizer=twin, steps=7)
    state = rollout(training, {}, seed=5)
    expected = ordinary(model, original, data, seed=5, steps=7, batch_size=4)
    assert_same_weights(named(training, state, model), expected, TOLERANCE[dtype])


@pytest.mark.parametrize(
    ("settings", "steps"),
    [
        ({"batch_size": 4, "epochs": 2}, 6),
        ({"batch_size": 4, "epochs": 2, "drop_last": True}, 4),
        ({"batch_size": 5, "epochs": 2, "drop_last": True}, 4),
        ({"batch_size": N, "epochs": 3}, 3),
        ({"batch_size": None, "epochs": 3}, 3),
        ({"batch_size": None, "steps": 4}, 4),
        ({"batch_size": 1, "steps": 12}, 12),
    ],
    ids=str,
)
def test_epochs_and_last_batches_are_those_of_an_ordinary_loop(
    settings: dict[str, Any], steps: int
) -> None:
    model, data = fresh(functools.partial(mlp, dropout=0.4)), vectors()
    training = supervised(model, data, optimizer=RULES["sgd"][0], **settings)
    assert training.steps == steps
    state = rollout(training, {}, seed=5)
    expected = ordinary(
        model,
        RULES["sgd"][1],
        data,
        seed=5,
        steps=steps,
        batch_size=settings["batch_size"],
        drop_last=settings.get("drop_last", False),
    )
    assert_same_weights(named(training, state, model), expected, 1e-11)


@pytest.mark.parametrize("net", ["cnn with batch norm", "dropout", "transformer", "lstm"])
def test_the_loss_and_the_metrics_are_those_of_the_module_in_evaluation(net: str) -> None:
    make, data_of = NETS[net]
    model, data, held_out, unseen = fresh(make), data_of(), data_of(1), data_of(2)
    training = supervised(
        model, data, validation=held_out, test=unseen, metrics={"accuracy": accuracy}
    )
    state = rollout(training, {}, seed=5)
    plain = functools.partial(torch.optim.SGD, lr=0.1)
    expected = ordinary(model, plain, data, seed=5, steps=6, batch_size=4).eval()
    with torch.no_grad():
        output, other = expected(held_out[0]), expected(unseen[0])
        loss = training.loss(state, {})
    torch.testing.assert_close(loss, cross_entropy(output, held_out[1]))
    assert training.metrics(state, {}) == {"accuracy": float(accuracy(output, held_out[1]))}
    assert training.test_metrics(state, {}) == {
        "loss": pytest.approx(float(cross_entropy(other, unseen[1]))),
        "accuracy": float(accuracy(other, unseen[1])),
    }


def accuracy(output: Tensor, target: Tensor) -> Tensor:
    return (output.argmax(1) == target).double().mean()


def test_a_model_of_several_inputs_gets_them_in_order() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(FEATURES, CLASSES)

        def forward(self, x: Tensor, scale: Tensor) -> Tensor:
            out: Tensor = self.head(x) * scale
            return out

    x, y = vectors()
    scale = torch.linspace(0.5, 2.0, N, dtype=DOUBLE)[:, None]
    model = fresh(Two)
    both = supervised(model, (x, scale, y))
    state = rollout(both, {}, seed=5)
    weight = model.get_parameter("head.weight").detach().clone().requires_grad_()
    bias = model.get_parameter("head.bias").detach().clone().requires_grad_()
    for _, index in zip(range(6), indices(5, 4, False), strict=False):
        loss = cross_entropy(linear(x[index], weight, bias) * scale[index], y[index])
        for leaf, gradient in zip(
            (weight, bias), torch.autograd.grad(loss, (weight, bias)), strict=True
        ):
            leaf.data.sub_(0.1 * gradient)
    expected = torch.cat([weight.detach().reshape(-1), bias.detach()])
    torch.testing.assert_close(state["params"], expected)


# ------------------------------------------------------------------------- the model and its seed


@pytest.mark.parametrize("net", ["cnn with batch norm", "tied weights", "tied buffers", "lstm"])
def test_a_module_instance_is_never_written_to(net: str) -> None:
    make, data_of = NETS[net]
    model = fresh(make).eval()
    before, ids = copy.deepcopy(model.state_dict()), [id(q) for q in model.parameters()]
    training = supervised(model, data_of())
    training.loss(rollout(training, {}, seed=5), {})
    assert [id(q) for q in model.parameters()] == ids
    assert all(q.grad is None for q in model.parameters())
    assert not model.training
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)


@pytest.mark.parametrize("seed", [0, 1])
def test_every_run_of_a_module_instance_starts_from_its_weights(seed: int) -> None:
    model = fresh(mlp)
    training = supervised(model, vectors())
    rollout(training, {}, seed=3)
    state = training.init({}, seed=seed, device="cpu")
    expected = torch.cat([q.detach().reshape(-1) for q in model.parameters()])
    assert torch.equal(state["params"], expected)


def test_a_state_does_not_share_memory_with_the_module() -> None:
    model = fresh(lambda: nn.Linear(FEATURES, CLASSES, bias=False))
    state = supervised(model, vectors()).init({}, seed=0, device="cpu")
    state["params"].zero_()
    assert model.get_parameter("weight").abs().sum() > 0


def test_a_factory_gives_the_same_weights_under_the_same_seed() -> None:
    training = supervised(lambda hp: mlp().double(), vectors())
    a, b = (training.init({}, seed=4, device="cpu") for _ in range(2))
    assert_same_bits(a, b)


def test_a_factory_gives_other_weights_under_another_seed() -> None:
    training = supervised(lambda hp: mlp().double(), vectors())
    a, b = (training.init({}, seed=seed, device="cpu")["params"] for seed in (4, 5))
    assert not torch.isclose(a, b).any()


@pytest.mark.parametrize(
    ("value", "seen"),
    [
        (torch.tensor(0.5, requires_grad=True), 0.5),
        (torch.tensor(3), 3),
        (torch.tensor(True), True),
        (7, 7),
        ("relu", "relu"),
    ],
    ids=str,
)
def test_a_factory_sees_plain_values(value: Any, seen: Any) -> None:
    found = []

    def factory(hp: Mapping[str, Any]) -> nn.Module:
        found.append(hp["a"])
        return mlp().double()

    supervised(factory, vectors()).init({"a": value}, seed=0, device="cpu")
    assert found == [seen]
    assert type(found[0]) is type(seen)


def test_a_factory_sees_arrays_detached() -> None:
    found = []

    def factory(hp: Mapping[str, Any]) -> nn.Module:
        found.append(hp["w"])
        return mlp().double()

    w = torch.ones(3, requires_grad=True)
    supervised(factory, vectors()).init({"w": w}, seed=0, device="cpu")
    assert torch.equal(found[0], w)
    assert not found[0].requires_grad


def by_width(hp: Mapping[str, Any]) -> nn.Module:
    return mlp(int(hp["hidden"])).double()


def by_activation(hp: Mapping[str, Any]) -> nn.Module:
    activation = {"relu": nn.ReLU, "gelu": nn.GELU}[hp["activation"]]
    return nn.Sequential(nn.Linear(FEATURES, 5), activation(), nn.Linear(5, CLASSES)).double()


def by_default(hp: Mapping[str, Any]) -> nn.Module:
    return mlp(hp.get("hidden", 4)).double()


def by_membership(hp: Mapping[str, Any]) -> nn.Module:
    return mlp(hp["hidden"] if "hidden" in hp else 4).double()  # noqa: SIM401


def by_list(hp: Mapping[str, Any]) -> nn.Module:
    widths = [int(hp[name]) for name in sorted(hp) if name.startswith("width")]
    sizes = [FEATURES, *widths, CLASSES]
    return nn.Sequential(*map(nn.Linear, sizes, sizes[1:])).double()


def by_count(hp: Mapping[str, Any]) -> nn.Module:
    return mlp(3 + len(hp)).double()


def by_items(hp: Mapping[str, Any]) -> nn.Module:
    return mlp(sum(dict(**hp).values())).double()


class Late(nn.Module):
    """Looks at a hyperparameter only when it is called."""

    def __init__(self, hp: Mapping[str, Any]) -> None:
        super().__init__()
        self.hp, self.head = hp, nn.Linear(FEATURES, CLASSES).double()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(x * self.hp["scale"])
        return out


@pytest.mark.parametrize(
    ("factory", "points"),
    [
        (by_width, [{"hidden": 3}, {"hidden": 5}]),
        (by_width, [{"hidden": torch.tensor(3)}, {"hidden": torch.tensor(5)}]),
        (by_width, [{"hidden": width} for width in range(2, 13)]),
        (by_activation, [{"activation": "relu"}, {"activation": "gelu"}]),
        (by_default, [{}, {"hidden": 7}]),
        (by_membership, [{}, {"hidden": 7}]),
        (by_list, [{"width1": 3}, {"width1": 3, "width2": 3}]),
        (by_count, [{"a": 1}, {"a": 1, "b": 1}]),
        (by_items, [{"a": 3}, {"a": 3, "b": 1}]),
        (Late, [{"scale": 0.5}, {"scale": 2.0}]),
    ],
    ids=lambda value: value.__name__ if callable(value) else str(len(value)),
)
def test_interleaved_runs_of_other_structures_do_not_mix(
    factory: Any, points: list[dict[str, Any]]
) -> None:
    together = supervised(factory, vectors())
    states = [together.init(point, seed=2, device="cpu") for point in points]
    for t in range(3):
        states = [
            together.step(state, point, t) for state, point in zip(states, points, strict=True)
        ]
    for state, point in zip(states, points, strict=True):
        alone = supervised(factory, vectors())
        assert_same_bits(state, rollout(alone, point, seed=2, stop=3))
        assert torch.equal(together.loss(state, point), alone.loss(state, point))
    if factory is not Late:
        assert len({len(state["params"]) for state in states}) in (1, len(points))


def test_a_factory_is_called_once_for_a_run() -> None:
    calls = []

    def factory(hp: Mapping[str, Any]) -> nn.Module:
        calls.append(hp["hidden"])
        return by_width(hp)

    training = supervised(factory, vectors(), optimizer=SGD(lr="lr"))
    rollout(training, {"hidden": 3, "lr": 0.1}, seed=2)
    assert calls == [3]


@pytest.mark.parametrize("batch_size", [4, None])
def test_a_model_that_writes_into_its_input_leaves_the_data_as_they_were(
    batch_size: int | None,
) -> None:
    x, y = vectors()
    before = x.clone()
    model = nn.Sequential(nn.ReLU(inplace=True), fresh(mlp))
    training = supervised(model, (x, y), batch_size=batch_size)
    training.loss(rollout(training, {}, seed=2), {})
    assert torch.equal(x, before)


# ---------------------------------------------------------------------------------- derivatives


class StillMasked(nn.Module):
    """Dropout and BatchNorm in a smooth net; the statistics are the batch's in evaluation too."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(FEATURES, 5),
            nn.BatchNorm1d(5, track_running_stats=False),
            nn.Tanh(),
            nn.Dropout(0.3),
            nn.Linear(5, CLASSES),
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.body(x)
        return out


def penalised(output: Tensor, target: Tensor, hp: Mapping[str, Any]) -> Tensor:
    penalty: Tensor = hp["penalty"] * output.square().mean()
    return cross_entropy(output, target) + penalty


def decaying(t: int, hp: Mapping[str, Any]) -> Any:
    return 1 / (1 + hp["decay"] * t)


SMOOTH: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "sgd lr": ({"optimizer": SGD(lr="lr")}, {"lr": 0.3}),
    "momentum": (
        {"optimizer": SGD(lr="lr", momentum="momentum")},
        {"lr": 0.3, "momentum": 0.6},
    ),
    "weight decay": (
        {"optimizer": SGD(lr=0.3, momentum=0.5, weight_decay="decay")},
        {"decay": 0.1},
    ),
    "adam": (
        {"optimizer": Adam(lr="lr", betas=("beta1", "beta2"), eps=1e-3)},
        {"lr": 0.05, "beta1": 0.7, "beta2": 0.9},
    ),
    "loss coefficient": (
        {
            "loss": penalised,
            "validation_loss": cross_entropy,
            "optimizer": SGD(lr=0.3, momentum=0.5),
        },
        {"penalty": 0.3},
    ),
    "loss coefficient in the outer loss too": ({"loss": penalised}, {"penalty": 0.3}),
    "schedule": (
        {"optimizer": SGD(lr=Schedule("lr", decaying), momentum=0.5)},
        {"lr": 0.4, "decay": 0.2},
    ),
    "data weights": (
        {"weights": "w", "optimizer": SGD(lr=0.3, momentum=0.5)},
        {"w": [0.2 * i for i in range(1, N + 1)]},
    ),
}


@pytest.mark.parametrize("steps", [2, 6])
@pytest.mark.parametrize("name", SMOOTH, ids=lambda name: name.replace(" ", "_"))
def test_a_full_unroll_gives_the_central_difference(name: str, steps: int) -> None:
    settings, point = SMOOTH[name]
    training = supervised(
        fresh(StillMasked), vectors(), validation=vectors(1), **{**settings, "steps": steps}
    )
    hparams = {k: torch.tensor(v, dtype=DOUBLE) for k, v in point.items()}
    leaves = {k: v.clone().requires_grad_() for k, v in hparams.items()}
    case = Case(training, hparams, {}, seed=2)
    found = torch.autograd.grad(case.value(leaves), list(leaves.values()))
    for key, gradient in zip(leaves, found, strict=True):
        assert_close_vector(gradient, central_difference(case, key), rtol=1e-6)


def test_running_statistics_are_constants_to_a_derivative() -> None:
    """The derivative is that of the loss with the statistics of the undisturbed run."""
    model = fresh(lambda: nn.Sequential(nn.Linear(FEATURES, 5), nn.BatchNorm1d(5), mlp_head()))
    training = supervised(model, vectors(), optimizer=SGD(lr="lr"))
    lr = torch.tensor(0.3, dtype=DOUBLE, requires_grad=True)
    end = rollout(training, {"lr": lr})
    (found,) = torch.autograd.grad(training.loss(end, {"lr": lr}), lr)
    kept = {name: value for name, value in end.items() if name.startswith("buffer/")}
    assert len(kept) == 3
    values = []
    for moved in (0.3 + 1e-5, 0.3 - 1e-5):
        state = {**rollout(training, {"lr": moved}), **kept}
        values.append(float(training.loss(state, {"lr": moved})))
    assert float(found) == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-6)


def mlp_head() -> nn.Module:
    return nn.Sequential(nn.Tanh(), nn.Linear(5, CLASSES))


def test_a_derivative_keeps_the_dtype_of_its_hyperparameter() -> None:
    training = supervised(
        fresh(mlp, torch.float32), vectors(dtype=torch.float32), optimizer=SGD(lr="lr")
    )
    lr = torch.tensor(0.3, dtype=DOUBLE, requires_grad=True)
    state = rollout(training, {"lr": lr})
    (gradient,) = torch.autograd.grad(training.loss(state, {"lr": lr}), lr)
    assert state["params"].dtype == torch.float32
    assert gradient.dtype == DOUBLE


# --------------------------------------------------------------------------------- data weights


def own_vector_loss(output: Tensor, target: Tensor) -> Tensor:
    return -output.log_softmax(1).gather(1, target[:, None])[:, 0]


VECTOR_LOSSES: dict[str, tuple[Any, Any]] = {
    "function with a reduction": (cross_entropy, cross_entropy),
    "module": (nn.CrossEntropyLoss(), cross_entropy),
    "partial": (
        functools.partial(cross_entropy, label_smoothing=0.1),
        functools.partial(cross_entropy, label_smoothing=0.1),
    ),
    "vector": (own_vector_loss, cross_entropy),
    "matrix": (
        lambda output, target: output.square(),
        lambda output, target: output.square().mean(),
    ),
}


@pytest.mark.parametrize("batch_size", [4, None])
@pytest.mark.parametrize("name", VECTOR_LOSSES, ids=lambda name: name.replace(" ", "_"))
def test_weights_of_one_are_no_weights(name: str, batch_size: int | None) -> None:
    loss, mean = VECTOR_LOSSES[name]
    model = fresh(mlp)
    settings: dict[str, Any] = {"batch_size": batch_size, "validation_loss": cross_entropy}
    weighted = supervised(model, vectors(), loss=loss, weights="w", **settings)
    plain = supervised(model, vectors(), loss=mean, **settings)
    ones = torch.ones(N, dtype=DOUBLE)
    torch.testing.assert_close(
        rollout(weighted, {"w": ones})["params"], rollout(plain, {})["params"]
    )


def test_a_weight_belongs_to_its_example_in_every_batch() -> None:
    (x, y), model = vectors(), fresh(mlp)
    w = torch.linspace(0.1, 3.0, N, dtype=DOUBLE)
    training = supervised(model, (x, y), weights="w", steps=5)
    state = rollout(training, {"w": w}, seed=5)
    twin = copy.deepcopy(model)
    rule = torch.optim.SGD(twin.parameters(), lr=0.1)
    for _, index in zip(range(5), indices(5, 4, False), strict=False):
        rule.zero_grad()
        losses = cross_entropy(twin(x[index]), y[index], reduction="none")
        loss = (w[index] * losses).sum() / len(index)
        loss.backward()  # type: ignore[no-untyped-call]
        rule.step()
    assert_same_weights(named(training, state, twin), twin, 1e-11)


def test_a_weight_of_zero_leaves_the_example_out_up_to_the_batch_size() -> None:
    (x, y), model = vectors(), fresh(mlp)
    w = torch.ones(N, dtype=DOUBLE)
    w[-1] = 0.0
    weighted = supervised(model, (x, y), weights="w", batch_size=None)
    fewer = supervised(
        model, (x[:-1], y[:-1]), batch_size=None, optimizer=SGD(lr=0.1 * (N - 1) / N)
    )
    torch.testing.assert_close(rollout(weighted, {"w": w})["params"], rollout(fewer, {})["params"])


@pytest.mark.parametrize(
    ("loss", "weights", "fragment"),
    [
        (
            lambda output, target: cross_entropy(output, target),
            torch.ones(N),
            "one value for each of the 4 examples of a batch, got shape ()",
        ),
        (
            lambda output, target: output.square().mean(0),
            torch.ones(N),
            "one value for each of the 4 examples of a batch, got shape (3,)",
        ),
        (cross_entropy, torch.ones(N - 1), "each of the 10 training examples, got shape (9,)"),
        (cross_entropy, torch.tensor(1.0), "each of the 10 training examples, got shape ()"),
        (cross_entropy, 1.0, "each of the 10 training examples, got 1.0"),
    ],
)
def test_weights_that_do_not_fit_are_an_error(loss: Any, weights: Any, fragment: str) -> None:
    training = supervised(fresh(mlp), vectors(), loss=loss, weights="w")
    with pytest.raises(TrainingError) as caught:
        rollout(training, {"w": weights}, stop=1)
    assert fragment in str(caught.value)


def test_the_names_of_the_optimizer_and_the_weights_are_known() -> None:
    training = supervised(fresh(mlp), vectors(), weights="w", optimizer=SGD(lr="lr", momentum="m"))
    assert training.hparams == {"lr", "m", "w"}


# ------------------------------------------------------------------------------------ evaluation


@pytest.mark.parametrize("size", [1, 3, 5, N - 1])
@pytest.mark.parametrize("net", ["mlp", "cnn with batch norm"])
def test_an_evaluation_in_chunks_is_one_in_one_piece(net: str, size: int) -> None:
    make, data_of = NETS[net]
    metrics = {"largest": lambda output, target: output.max()}
    settings: dict[str, Any] = {"metrics": metrics, "test": data_of(1)}
    model, data = fresh(make), data_of()
    whole = supervised(model, data, **settings)
    parts = supervised(model, data, evaluation_batch_size=size, **settings)
    state = rollout(whole, {}, seed=5)
    torch.testing.assert_close(parts.loss(state, {}), whole.loss(state, {}))
    assert parts.metrics(state, {}) == pytest.approx(whole.metrics(state, {}))
    assert parts.test_metrics(state, {}) == pytest.approx(whole.test_metrics(state, {}))


class Named(nn.Module):
    """Returns a dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp()

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"logits": self.net(x)}


def loss_of_named(output: dict[str, Tensor], target: Tensor) -> Tensor:
    return cross_entropy(output["logits"], target)


def test_a_model_that_returns_a_dictionary_is_evaluated_in_one_piece() -> None:
    training = supervised(fresh(Named), vectors(), loss=loss_of_named)
    plain = supervised(fresh(lambda: nn.Sequential(mlp())), vectors())
    state, expected = rollout(training, {}), rollout(plain, {})
    torch.testing.assert_close(training.loss(state, {}), plain.loss(expected, {}))


def test_a_model_that_returns_a_dictionary_cannot_be_evaluated_in_chunks() -> None:
    training = supervised(fresh(Named), vectors(), loss=loss_of_named, evaluation_batch_size=3)
    with pytest.raises(TrainingError, match=r"dict must .* one piece: .* to 10 or more"):
        training.loss(training.init({}, seed=0, device="cpu"), {})


def test_nothing_is_measured_where_no_metric_and_no_test_set_is_given() -> None:
    training = supervised(fresh(mlp), vectors())
    state = training.init({}, seed=0, device="cpu")
    assert training.metrics(state, {}) == {}
    assert training.test_metrics(state, {}) == {}


@pytest.mark.parametrize(("steps", "every"), [(6, 1), (10, 1), (25, 2), (500, 50)])
def test_a_run_reports_ten_times(steps: int, every: int) -> None:
    assert supervised(fresh(mlp), vectors(), steps=steps).report_every == every


# ----------------------------------------------------------------------------------- elsewhere

CONTINUE = """
import sys, pathlib, cloudpickle, hyperopt_dl
box = pathlib.Path(sys.argv[1])
training, hparams, state = cloudpickle.loads(box.read_bytes())
state = hyperopt_dl.rollout(training, hparams, state=state, start=3)
box.write_bytes(cloudpickle.dumps((state, training.loss(state, hparams))))
"""


def test_a_run_goes_on_in_another_process_with_the_same_bits(tmp_path: Path) -> None:
    training = supervised(
        lambda hp: mlp(int(hp["hidden"]), dropout=0.4).double(),
        vectors(),
        optimizer=SGD(lr=Schedule("lr", lambda t: 0.9**t), momentum=0.5),
    )
    hparams = {"hidden": 7, "lr": 0.2}
    half = rollout(training, hparams, seed=8, stop=3)
    box = tmp_path / "box"
    box.write_bytes(cloudpickle.dumps((training, hparams, half)))
    environment = {**os.environ, "PYTHONHASHSEED": "77"}
    subprocess.run([sys.executable, "-c", CONTINUE, str(box)], check=True, env=environment)
    state, loss = cloudpickle.loads(box.read_bytes())
    expected = rollout(training, hparams, seed=8)
    assert_same_bits(state, expected)
    assert torch.equal(loss, training.loss(expected, hparams))


def test_a_pickle_does_not_hold_the_networks_of_past_runs() -> None:
    training = supervised(by_width, vectors())
    before = len(cloudpickle.dumps(training))
    rollout(training, {"hidden": 300}, stop=1)
    assert len(cloudpickle.dumps(training)) == before


# --------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("settings", "fragment"),
    [
        ({"loss": nn.CrossEntropyLoss}, "loss a function; got"),
        ({"metrics": {"loss": cross_entropy}}, "names other than 'loss'"),
        ({"metrics": [cross_entropy]}, "metrics must map names"),
        ({"early_stopping": 5}, "must be EarlyStopping(patience=...), got 5"),
        (
            {"model": 3},
            "model must be an nn.Module or a factory, and loss a function; got int and ",
        ),
        ({"loss": "mse"}, "loss a function; got Sequential and 'mse'"),
        ({"optimizer": 0.1}, "optimizer must be a twin such as"),
        ({"steps": None}, "either steps or epochs, got steps=None and epochs=None"),
        ({"epochs": 2}, "either steps or epochs, got steps=6 and epochs=2"),
        ({"steps": 0}, "steps must be a whole number of at least 1, got 0"),
        ({"steps": 2.5}, "steps must be a whole number of at least 1, got 2.5"),
        ({"steps": True}, "steps must be a whole number of at least 1, got True"),
        ({"steps": None, "epochs": -1}, "epochs must be a whole number of at least 1, got -1"),
        ({"report_every": 0}, "report_every must be a whole number of at least 1, got 0"),
        ({"evaluation_batch_size": 0}, "evaluation_batch_size must be a whole number"),
        ({"weights": torch.ones(N)}, "weights must be the name of a hyperparameter, got Tensor"),
        ({"batch_size": N + 1}, "batch_size must lie between 1 and the 10 examples of train"),
        ({"validation": (torch.ones(3),)}, "validation must hold the inputs and, last, the target"),
        ({"test": (torch.ones(3, 1), torch.ones(4))}, "The tensors of test must have the same"),
        (
            {"early_stopping": EarlyStopping("accuracy", mode="max")},
            "EarlyStopping must watch one of ['loss'], got 'accuracy'",
        ),
    ],
    ids=lambda value: "" if isinstance(value, str) else ",".join(value),
)
def test_what_cannot_be_is_an_error_that_names_it(settings: dict[str, Any], fragment: str) -> None:
    arguments: dict[str, Any] = {
        "model": mlp(),
        "loss": cross_entropy,
        "optimizer": SGD(lr=0.1),
        "train": vectors(),
        "validation": vectors(),
        "steps": 6,
    }
    with pytest.raises(TrainingError) as caught:
        Supervised(**{**arguments, **settings})
    assert fragment in str(caught.value)


def test_an_optimizer_of_torch_is_an_error_that_tells_why() -> None:
    model = mlp()
    with pytest.raises(TrainingError, match=r"got SGD\. torch\.optim writes in place"):
        supervised(model, vectors(), optimizer=torch.optim.SGD(model.parameters(), lr=0.1))


def test_a_factory_that_returns_no_module_is_an_error() -> None:
    training = supervised(lambda hp: "net", vectors())
    with pytest.raises(TrainingError, match=r"must return an nn\.Module, got str"):
        training.init({}, seed=0, device="cpu")


def test_a_missing_hyperparameter_is_an_error_that_names_it() -> None:
    training = supervised(fresh(mlp), vectors(), optimizer=SGD(lr="lr"))
    with pytest.raises(TrainingError, match=r"lr needs the hyperparameter 'lr'"):
        rollout(training, {"momentum": 0.9}, stop=1)


@pytest.mark.parametrize("where", ["loss", "validation_loss"])
@pytest.mark.parametrize(
    ("loss", "fragment"),
    [
        (functools.partial(cross_entropy, reduction="none"), r"0-dim tensor, got shape \("),
        (lambda output, target: 1.0, r"0-dim tensor, got float"),
    ],
)
def test_a_loss_that_is_no_number_is_an_error(loss: Any, fragment: str, where: str) -> None:
    training = supervised(fresh(mlp), vectors(), **{where: loss})
    with pytest.raises(TrainingError, match=fragment):
        training.loss(rollout(training, {}, stop=1), {})


@pytest.mark.parametrize("steps", [0, 3])
def test_the_module_of_a_state_is_an_ordinary_network_with_its_weights(steps: int) -> None:
    first = nn.Linear(FEATURES, 5)
    first.bias.requires_grad_(False)
    model = nn.Sequential(first, nn.BatchNorm1d(5), nn.Linear(5, CLASSES)).double()
    data = vectors()
    training = supervised(model, data)
    state = rollout(training, {}, seed=4, stop=steps)
    module = training.module(state, {})
    assert type(module) is nn.Sequential
    assert not module.training
    torch.testing.assert_close(cross_entropy(module(data[0]), data[1]), training.loss(state, {}))
    before = state["params"].clone()
    with torch.no_grad():
        module.get_parameter("0.weight").zero_()
    assert torch.equal(state["params"], before)
    assert not torch.equal(first.weight, module.get_parameter("0.weight"))

"""Reverse mode on networks, against autograd through the whole run and finite differences."""

import copy
import functools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import cross_entropy

from hyperopt_dl.errors import TrainingError
from hyperopt_dl.hypergrad import Reverse, hypergradient, split_step
from hyperopt_dl.hypergrad.graphs import trace
from hyperopt_dl.hypergrad.reverse import Memory, budget_bytes, steps_of
from hyperopt_dl.hypergrad.snapshots import size_of
from hyperopt_dl.optimizers import (
    SGD,
    Adagrad,
    Adam,
    AdamW,
    ClipNorm,
    Optimizer,
    RMSprop,
    Schedule,
)
from hyperopt_dl.optimizers.groups import NO_GROUPS, GroupsLike
from hyperopt_dl.optimizers.options import Option, Value
from hyperopt_dl.supervised import Supervised
from hyperopt_dl.training import HParams, State, Training, rollout
from tests.contracts.estimator import assert_same_answer, drawn
from tests.contracts.training import Case, assert_close_vector, central_difference
from tests.problems import Quadratic, Spiral

DOUBLE = torch.double
N, FEATURES, CLASSES = 10, 5, 3
Data = tuple[Tensor, Tensor]
Answer = tuple[Tensor, dict[str, Tensor]]


# ------------------------------------------------------------------------------------- the problems


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


class Transformer(nn.Module):
    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 4)
        self.layer = nn.TransformerEncoderLayer(4, 2, 6, dropout=dropout, batch_first=True)
        self.head = nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.layer(self.embedding(x)).mean(1))
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


# --------------------------------------------------------------------------------------- the oracle


@pytest.fixture
def second_derivatives() -> Iterator[None]:
    """What plain autograd needs: the fused recurrent kernels have no second derivative."""
    library: Any = torch.backends.mkldnn
    before = library.enabled
    library.enabled = False
    yield
    library.enabled = before


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


@pytest.fixture(params=["eager", "traced"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways to differentiate the training loss."""
    way: str = request.param
    monkeypatch.setattr(split_step, "TRACED_FROM", 1 if way == "traced" else 10**9)
    return way


@pytest.fixture
def trace_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(split_step, "TRACED_FROM", 1)


@pytest.fixture
def traces(monkeypatch: pytest.MonkeyPatch, trace_everything: None) -> list[int]:
    """One entry for each trace that is made: the number of parameters."""
    made = []

    def counted(joint: Any, u: Tensor, x: Tensor, tensors: tuple[Tensor, ...]) -> Any:
        made.append(x.numel())
        return trace(joint, u, x, tensors)

    monkeypatch.setattr("hyperopt_dl.hypergrad.traced.trace", counted)
    return made


# ---------------------------------------------------------------------------------------- exactness


@pytest.mark.usefixtures("second_derivatives")
@pytest.mark.parametrize("net", NETS, ids=lambda name: name.replace(" ", "_"))
def test_every_net_gives_the_derivative_of_the_whole_run(net: str, path: str) -> None:
    # A last, smaller batch is a second kind of input; for the dear traces there is only one.
    dear = path == "traced" and net not in ("mlp", "batch norm")
    training = all_together(net, batch_size=None if dear else 4)
    found = hypergradient(training, ALL, seed=2)
    assert_close(found, unroll(training, ALL, seed=2), 1e-10)


FLOAT32 = 1e-5  # mostly 1e-7; one derivative here is a difference of terms ten times its size


@pytest.mark.usefixtures("second_derivatives")
@pytest.mark.parametrize("net", NETS, ids=lambda name: name.replace(" ", "_"))
def test_in_float32_every_net_gives_the_derivative_of_the_whole_run(net: str) -> None:
    training = all_together(net, torch.float32)
    found = hypergradient(training, ALL, seed=2)
    assert found[0].dtype == torch.float32
    assert_close(found, unroll(training, ALL, seed=2), FLOAT32)


@pytest.mark.usefixtures("second_derivatives", "trace_everything")
@pytest.mark.parametrize("net", ["mlp", "batch norm", "transformer with dropout"])
def test_in_float32_a_traced_net_gives_the_derivative_of_the_whole_run(net: str) -> None:
    training = all_together(net, torch.float32, batch_size=None)
    assert_close(hypergradient(training, ALL, seed=2), unroll(training, ALL, seed=2), FLOAT32)


RULES: dict[str, Optimizer] = {
    "sgd": SGD(lr="lr"),
    "dampening": SGD(lr="lr", momentum="m", dampening="tau", weight_decay="decay"),
    "nesterov": SGD(lr="lr", momentum="m", weight_decay="decay", nesterov=True),
    "adam": Adam(lr="lr", betas=("b1", "b2"), eps="eps", weight_decay="decay"),
    "amsgrad": Adam(lr="lr", betas=("b1", "b2"), eps="eps", amsgrad=True),
    "adamw": AdamW(lr="lr", betas=("b1", "b2"), eps="eps", weight_decay="decay"),
    "rmsprop": RMSprop(lr="lr", alpha="b2", eps="eps", weight_decay="decay"),
    "centered": RMSprop(lr="lr", alpha="b2", eps="eps", momentum="m", centered=True),
    "adagrad": Adagrad(lr="lr", lr_decay="tau", eps="eps", weight_decay="decay"),
    "groups": Adam(
        lr="lr", betas=("b1", 0.9), groups={"0.*": {"lr": "first", "betas": ("b2", 0.95)}}
    ),
    "schedule": SGD(lr=Schedule("lr", lambda t: 0.8**t), momentum=Schedule("m", lambda t: t / 5)),
    "learned schedule": SGD(lr=Schedule("lr", lambda t, hp: 1 / (1 + hp["decay"] * t))),
    "knots": SGD(lr=Schedule(1.0, lambda t, hp: hp["knots"][t // 2]), momentum="m"),
    "clipped": ClipNorm(SGD(lr="lr", momentum="m", weight_decay="decay"), max_norm="limit"),
    "clipped adam": ClipNorm(Adam(lr="lr", betas=("b1", "b2"), eps="eps"), max_norm="limit"),
    "clipped rmsprop": ClipNorm(RMSprop(lr="lr", alpha="b2", eps="eps"), max_norm="limit"),
    "not clipped": ClipNorm(SGD(lr="lr", momentum="m"), max_norm=1e3),
}
VALUES: dict[str, Any] = {
    "lr": 0.05,
    "first": 0.02,
    "m": 0.6,
    "tau": 0.2,
    "decay": 0.05,
    "limit": 0.3,
    "b1": 0.7,
    "b2": 0.8,
    "eps": 1e-2,
    "knots": torch.tensor([0.3, 0.1, 0.2], dtype=DOUBLE),
}


def of_rule(rule: str) -> tuple[Supervised, dict[str, Any]]:
    training = supervised(fresh(mlp), vectors(), vectors(1), optimizer=RULES[rule])
    read = {"learned schedule": {"decay"}, "knots": {"knots"}}.get(rule, set())
    return training, {name: VALUES[name] for name in sorted(training.hparams | read)}


@pytest.mark.parametrize("rule", RULES, ids=lambda name: name.replace(" ", "_"))
def test_every_optimizer_gives_the_derivative_of_the_whole_run(rule: str) -> None:
    training, hparams = of_rule(rule)
    assert_close(hypergradient(training, hparams, seed=2), unroll(training, hparams, seed=2), 1e-10)


SMOOTH = [rule for rule in RULES if rule != "amsgrad"]  # two runs may keep different maxima


@pytest.mark.parametrize("rule", SMOOTH, ids=lambda name: name.replace(" ", "_"))
def test_every_optimizer_gives_the_central_difference(rule: str) -> None:
    training, hparams = of_rule(rule)
    assert_central_difference(training, hparams)


@pytest.mark.parametrize("batch_size", [4, 5, N, None])
def test_a_mlp_with_all_hyperparameters_together_gives_the_central_difference(
    batch_size: int | None,
) -> None:
    assert_central_difference(all_together("dropout", batch_size=batch_size), ALL)


def assert_central_difference(training: Supervised, hparams: Mapping[str, Any]) -> None:
    points = {name: torch.as_tensor(value, dtype=DOUBLE) for name, value in hparams.items()}
    case = Case(training, points, {}, seed=2)
    _, gradient = hypergradient(training, hparams, seed=2)
    for name in points:
        assert_close_vector(gradient[name], central_difference(case, name), rtol=1e-6)


def test_a_thousand_data_weights_give_the_derivative_of_the_whole_run(path: str) -> None:
    training = supervised(
        fresh(mlp), vectors(n=1000), vectors(1), weights="w", batch_size=150, steps=9
    )
    w = torch.rand(1000, generator=torch.Generator().manual_seed(0), dtype=DOUBLE)
    found = hypergradient(training, {"w": w, "lr": 0.5}, seed=2)
    assert_close(found, unroll(training, {"w": w, "lr": 0.5}, seed=2), 1e-10)
    assert (found[1]["w"] != 0).all()


def test_an_outer_loss_may_depend_on_hyperparameters_by_itself() -> None:
    training = supervised(
        fresh(mlp), vectors(), vectors(1), loss=mean_smoothed, validation_loss=mean_smoothed
    )
    hparams = {"lr": 0.3, "smoothing": 0.1, "penalty": 0.2}
    assert_close(hypergradient(training, hparams, seed=2), unroll(training, hparams, seed=2), 1e-10)


def test_an_outer_loss_may_depend_on_nothing_but_hyperparameters() -> None:
    settings: dict[str, Any] = {"loss": mean_smoothed, "validation_loss": square_of_penalty}
    training = supervised(fresh(mlp), vectors(), vectors(1), **settings)
    hparams = {"lr": 0.3, "smoothing": 0, "penalty": 0.2}
    value, gradient = hypergradient(training, hparams, seed=2)
    assert float(value) == pytest.approx(0.04)
    assert gradient == {"lr": 0, "penalty": pytest.approx(0.4)}


def square_of_penalty(output: Tensor, target: Tensor, hp: Mapping[str, Any]) -> Tensor:
    square: Tensor = hp["penalty"] ** 2
    return square


class Softsign:
    """A rule of one's own: ``x - lr * g / (scale + sqrt(g^2 + s^2))``, s the gradient before."""

    groups: GroupsLike = NO_GROUPS

    def options(self) -> dict[str, Option]:
        return {"lr": "lr", "scale": "scale"}

    def names(self) -> frozenset[str]:
        return frozenset({"lr", "scale"})

    def slots(self, params: Tensor) -> dict[str, Tensor]:
        return {"before": torch.ones_like(params)}

    def update(
        self,
        params: Tensor,
        grad: Tensor,
        slots: Mapping[str, Tensor],
        options: Mapping[str, Value],
        t: int,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        size = (grad.square() + slots["before"].square()).sqrt() + options["scale"]
        return params - options["lr"] * grad / size, {"before": grad.clone()}


def test_an_optimizer_of_ones_own_gives_the_derivative_of_the_whole_run(path: str) -> None:
    training = supervised(fresh(mlp), vectors(), vectors(1), optimizer=Softsign(), batch_size=None)
    hparams = {"lr": 0.3, "scale": 0.5}
    assert_close(hypergradient(training, hparams, seed=2), unroll(training, hparams, seed=2), 1e-10)


class Averaged(Supervised):
    """Goes only half the way of each step."""

    def step(self, state: State, hparams: HParams, t: int) -> State:
        after = super().step(state, hparams, t)
        return {**after, "params": (state["params"] + after["params"]) / 2}


def test_a_subclass_with_a_step_of_its_own_gives_the_derivative_of_that(path: str) -> None:
    training = Averaged(
        model=fresh(mlp),
        loss=cross_entropy,
        optimizer=SGD(lr="lr"),
        train=vectors(),
        validation=vectors(1),
        steps=5,
    )
    found = hypergradient(training, {"lr": 0.3}, seed=2)
    assert_close(found, unroll(training, {"lr": 0.3}, seed=2), 1e-10)


# ------------------------------------------------------------------------------------------- memory

SETTINGS: dict[str, Callable[[int, Path], Reverse]] = {
    "auto": lambda size, folder: Reverse(),
    "activations": lambda size, folder: Reverse("activations"),
    "sqrt": lambda size, folder: Reverse("sqrt"),
    "1": lambda size, folder: Reverse(1),
    "3": lambda size, folder: Reverse(3),
    "more than steps": lambda size, folder: Reverse(1000),
    "two states": lambda size, folder: Reverse(f"{2 * size} B"),
    "five states": lambda size, folder: Reverse(f"{5 * size} B"),
    "two states and a folder": lambda size, folder: Reverse(f"{2 * size} B", spill=folder),
    "only a folder": lambda size, folder: Reverse("0 B", spill=str(folder)),
    "auto and a folder": lambda size, folder: Reverse(spill=folder),
    "offloaded": lambda size, folder: Reverse("all", offload=True),
    "auto, offloaded": lambda size, folder: Reverse(offload=True),
    "a folder, offloaded": lambda size, folder: Reverse("0 B", spill=folder, offload=True),
}


@pytest.mark.parametrize("net", ["dropout", "batch norm"], ids=lambda name: name.replace(" ", "_"))
@pytest.mark.parametrize("setting", SETTINGS, ids=lambda name: name.replace(" ", "_"))
def test_every_setting_of_memory_gives_the_same_bits(
    setting: str, net: str, path: str, tmp_path: Path
) -> None:
    training, expected = kept(net, path)
    size = size_of(training.init(ALL, seed=2, device="cpu"))
    found = hypergradient(training, ALL, estimator=SETTINGS[setting](size, tmp_path), seed=2)
    assert_same_answer(found, expected)
    assert not list(tmp_path.iterdir())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")
@pytest.mark.parametrize("memory", ["all", "sqrt", 3, "auto"])
def test_states_in_the_memory_of_the_host_give_the_same_bits(memory: Memory, path: str) -> None:
    training, _ = kept("dropout", path)
    settings: dict[str, Any] = {"seed": 2, "device": "cuda"}
    on_device = hypergradient(training, ALL, estimator=Reverse("all"), **settings)
    found = hypergradient(training, ALL, estimator=Reverse(memory, offload=True), **settings)
    assert_same_answer(found, on_device)


@functools.cache
def kept(net: str, path: str) -> tuple[Supervised, Answer]:
    """A training, traced only once, and its answer with every state kept."""
    training = all_together(net, steps=11)
    return training, hypergradient(training, ALL, estimator=Reverse("all"), seed=2)


class Watched(Quadratic):
    """Counts steps, and the files there are; may fail in a step."""

    def watch(self, folder: Path, fail_at: int | None = None) -> None:
        for name, value in (("calls", []), ("files", []), ("folder", folder), ("fail", fail_at)):
            object.__setattr__(self, name, value)

    calls: list[int]
    files: list[int]
    folder: Path
    fail: int | None

    def step(self, state: State, hparams: HParams, t: int) -> State:
        self.calls.append(t)
        self.files.append(len(list(self.folder.rglob("*.pt"))))
        if len(self.calls) == self.fail:
            raise ZeroDivisionError(f"step {t}")
        return super().step(state, hparams, t)


@pytest.mark.parametrize(
    ("memory", "calls"),
    [("activations", 10), ("all", 20), ("sqrt", 26), (1, 65), (3, 28), (1000, 20)],
)
def test_a_setting_costs_as_many_steps_as_it_promises(
    memory: Memory, calls: int, tmp_path: Path
) -> None:
    training = Watched(steps=10)
    training.watch(tmp_path)
    hypergradient(training, {"lr": 0.1}, estimator=Reverse(memory))
    assert len(training.calls) == calls


@pytest.mark.parametrize("fail_at", [None, 1, 2, 8, 13], ids=str)
def test_files_are_there_in_the_run_and_gone_after_it_however_it_ends(
    fail_at: int | None, tmp_path: Path
) -> None:
    training = Watched(steps=10)
    training.watch(tmp_path, fail_at)
    estimator = Reverse("50 B", spill=tmp_path)
    if fail_at is None:
        hypergradient(training, {"lr": 0.1}, estimator=estimator)
    else:
        with pytest.raises(ZeroDivisionError):
            hypergradient(training, {"lr": 0.1}, estimator=estimator)
    assert max(training.files) >= (5 if fail_at not in (1, 2) else 0)
    assert not list(tmp_path.iterdir())


def test_states_that_are_too_big_for_the_memory_are_an_error_that_says_how_much_is_needed() -> None:
    training = Quadratic(torch.ones(100, dtype=DOUBLE))
    with pytest.raises(TrainingError, match=r"room for 2 states of 800 bytes.* 1600 or more"):
        hypergradient(training, {"lr": 0.1}, estimator=Reverse("1.5 KB"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"memory": "huge"}, "memory must be 'auto', .* got 'huge'"),
        ({"memory": "12 parsecs"}, "size such as '4GiB' or '500MB', got '12 parsecs'"),
        ({"memory": "-1 GB"}, "got '-1 GB'"),
        ({"memory": 1.5}, "memory must be 'auto', .* got 1.5"),
        ({"memory": None}, "memory must be 'auto', .* got None"),
        ({"memory": 0}, r"memory >= 1 \(snapshots\), got 0"),
        ({"memory": -1}, r"memory >= 1 \(snapshots\), got -1"),
        ({"last": 0}, r"last >= 1 \(steps\), got 0"),
        ({"last": -3}, r"last >= 1 \(steps\), got -3"),
        ({"memory": "sqrt", "spill": "."}, "spill= goes with a size .* got memory='sqrt'"),
        ({"memory": "all", "spill": "."}, "spill= goes with a size .* got memory='all'"),
        ({"memory": 3, "spill": "."}, "spill= goes with a size .* got memory=3"),
        ({"memory": "activations", "offload": True}, "offload=True moves states to the host"),
    ],
    ids=str,
)
def test_a_setting_that_cannot_be_is_an_error(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        Reverse(**settings)


def test_a_folder_that_does_not_exist_is_an_error(tmp_path: Path) -> None:
    estimator = Reverse("1 GiB", spill=tmp_path / "nowhere")
    with pytest.raises(TrainingError, match="existing folder that it may write into"):
        hypergradient(Quadratic(), {"lr": 0.1}, estimator=estimator)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0 B", 0),
        ("7B", 7),
        ("2KiB", 2048),
        ("2 KB", 2000),
        (" 1.5 MiB ", 3 * 2**19),
        ("4GiB", 2**32),
    ],
)
def test_a_size_is_read_with_its_unit(text: str, size: int) -> None:
    assert budget_bytes(text) == size


# --------------------------------------------------------------------------------- the last steps


@pytest.mark.parametrize("memory", ["activations", "all", "sqrt", 1, 3, "1 GiB"])
@pytest.mark.parametrize("last", [1, 3, 8])
def test_the_last_steps_give_the_derivative_of_a_run_cut_before_them(
    last: int, memory: Memory, path: str
) -> None:
    training = cut(path)
    found = hypergradient(training, ALL, estimator=Reverse(memory, last=last), seed=2)
    expected = unroll(training, ALL, seed=2, last=last)
    assert_close(found, expected, 1e-10)


@functools.cache
def cut(path: str) -> Supervised:
    """A training of full batches, traced only once, in which each step uses everything."""
    return all_together("dropout", steps=9, batch_size=None)


@pytest.mark.parametrize("last", [9, 10, 1000])
def test_as_many_last_steps_as_there_are_give_the_whole_derivative(last: int, path: str) -> None:
    found = hypergradient(cut(path), ALL, estimator=Reverse(last=last), seed=2)
    assert_same_answer(found, hypergradient(cut(path), ALL, seed=2))


@pytest.mark.parametrize("memory", ["activations", "all", "sqrt", 2])
def test_the_last_step_alone_has_a_closed_form(memory: Memory) -> None:
    problem = Quadratic(steps=7)
    estimator = Reverse(memory, last=1)
    value, gradient = hypergradient(problem, {"lr": 0.1}, estimator=estimator)
    end, before = problem.exact_state(0.1), problem.exact_state(0.1, t=6)
    slope = problem.curvature * (before - problem.centre)
    assert float(value) == pytest.approx(problem.exact_loss(0.1), rel=1e-12)
    expected = -((end - problem.target) * slope).sum()
    torch.testing.assert_close(gradient["lr"], expected, rtol=1e-12, atol=0)
    assert abs(float(expected - problem.exact_gradient(0.1))) > 0.1


def test_what_only_steps_before_the_last_ones_use_is_an_error_that_says_so() -> None:
    hparams = {"start": torch.ones(2, dtype=DOUBLE), "decay": 0.4, "frequency": 2.5}
    with pytest.raises(TrainingError, match=r"\['start'\].*or, with last=, only earlier steps"):
        hypergradient(Spiral(), hparams, estimator=Reverse(last=3))


# ------------------------------------------------------------------------------------------- traces


def by_width(hp: Mapping[str, Any]) -> nn.Module:
    return mlp(hidden=int(hp["hidden"])).double()


def test_a_second_call_traces_nothing_and_gives_the_same_bits(traces: list[int]) -> None:
    training = all_together("mlp")
    first = hypergradient(training, ALL, seed=2)
    assert len(traces) == 2  # whole batches, and the last and smaller ones
    assert_same_answer(hypergradient(training, ALL, seed=2), first)
    assert len(traces) == 2


def test_other_values_and_seeds_use_the_same_traces(traces: list[int]) -> None:
    training = all_together("mlp")
    hypergradient(training, ALL, seed=2)
    del traces[:]
    others = {name: 0.7 * value for name, value in ALL.items()}
    found = hypergradient(training, others, seed=3)
    assert not traces
    assert_close(found, unroll(training, others, seed=3), 1e-10)


def test_another_width_is_traced_anew_and_both_stay_right(traces: list[int]) -> None:
    training = supervised(by_width, vectors(), vectors(1), batch_size=None)
    points = [{"hidden": 3, "lr": 0.3}, {"hidden": 6, "lr": 0.3}]
    for hparams in points * 2:
        found = hypergradient(training, hparams, seed=2)
        assert_close(found, unroll(training, hparams, seed=2), 1e-10)
    sizes = [(FEATURES + 1) * width + (width + 1) * CLASSES for width in (3, 6)]
    assert traces == sizes


class Late(nn.Module):
    """Looks at a hyperparameter only when it is called."""

    def __init__(self, hp: Mapping[str, Any]) -> None:
        super().__init__()
        self.hp, self.body = hp, mlp().double()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.body(x) * self.hp["scale"]
        return out


STRUCTURES: dict[str, tuple[Any, list[dict[str, Any]]]] = {
    "width": (by_width, [{"hidden": 3, "lr": 0.3}, {"hidden": 6, "lr": 0.3}]),
    "forward": (Late, [{"scale": 1, "lr": 0.3}, {"scale": 2, "lr": 0.3}]),
}


@pytest.mark.parametrize("name", STRUCTURES)
def test_interleaved_runs_of_other_structures_do_not_mix(name: str, path: str) -> None:
    factory, points = STRUCTURES[name]
    training = supervised(factory, vectors(), vectors(1), batch_size=None)
    cpu = torch.device("cpu")
    runs = [steps_of(training, point, seed=2, device=cpu) for point in points]
    states, tapes = [run.initial() for run in runs], [[], []]  # type: ignore[var-annotated]
    for t in range(training.steps):
        for i, run in enumerate(runs):
            states[i], recorded = run.record(states[i], t)
            tapes[i].append(recorded)
    ends = [run.pull_loss(state) for run, state in zip(runs, states, strict=True)]
    adjoints = [adjoint for _, adjoint in ends]
    for _ in range(training.steps):
        for i, run in enumerate(runs):
            adjoints[i] = run.pull(tapes[i].pop(), adjoints[i])
    for run, point, (value, _) in zip(runs, points, ends, strict=True):
        expected = unroll(training, {"lr": 0.3, **point}, seed=2)
        assert_close((value, run.gradient(set())), expected, 1e-10)


def switched(output: Tensor, target: Tensor, hp: Mapping[str, Any]) -> Tensor:
    loss = cross_entropy(output, target)
    return loss + output.square().mean() if hp["penalised"] else loss


def held(output: Tensor, target: Tensor, hp: Mapping[str, Any]) -> Tensor:
    """Uses the learning rate, and not its derivative."""
    penalty: Tensor = hp["lr"].detach() * output.square().mean()
    return cross_entropy(output, target) + penalty


def masked(output: Tensor, target: Tensor, hp: Mapping[str, Any]) -> Tensor:
    """Counts a class as often as a long table says."""
    each: Tensor = cross_entropy(output, target, reduction="none") * hp["table"][1500 + target]
    return each.mean()


def table(*entries: int) -> Tensor:
    long = torch.zeros(3000, dtype=torch.int64)
    long[1500:1503] = torch.tensor(entries)
    return long


OTHERS: dict[str, tuple[Any, list[dict[str, Any]]]] = {
    "flag": (switched, [{"lr": 0.3, "penalised": True}, {"lr": 0.3, "penalised": False}]),
    "detached": (held, [{"lr": 0.3}, {"lr": 0.1}]),
    "long table": (
        masked,
        [{"lr": 0.3, "table": table(1, 2, 3)}, {"lr": 0.3, "table": table(3, 1, 0)}],
    ),
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_trace_does_not_hold_what_the_loss_reads_for_the_runs_to_come(
    name: str, path: str
) -> None:
    loss, points = OTHERS[name]
    training = supervised(fresh(mlp), vectors(), vectors(1), loss=loss, batch_size=None)
    for hparams in points:
        expected = reference(training, hparams)
        assert_close(hypergradient(training, hparams, seed=2), expected, 1e-10)


def reference(training: Supervised, hparams: Mapping[str, Any]) -> Answer:
    lr = torch.tensor(hparams["lr"], dtype=DOUBLE, requires_grad=True)
    given = {**hparams, "lr": lr}
    value = training.loss(rollout(training, given, seed=2), given)
    return value.detach(), {"lr": torch.autograd.grad(value, lr)[0]}


def of_names(output: Tensor, target: Tensor, hp: Mapping[str, Any]) -> Tensor:
    return cross_entropy(output, target) * (2.0 if "a" in hp else 1.0)


def test_a_trace_is_not_used_for_hyperparameters_of_other_names(path: str) -> None:
    rule = SGD(lr=Schedule(1.0, lambda t, hp: hp["a"] if "a" in hp else hp["b"]))
    settings: dict[str, Any] = {"loss": of_names, "optimizer": rule, "batch_size": None}
    training = supervised(fresh(mlp), vectors(), vectors(1), **settings)
    for hparams in ({"a": 0.3}, {"b": 0.3}):
        expected = unroll(training, hparams, seed=2)
        assert_close(hypergradient(training, hparams, seed=2), expected, 1e-10)


class Loose(nn.Module):
    """Scales by a random tensor that is neither a parameter nor a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.scale = mlp().double(), torch.rand(CLASSES, dtype=DOUBLE)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.body(x) * self.scale
        return out


def test_tensors_that_a_module_just_holds_are_those_of_the_run(path: str) -> None:
    training = supervised(lambda hp: Loose(), vectors(), vectors(1), batch_size=None)
    for seed in (2, 3):
        expected = unroll(training, {"lr": 0.3}, seed=seed)
        assert_close(hypergradient(training, {"lr": 0.3}, seed=seed), expected, 1e-10)


def test_data_and_masks_that_are_drawn_anew_are_drawn_again_on_the_way_back(path: str) -> None:
    training = drawn()
    found = hypergradient(training, {"lr": 0.1}, estimator=Reverse(2), seed=3)
    assert_close(found, unroll(training, {"lr": 0.1}, seed=3), 1e-10)


@pytest.mark.usefixtures("trace_everything")
def test_to_trace_moves_no_global_randomness() -> None:
    before = torch.get_rng_state()
    hypergradient(drawn(), {"lr": 0.1}, seed=3)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    "duplicate",
    [lambda training: cloudpickle.loads(cloudpickle.dumps(training)), copy.deepcopy],
    ids=["pickle", "deepcopy"],
)
def test_a_copy_made_after_a_hypergradient_gives_the_same_bits(duplicate: Any, path: str) -> None:
    training = all_together("dropout", batch_size=None)
    expected = hypergradient(training, ALL, seed=2)
    assert_same_answer(hypergradient(duplicate(training), ALL, seed=2), expected)


@pytest.mark.parametrize("net", ["lstm", "transformer"])
def test_a_subclass_is_differentiated_by_kernels_that_can_be(net: str) -> None:
    class Own(Supervised):
        pass

    make, data_of = NETS[net]
    settings: dict[str, Any] = {"loss": cross_entropy, "optimizer": SGD(lr="lr"), "steps": 3}
    pair = [
        kind(
            model=fresh(make, torch.float32),
            train=data_of(0, torch.float32),
            validation=data_of(1, torch.float32),
            **settings,
        )
        for kind in (Own, Supervised)
    ]
    (value, gradient), (expected, exact) = (hypergradient(each, {"lr": 0.1}) for each in pair)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(gradient["lr"], exact["lr"], rtol=1e-4, atol=1e-7)


# ------------------------------------------------------------------------- what cannot be replayed


class NumpyNoise(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * float(np.random.rand())


class Counter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x * self.calls


class StraightThrough(torch.autograd.Function):
    """Rounds, and passes the gradient on as if it had not."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return (4 * x).round() / 4

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0]


class Gradient(torch.autograd.Function):
    """The backward pass of ``Doubled``; its own one gives each entry another factor."""

    @staticmethod
    def forward(ctx: Any, grad: Tensor) -> Tensor:
        return 2 * grad

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return torch.arange(grads[0].shape[-1], dtype=grads[0].dtype) * grads[0]


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return 2 * x

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return Gradient.apply(grads[0])  # type: ignore[no-untyped-call]


class Custom(nn.Module):
    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.function.apply(x) * x
        return out


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("memory", ["activations", "all"])
def test_a_layer_that_works_in_place_leaves_the_data_as_they_were(memory: Memory) -> None:
    x, y = vectors()
    model = fresh(lambda: nn.Sequential(nn.ReLU(inplace=True), mlp()))
    before = x.clone()
    training = supervised(model, (x, y), vectors(1), batch_size=None)
    found = hypergradient(training, {"lr": 0.1}, estimator=Reverse(memory), seed=2)
    assert torch.equal(x, before)
    assert_close(found, unroll(training, {"lr": 0.1}, seed=2), 1e-10)


@pytest.mark.usefixtures("path")
def test_a_straight_through_estimator_is_differentiated_as_it_is() -> None:
    model = fresh(lambda: mlp(nn.Tanh(), Custom(StraightThrough)))
    training = supervised(model, vectors(), vectors(1))
    found = hypergradient(training, {"lr": 0.1}, seed=2)
    assert_close(found, unroll(training, {"lr": 0.1}, seed=2), 1e-10)


@pytest.mark.usefixtures("path")
def test_a_wrong_second_derivative_is_refused() -> None:
    training = supervised(fresh(lambda: mlp(nn.Tanh(), Custom(Doubled))), vectors(), vectors(1))
    with pytest.raises(TrainingError, match=r"must be symmetric, but v·\(Hu\) and u·\(Hv\)"):
        hypergradient(training, {"lr": 0.1}, seed=2)


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("layer", [NumpyNoise, Counter])
def test_a_step_that_does_not_replay_is_refused(layer: type[nn.Module]) -> None:
    training = supervised(fresh(lambda: mlp(nn.Tanh(), layer())), vectors(), vectors(1))
    with pytest.raises(TrainingError, match=r"same numbers when it is computed again.* numpy"):
        hypergradient(training, {"lr": 0.1})


def test_a_run_is_traced_from_the_length_on_that_is_worth_it(
    traces: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(split_step, "TRACED_FROM", 5)
    for steps, expected in ((4, 0), (5, 1)):
        training = supervised(fresh(mlp), vectors(), vectors(1), batch_size=None, steps=steps)
        hypergradient(training, {"lr": 0.1})
        assert len(traces) == expected

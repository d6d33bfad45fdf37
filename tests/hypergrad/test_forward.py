"""Forward mode: the number of reverse mode and of finite differences, in memory without steps."""

import gc
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import hyperopt_dl as hd
from hyperopt_dl.errors import TrainingError
from hyperopt_dl.hypergrad import Forward, Reverse, forward, hypergradient
from hyperopt_dl.optimizers import SGD, Adam
from hyperopt_dl.supervised import Supervised
from hyperopt_dl.training import HParams, State, Training
from tests.contracts.estimator import drawn
from tests.contracts.training import Case, assert_close_vector, central_difference
from tests.hypergrad.rules import RULES, SMOOTH, Averaged, Softsign, of_rule, square_of_penalty
from tests.hypergrad.runs import (
    ALL,
    DOUBLE,
    NETS,
    Answer,
    all_together,
    assert_close,
    fresh,
    mean_smoothed,
    mlp,
    supervised,
    unroll,
    vectors,
)
from tests.hypergrad.test_reverse_steps import Counter, Custom, Doubled, StraightThrough
from tests.problems import Quadratic


def by_forward(training: Training, hparams: Mapping[str, Any]) -> Answer:
    return hypergradient(training, hparams, estimator=Forward(), seed=2)


def by_reverse(training: Training, hparams: Mapping[str, Any]) -> Answer:
    return hypergradient(training, hparams, estimator=Reverse("all"), seed=2)


# ---------------------------------------------------------------------------------------- exactness


@pytest.mark.usefixtures("second_derivatives")
@pytest.mark.parametrize("net", NETS, ids=lambda name: name.replace(" ", "_"))
def test_every_net_gives_the_derivative_of_reverse_mode(net: str) -> None:
    training = all_together(net)
    assert_close(by_forward(training, ALL), by_reverse(training, ALL), 1e-10)


@pytest.mark.usefixtures("second_derivatives", "trace_everything")
@pytest.mark.parametrize(
    "net",
    [
        net
        if net in ("mlp", "dropout", "tied weights")
        else pytest.param(net, marks=pytest.mark.slow)
        for net in NETS
    ],
    ids=lambda name: name.replace(" ", "_"),
)
def test_every_traced_net_gives_the_derivative_of_the_whole_run(net: str) -> None:
    training = all_together(net, batch_size=None)
    assert_close(by_forward(training, ALL), unroll(training, ALL, seed=2), 1e-10)


FLOAT32 = 1e-5  # mostly 1e-7; one derivative here is a difference of terms ten times its size


@pytest.mark.usefixtures("second_derivatives")
@pytest.mark.parametrize("net", NETS, ids=lambda name: name.replace(" ", "_"))
def test_in_float32_every_net_gives_the_derivative_of_reverse_mode(net: str) -> None:
    training = all_together(net, torch.float32)
    found = by_forward(training, ALL)
    assert found[0].dtype == torch.float32
    assert_close(found, by_reverse(training, ALL), FLOAT32)


def test_in_float32_the_rates_of_an_optimizer_agree_to_one_millionth() -> None:
    for rule in (SGD("lr", "m", weight_decay="decay"), Adam("lr", ("m", 0.9), eps=1e-3)):
        training = supervised(
            fresh(mlp, torch.float32),
            vectors(dtype=torch.float32),
            vectors(1, torch.float32),
            optimizer=rule,
            steps=30,
        )
        hparams = {n: v for n, v in (("lr", 0.1), ("m", 0.6), ("decay", 0.05)) if n in rule.names()}
        assert_close(by_forward(training, hparams), by_reverse(training, hparams), 1e-6)


@pytest.mark.parametrize("rule", RULES, ids=lambda name: name.replace(" ", "_"))
def test_every_optimizer_gives_the_derivative_of_reverse_mode(rule: str) -> None:
    training, hparams = of_rule(rule)
    assert_close(by_forward(training, hparams), by_reverse(training, hparams), 1e-10)


@pytest.mark.parametrize("rule", SMOOTH, ids=lambda name: name.replace(" ", "_"))
def test_every_optimizer_gives_the_central_difference(rule: str) -> None:
    assert_central_difference(*of_rule(rule))


@pytest.mark.parametrize("batch_size", [4, None])
def test_all_hyperparameters_together_give_the_central_difference(batch_size: int | None) -> None:
    assert_central_difference(all_together("dropout", batch_size=batch_size), ALL)


def assert_central_difference(training: Supervised, hparams: Mapping[str, Any]) -> None:
    points = {name: torch.as_tensor(value, dtype=DOUBLE) for name, value in hparams.items()}
    case = Case(training, points, {}, seed=2)
    _, gradient = by_forward(training, hparams)
    for name in points:
        assert_close_vector(gradient[name], central_difference(case, name), rtol=1e-6)


@pytest.mark.parametrize("steps", [6, 60])
def test_a_scale_of_the_initial_parameters_begins_with_a_tangent(steps: int) -> None:
    one, model = torch.ones(1, 1, dtype=DOUBLE), nn.Linear(1, 1, bias=False).double()
    nn.init.constant_(model.weight, 3.0)
    training = Supervised(
        model=model,
        loss=nn.functional.mse_loss,
        optimizer=SGD(0.1),
        train=(one, one),
        validation=(one, one),
        init_scale="gain",
        steps=steps,
    )
    _, gradient = by_forward(training, {"gain": 0.7})
    shrink = 0.8**steps
    expected = torch.tensor(2 * (3 * 0.7 - 1) * shrink**2 * 3, dtype=DOUBLE)
    torch.testing.assert_close(gradient["gain"], expected, rtol=1e-10, atol=0)


def test_an_outer_loss_may_depend_on_hyperparameters_by_itself() -> None:
    settings: dict[str, Any] = {"loss": mean_smoothed, "validation_loss": mean_smoothed}
    training = supervised(fresh(mlp), vectors(), vectors(1), **settings)
    hparams = {"lr": 0.3, "smoothing": 0.1, "penalty": 0.2}
    assert_close(by_forward(training, hparams), by_reverse(training, hparams), 1e-10)


def test_an_outer_loss_may_depend_on_nothing_but_hyperparameters() -> None:
    settings: dict[str, Any] = {"loss": mean_smoothed, "validation_loss": square_of_penalty}
    training = supervised(fresh(mlp), vectors(), vectors(1), **settings)
    value, gradient = by_forward(training, {"lr": 0.3, "smoothing": 0, "penalty": 0.2})
    assert float(value) == pytest.approx(0.04)
    assert gradient == {"lr": 0, "penalty": pytest.approx(0.4)}


def test_an_optimizer_of_ones_own_gives_the_derivative_of_reverse_mode(path: str) -> None:
    training = supervised(fresh(mlp), vectors(), vectors(1), optimizer=Softsign(), batch_size=None)
    hparams = {"lr": 0.3, "scale": 0.5}
    assert_close(by_forward(training, hparams), by_reverse(training, hparams), 1e-10)


def test_a_subclass_with_a_step_of_its_own_gives_the_derivative_of_that() -> None:
    training = Averaged(
        model=fresh(mlp),
        loss=cross_entropy,
        optimizer=Adam(lr="lr", betas=("m", 0.9), eps=1e-3),
        train=vectors(),
        validation=vectors(1),
        steps=5,
    )
    hparams = {"lr": 0.3, "m": 0.5}
    assert_close(by_forward(training, hparams), unroll(training, hparams, seed=2), 1e-10)


def test_the_value_has_the_bits_of_the_run_itself() -> None:
    training = all_together("dropout", torch.float32)
    value, _ = by_forward(training, ALL)
    assert torch.equal(value, by_reverse(training, ALL)[0])


def test_the_call_of_the_design_works() -> None:
    hparams = {"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-4}
    rule = hd.optimizers.SGD(lr="lr", momentum="momentum", weight_decay="weight_decay")
    training = supervised(fresh(mlp), vectors(), vectors(1), optimizer=rule)
    found = hd.hypergradient(
        training, hparams, estimator=hd.hypergrad.Forward(), seed=0, device="cpu"
    )
    assert_close(found, unroll(training, hparams, seed=0), 1e-10)


# -------------------------------------------------------------------------------------------- steps


@pytest.mark.usefixtures("path")
def test_a_layer_that_works_in_place_leaves_the_data_as_they_were() -> None:
    x, y = vectors()
    before = x.clone()
    model = fresh(lambda: nn.Sequential(nn.ReLU(inplace=True), mlp()))
    training = supervised(model, (x, y), vectors(1), batch_size=None)
    found = by_forward(training, {"lr": 0.1})
    assert torch.equal(x, before)
    assert_close(found, unroll(training, {"lr": 0.1}, seed=2), 1e-10)


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (lambda: Custom(Doubled), r"must be that of its gradient, .*Doubled"),
        (lambda: Custom(StraightThrough), r"off by .*a straight-through estimator"),
        (Counter, "same numbers when it is computed again"),
    ],
    ids=["wrong", "straight through", "counter"],
)
def test_a_step_that_cannot_be_differentiated_is_refused(layer: Any, message: str) -> None:
    training = supervised(fresh(lambda: mlp(nn.Tanh(), layer())), vectors(), vectors(1))
    with pytest.raises(TrainingError, match=message):
        by_forward(training, {"lr": 0.1})


def test_data_and_masks_that_are_drawn_anew_are_those_of_the_run(path: str) -> None:
    found = by_forward(drawn(), {"lr": 0.1})
    assert_close(found, unroll(drawn(), {"lr": 0.1}, seed=2), 1e-10)


def test_a_second_call_traces_nothing_and_gives_the_same_bits(traces: list[int]) -> None:
    training = all_together("mlp", batch_size=None)
    first = by_forward(training, ALL)
    assert len(traces) == 1
    second = by_forward(training, ALL)
    assert len(traces) == 1
    assert torch.equal(first[1]["w"], second[1]["w"])


# ------------------------------------------------------------------------------------------- memory


@dataclass(frozen=True)
class Watched(Quadratic):
    """Notes how many of the states that its steps returned are alive at a time."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "states", weakref.WeakSet())
        object.__setattr__(self, "alive", [])

    states: Any = None
    alive: Any = None

    def step(self, state: State, hparams: HParams, t: int) -> State:
        after = super().step(state, hparams, t)
        self.states.add(after["x"])
        self.alive.append(len(self.states))
        return after


def test_the_states_alive_do_not_grow_with_the_steps() -> None:
    most = []
    gc.disable()
    try:
        for steps in (5, 200):
            training = Watched(steps=steps)
            by_forward(training, {"lr": 0.01})
            assert len(training.alive) == steps + 2  # the first step is seen to replay
            most.append(max(training.alive))
    finally:
        gc.enable()
    assert most[0] == most[1] <= 3


def test_more_hyperparameters_than_memory_has_room_for_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    training = supervised(fresh(mlp), vectors(n=1000), vectors(1), weights="w", batch_size=150)
    hparams = {"w": torch.ones(1000, dtype=DOUBLE), "lr": 0.1}
    needed = 1001 * 8 * len(training.init(hparams, seed=2, device="cpu")["params"])
    monkeypatch.setattr(forward, "available_bytes", lambda _: needed)
    message = rf"1001 tangents .* need {forward.COPIES * needed} bytes, got {needed} .* Reverse\(\)"
    with pytest.raises(TrainingError, match=message):
        by_forward(training, hparams)


def test_a_compiled_step_is_for_a_supervised_only() -> None:
    with pytest.raises(TrainingError, match=r"compile=True is for a Supervised, got a Quadratic"):
        hypergradient(Quadratic(steps=3), {"lr": 0.1}, estimator=Forward(compile=True))

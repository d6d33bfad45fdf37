"""Whose turn it is: new gradients, one move, one step; and a GradScaler, which is in between."""

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import hyperopt_dl as hd
from hyperopt_dl.online import DeltaBarDelta, ForwardTuner, HypergradientDescent
from tests.online.runs import loss_of, network, train

RATE = hd.Float(1e-6, 10, log=True)
DESCENTS: dict[str, Callable[[Any], Any]] = {
    "multiplicative": lambda o: HypergradientDescent(o, hyper_lr=0.1),
    "additive": lambda o: HypergradientDescent(o, hyper_lr=1e-3, rule="additive"),
    "agreement": lambda o: DeltaBarDelta(o, kappa=0.01),
}
OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.5),
    "foreach": lambda p: torch.optim.SGD(p, lr=0.05, foreach=True),
    # With momentum, torch's kernel begins from memory that was never set where the first overflows.
    "fused": lambda p: torch.optim.SGD(p, lr=0.05, fused=True),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
    "fused AdamW": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1, fused=True),
}


def single() -> nn.Sequential:
    return network().float()


def loss32(model: nn.Module, t: int) -> Tensor:
    x = torch.randn(10, 3, generator=torch.Generator().manual_seed(t))
    value: Tensor = (model(x) - torch.sin(2 * x[:, :2])).square().mean()
    return value


@pytest.mark.parametrize("unscaled_first", [False, True])
@pytest.mark.parametrize("build", OPTIMIZERS.values(), ids=OPTIMIZERS)
@pytest.mark.parametrize("discount", [0.0, 1.0])
def test_a_forward_tuner_refuses_a_scaler(
    build: Any, discount: float, unscaled_first: bool
) -> None:
    model = single()
    optimizer = build(model.parameters())
    tuner = ForwardTuner(optimizer, {"lr": RATE}, discount=discount)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    tuner.backward(scaler.scale(loss32(model, 0)))
    if unscaled_first:
        scaler.unscale_(optimizer)
    with pytest.raises(hd.TrainingError, match="made by a GradScaler"):
        scaler.step(optimizer)


def test_gradients_that_are_unscaled_unseen_are_refused_without_the_scaler_s_step() -> None:
    model = single()
    optimizer = OPTIMIZERS["SGD"](model.parameters())
    tuner = ForwardTuner(optimizer, {"lr": RATE})
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    tuner.backward(scaler.scale(loss32(model, 0)))
    scaler.unscale_(optimizer)
    with pytest.raises(hd.TrainingError, match=r"something changed \.grad in between"):
        optimizer.step()


def test_a_gradient_written_to_through_data_is_refused() -> None:
    model: Any = network()
    optimizer = OPTIMIZERS["SGD"](model.parameters())
    tuner = ForwardTuner(optimizer, {"lr": RATE})
    tuner.backward(loss_of(model, 0))
    model[0].weight.grad.data.neg_()
    with pytest.raises(hd.TrainingError, match=r"something changed \.grad in between"):
        optimizer.step()


def test_a_scaler_that_is_not_enabled_is_none() -> None:
    histories = []
    for scaled in (False, True):
        model = network()
        optimizer = OPTIMIZERS["SGD"](model.parameters())
        tuner = ForwardTuner(optimizer, {"lr": RATE})
        scaler = torch.amp.GradScaler("cpu", enabled=False)
        for t in range(6):
            optimizer.zero_grad()
            tuner.backward(scaler.scale(loss_of(model, t)))
            if scaled:
                scaler.step(optimizer)
                scaler.update()
            else:
                optimizer.step()
            tuner.step(loss_of(model, -1))
        histories.append(tuner.history)
    assert histories[0] == histories[1]


def descend(tuner_of: Any, build: Any, scaler: Any, *, skip: int | None = None) -> list[float]:
    """The rates of a run, with or without a scaler; at one step it overflows, and is left out."""
    model = single()
    optimizer = build(model.parameters())
    tuner = tuner_of(optimizer)
    for t in range(10):
        if scaler is None and t == skip:
            continue
        optimizer.zero_grad()
        loss = loss32(model, t) * (math.inf if t == skip else 1.0)
        scaled = loss if scaler is None else scaler.scale(loss)
        scaled.backward()
        if scaler is not None:
            scaler.unscale_(optimizer)
        tuner.step()
        if scaler is None:
            optimizer.step()
        else:
            scaler.step(optimizer)
            scaler.update()
    rates: list[float] = tuner.get_last_lr()
    return rates


@pytest.mark.parametrize("skip", [None, 0, 4])
@pytest.mark.parametrize("build", OPTIMIZERS.values(), ids=OPTIMIZERS)
@pytest.mark.parametrize("tuner_of", DESCENTS.values(), ids=DESCENTS)
def test_rates_are_those_without_a_scaler_where_it_unscales_before_the_tuner(
    tuner_of: Any, build: Any, skip: int | None
) -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=3)
    found = descend(tuner_of, build, scaler, skip=skip)
    assert found == pytest.approx(descend(tuner_of, build, None, skip=skip), rel=1e-4)
    start = build([nn.Parameter(torch.ones(1))]).param_groups[0]["lr"]
    assert found != [pytest.approx(start, rel=1e-2)]


@pytest.mark.parametrize("build", OPTIMIZERS.values(), ids=OPTIMIZERS)
@pytest.mark.parametrize("tuner_of", DESCENTS.values(), ids=DESCENTS)
@pytest.mark.parametrize("since", [0, 8])
def test_a_scaler_that_unscales_after_the_tuner_is_an_error(
    tuner_of: Any, build: Any, since: int
) -> None:
    model = single()
    optimizer = build(model.parameters())
    tuner = tuner_of(optimizer)
    for t in range(since):
        optimizer.zero_grad()
        loss32(model, t).backward()  # type: ignore[no-untyped-call]
        tuner.step()
        optimizer.step()
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    optimizer.zero_grad()
    scaler.scale(loss32(model, 0)).backward()  # type: ignore[no-untyped-call]
    tuner.step()
    with pytest.raises(hd.TrainingError, match=r"Call scaler.unscale_\(optimizer\) before"):
        scaler.step(optimizer)


def test_gradients_that_are_not_finite_are_none_of_those_that_are_compared() -> None:
    rates = []
    for gradients in ([1.0, 2.0, math.inf, -1.0, 1.0], [1.0, 2.0, -1.0, 1.0]):
        x = nn.Parameter(torch.tensor([1.0], dtype=torch.double))
        tuner = DeltaBarDelta(torch.optim.SGD([x], lr=0.5), kappa=0.1, phi=0.2)
        for g in gradients:
            x.grad = torch.tensor([g], dtype=torch.double)
            tuner.step()
            if math.isfinite(g):
                tuner.optimizer.step()
        rates.append(tuner.get_last_lr())
    assert rates[0] == rates[1]


@pytest.mark.parametrize("tuner_of", DESCENTS.values(), ids=DESCENTS)
def test_a_descent_moves_once_a_step(tuner_of: Any) -> None:
    model = network()
    optimizer = OPTIMIZERS["SGD"](model.parameters())
    tuner = tuner_of(optimizer)
    for t in range(3):
        optimizer.zero_grad()
        loss_of(model, t).backward()  # type: ignore[no-untyped-call]
        tuner.step()
        if t < 2:
            optimizer.step()
    lr = tuner.get_last_lr()
    for _ in range(2):
        with pytest.raises(hd.TrainingError, match="called once before each"):
            tuner.step()
    assert tuner.get_last_lr() == lr
    optimizer.step()
    with pytest.raises(hd.TrainingError, match="needs new gradients, got those"):
        tuner.step()


def test_a_forward_tuner_moves_once_a_step() -> None:
    model = network()
    optimizer = OPTIMIZERS["SGD"](model.parameters())
    tuner = ForwardTuner(optimizer, {"lr": RATE})
    tuner.step(loss_of(model, -1))  # there is no derivative yet, and no move
    train(tuner, model, range(2), every=1)
    lr = tuner.get_last_lr()
    for _ in range(2):
        with pytest.raises(hd.TrainingError, match="called at most once after each"):
            tuner.step(loss_of(model, -1))
    assert tuner.get_last_lr() == lr
    assert len(tuner.history) == 2
    state = tuner.state_dict()
    tuner.load_state_dict(state)
    with pytest.raises(hd.TrainingError, match="called at most once after each"):
        tuner.step(loss_of(model, -1))


class Heads(nn.Module):
    """A body and two heads that take turns."""

    def __init__(self) -> None:
        super().__init__()
        self.body = network()
        self.heads = nn.ModuleList([nn.Linear(2, 2).double() for _ in range(2)])
        for i, param in enumerate(self.heads.parameters()):
            nn.init.constant_(param, 0.3 - 0.2 * i)

    def loss(self, t: int) -> Tensor:
        return loss_of(lambda x: self.heads[t % 2](self.body(x)), t)


@pytest.mark.parametrize(
    "build",
    [
        lambda p: torch.optim.SGD(p, lr=0.05),
        lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.7),
        lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.7, nesterov=True, weight_decay=0.1),
        lambda p: torch.optim.Adam(p, lr=0.02, betas=(0.7, 0.9)),
        lambda p: torch.optim.AdamW(p, lr=0.02, weight_decay=0.4),
    ],
)
def test_the_hypergradient_is_that_of_the_last_step_whatever_else_changes(build: Any) -> None:
    """Heads without gradients in every other step, options by a schedule, gradients clipped."""
    model = Heads()
    optimizer = build(model.parameters())
    tuner = HypergradientDescent(optimizer, hyper_lr=0.0)

    def gradients(model: Heads, optimizer: Any, t: int) -> None:
        optimizer.zero_grad()
        model.loss(t).backward()  # type: ignore[no-untyped-call]

    for t in range(8):
        gradients(model, optimizer, t)
        if t != 3:  # a move may be left out
            tuner.step()
        if t == 7:
            break
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        before = copy.deepcopy((model, optimizer))
        optimizer.step()
        optimizer.param_groups[0].update(
            {"betas": (0.6, 0.8 + 0.01 * t)} if "betas" in optimizer.defaults else {}
        )
        if optimizer.param_groups[0].get("momentum"):
            optimizer.param_groups[0]["momentum"] = 0.7 - 0.02 * t
    values = []
    h = 1e-6
    for sign in (1, -1):
        other, stepped = copy.deepcopy(before)
        gradients(other, stepped, 6)
        nn.utils.clip_grad_norm_(other.parameters(), 0.5)
        stepped.param_groups[0]["lr"] += sign * h
        stepped.step()
        decay = 0.0 if "betas" in stepped.defaults else stepped.param_groups[0]["weight_decay"]
        used = [*other.body.parameters(), *other.heads[1].parameters()]
        penalty = sum(float(p.detach().square().sum()) for p in used) / 2
        values.append(float(other.loss(7).detach()) + decay * penalty)
    expected = (values[0] - values[1]) / (2 * h)
    assert abs(expected) > 1e-4
    assert tuner.history[-1].gradient["lr@0"] == pytest.approx(expected, rel=1e-5)

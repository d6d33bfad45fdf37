"""HypergradientDescent and DeltaBarDelta: the derivative of one step, and the rules for moving."""

import copy
import io
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

import hyperopt_dl as hd
from hyperopt_dl.online import DeltaBarDelta, ForwardTuner, HypergradientDescent
from tests.online.runs import groups_of, loss_of, network

Build = Callable[[Any], torch.optim.Optimizer]
OPTIMIZERS: dict[str, Build] = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.05),
    "SGD-decay": lambda p: torch.optim.SGD(p, lr=0.05, weight_decay=0.3),
    "SGD-momentum": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.7, dampening=0.2),
    "SGD-nesterov": lambda p: torch.optim.SGD(
        p, lr=0.05, momentum=0.7, nesterov=True, weight_decay=0.3
    ),
    "SGD-maximize": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.7, maximize=True),
    "Adam": lambda p: torch.optim.Adam(p, lr=0.02, betas=(0.7, 0.9), weight_decay=0.3),
    "Adam-amsgrad": lambda p: torch.optim.Adam(p, lr=0.02, betas=(0.2, 0.3), amsgrad=True),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.02, weight_decay=0.4),
}


def backward(model: nn.Module, optimizer: torch.optim.Optimizer, t: int) -> None:
    optimizer.zero_grad()
    sign = -1.0 if optimizer.param_groups[0]["maximize"] else 1.0
    (sign * loss_of(model, t)).backward()  # type: ignore[no-untyped-call]


def objective(model: nn.Sequential, optimizer: torch.optim.Optimizer, t: int) -> float:
    """The loss with the penalty that coupled weight decay is the gradient of."""
    decoupled = isinstance(optimizer, torch.optim.AdamW)
    decay = 0.0 if decoupled else optimizer.param_groups[0]["weight_decay"]
    penalty = sum(float(p.detach().square().sum()) for p in model.parameters()) / 2
    return float(loss_of(model, t).detach()) + decay * penalty


@pytest.mark.parametrize("build", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_the_hypergradient_is_the_derivative_in_the_rate_of_the_last_step(build: Build) -> None:
    model = network()
    optimizer = build(groups_of(model, [{}, {}]))
    tuner = HypergradientDescent(optimizer, hyper_lr=0.0)
    for t in range(8):
        backward(model, optimizer, t)
        tuner.step()
        if t == 7:
            break
        before = copy.deepcopy((model, optimizer))
        optimizer.step()
    h = 1e-6
    for number in range(2):
        values = []
        for sign in (1, -1):
            other, stepped = copy.deepcopy(before)
            backward(other, stepped, 6)
            stepped.param_groups[number]["lr"] += sign * h
            stepped.step()
            values.append(objective(other, stepped, 7))
        expected = (values[0] - values[1]) / (2 * h)
        found = tuner.history[-1].gradient[f"lr@{number}"]
        assert abs(expected) > 1e-3
        assert found == pytest.approx(expected, rel=1e-5)


def one_weight(gradients: list[float], tuner_of: Any, lr: float = 0.5) -> list[float]:
    """The rates that a tuner gives plain SGD which sees these gradients."""
    x = nn.Parameter(torch.tensor([1.0], dtype=torch.double))
    optimizer = torch.optim.SGD([x], lr=lr)
    tuner = tuner_of(optimizer)
    rates = []
    for g in gradients:
        x.grad = torch.tensor([g], dtype=torch.double)
        tuner.step()
        optimizer.step()
        rates += tuner.get_last_lr()
    return rates


def test_the_additive_rule_adds_the_product_of_two_gradients() -> None:
    rates = one_weight([2.0, 3.0, -1.0, 4.0], lambda o: HypergradientDescent(o, 0.01, "additive"))
    assert rates == pytest.approx([0.5, 0.56, 0.53, 0.49], rel=1e-12)


def test_the_multiplicative_rule_does_not_see_the_lengths() -> None:
    rates = one_weight([2.0, 3.0, -1.0, -40.0], lambda o: HypergradientDescent(o, 0.1))
    assert rates == pytest.approx([0.5, 0.55, 0.495, 0.5445], rel=1e-12)


def test_a_rate_does_not_go_below_0_and_comes_back() -> None:
    rates = one_weight([1.0, -1.0, -1.0], lambda o: HypergradientDescent(o, 2.0, "additive"))
    assert rates == [0.5, 0.0, 2.0]


@pytest.mark.parametrize(
    "tuner_of", [HypergradientDescent, lambda o: DeltaBarDelta(o, kappa=0.1)], ids=["HD", "DBD"]
)
def test_a_gradient_that_is_not_finite_moves_nothing(tuner_of: Any) -> None:
    rates = one_weight([1.0, math.nan, math.inf], tuner_of)
    assert rates == [0.5, 0.5, 0.5]


def test_delta_bar_delta_adds_where_gradients_agree_and_divides_where_not() -> None:
    """By hand: the mean after each gradient is 1, 1.5, 0.25, 0.625 with theta a half."""
    rates = one_weight(
        [1.0, 2.0, -1.0, 1.0, 0.0], lambda o: DeltaBarDelta(o, kappa=0.1, phi=0.2, theta=0.5)
    )
    assert rates == pytest.approx([0.5, 0.6, 0.48, 0.58, 0.58], rel=1e-12)


TUNERS = {
    "HD": HypergradientDescent,
    "HD-additive": lambda o: HypergradientDescent(o, 0.001, "additive"),
    "DBD": lambda o: DeltaBarDelta(o, kappa=0.001),
}


@pytest.mark.parametrize("build", OPTIMIZERS.values(), ids=OPTIMIZERS)
@pytest.mark.parametrize("tuner_of", TUNERS.values(), ids=TUNERS)
def test_a_resumed_run_ends_at_the_same_bits(build: Build, tuner_of: Any) -> None:
    def parts() -> Any:
        model = network()
        optimizer = build(groups_of(model, [{}, {}]))
        scheduler = LambdaLR(optimizer, lambda t: 0.9**t)
        return model, optimizer, scheduler, tuner_of(optimizer)

    def go_on(parts: Any, steps: range) -> None:
        model, optimizer, scheduler, tuner = parts
        for t in steps:
            backward(model, optimizer, t)
            tuner.step()
            optimizer.step()
            scheduler.step()

    through, first, second = parts(), parts(), parts()
    go_on(through, range(12))
    go_on(first, range(5))
    file = io.BytesIO()
    torch.save([part.state_dict() for part in first], file)
    file.seek(0)
    for part, state in zip(second, torch.load(file, weights_only=True), strict=True):
        part.load_state_dict(state)
    go_on(second, range(5, 12))
    assert len({move.values["lr@0"] for move in through[3].history}) > 2
    assert second[3].history == through[3].history
    assert second[3].get_last_lr() == through[3].get_last_lr()
    for a, b in zip(second[0].parameters(), through[0].parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("tuner_of", TUNERS.values(), ids=TUNERS)
def test_a_state_of_another_tuner_is_refused(tuner_of: Any) -> None:
    one = torch.optim.SGD(network().parameters(), lr=0.05)
    two = torch.optim.SGD(groups_of(network(), [{}, {}]), lr=0.05)
    forward = ForwardTuner(two, {"lr": hd.Float(1e-3, 1.0, log=True)})
    for state in ({}, tuner_of(one).state_dict(), forward.state_dict()):
        with pytest.raises(hd.TrainingError, match=r"of a tuner of 2 parameter group\(s\), got"):
            tuner_of(two).load_state_dict(state)


@pytest.mark.parametrize("tuner_of", TUNERS.values(), ids=TUNERS)
def test_a_scheduler_goes_on_and_its_base_rate_is_moved(tuner_of: Any) -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    scheduler = LambdaLR(optimizer, lambda t: 0.5**t)
    tuner = tuner_of(optimizer)
    for t in range(5):
        backward(model, optimizer, t)
        tuner.step()
        optimizer.step()
        scheduler.step()
        assert optimizer.param_groups[0]["lr"] == pytest.approx(0.05 * 0.5 ** (t + 1))
        base = tuner.history[-1].values["lr@0"]
        assert tuner.get_last_lr()[0] == pytest.approx(base * 0.5 ** (t + 1))
    assert base != 0.05


@pytest.mark.parametrize(
    ("tuner_of", "message"),
    [
        (lambda o: HypergradientDescent(torch.optim.Rprop(o.param_groups[0]["params"])), "Rprop"),
        (lambda o: HypergradientDescent(o, rule="both"), "rule must be"),  # type: ignore[arg-type]
        (lambda o: HypergradientDescent(o, 1.0), "multiplicative rule below 1"),
        (lambda o: HypergradientDescent(o, -0.1, "additive"), "got -0.1"),
        (lambda o: HypergradientDescent(o, "0.1"), "number >= 0, .* got '0.1'"),  # type: ignore[arg-type]
        (lambda o: HypergradientDescent(o, math.inf, "additive"), "got inf"),
        (lambda o: DeltaBarDelta(o, kappa=-1.0), "kappa=-1.0"),
        (lambda o: DeltaBarDelta(o, kappa="0.1"), "kappa='0.1'"),  # type: ignore[arg-type]
        (lambda o: DeltaBarDelta(o, kappa=0.1, phi="0.1"), "phi='0.1'"),  # type: ignore[arg-type]
        (lambda o: DeltaBarDelta(o, kappa=0.1, phi=1.0), "phi=1.0"),
        (lambda o: DeltaBarDelta(o, kappa=0.1, theta=1.5), "theta=1.5"),
    ],
)
def test_what_cannot_be_is_said(tuner_of: Any, message: str) -> None:
    with pytest.raises(hd.TrainingError, match=message):
        tuner_of(OPTIMIZERS["SGD"](network().parameters()))


@pytest.mark.parametrize("tuner_of", TUNERS.values(), ids=TUNERS)
def test_the_figure_has_a_row_a_group(tuner_of: Any) -> None:
    model = network()
    optimizer = torch.optim.SGD(groups_of(model, [{}, {}]), lr=0.05)
    tuner = tuner_of(optimizer)
    for t in range(4):
        backward(model, optimizer, t)
        tuner.step()
        optimizer.step()
    traces: list[Any] = list(tuner.plot().data)
    assert [list(trace.x) for trace in traces] == [[1, 2, 3, 4]] * 2
    assert [trace.y[-1] for trace in traces] == tuner.get_last_lr()


def test_a_parameter_that_gets_no_gradient_is_left_out() -> None:
    used, unused = (nn.Parameter(torch.ones(2, dtype=torch.double)) for _ in range(2))
    optimizer = torch.optim.SGD([used, unused], lr=0.1, momentum=0.5)
    tuner = HypergradientDescent(optimizer, hyper_lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        loss: Tensor = used.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        tuner.step()
        optimizer.step()
    assert tuner.history[-1].gradient["lr@0"] < 0

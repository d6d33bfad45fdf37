"""Weights, state and parameters that somebody else writes to between the steps of a tuner."""

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import hyperopt_dl as hd
from hyperopt_dl.online import DeltaBarDelta, ForwardTuner, HypergradientDescent
from tests.online.runs import loss_of, network, train

RATE = hd.Float(1e-6, 10, log=True)
Change = Callable[[Any, Any], Any]


def parts(**settings: Any) -> tuple[Any, torch.optim.Optimizer, ForwardTuner]:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.5)
    return model, optimizer, ForwardTuner(optimizer, {"lr": RATE}, hyper_lr=0.0, **settings)


def shrink(model: nn.Module, _: Any) -> None:
    with torch.no_grad():
        for param in model.parameters():
            param.mul_(0.8)


def clip(model: Any, _: Any) -> None:
    with torch.no_grad():
        model[0].weight.clamp_(-0.05, 0.05)


def swap(model: Any, _: Any) -> None:
    for param in model.parameters():
        param.data = 0.9 * param.data


def unseen(model: Any, _: Any) -> None:
    model[0].weight.data.mul_(0.8)


def load(model: Any, _: Any) -> None:
    model.load_state_dict(network(1).state_dict())


def no_momentum(_: Any, optimizer: Any) -> None:
    for slots in optimizer.state.values():
        slots["momentum_buffer"].zero_()


def new_buffers(model: Any, optimizer: Any) -> None:
    slots = optimizer.state[model[0].weight]
    slots["momentum_buffer"] = torch.zeros_like(slots["momentum_buffer"])


def new_state(_: Any, optimizer: Any) -> None:
    optimizer.state = defaultdict(dict)


def loaded_state(_: Any, optimizer: Any) -> None:
    optimizer.load_state_dict(optimizer.state_dict())


WRITES: dict[str, tuple[Change, str]] = {
    "shrink": (shrink, "a write to parameter 0 of group 0"),
    "clip": (clip, "a write to parameter 0 of group 0"),
    "swap": (swap, "a write to parameter 0 of group 0"),
    "unseen": (unseen, "a write to parameter 0 of group 0"),
    "load": (load, "a write to parameter 0 of group 0"),
    "no momentum": (no_momentum, "'momentum_buffer' of parameter 0 of group 0"),
    "new buffers": (new_buffers, "a write to the state of the optimizer"),
    "new state": (new_state, "a write to the state of the optimizer"),
    "loaded state": (loaded_state, "a write to the state of the optimizer"),
}


@pytest.mark.parametrize(("write", "message"), WRITES.values(), ids=WRITES)
def test_a_write_between_the_steps_of_a_forward_tuner_is_an_error(
    write: Change, message: str
) -> None:
    model, optimizer, tuner = parts()
    train(tuner, model, range(2))
    write(model, optimizer)
    with pytest.raises(hd.TrainingError, match=message):
        tuner.step(loss_of(model, -1))
    tuner.backward(loss_of(model, 2))
    for _ in range(2):
        with pytest.raises(hd.TrainingError, match=message):
            optimizer.step()


@pytest.mark.parametrize(("write", "message"), WRITES.values(), ids=WRITES)
def test_a_write_between_the_steps_of_hypergradient_descent_is_an_error(
    write: Change, message: str
) -> None:
    model, optimizer, _ = parts()
    tuner = HypergradientDescent(optimizer)
    for t in range(3):
        optimizer.zero_grad()
        loss_of(model, t).backward()  # type: ignore[no-untyped-call]
        tuner.step()
        optimizer.step()
    write(model, optimizer)
    optimizer.zero_grad()
    loss_of(model, 3).backward()  # type: ignore[no-untyped-call]
    for _ in range(2):
        with pytest.raises(hd.TrainingError, match=message):
            tuner.step()


def test_a_write_that_raises_no_version_is_found_in_the_end() -> None:
    model, optimizer, tuner = parts()
    train(tuner, model, range(10))
    with pytest.raises(hd.TrainingError, match="a write to parameter 0 of group 0"):
        decay(model, optimizer, tuner)
    assert tuner.steps < 500


def decay(model: Any, optimizer: Any, tuner: ForwardTuner) -> None:
    for t in range(10, 2000):
        unseen(model, optimizer)
        train(tuner, model, [t])


def test_with_discount_0_writes_do_harm_only_before_a_move() -> None:
    model, optimizer, tuner = parts(discount=0.0)
    for t in range(4):
        train(tuner, model, [t], every=1)
        shrink(model, optimizer)
    with pytest.raises(hd.TrainingError, match="before they are clipped or swapped"):
        tuner.step(loss_of(model, -1))


def test_a_tuner_that_is_made_anew_begins_where_the_weights_are() -> None:
    model, optimizer, tuner = parts()
    train(tuner, model, range(2))
    shrink(model, optimizer)
    tuner = ForwardTuner(optimizer, {"lr": RATE}, hyper_lr=0.0)
    train(tuner, model, range(2, 4), every=1)
    assert len(tuner.history) == 2


def freeze(model: Any, _: Any) -> None:
    model[0].requires_grad_(False)


def convert(model: Any, _: Any) -> None:
    model.float()


def bring_in(model: Any, optimizer: Any) -> None:
    optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2, dtype=torch.double))]})


def take_out(_: Any, optimizer: Any) -> None:
    optimizer.param_groups[0]["params"].pop()


@pytest.mark.parametrize("discount", [0.0, 1.0])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (freeze, r"parameter 0 of group 0, of shape \(4, 3\), which is frozen now"),
        (convert, "got parameter 0 of group 0, .* in torch.float32 .* had torch.float64"),
        (bring_in, r"keep the 1 parameter groups .* \[4\] of them, got \[4, 1\]"),
        (take_out, r"keep the 1 parameter groups .* \[4\] of them, got \[3\]"),
    ],
)
def test_parameters_that_change_are_an_error(change: Change, message: str, discount: float) -> None:
    model, optimizer, tuner = parts(discount=discount)
    train(tuner, model, range(2))
    change(model, optimizer)
    x = torch.ones(2, 3, dtype=model[2].weight.dtype)
    for _ in range(2):
        with pytest.raises(hd.TrainingError, match=message):
            tuner.backward(model(x).square().mean())


def test_a_parameter_that_is_trained_from_now_on_is_an_error() -> None:
    model = network()
    model[0].requires_grad_(False)
    optimizer = torch.optim.SGD(model.named_parameters(), lr=0.05)
    tuner = ForwardTuner(optimizer, {"lr": RATE})
    train(tuner, model, range(2))
    model[0].requires_grad_(True)
    with pytest.raises(hd.TrainingError, match=r"got '0.weight', .* which is trained now"):
        tuner.backward(loss_of(model, 2))


TUNERS: dict[str, Callable[[Any], Any]] = {
    "descent": lambda o: HypergradientDescent(o, hyper_lr=0.1),
    "agreement": lambda o: DeltaBarDelta(o, kappa=0.01),
}


@pytest.mark.parametrize("tuner_of", TUNERS.values(), ids=TUNERS)
def test_a_group_that_comes_later_is_followed(tuner_of: Any) -> None:
    """By the third step it is as if it had been there: of the gradients two are behind it."""
    rates = []
    for later in (True, False):
        first, second = (nn.Parameter(torch.tensor([x], dtype=torch.double)) for x in (1.0, 3.0))
        groups: list[Any] = [
            {"params": [first]},
            *([] if later else [{"params": [second], "lr": 0.02}]),
        ]
        optimizer = torch.optim.SGD(groups, lr=0.1)
        tuner = tuner_of(optimizer)
        for t in range(5):
            if t == 2 and later:
                optimizer.add_param_group({"params": [second], "lr": 0.02})
            optimizer.zero_grad()
            loss: Tensor = first.square().sum() + (second.square().sum() if t >= 2 else 0.0)
            loss.backward()  # type: ignore[no-untyped-call]
            tuner.step()
            optimizer.step()
        rates.append(tuner.get_last_lr())
        assert tuner.plot() is not None
    assert rates[0] == rates[1]
    assert rates[0][1] != 0.02


@pytest.mark.parametrize("tuner_of", TUNERS.values(), ids=TUNERS)
def test_a_model_that_is_converted_is_followed_where_the_optimizer_follows(tuner_of: Any) -> None:
    rates = []
    for convert_at in (None, 3):
        model: Any = network()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        tuner = tuner_of(optimizer)
        for t in range(6):
            if t == convert_at:
                model.float()
            optimizer.zero_grad()
            x = torch.full((4, 3), 0.1 * t, dtype=model[0].weight.dtype)
            model(x).square().mean().backward()
            tuner.step()
            optimizer.step()
        rates.append(tuner.get_last_lr())
    assert rates[1] == pytest.approx(rates[0], rel=1e-5)

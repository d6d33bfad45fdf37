"""What a forward tuner does to a training loop, and what it finds out."""

import copy
import io
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, LRScheduler

import hyperopt_dl as hd
from hyperopt_dl.online import ForwardTuner
from tests.online.runs import loss_of, network, tangents, train

RATE = hd.Float(1e-5, 10, log=True)
LR = {"lr": RATE}
OPTIMIZERS: list[Callable[..., torch.optim.Optimizer]] = [
    lambda params: torch.optim.SGD(params, lr=0.05, momentum=0.8, weight_decay=0.01),
    lambda params: torch.optim.AdamW(params, lr=0.01),
    lambda params: torch.optim.RMSprop(params, lr=0.01, momentum=0.5),
    lambda params: torch.optim.Adagrad(params, lr=0.1),
]
IDS = ["SGD", "AdamW", "RMSprop", "Adagrad"]


def mlp() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 4))


def cnn() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, stride=2), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(36, 4)
    )


def pictures(t: int) -> tuple[Tensor, Tensor]:
    draws = torch.Generator().manual_seed(t)
    x = torch.randn(16, 1, 8, 8, generator=draws)
    return x, x[:, 0, 2:4, 2:4].flatten(1).argmax(dim=1)


@pytest.mark.parametrize("build", OPTIMIZERS, ids=IDS)
@pytest.mark.parametrize("model_of", [mlp, cnn])
@pytest.mark.parametrize("discount", [0.0, 1.0])
def test_without_a_hyper_lr_training_is_the_same_to_the_last_bit(
    build: Any, model_of: Callable[[], nn.Module], discount: float
) -> None:
    ends = []
    for tuned in (False, True):
        model = model_of()
        optimizer = build(model.parameters())
        tuner = ForwardTuner(optimizer, LR, hyper_lr=0.0, discount=discount)
        optimizer = optimizer if tuned else build(model.parameters())
        for t in range(20):
            x, y = pictures(t)
            optimizer.zero_grad()
            loss = cross_entropy(model(x), y)
            if tuned:
                tuner.backward(loss)
            else:
                loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            if t % 5 == 4:
                validation = cross_entropy(model(x), y)  # moves BatchNorm's statistics, too
                if tuned:
                    tuner.step(validation)
        ends.append(model.state_dict())
        assert len(tuner.history) == (4 if tuned else 0)
    for name, plain in ends[0].items():
        assert torch.equal(plain, ends[1][name]), name


H = torch.tensor([[2.0, 0.5], [0.5, 1.0]], dtype=torch.double)
C = torch.tensor([1.0, -2.0], dtype=torch.double)


def quadratic(x: Tensor) -> Tensor:
    value: Tensor = x @ H @ x / 2 - C @ x
    return value


@pytest.mark.parametrize("discount", [0.0, 0.3, 1.0])
def test_the_hypergradient_is_that_of_the_damped_recursion(discount: float) -> None:
    x = nn.Parameter(torch.tensor([3.0, -1.0], dtype=torch.double))
    optimizer = torch.optim.SGD([x], lr=0.1, momentum=0.6)
    tuner = ForwardTuner(optimizer, LR, hyper_lr=0.0, discount=discount)
    z, z_b, b, at = (torch.zeros(2, dtype=torch.double) for _ in range(4))
    at += x.detach()
    for _ in range(7):
        optimizer.zero_grad()
        tuner.backward(quadratic(x))
        optimizer.step()
        b = 0.6 * b + (H @ at - C)
        z_b = discount * (0.6 * z_b + H @ z)
        z = discount * z - 0.1 * z_b - 0.1 * b
        at = at - 0.1 * b
        tuner.step((x**3).sum())
        expected = float(3 * at**2 @ z)
        assert tuner.history[-1].gradient["lr"] == pytest.approx(expected, rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("build", OPTIMIZERS, ids=IDS)
def test_with_discount_0_any_gradient_will_do(build: Any) -> None:
    model = network()
    optimizer = build(model.parameters())
    tuner = ForwardTuner(optimizer, LR, hyper_lr=0.0, discount=0.0)
    for t in range(6):
        optimizer.zero_grad()
        tuner.backward(loss_of(model, t))
        nn.utils.clip_grad_value_(model.parameters(), 0.1)
        before = [param.detach().clone() for param in model.parameters()]
        decay = optimizer.param_groups[0].get("weight_decay", 0)
        optimizer.step()
    assert decay >= 0
    moved = [p.detach() - old for p, old in zip(model.parameters(), before, strict=True)]
    # A step is proportional to its learning rate: its derivative in log lr is the step itself.
    expected = torch.cat([part.reshape(-1) for part in moved])
    torch.testing.assert_close(tangents(tuner)[0], expected, rtol=1e-12, atol=1e-15)


def final(run: Callable[[float], nn.Module], lr: float) -> Tensor:
    """Central difference of the weights at the end in log lr, float64."""
    h = 1e-5
    ends = [
        torch.cat([p.detach().reshape(-1) for p in run(lr * math.exp(sign * h)).parameters()])
        for sign in (1, -1)
    ]
    return (ends[0] - ends[1]) / (2 * h)


class Heads(nn.Module):
    """A body and two heads that take turns: each is without a gradient at every other step."""

    def __init__(self) -> None:
        super().__init__()
        self.body = network()
        self.heads = nn.ModuleList([nn.Linear(2, 2).double() for _ in range(2)])
        for i, param in enumerate(self.heads.parameters()):
            nn.init.constant_(param, 0.3 - 0.2 * i)
        self.t = 0

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.heads[self.t % 2](self.body(x))
        return output


def alternate(model: Heads, t: int) -> None:
    model.t = t


def freeze(model: Heads, t: int) -> None:
    model.heads[1].requires_grad_(False)
    model.body[0].weight.requires_grad_(False)


def cosine(optimizer: torch.optim.Optimizer) -> LRScheduler:
    return CosineAnnealingLR(optimizer, T_max=8)


def stairs(optimizer: torch.optim.Optimizer) -> LRScheduler:
    return LambdaLR(optimizer, lambda t: 0.5 ** (t // 3))


@pytest.mark.parametrize("build", OPTIMIZERS, ids=IDS)
@pytest.mark.parametrize("before", [alternate, freeze])
@pytest.mark.parametrize("scheduler_of", [cosine, stairs, None])
@pytest.mark.parametrize("pieces", [1, 2])
def test_tangents_are_the_finite_difference_of_the_user_s_own_run(
    build: Any, before: Any, scheduler_of: Any, pieces: int
) -> None:
    """Schedules, gradients that are summed over micro-batches, heads without gradients."""

    def run(lr: float, tune: bool = False) -> Any:
        model = Heads()
        before(model, 0)
        optimizer = build(model.parameters())
        optimizer.param_groups[0]["lr"] = lr
        tuner = ForwardTuner(optimizer, LR, hyper_lr=0.0) if tune else None
        scheduler = scheduler_of(optimizer) if scheduler_of else None
        for t in range(9):
            before(model, t)
            optimizer.zero_grad()
            for piece in range(pieces):
                loss = loss_of(model, t + 100 * piece)
                if tuner:
                    tuner.backward(loss)
                else:
                    loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            if scheduler:
                scheduler.step()
        return tuner or model

    def trained(lr: float) -> nn.Module:
        model: nn.Module = run(lr)
        for param in model.parameters():
            param.grad = None
        kept = [p for p in model.parameters() if p.requires_grad]
        return nn.ParameterList(kept)

    expected = final(trained, 0.02)
    assert expected.norm() > 1e-3
    torch.testing.assert_close(tangents(run(0.02, tune=True))[0], expected, rtol=1e-6, atol=1e-7)


def test_without_weight_decay_the_first_momentum_tangent_is_its_own() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    tuner = ForwardTuner(optimizer, LR, hyper_lr=0.0)
    train(tuner, model, range(6))

    def run(lr: float) -> nn.Module:
        plain = network()
        descent = torch.optim.SGD(plain.parameters(), lr=lr, momentum=0.9)
        for t in range(6):
            descent.zero_grad()
            loss_of(plain, t).backward()  # type: ignore[no-untyped-call]
            descent.step()
        return plain

    torch.testing.assert_close(tangents(tuner)[0], final(run, 0.1), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("scheduler_of", [cosine, stairs])
def test_a_scheduler_goes_on_and_the_tuner_scales_its_base_rate(scheduler_of: Any) -> None:
    rates = []
    for hyper_lr in (0.0, 0.1):
        model = network()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        scheduler = scheduler_of(optimizer)
        tuner = ForwardTuner(optimizer, LR, hyper_lr=hyper_lr)
        seen = []
        for t in range(6):
            train(tuner, model, [t], every=1)
            scheduler.step()
            base = tuner.history[-1].values["lr"]
            assert scheduler.get_last_lr() == [optimizer.param_groups[0]["lr"]]
            assert tuner.get_last_lr()[0] == pytest.approx(scheduler.get_last_lr()[0] * base / 0.01)
            seen.append(scheduler.get_last_lr())
        rates.append(seen)
        assert (base == 0.01) == (hyper_lr == 0)
    assert rates[0] == rates[1]


@pytest.mark.parametrize("build", OPTIMIZERS, ids=IDS)
@pytest.mark.parametrize("scheduler_of", [stairs, None])
def test_a_resumed_run_ends_at_the_same_bits(build: Any, scheduler_of: Any) -> None:
    def parts() -> list[Any]:
        model = network()
        optimizer = build(model.parameters())
        scheduler = scheduler_of(optimizer) if scheduler_of else None
        tuner = ForwardTuner(optimizer, {**LR, "weight_decay": hd.Float(0, 1)})
        return [model, optimizer, tuner, *([scheduler] if scheduler else [])]

    def go_on(parts: list[Any], steps: range) -> None:
        for t in steps:
            train(parts[2], parts[0], [t], every=3)
            for scheduler in parts[3:]:
                scheduler.step()

    through = parts()
    go_on(through, range(20))
    first, second = parts(), parts()
    go_on(first, range(11))
    file = io.BytesIO()
    torch.save([part.state_dict() for part in first], file)
    go_on(first, range(11, 13))  # what is saved does not move with the run
    file.seek(0)
    for part, state in zip(second, torch.load(file, weights_only=True), strict=True):
        part.load_state_dict(state)
    go_on(second, range(11, 20))
    assert second[2].history == through[2].history
    assert second[2].get_last_lr() == through[2].get_last_lr()
    for a, b in zip(second[0].parameters(), through[0].parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_state_of_another_tuner_is_refused() -> None:
    optimizer = OPTIMIZERS[0](network().parameters())
    state = ForwardTuner(optimizer, LR).state_dict()
    with pytest.raises(hd.TrainingError, match=r"got \['lr'\]"):
        ForwardTuner(optimizer, {"momentum": hd.Float(0.1, 0.9)}).load_state_dict(state)
    state["tangents"] = [{"x": block["x"][:, 1:]} for block in state["tangents"]]
    for other in ({}, state):
        with pytest.raises(hd.TrainingError, match=r"must be of a tuner of \['lr'\]"):
            ForwardTuner(optimizer, LR).load_state_dict(other)


@pytest.mark.parametrize("seed", range(20))
def test_no_start_ends_in_nan(seed: int) -> None:
    draws = torch.Generator().manual_seed(seed)
    lr = float(RATE.from_unit(torch.rand((), generator=draws)))
    model = mlp()
    momentum = 0.9 if seed % 2 else 0.0
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=momentum)
    tuner = ForwardTuner(optimizer, LR)
    for t in range(60):
        x, y = pictures(t)
        optimizer.zero_grad()
        tuner.backward(cross_entropy(model(x), y))
        optimizer.step()
        if tuner.steps % 5 == 0:
            tuner.step(cross_entropy(model(x), y))
    assert all(bool(param.isfinite().all()) for param in model.parameters())
    assert all(1e-5 <= move.values["lr"] <= 10 for move in tuner.history)
    assert math.isfinite(cross_entropy(model(x), y).item())


@pytest.mark.parametrize("bad", [math.nan, math.inf, 50.0])
def test_a_loss_that_diverges_puts_the_last_good_weights_back(bad: float) -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.04, momentum=0.9)
    tuner = ForwardTuner(optimizer, LR)
    train(tuner, model, range(6), every=3)
    good = copy.deepcopy(model.state_dict()), copy.deepcopy(optimizer.state_dict()["state"])
    lr = tuner.get_last_lr()[0]
    train(tuner, model, range(6, 8))
    optimizer.zero_grad()
    tuner.backward(bad * loss_of(model, 8) / loss_of(model, 8).detach())
    optimizer.step()
    assert tuner.history[-1].restored
    assert tuner.get_last_lr()[0] == pytest.approx(lr / 4)
    assert not tangents(tuner).any()
    for name, value in model.state_dict().items():
        assert torch.equal(value, good[0][name])
    for a, b in zip(optimizer.state_dict()["state"].values(), good[1].values(), strict=True):
        assert torch.equal(a["momentum_buffer"], b["momentum_buffer"])


def test_a_network_that_dies_is_brought_back() -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    tuner = ForwardTuner(optimizer, LR, hyper_lr=1e-9)
    x, y = pictures(0)
    tuner.backward(cross_entropy(model(x), y))
    optimizer.step()
    tuner.step(cross_entropy(model(x), y))
    optimizer.zero_grad()
    bias = model[1].bias  # type: ignore[index]
    tuner.backward(cross_entropy(model(x), y) + 1000 * (bias - bias.detach()).sum())
    optimizer.step()
    tuner.step(cross_entropy(model(x), y))
    assert [move.restored for move in tuner.history] == [False, True]
    assert tuner.get_last_lr() == pytest.approx([0.025])


def test_a_loss_that_always_diverges_is_an_error_in_the_end() -> None:
    model = network()
    tuner = ForwardTuner(torch.optim.SGD(model.parameters(), lr=0.1), LR)
    for _ in range(7):  # 0.1 / 4^7 is below 1e-5
        tuner.backward(math.nan * loss_of(model, 0))
    with pytest.raises(hd.TrainingError, match="no tuned learning rate can go down further"):
        tuner.backward(math.nan * loss_of(model, 0))


def test_the_gradients_under_autocast_are_those_of_backward() -> None:
    model = mlp()
    tuner = ForwardTuner(torch.optim.Adam(model.parameters()), LR)
    x, y = pictures(0)
    with torch.autocast("cpu", torch.bfloat16):
        losses = [cross_entropy(model(x), y) for _ in range(2)]
    tuner.backward(losses[0])
    found = [param.grad for param in model.parameters()]
    model.zero_grad()
    losses[1].backward()  # type: ignore[no-untyped-call]
    for grad, param in zip(found, model.parameters(), strict=True):
        assert grad is not None
        assert param.grad is not None
        assert torch.equal(grad, param.grad)
    optimizer = tuner.optimizer
    optimizer.zero_grad()
    for t in range(10):
        x, y = pictures(t)
        with torch.autocast("cpu", torch.bfloat16):
            loss = cross_entropy(model(x), y)
        optimizer.zero_grad()
        tuner.backward(loss)
        optimizer.step()
    tuner.step(cross_entropy(model(x), y))
    assert math.isfinite(tuner.history[-1].gradient["lr"])


def test_the_figure_shows_the_history() -> None:
    model = network()
    tuner = ForwardTuner(torch.optim.SGD(model.parameters(), lr=0.01), LR)
    train(tuner, model, range(9), every=3)
    (trace,) = tuner.plot().data
    assert list(trace.x) == [3, 6, 9]
    assert list(trace.y) == [move.values["lr"] for move in tuner.history]
    assert tuner.get_last_lr() == [trace.y[-1]]

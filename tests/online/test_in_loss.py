"""Hyperparameters that the loss reads, against the unrolled run, finite differences, Forward()."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

import hyperopt_dl as hd
from hyperopt_dl.online import ForwardTuner
from tests.online.runs import loss_of, network, tangents

STEPS = 12
LR, MU, RHO = 0.05, 0.7, 0.3
RATE, MOMENTUM = hd.Float(1e-5, 10, log=True), hd.Float(0.1, 0.9)
MODEL = network()  # for its form; it is not trained
LINEAR, LOG = hd.Float(0.0, 2.0), hd.Float(1e-3, 2.0, log=True)


def scalar(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.double, requires_grad=True)


def loss(model: Callable[[Tensor], Tensor], rho: Tensor, t: int) -> Tensor:
    """The main task, and ρ times another that is not linear in the weights nor in ρ."""
    x = torch.linspace(-1, 1, 15, dtype=torch.double).view(5, 3) + 0.1 * t
    return loss_of(model, t) + rho * (1 + rho) * (model(x).sin() - 0.2).square().mean()


def unrolled(u: Tensor) -> Tensor:
    """The weights after the run as a function of lr, momentum and ρ, heavy ball by hand."""
    lr, momentum, rho = u
    model = network()
    names = [name for name, _ in model.named_parameters()]
    params = [p.detach().clone().requires_grad_() for p in model.parameters()]
    buffers = [torch.zeros_like(p) for p in params]
    for t in range(STEPS):
        weights = dict(zip(names, params, strict=True))
        at = loss(lambda x, w=weights: functional_call(model, w, x), rho, t)  # type: ignore[misc]
        g = torch.autograd.grad(at, params, create_graph=True)
        buffers = [momentum * b + d for b, d in zip(buffers, g, strict=True)]
        params = [p - lr * b for p, b in zip(params, buffers, strict=True)]
    return torch.cat([p.reshape(-1) for p in params])


def tuned(rho: Tensor, dimension: hd.Float = LINEAR, **settings: Any) -> Any:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=LR, momentum=MU)
    tune = {"lr": RATE, "rho": dimension, "momentum": MOMENTUM}
    return model, ForwardTuner(optimizer, tune, in_loss={"rho": rho}, **settings)


def train(model: nn.Module, tuner: ForwardTuner, rho: Tensor, steps: range) -> None:
    for t in steps:
        tuner.optimizer.zero_grad()
        tuner.backward(loss(model, rho, t))
        tuner.optimizer.step()
        if tuner.hyper_lr and tuner.steps % 3 == 0:
            tuner.step(loss_of(model, -1))


def test_a_discount_is_on_what_lies_behind_alone() -> None:
    H = torch.tensor([[2.0, 0.5], [0.5, 1.0]], dtype=torch.double)
    rho, x = scalar(RHO), nn.Parameter(torch.tensor([3.0, -1.0], dtype=torch.double))
    tune, discount = {"rho": LINEAR}, 0.4
    tuner = ForwardTuner(
        torch.optim.SGD([x], lr=LR, momentum=MU),
        tune,
        hyper_lr=0.0,
        discount=discount,
        in_loss={"rho": rho},
    )
    z, z_b, b = (torch.zeros(2, dtype=torch.double) for _ in range(3))
    at = x.detach().clone()
    for _ in range(6):
        tuner.optimizer.zero_grad()
        tuner.backward(x @ H @ x / 2 + rho * x.square().sum() / 2)
        tuner.optimizer.step()
        A = H + RHO * torch.eye(2, dtype=torch.double)
        z_b = discount * (MU * z_b + A @ z) + 0.2 * at  # dg/du, u in tenths of [0, 2]
        z = discount * z - LR * z_b
        b = MU * b + A @ at
        at = at - LR * b
        torch.testing.assert_close(tangents(tuner)[0], z, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize(("dimension", "slope"), [(LINEAR, 0.2), (LOG, RHO)])
def test_the_tangents_are_the_derivative_of_the_unrolled_run(
    dimension: hd.Float, slope: float
) -> None:
    rho = scalar(RHO)
    model, tuner = tuned(rho, dimension, hyper_lr=0.0)
    train(model, tuner, rho, range(STEPS))
    u = torch.tensor([LR, MU, RHO], dtype=torch.double, requires_grad=True)
    by_lr, by_momentum, by_rho = torch.stack(
        [torch.autograd.grad(w, u, retain_graph=True)[0] for w in unrolled(u)], dim=1
    )
    expected = torch.stack([LR * by_lr, slope * by_rho, 0.08 * by_momentum])
    assert (expected.norm(dim=1) > 1e-3).all()
    assert rho.grad is None
    torch.testing.assert_close(tangents(tuner), expected, rtol=1e-10, atol=1e-10)


def test_the_tangents_are_finite_differences_of_the_run() -> None:
    ends = []
    for value in (RHO - 1e-5, RHO + 1e-5):
        u = torch.tensor([LR, MU, value], dtype=torch.double, requires_grad=True)
        ends.append(unrolled(u).detach())
    rho = scalar(RHO)
    model, tuner = tuned(rho, hyper_lr=0.0)
    train(model, tuner, rho, range(STEPS))
    torch.testing.assert_close(
        tangents(tuner)[1], 0.2 * (ends[1] - ends[0]) / 2e-5, rtol=1e-6, atol=1e-8
    )


class Run:
    """The same run as a `Training`, for `Forward`."""

    steps = STEPS

    def init(self, hparams: hd.HParams, *, seed: int, device: torch.device | str) -> hd.State:
        weights = dict(network().named_parameters())
        start = {name: p.detach().clone() for name, p in weights.items()}
        return start | {f"b.{name}": torch.zeros_like(p) for name, p in start.items()}

    def step(self, state: hd.State, hparams: hd.HParams, t: int) -> hd.State:
        weights = {name: p for name, p in state.items() if not name.startswith("b.")}
        slope = torch.func.grad(lambda w: loss(self.model(w), hparams["rho"], t))(weights)
        after: hd.State = {}
        for name, p in weights.items():
            after[f"b.{name}"] = hparams["momentum"] * state[f"b.{name}"] + slope[name]
            after[name] = p - hparams["lr"] * after[f"b.{name}"]
        return after

    def loss(self, state: hd.State, hparams: hd.HParams) -> Tensor:
        weights = {name: p for name, p in state.items() if not name.startswith("b.")}
        return loss(self.model(weights), hparams["rho"], -1)

    @staticmethod
    def model(weights: hd.State) -> Callable[[Tensor], Tensor]:
        return lambda x: functional_call(MODEL, weights, x)


def test_the_hypergradient_is_that_of_forward_where_the_validation_loss_reads_it_too() -> None:
    values = {"lr": LR, "momentum": MU, "rho": RHO}
    hparams = {name: torch.tensor(v, dtype=torch.double) for name, v in values.items()}
    _, gradient = hd.hypergradient(
        Run(), hparams, estimator=hd.hypergrad.Forward(), seed=0, device="cpu"
    )
    rho = scalar(RHO)
    model, tuner = tuned(rho, hyper_lr=0.0)
    train(model, tuner, rho, range(STEPS))
    tuner.step(loss(model, rho, -1))
    found = tuner.history[-1].gradient
    assert found["lr"] == pytest.approx(LR * float(gradient["lr"]), rel=1e-10)
    assert found["momentum"] == pytest.approx(0.08 * float(gradient["momentum"]), rel=1e-10)
    assert found["rho"] == pytest.approx(0.2 * float(gradient["rho"]), rel=1e-10)


@pytest.mark.parametrize(("pull", "expected"), [(-5.0, [0.04, 0.06]), (5.0, [0.0, 0.0])])
def test_a_tensor_moves_against_its_hypergradient_and_stays_within_bounds(
    pull: float, expected: list[float]
) -> None:
    rho = scalar(0.02)
    model, tuner = tuned(rho)
    found = []
    for t in range(2):
        train(model, tuner, rho, range(t, t + 1))
        tuner.step(loss_of(model, -1) + pull * rho)  # its slope in rho is nearly that of pull
        found.append(float(rho.detach()))
    assert found == pytest.approx(expected, abs=1e-3)
    assert [move.values["rho"] for move in tuner.history] == found


def test_a_tuner_that_is_resumed_goes_on_as_if_it_had_not_stopped() -> None:
    ends = []
    for stop in (False, True):
        rho = scalar(RHO)
        model, tuner = tuned(rho)
        train(model, tuner, rho, range(6))
        if stop:
            kept = model.state_dict(), tuner.optimizer.state_dict(), tuner.state_dict()
            rho = scalar(1.9)
            model, tuner = tuned(rho)
            for part, state in zip((model, tuner.optimizer, tuner), kept, strict=True):
                part.load_state_dict(state)
        train(model, tuner, rho, range(6, 20))
        ends.append((tangents(tuner), rho.detach(), tuner.history))
    torch.testing.assert_close(ends[0][:2], ends[1][:2], rtol=0, atol=0)
    assert ends[0][2] == ends[1][2]


@pytest.mark.parametrize(
    ("tensors", "tune", "settings", "message"),
    [
        ({"rho": scalar(0.1)}, {"lr": RATE}, {}, "tune must name the dimension"),
        ({"rho": torch.tensor(0.1)}, {"rho": LINEAR}, {}, "leaf tensor that requires"),
        ({"rho": 0.1}, {"rho": LINEAR}, {}, "leaf tensor that requires"),
        ({"rho": torch.ones(1, requires_grad=True)}, {"rho": LINEAR}, {}, "0-dim leaf"),
        ({"rho": 2 * scalar(0.1)}, {"rho": LINEAR}, {}, "0-dim leaf"),
        ({"lr": scalar(0.1)}, {"lr": RATE}, {}, "not be named as an option"),
        ({"lr@0": scalar(0.1)}, {"lr@0": RATE}, {}, "not be named as an option"),
        ({"rho": scalar(0.1)}, {"rho": LINEAR}, {"discount": 0.0}, "discount above 0"),
    ],
)
def test_what_cannot_be_tuned_is_refused(
    tensors: Any, tune: Any, settings: Any, message: str
) -> None:
    optimizer = torch.optim.SGD(network().parameters(), lr=LR)
    with pytest.raises(hd.TrainingError, match=message):
        ForwardTuner(optimizer, tune, in_loss=tensors, **settings)


@pytest.mark.parametrize(
    ("dimension", "message"),
    [(hd.Int(0, 2), "a Float without a step"), (hd.Float(0.5, 1), "must start inside")],
)
def test_a_dimension_that_does_not_fit_the_tensor_is_refused(dimension: Any, message: str) -> None:
    with pytest.raises(hd.SpaceError, match=message):
        tuned(scalar(RHO), dimension)


def test_a_loss_that_does_not_read_the_tensor_is_found_out() -> None:
    model, tuner = tuned(scalar(RHO))
    with pytest.raises(hd.TrainingError, match=r"depend on every tensor.*\['rho'\]"):
        tuner.backward(loss_of(model, 0))

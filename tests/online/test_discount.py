"""The discount that adapts itself, against the recursion written out."""

import copy
import math

import pytest
import torch
from torch import Tensor, nn

import hyperopt_dl as hd
from hyperopt_dl.online import ForwardTuner
from hyperopt_dl.online.discount import adapted

RATE = hd.Float(1e-5, 10, log=True)
H = torch.tensor([[2.0, 0.5], [0.5, 1.0]], dtype=torch.double)
C = torch.tensor([1.0, -2.0], dtype=torch.double)
MOMENTUM = 0.6


@pytest.mark.parametrize(
    ("before", "rate", "agreement", "after"),
    [
        ((0.0, 0.0), 0.1, 0.4, (0.25, 0.0)),
        ((0.25, 0.0), 0.1, 0.4, (0.25 ** (1 / 1.25), 0.25)),  # the root takes it towards 1
        ((1.0, 3.0), 0.1, 0.4, (0.25 ** (1 / 5), 4.0)),
        ((0.5, 2.0), 0.1, 0.01, (1.0, 2.5)),
        ((0.5, 2.0), 0.1, -0.01, (0.0, 2.5)),  # they disagree: the past is forgotten
        ((0.0, 2.5), 0.1, 0.4, (0.25, 0.0)),  # and so is how long it had been good
        ((0.5, 1.0), 0.1, 0.0, (1.0, 1.5)),
    ],
)
def test_one_adaptation(
    before: tuple[float, float], rate: float, agreement: float, after: tuple[float, float]
) -> None:
    assert adapted(*before, rate, agreement) == pytest.approx(after, rel=1e-14)


def quadratic(x: Tensor) -> Tensor:
    value: Tensor = x @ H @ x / 2 - C @ x
    return value


def validation(x: Tensor) -> Tensor:
    return 0.05 * (x**3).sum() + (x[0] - 1) * x[1]


def slope(x: Tensor) -> Tensor:
    return 0.15 * x**2 + torch.stack([x[1], x[0] - 1])


def test_the_recursion_of_two_rates_with_discounts_of_their_own() -> None:
    starts = torch.tensor([[3.0], [-1.0]], dtype=torch.double)
    x: list[Tensor] = [nn.Parameter(start) for start in starts]
    groups = [{"params": [x[0]], "lr": 0.1}, {"params": [x[1]], "lr": 0.04}]
    optimizer = torch.optim.SGD(groups, momentum=MOMENTUM)
    tune = {"lr@1": RATE, "lr@0": RATE}  # row 0 is group 1
    tuner = ForwardTuner(optimizer, tune, hyper_lr=0.0, discount="adaptive")
    at, b = torch.tensor([3.0, -1.0], dtype=torch.double), torch.zeros(2, dtype=torch.double)
    rates = torch.tensor([0.1, 0.04], dtype=torch.double)
    z, z_b = torch.zeros(2, 2, dtype=torch.double), torch.zeros(2, 2, dtype=torch.double)
    own, seen = {0: (0.0, 0.0), 1: (0.0, 0.0)}, set[bool]()
    for _ in range(12):
        optimizer.zero_grad()
        tuner.backward(quadratic(torch.cat(x)))
        optimizer.step()
        g = H @ at - C
        b = MOMENTUM * b + g
        for k in (0, 1):  # row k: derivatives in the log of rate k
            mu = own[k][0]
            z_b[k] = mu * (MOMENTUM * z_b[k] + H @ z[k])
            z[k] = mu * z[k] - rates * z_b[k]
            z[k, k] -= rates[k] * b[k]
        at = at - rates * b
        tuner.step(validation(torch.cat(x)))
        e = slope(at)
        for k, name in ((0, "lr@0"), (1, "lr@1")):
            expected = float(e @ z[k])
            assert tuner.history[-1].gradient[name] == pytest.approx(expected, rel=1e-12, abs=1e-13)
            own[k] = adapted(*own[k], float(rates[k]), float(e[k] * g[k]))
            seen.add(own[k][0] == 0)
    assert seen == {True, False}


def test_a_resumed_run_adapts_as_an_uninterrupted_one() -> None:
    ends = []
    for stops in (False, True):
        x = nn.Parameter(torch.tensor([3.0, -1.0], dtype=torch.double))
        optimizer = torch.optim.Adam([x], lr=0.1)
        tuner = ForwardTuner(optimizer, {"lr": RATE}, discount="adaptive")
        for t in range(10):
            if stops and t == 5:
                states = copy.deepcopy((optimizer.state_dict(), tuner.state_dict()))
                x = nn.Parameter(x.detach().clone())
                optimizer = torch.optim.Adam([x], lr=0.1)
                tuner = ForwardTuner(optimizer, {"lr": RATE}, discount="adaptive")
                optimizer.load_state_dict(states[0])
                tuner.load_state_dict(states[1])
            optimizer.zero_grad()
            tuner.backward(quadratic(x))
            optimizer.step()
            tuner.step(validation(x))
        ends.append((x.detach(), tuner.history))
    assert torch.equal(ends[0][0], ends[1][0])
    assert ends[0][1] == ends[1][1]


def test_after_a_divergence_it_begins_anew() -> None:
    def run(diverges: bool) -> tuple[ForwardTuner, nn.Parameter]:
        x = nn.Parameter(torch.tensor([3.0, -1.0], dtype=torch.double))
        tuner = ForwardTuner(torch.optim.SGD([x], lr=0.05), {"lr": RATE}, discount="adaptive")
        for t in range(4):
            tuner.optimizer.zero_grad()
            tuner.backward(quadratic(x) * (math.nan if diverges and t == 3 else 1))
            tuner.optimizer.step()
            tuner.step(validation(x))
        return tuner, x

    assert run(diverges=False)[0].state_dict()["discounts"] != [(0.0, 0.0)]
    assert run(diverges=True)[0].state_dict()["discounts"] == [(0.0, 0.0)]


def test_only_learning_rates_have_one() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1, momentum=0.5)
    tune = {"lr": RATE, "momentum": hd.Float(0.1, 0.9)}
    with pytest.raises(hd.TrainingError, match=r"learning rates alone, got \['momentum'\]"):
        ForwardTuner(optimizer, tune, discount="adaptive")

"""The moves against torch's Adam, and the coordinates that they are made in."""

import math

import pytest
import torch
from torch import nn

import hyperopt_dl as hd
from hyperopt_dl.online import ForwardTuner
from hyperopt_dl.online.coordinates import Coordinate
from hyperopt_dl.online.moves import BETA1, BETA2, EPS, at_rest, next_move

SEQUENCE = [(0.3, -2.0), (-0.1, 0.0), (5.0, 4.0), (0.0, 1e-9), (0.2, 0.2)]


def test_moves_are_those_of_adam_times_its_ratio_of_signal_to_noise() -> None:
    u = nn.Parameter(torch.zeros(2, dtype=torch.double))
    adam = torch.optim.Adam([u], lr=1.0, betas=(BETA1, BETA2), eps=EPS)
    moments = at_rest(2)
    for h in SEQUENCE:
        u.grad = torch.tensor(h, dtype=torch.double)
        before = u.detach().clone()
        adam.step()
        r = u.detach() - before
        by, moments = next_move(moments, h, hyper_lr=0.05, clip=math.inf, trust=math.inf)
        assert by == pytest.approx((0.05 * r * r.abs().clamp(max=1)).tolist(), rel=1e-9)


def test_steady_hypergradients_move_by_hyper_lr_and_noise_by_a_tenth_of_that() -> None:
    draws = torch.Generator().manual_seed(0)
    for scale in (1e-6, 1.0, 1e6):
        steady, noisy, lengths = at_rest(1), at_rest(1), []
        for _ in range(300):
            by, steady = next_move(steady, (scale,), hyper_lr=0.1, clip=math.inf, trust=1.0)
            assert by == pytest.approx((-0.1,), rel=1e-5)
            h = scale * torch.randn((), generator=draws).item()
            by, noisy = next_move(noisy, (h,), hyper_lr=0.1, clip=math.inf, trust=1.0)
            lengths.append(abs(by[0]))
        assert sum(lengths[100:]) / 200 < 0.015


def test_a_long_hypergradient_counts_as_a_short_one_of_its_direction() -> None:
    for long, short in (((30.0, -40.0), (0.6, -0.8)), ((0.3, 0.4), (0.3, 0.4))):
        found, expected = (
            next_move(at_rest(2), h, hyper_lr=0.1, clip=1.0, trust=1.0)[1] for h in (long, short)
        )
        assert found.m == pytest.approx(expected.m, rel=1e-12)


def test_no_move_is_longer_than_the_trust_region() -> None:
    by, _ = next_move(at_rest(2), (1.0, -1.0), hyper_lr=9.0, clip=1.0, trust=0.25)
    assert by == (-0.25, 0.25)


def test_a_hypergradient_of_0_is_no_move() -> None:
    assert next_move(at_rest(1), (0.0,), hyper_lr=0.1, clip=1.0, trust=1.0)[0] == (0.0,)


@pytest.mark.parametrize(
    ("dimension", "value", "by", "expected"),
    [
        (hd.Float(1e-3, 1.0, log=True), 0.1, math.log(2), 0.2),
        (hd.Float(1e-3, 1.0, log=True), 0.1, 9.0, 1.0),
        (hd.Float(1e-3, 1.0, log=True), 0.1, -9.0, 1e-3),
        (hd.Float(0.5, 0.9), 0.6, 2.0, 0.68),
        (hd.Float(0.5, 0.9), 0.6, -9.0, 0.5),
    ],
)
def test_a_coordinate_moves_inside_its_bounds(
    dimension: hd.Float, value: float, by: float, expected: float
) -> None:
    coordinate = Coordinate("lr", "lr", (0,), dimension)
    assert coordinate.moved(value, by) == pytest.approx(expected, rel=1e-12)
    assert coordinate.moved(value, 0.0) == value


@pytest.mark.parametrize("dimension", [hd.Float(1e-3, 1.0, log=True), hd.Float(0.05, 0.9)])
def test_the_slope_is_that_of_the_move(dimension: hd.Float) -> None:
    coordinate = Coordinate("lr", "lr", (0,), dimension)
    h = 1e-6
    difference = (coordinate.moved(0.3, h) - coordinate.moved(0.3, -h)) / (2 * h)
    assert coordinate.slope(0.3) == pytest.approx(difference, rel=1e-8)


def test_a_shared_name_moves_every_group_by_the_same_factor_and_a_beta_its_own_place() -> None:
    x, y = (nn.Parameter(torch.tensor([2.0], dtype=torch.double)) for _ in range(2))
    groups = [{"params": [x], "lr": 0.01}, {"params": [y], "lr": 0.04, "betas": (0.8, 0.95)}]
    optimizer = torch.optim.Adam(groups)
    tune = {
        "lr": hd.Float(1e-5, 10, log=True),
        "betas[0]@1": hd.Float(0.5, 0.99),
        "betas[1]@1": hd.Float(0.5, 0.9999),
    }
    tuner = ForwardTuner(optimizer, tune)
    for _ in range(3):
        optimizer.zero_grad()
        tuner.backward((x**2 + y**2).sum())
        optimizer.step()
        tuner.step((x**2 + y**2).sum())
    first, second = optimizer.param_groups
    assert first["lr"] > 0.01
    assert second["lr"] / first["lr"] == pytest.approx(4)
    assert first["betas"] == (0.9, 0.999)
    values = tuner.history[-1].values
    assert second["betas"] == (values["betas[0]@1"], values["betas[1]@1"]) != (0.8, 0.95)

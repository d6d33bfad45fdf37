"""The compression of heavy tails: its shape, and its Jacobian against differentiation."""

from typing import Any

import pytest
import torch

from hyperopt_dl.gp.warp import compressing, plain

LOSSES = torch.tensor([1.0, 1.5, 2.0, 3.0, 4.0, 60.0, 9000.0], dtype=torch.double)


def test_both_warps_standardise_and_negate() -> None:
    for warp in (plain(LOSSES), compressing(LOSSES)):
        assert warp is not None
        z = warp(LOSSES)
        assert float(z.mean()) == pytest.approx(0, abs=1e-12)
        assert float(z.std(correction=0)) == pytest.approx(1)
        assert bool((z.diff() < 0).all())


def test_the_better_half_keeps_its_proportions() -> None:
    warp = compressing(LOSSES)
    assert warp is not None
    z = warp(LOSSES)
    steps = z[:4].diff() / LOSSES[:4].diff()
    torch.testing.assert_close(steps, steps[0].expand(3))


def test_the_tail_becomes_a_logarithm() -> None:
    """Median 3, spread 2: 60 and 9000 lie log(29.5) and log(4499.5) spreads above the median."""
    warp = compressing(LOSSES)
    assert warp is not None
    z = warp(LOSSES)
    ratio = float((z[5] - z[3]) / (z[6] - z[3]))
    assert ratio == pytest.approx(
        torch.tensor([29.5, 4499.5]).log().div(8.411721).tolist()[0], 1e-5
    )


@pytest.mark.parametrize("kind", [plain, compressing])
def test_the_jacobian_is_the_derivative(kind: object) -> None:
    assert callable(kind)
    warp = kind(LOSSES)
    y = (LOSSES + 0.01).requires_grad_()  # beside the median, where the second derivative jumps
    (slope,) = torch.autograd.grad(warp(y).sum(), y)
    assert warp.log_jacobian(y.detach()) == pytest.approx(float(slope.abs().log().sum()))


def test_losses_without_a_tail_are_not_compressed() -> None:
    assert compressing(torch.linspace(0, 1, 9, dtype=torch.double)) is None
    assert compressing(torch.ones(5, dtype=torch.double)) is None


def test_equal_losses_are_all_average() -> None:
    losses = torch.full((4,), 7.0, dtype=torch.double)
    assert plain(losses)(losses).tolist() == [0.0] * 4


@pytest.mark.parametrize("make", [plain, compressing])
def test_the_slope_is_the_derivative_and_makes_the_jacobian(make: Any) -> None:
    losses = torch.tensor([0.1, 0.2, 0.3, 0.5, 9.0, 40.0, 700.0], dtype=torch.double)
    warp = make(losses)
    y = torch.tensor([0.05, 0.4, 2.0, 1e3], dtype=torch.double, requires_grad=True)
    (expected,) = torch.autograd.grad(warp(y).sum(), y)
    torch.testing.assert_close(warp.slope(y.detach()), expected)
    jacobian = warp.slope(losses).neg().log().sum()
    assert warp.log_jacobian(losses) == pytest.approx(float(jacobian), rel=1e-6)

"""The kernel against GPyTorch, against loops over pairs of points, and at coinciding points."""

import math

import gpytorch
import pytest
import torch
from torch import Tensor

from hyperopt_dl.gp.kernel import Family, Kernel, correlation, slope, stack

FAMILIES: list[Family] = ["matern52", "rbf"]
GROUPS = [[0, 1, 2, 3, 4], [1, 3], [0, 2, 4]]


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.double)


def masks_of(groups: list[list[int]], D: int) -> Tensor:
    masks = torch.zeros(len(groups), D, dtype=torch.double)
    for g, group in enumerate(groups):
        masks[g, group] = 1
    return masks


def kernel_of(
    groups: list[list[int]] = GROUPS, family: Family = "matern52", categorical: tuple[int, ...] = ()
) -> Kernel:
    D = 1 + max(d for group in groups for d in group)
    flags = torch.zeros(D, dtype=torch.bool)
    flags[list(categorical)] = True
    return Kernel(
        masks=masks_of(groups, D),
        scales=20 * draw(len(groups), D, seed=1) + 0.1,
        weights=draw(len(groups), seed=2) + 0.1,
        noise=torch.tensor(0.01, dtype=torch.double),
        categorical=flags,
        family=family,
    )


def by_pairs(kernel: Kernel, x1: Tensor, x2: Tensor) -> Tensor:
    """The definition, one pair of points and one component at a time."""
    parts = torch.zeros(len(kernel.weights), len(x1), len(x2), dtype=torch.double)
    for g, w in enumerate(kernel.weights.tolist()):
        for i, p in enumerate(x1.tolist()):
            for j, q in enumerate(x2.tolist()):
                r2 = 0.0
                for d, a in enumerate(kernel.scales[g].tolist()):
                    apart = float(p[d] != q[d]) if kernel.categorical[d] else (p[d] - q[d]) ** 2
                    r2 += float(kernel.masks[g, d]) * a * apart
                r = math.sqrt(5 * r2)
                matern = (1 + r + r * r / 3) * math.exp(-r)
                parts[g, i, j] = w * (matern if kernel.family == "matern52" else math.exp(-r2 / 2))
    return parts


def mixed(n: int, seed: int) -> Tensor:
    """Points whose dimensions 1 and 4 are categorical, with three and two choices."""
    x = draw(n, 5, seed=seed)
    x[:, 1] = (3 * x[:, 1]).floor()
    x[:, 4] = (2 * x[:, 4]).floor()
    return x


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("categorical", [(), (1, 4)], ids=["continuous", "mixed"])
def test_the_parts_are_those_of_the_definition(
    family: Family, categorical: tuple[int, ...]
) -> None:
    kernel = kernel_of(family=family, categorical=categorical)
    x1, x2 = mixed(7, seed=3), mixed(4, seed=4)
    torch.testing.assert_close(kernel.parts(x1, x2), by_pairs(kernel, x1, x2), rtol=0, atol=1e-13)


def test_every_dimension_may_be_categorical() -> None:
    kernel = kernel_of([[0, 1], [1]], categorical=(0, 1))
    x = torch.tensor([[0.0, 2.0], [1.0, 2.0], [0.0, 5.0]], dtype=torch.double)
    torch.testing.assert_close(kernel.parts(x, x), by_pairs(kernel, x, x), rtol=0, atol=1e-14)


def test_a_choice_is_compared_by_equality_not_by_distance() -> None:
    kernel = kernel_of([[0]], categorical=(0,))
    x = torch.tensor([[0.0], [1.0], [7.0]], dtype=torch.double)
    covariance = kernel(x[:1], x)[0]
    assert covariance[1] == covariance[2] < covariance[0]


@pytest.mark.parametrize("family", FAMILIES)
def test_one_component_is_gpytorchs_ard_kernel(family: Family) -> None:
    ours = kernel_of([[0, 1, 2, 3]], family)
    make = {"matern52": gpytorch.kernels.MaternKernel, "rbf": gpytorch.kernels.RBFKernel}[family]
    theirs = gpytorch.kernels.ScaleKernel(make(ard_num_dims=4)).double()
    theirs.base_kernel.lengthscale = ours.scales.rsqrt()
    theirs.outputscale = ours.weights[0]
    x1, x2 = draw(9, 4, seed=3), draw(6, 4, seed=4)
    wanted = theirs(x1, x2).to_dense().detach()
    torch.testing.assert_close(ours(x1, x2), wanted, rtol=0, atol=1e-12)


def test_the_sum_and_the_variance_are_those_of_the_parts() -> None:
    kernel, x = kernel_of(), draw(6, 5)
    parts = kernel.parts(x, x)
    torch.testing.assert_close(kernel(x, x), parts[0] + parts[1] + parts[2])
    torch.testing.assert_close(kernel(x, x).diagonal(), kernel.variance.expand(6))


def test_points_that_nearly_coincide_keep_their_distance() -> None:
    kernel = kernel_of([[0]])
    near = torch.tensor([[0.9], [0.9 + 1e-6]], dtype=torch.double)
    wanted = kernel.scales.item() * 1e-12
    assert kernel.squared_distances(near, near)[0, 0, 1].item() == pytest.approx(wanted, abs=1e-14)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("r2", [0.0, 1e-12, 0.3, 9.0])
def test_the_slope_is_the_derivative_of_the_correlation(family: Family, r2: float) -> None:
    at = torch.tensor(r2, dtype=torch.double, requires_grad=True)
    (gradient,) = torch.autograd.grad(correlation(at, family), at)
    step = 1e-5
    line = torch.tensor([r2 + step * i for i in (0, 1, 2)], dtype=torch.double)
    k = correlation(line, family)
    one_sided = (-1.5 * k[0] + 2 * k[1] - 0.5 * k[2]) / step
    assert gradient.item() == pytest.approx(slope(at, family).item(), abs=1e-15)
    assert gradient.item() == pytest.approx(one_sided.item(), abs=2e-3 if r2 < 1e-6 else 1e-7)


@pytest.mark.parametrize("family", FAMILIES)
def test_first_and_second_derivatives_in_the_points_are_right(family: Family) -> None:
    kernel = kernel_of(family=family, categorical=(1,))
    x1 = mixed(3, seed=3).requires_grad_()
    x2 = mixed(2, seed=4)
    assert torch.autograd.gradcheck(lambda x: kernel(x, x2), (x1,))
    assert torch.autograd.gradgradcheck(lambda x: kernel(x, x2), (x1,))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_point_on_another_has_gradient_zero_and_a_finite_curvature(family: Family) -> None:
    kernel = kernel_of([[0, 1]], family)
    x = draw(1, 2).requires_grad_()
    (gradient,) = torch.autograd.grad(kernel(x, x.detach()).sum(), x, create_graph=True)
    assert gradient.abs().max() < 1e-14
    hessian = torch.stack([torch.autograd.grad(g, x, retain_graph=True)[0][0] for g in gradient[0]])
    curvature = -5 / 3 if family == "matern52" else -1.0  # 2 dκ/d(r²) at 0
    wanted = torch.diag(curvature * kernel.weights[0] * kernel.scales[0])
    torch.testing.assert_close(hessian, wanted, rtol=1e-12, atol=1e-10)


def test_a_batch_of_structures_is_a_loop_over_them() -> None:
    one, two = kernel_of(GROUPS), kernel_of([[0, 1, 2, 3, 4], [2]])
    both, x1, x2 = stack([one, two]), mixed(5, seed=3), mixed(4, seed=4)
    torch.testing.assert_close(both(x1, x2), torch.stack([one(x1, x2), two(x1, x2)]))
    assert both.parts(x1, x2).shape == (2, 3, 5, 4)
    torch.testing.assert_close(both[1](x1, x2), two(x1, x2))
    torch.testing.assert_close(both.variance, torch.stack([one.variance, two.variance]))


def test_points_have_batches_too() -> None:
    both = stack([kernel_of(), kernel_of([[0, 1, 2, 3, 4]])])
    x1, x2 = draw(3, 1, 5, 5, seed=5), draw(2, 4, 5, seed=6)
    covariance = both(x1, x2)
    assert covariance.shape == (3, 2, 5, 4)
    torch.testing.assert_close(covariance[2, 1], both[1](x1[2, 0], x2[1]))


def test_reordering_the_dimensions_changes_nothing() -> None:
    kernel, order = kernel_of(categorical=(1, 4)), torch.tensor([3, 0, 4, 2, 1])
    x1, x2 = mixed(5, seed=3), mixed(4, seed=4)
    moved = Kernel(
        kernel.masks[:, order],
        kernel.scales[:, order],
        kernel.weights,
        kernel.noise,
        kernel.categorical[order],
    )
    torch.testing.assert_close(moved(x1[:, order], x2[:, order]), kernel(x1, x2))


def test_the_kernel_can_be_vmapped() -> None:
    kernel, x1, x2 = kernel_of(), draw(3, 5, 5, seed=5), draw(4, 5, seed=6)
    torch.testing.assert_close(torch.vmap(lambda x: kernel(x, x2))(x1), kernel(x1, x2))

"""Squared distances against their definition, with the radius and without, on both sides of the
number of columns that decides whether components read all of them."""

import pytest
import torch
from torch import Tensor

from hyperopt_dl.gp.distances import MANY, columns_read, distances_to

CHOICES = 3


def definition(x: Tensor, points: Tensor, a: Tensor, categorical: Tensor) -> Tensor:
    """Return ``[b, G, m, n]``, a dimension at a time."""
    r2 = torch.zeros(*a.shape[:-1], x.shape[-2], points.shape[-2], dtype=x.dtype)
    for d, different in enumerate(categorical.tolist()):
        gap = x[..., :, None, d] - points[..., None, :, d]
        delta = (gap != 0).to(x) if different else gap.square()
        r2 += a[..., d, None, None] * delta.unsqueeze(-3)
    if a.shape[-1] > len(categorical):
        gap = rho(x, categorical).unsqueeze(-1) - rho(points, categorical).unsqueeze(-2)
        r2 += a[..., -1, None, None] * gap.square().unsqueeze(-3)
    return r2


def rho(x: Tensor, categorical: Tensor) -> Tensor:
    """Return ``[b, m]``: 0 in the middle of the cube, 1 in its corners."""
    return (2 * x[..., ~categorical] - 1).square().mean(-1).nan_to_num()


def case(
    D: int, categorical: list[int], has_radius: bool = False, b: int = 2
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return points x and X, the scales of a component of everything and five groups, and flags.

    With the radius, the empty group reads it.
    """
    random = torch.Generator().manual_seed(D)
    x = torch.rand(b, 4, D, generator=random, dtype=torch.float64)
    points = torch.rand(b, 7, D, generator=random, dtype=torch.float64)
    flags = torch.zeros(D, dtype=torch.bool)
    flags[categorical] = True
    for some in (x, points):
        some[..., flags] = (CHOICES * some[..., flags]).floor()
    group = torch.randint(5, (b, 1, D), generator=random)
    masks = (group == torch.arange(5).unsqueeze(-1)).to(x)
    masks[:, 4] = 0  # an empty component pads a batch
    masks = torch.cat([torch.ones(b, 1, D, dtype=torch.float64), masks], 1)
    a = masks * torch.rand(b, 6, D, generator=random, dtype=torch.float64)
    if has_radius:
        column = torch.zeros(b, 6, 1, dtype=torch.float64)
        column[:, 5] = 2.0
        a = torch.cat([a, column], -1)
    return x, points, a, flags


CASES = [
    pytest.param(5, [], False, id="few columns"),
    pytest.param(5, [1, 4], False, id="few columns, some categorical"),
    pytest.param(MANY + 8, [], False, id="many columns"),
    pytest.param(MANY + 8, [0, 20], False, id="many columns, some categorical"),
    pytest.param(5, [1, 4], True, id="few columns, radius"),
    pytest.param(MANY + 8, [0, 20], True, id="many columns, radius"),
    pytest.param(2, [0, 1], True, id="radius of nothing"),
]


@pytest.mark.parametrize(("D", "categorical", "has_radius"), CASES)
def test_distances_are_those_of_the_definition(
    D: int, categorical: list[int], has_radius: bool
) -> None:
    x, points, a, flags = case(D, categorical, has_radius)
    found = distances_to(points, a, flags)(x)
    torch.testing.assert_close(found, definition(x, points, a, flags), rtol=0, atol=1e-13)


@pytest.mark.parametrize("D", [5, MANY + 8])
def test_a_choice_that_no_point_has_differs_from_all_of_them(D: int) -> None:
    x, points, a, flags = case(D, [2])
    x[..., 2] = CHOICES
    found = distances_to(points, a, flags)(x)
    torch.testing.assert_close(found, definition(x, points, a, flags), rtol=0, atol=1e-13)


@pytest.mark.parametrize(("D", "categorical", "has_radius"), CASES)
def test_the_same_points_serve_kernels_of_a_batch(
    D: int, categorical: list[int], has_radius: bool
) -> None:
    x, points, a, flags = case(D, categorical, has_radius)
    found = distances_to(points[0], a, flags)(x[0])
    wanted = definition(x[:1], points[:1], a, flags)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-13)


@pytest.mark.parametrize(("D", "categorical", "has_radius"), CASES)
def test_the_pull_is_the_derivative(D: int, categorical: list[int], has_radius: bool) -> None:
    x, points, a, flags = case(D, categorical, has_radius)
    cotangent = torch.rand(2, 6, 4, 7, dtype=torch.float64)
    at = x.clone().requires_grad_()
    (cotangent * definition(at, points, a, flags)).sum().backward()  # type: ignore[no-untyped-call]
    assert at.grad is not None
    found = distances_to(points, a, flags).pull(x, cotangent)
    torch.testing.assert_close(found, at.grad[..., ~flags], rtol=0, atol=1e-12)


@pytest.mark.parametrize("has_radius", [False, True])
@pytest.mark.parametrize("D", [5, MANY + 8])
def test_autograd_goes_through_both_sets_of_points(D: int, has_radius: bool) -> None:
    x, points, a, flags = case(D, [], has_radius)
    gradients = []
    for distances in (definition, lambda x, X, a, flags: distances_to(X, a, flags)(x)):
        at, to = x.clone().requires_grad_(), points.clone().requires_grad_()
        gradients.append(torch.autograd.grad(distances(at, to, a, flags).cos().sum(), (at, to)))
    torch.testing.assert_close(gradients[1], gradients[0], rtol=0, atol=1e-12)


def test_many_components_of_a_dimension_each_read_it_alone() -> None:
    D = MANY + 8
    a = torch.cat([torch.ones(1, D), torch.eye(D)]).double()
    distances = distances_to(torch.rand(3, D).double(), a, torch.zeros(D, dtype=torch.bool))
    assert distances.others.shape == (D, 1, 3)
    assert distances.reads.squeeze(-1).tolist() == list(range(D))


def test_columns_read_are_those_that_are_not_0() -> None:
    masks = torch.tensor([[0.0, 1.0, 0.0, 2.0], [0.0, 0.0, 3.0, 0.0]])
    reads = columns_read(masks)
    assert reads[0].tolist() == [1, 3]
    assert reads[1, 0].item() == 2
    assert columns_read(masks[:0]).shape == (0, 0)

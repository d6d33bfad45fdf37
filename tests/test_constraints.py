"""Projections against vertex enumeration, which decides optimality without computing a projection.

x is the projection of v on a polytope if and only if it lies in it and ``<v - x, y - x> <= 0`` for
every vertex y. For a box cut by one linear condition the vertices are few and easy to list.
"""

import itertools
import math
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hyperopt_dl import constraints
from hyperopt_dl.constraints import Constraint, project_box
from hyperopt_dl.errors import SpaceError

INF = math.inf
entries = st.lists(st.floats(-5, 5, width=32), min_size=1, max_size=4)
boxes = st.tuples(st.floats(-2, 2, width=16), st.floats(0, 4, width=16)).map(
    lambda pair: (pair[0], pair[0] + pair[1])
)
fractions = st.floats(0.01, 0.99)

# A constraint and a box that it meets.
CASES: list[tuple[Constraint, float, float]] = [
    (constraints.simplex(), -INF, INF),
    (constraints.simplex(2.0), 0.1, 1.2),
    (constraints.sum_at_most(1.5), 0.0, 1.0),
    (constraints.sum_at_most(-3.0), -INF, 0.5),
    (constraints.l1_ball(1.5), -INF, INF),
    (constraints.l1_ball(2.5), -0.25, 1.0),
    (constraints.l1_ball(2.5), 0.125, 1.0),
    (constraints.l1_ball(2.5), -1.0, -0.125),
    (constraints.nonnegative_symmetric(), -INF, INF),
    (constraints.nonnegative_symmetric(1.5), 0.0625, 0.75),
]


def condition(constraint: Constraint, x: Tensor) -> float:
    """How far x is outside the constraint (the box left aside), written down anew."""
    match constraint:
        case constraints.Simplex(total):
            return max(abs(float(x.sum()) - total), -float(x.min()))
        case constraints.SumAtMost(total):
            return float(x.sum()) - total
        case constraints.L1Ball(radius):
            return float(x.abs().sum()) - radius
        case constraints.NonNegativeSymmetric(total):
            bound = INF if total is None else total
            return max(float((x - x.mT).abs().max()), -float(x.min()), float(x.sum()) - bound)
    raise AssertionError(constraint)


def extreme_points(
    levels: Sequence[float], weights: Sequence[float], total: float, *, exact: bool = False
) -> Tensor:
    """Points of {min(levels) <= y <= max(levels), sum w|y| <= total} with all its vertices.

    Every vertex has at most one entry off the levels, and then the sum is met exactly. `exact`
    keeps only points that meet it.
    """
    found: list[tuple[float, ...]] = []
    n = len(weights)
    for corner in itertools.product(levels, repeat=n):
        size = sum(w * abs(y) for w, y in zip(weights, corner, strict=True))
        if (size <= total and not exact) or size == total:
            found.append(corner)
        for i, sign in itertools.product(range(n), (-1, 1)):
            rest = total - size + weights[i] * abs(corner[i])
            y = sign * rest / weights[i]
            if rest >= 0 and min(levels) <= y <= max(levels):
                found.append((*corner[:i], y, *corner[i + 1 :]))
    return torch.tensor(found, dtype=torch.float64)


def assert_nearest(x: Tensor, v: Tensor, points: Tensor) -> None:
    assert len(points) > 0
    assert float(((points - x) @ (v - x)).max()) <= 1e-11


@given(v=entries, box=boxes, fraction=fractions)
@settings(deadline=None, max_examples=150)
def test_simplex_projection_is_nearest_of_all_feasible_points(
    v: list[float], box: tuple[float, float], fraction: float
) -> None:
    low, high = max(box[0], 0.0), max(box[1], 0.0) + 0.125
    total = len(v) * (low + fraction * (high - low))
    constraint = constraints.simplex(total)
    constraint.check((len(v),), box[0], high)
    x = constraint.project(torch.tensor(v).double(), box[0], high)
    assert condition(constraint, x) <= 1e-12
    assert low <= x.min()
    assert x.max() <= high
    points = extreme_points((low, high), [1.0] * len(v), total, exact=True)
    assert_nearest(x, torch.tensor(v).double(), points)


@given(v=entries, box=boxes, fraction=fractions)
@settings(deadline=None, max_examples=150)
def test_sum_at_most_projection_is_nearest_of_all_feasible_points(
    v: list[float], box: tuple[float, float], fraction: float
) -> None:
    low, high = box
    total = len(v) * (low + fraction * (high - low))
    constraint = constraints.sum_at_most(total)
    constraint.check((len(v),), low, high)
    x = constraint.project(torch.tensor(v).double(), low, high)
    assert condition(constraint, x) <= 1e-12
    assert low <= x.min()
    assert x.max() <= high
    # Shifted by low, so that the entries are their own absolute values.
    points = extreme_points((0.0, high - low), [1.0] * len(v), total - len(v) * low) + low
    assert_nearest(x, torch.tensor(v).double(), points)


@given(v=entries, box=boxes, fraction=fractions)
@settings(deadline=None, max_examples=150)
def test_l1_ball_projection_is_nearest_of_all_feasible_points(
    v: list[float], box: tuple[float, float], fraction: float
) -> None:
    low, high = box
    nearest, furthest = max(low, -high, 0.0), max(-low, high)
    radius = len(v) * (nearest + fraction * (furthest - nearest)) + 0.125
    constraint = constraints.l1_ball(radius)
    constraint.check((len(v),), low, high)
    x = constraint.project(torch.tensor(v).double(), low, high)
    assert condition(constraint, x) <= 1e-12
    assert low <= x.min()
    assert x.max() <= high
    levels = (low, 0.0, high) if low <= 0 <= high else (low, high)
    points = extreme_points(levels, [1.0] * len(v), radius)
    assert_nearest(x, torch.tensor(v).double(), points)


@given(
    v=st.lists(st.floats(-5, 5, width=32), min_size=9, max_size=9), box=boxes, fraction=fractions
)
@settings(deadline=None, max_examples=60)
def test_symmetric_projection_is_nearest_of_all_feasible_matrices(
    v: list[float], box: tuple[float, float], fraction: float
) -> None:
    low, high = max(box[0], 0.0), max(box[1], 0.0) + 0.125
    total = 9 * (low + fraction * (high - low))
    constraint = constraints.nonnegative_symmetric(total)
    constraint.check((3, 3), box[0], high)
    matrix = torch.tensor(v).double().reshape(3, 3)
    x = constraint.project(matrix, box[0], high)
    assert condition(constraint, x) <= 1e-12
    assert low <= x.min()
    assert x.max() <= high
    rows, columns = torch.triu_indices(3, 3)
    weights = torch.where(rows == columns, 1.0, 2.0).tolist()
    triangles = extreme_points((low, high), weights, total)
    points = torch.zeros(len(triangles), 3, 3, dtype=torch.float64)
    points[:, rows, columns] = points[:, columns, rows] = triangles
    assert_nearest(x.reshape(9), matrix.reshape(9), points.reshape(-1, 9))


@pytest.mark.parametrize(
    ("constraint", "low", "high", "v", "x"),
    [
        (constraints.simplex(), -INF, INF, [0.5, 0.5, 2.0], [0.0, 0.0, 1.0]),
        (constraints.simplex(), 0.0, 1.0, [0.2, 0.4], [0.4, 0.6]),
        (constraints.simplex(3.0), -INF, INF, [7.0], [3.0]),
        (constraints.sum_at_most(1.0), -INF, INF, [3.0, -1.0, 2.0], [2.0, -2.0, 1.0]),
        (constraints.sum_at_most(1.0), 0.0, 1.0, [3.0, -1.0, 0.5], [1.0, 0.0, 0.0]),
        (constraints.sum_at_most(2.5), 0.0, 1.0, [1.75, 0.875, 1.0], [1.0, 0.6875, 0.8125]),
        (constraints.l1_ball(1.0), -INF, INF, [2.0, -1.5, 0.1], [0.75, -0.25, 0.0]),
        (constraints.l1_ball(2.0), -1.0, 0.5, [-0.5, 0.5], [-0.5, 0.5]),
    ],
)
def test_projections_worked_out_by_hand(
    constraint: Constraint, low: float, high: float, v: list[float], x: list[float]
) -> None:
    projected = constraint.project(torch.tensor(v, dtype=torch.float64), low, high)
    expected = torch.tensor(x, dtype=torch.float64)
    torch.testing.assert_close(projected, expected, rtol=0, atol=1e-15)


def test_symmetric_matrix_without_a_bound_is_the_positive_part_of_the_average() -> None:
    v = torch.tensor([[1.0, 4.0], [-2.0, -1.0]])
    x = constraints.nonnegative_symmetric().project(v, -INF, INF)
    torch.testing.assert_close(x, torch.tensor([[1.0, 1.0], [1.0, 0.0]]))


def test_box_projection_moves_only_what_is_outside() -> None:
    v = torch.tensor([-3.0, 0.25, 9.0])
    torch.testing.assert_close(project_box(v, 0.125, 2.0), torch.tensor([0.125, 0.25, 2.0]))


@pytest.mark.parametrize(("constraint", "low", "high"), CASES)
@pytest.mark.parametrize("scale", [0.01, 1.0, 100.0])
class TestEveryConstraint:
    def point(self, scale: float) -> Tensor:
        generator = torch.Generator().manual_seed(3)
        return scale * torch.randn(4, 4, generator=generator, dtype=torch.float64)

    def test_projection_is_feasible(
        self, constraint: Constraint, low: float, high: float, scale: float
    ) -> None:
        constraint.check((4, 4), low, high)
        x = constraint.project(self.point(scale), low, high)
        assert condition(constraint, x) <= 1e-12
        assert low <= x.min()
        assert x.max() <= high

    def test_projecting_twice_is_projecting_once(
        self, constraint: Constraint, low: float, high: float, scale: float
    ) -> None:
        once = constraint.project(self.point(scale), low, high)
        twice = constraint.project(once, low, high)
        torch.testing.assert_close(twice, once, rtol=0, atol=1e-13)

    def test_projection_commutes_with_permutations(
        self, constraint: Constraint, low: float, high: float, scale: float
    ) -> None:
        order = torch.tensor([2, 0, 3, 1])  # of rows and columns alike, which keeps symmetry
        v = self.point(scale)
        permuted = constraint.project(v[order][:, order], low, high)
        expected = constraint.project(v, low, high)[order][:, order]
        torch.testing.assert_close(permuted, expected, rtol=0, atol=1e-13)

    def test_float32_is_projected_as_precisely_as_it_can_say(
        self, constraint: Constraint, low: float, high: float, scale: float
    ) -> None:
        v = self.point(scale).float()
        x = constraint.project(v, low, high)
        assert x.dtype == torch.float32
        torch.testing.assert_close(x, constraint.project(v.double(), low, high).float())

    def test_projection_neither_writes_to_its_argument_nor_keeps_its_graph(
        self, constraint: Constraint, low: float, high: float, scale: float
    ) -> None:
        v = self.point(scale).requires_grad_()
        before = v.detach().clone()
        x = constraint.project(v, low, high)
        assert not x.requires_grad
        x.fill_(7.0)
        assert torch.equal(v.detach(), before)


@pytest.mark.parametrize(
    ("constraint", "low", "high", "shape"),
    [
        (constraints.simplex(), 0.0, 1.0, (100_000,)),
        (constraints.sum_at_most(2_000.0), 0.0, 1.0, (100_000,)),
        (constraints.l1_ball(2_000.0), -1.0, 1.0, (100_000,)),
        (constraints.nonnegative_symmetric(2_000.0), 0.0, 1.0, (300, 300)),
    ],
)
def test_a_hundred_thousand_entries_meet_their_bound(
    constraint: Constraint, low: float, high: float, shape: tuple[int, ...]
) -> None:
    v = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = constraint.project(v, low, high)
    bound = 1.0 if isinstance(constraint, constraints.Simplex) else 2_000.0
    assert abs(float(x.abs().sum()) - bound) <= 1e-12 * bound
    assert condition(constraint, x) <= 1e-12 * bound


@pytest.mark.parametrize("box", [(-INF, INF), (-2.0, 2.0), (0.0, 2.0)])
def test_simplex_is_the_same_in_every_box_that_holds_it(box: tuple[float, float]) -> None:
    v = torch.tensor([0.75, -3.0, 1.5, 1.25]).double()
    x = constraints.simplex(2.0).project(v, *box)
    torch.testing.assert_close(x, torch.tensor([0.25, 0.0, 1.0, 0.75]).double())


@pytest.mark.parametrize(
    ("constraint", "low", "high", "inside"),
    [
        (constraints.sum_at_most(1.5), 0.0, 1.0, [0.1, 0.7, 0.3]),
        (constraints.sum_at_most(-3.0), -INF, 0.5, [-2.1, 0.3, -1.3]),
        (constraints.l1_ball(1.5), -INF, INF, [0.1, -0.7, 0.3]),
        (constraints.l1_ball(2.5), 0.125, 1.0, [0.1251, 0.7, 0.3]),
        (constraints.nonnegative_symmetric(1.5), 0.0, 1.0, [[0.3, 0.1], [0.1, 0.7]]),
    ],
)
def test_a_point_inside_stays_bit_for_bit(
    constraint: Constraint, low: float, high: float, inside: list[float]
) -> None:
    v = torch.tensor(inside, dtype=torch.float64)
    assert torch.equal(constraint.project(v, low, high), v)


@pytest.mark.parametrize(("constraint", "low", "high"), CASES)
def test_nan_leaves_no_entry_that_looks_like_a_number(
    constraint: Constraint, low: float, high: float
) -> None:
    x = constraint.project(torch.full((2, 2), math.nan), low, high)
    assert bool(x.isnan().all())


def test_a_bound_that_the_box_just_meets_gives_the_corner() -> None:
    # 3 * 0.1 is greater than 0.3 in doubles.
    constraint = constraints.sum_at_most(0.3)
    constraint.check((3,), 0.1, 1.0)
    x = constraint.project(torch.tensor([5.0, 0.0, 2.0]).double(), 0.1, 1.0)
    torch.testing.assert_close(x, torch.full((3,), 0.1, dtype=torch.float64), rtol=0, atol=1e-15)


@pytest.mark.parametrize(
    ("constraint", "shape", "low", "high", "message"),
    [
        (constraints.simplex(), (3,), 0.5, 1.0, "sum to 1.5"),
        (constraints.simplex(), (3,), 0.0, 0.25, "Raise high to at least 0.33"),
        (constraints.simplex(), (3,), -2.0, -1.0, "high=-1.0"),
        (constraints.sum_at_most(1.0), (2, 2), 0.5, 1.0, "4 entries"),
        (constraints.l1_ball(1.0), (3,), 0.5, 1.0, "at least 0.5"),
        (constraints.l1_ball(1.0), (3,), -1.0, -0.5, "at least 0.5"),
        (constraints.nonnegative_symmetric(), (3,), 0.0, 1.0, "square matrix"),
        (constraints.nonnegative_symmetric(), (3, 2), 0.0, 1.0, "square matrix"),
        (constraints.nonnegative_symmetric(), (2, 2), -2.0, -1.0, "high >= 0"),
        (constraints.nonnegative_symmetric(1.0), (2, 2), 0.5, 1.0, "sum to 2.0"),
    ],
)
def test_a_constraint_that_misses_its_box_is_refused(
    constraint: Constraint, shape: tuple[int, ...], low: float, high: float, message: str
) -> None:
    with pytest.raises(SpaceError, match=message):
        constraint.check(shape, low, high)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: constraints.simplex(0.0), "total > 0"),
        (lambda: constraints.simplex(math.nan), "finite"),
        (lambda: constraints.sum_at_most(INF), "finite"),
        (lambda: constraints.sum_at_most(True), "finite number as total"),
        (lambda: constraints.l1_ball(-1.0), "radius > 0"),
        (lambda: constraints.nonnegative_symmetric(-1.0), "sum_at_most > 0"),
    ],
)
def test_a_set_that_is_none_is_refused(make: object, message: str) -> None:
    assert callable(make)
    with pytest.raises(SpaceError, match=message):
        make()


def test_constraints_are_values() -> None:
    assert constraints.simplex(2) == constraints.Simplex(2.0)
    assert hash(constraints.l1_ball(3)) == hash(constraints.l1_ball(3.0))
    assert constraints.sum_at_most(1.0) != constraints.sum_at_most(2.0)
    assert repr(constraints.nonnegative_symmetric(2)) == "NonNegativeSymmetric(sum_at_most=2.0)"

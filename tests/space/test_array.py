"""What only an Array does; what it shares with other dimensions is in test_dimensions."""

import math
from typing import Any

import numpy as np
import pytest
import torch

from hyperopt_dl import constraints
from hyperopt_dl.errors import SpaceError
from hyperopt_dl.space import Array, Categorical, Float, Int

INF = math.inf
F32: Any = np.float32
Scalar = Float | Int | Categorical


@pytest.mark.parametrize(
    ("array", "start"),
    [
        (Array(2), [0.0, 0.0]),
        (Array(2, low=0.5), [0.5, 0.5]),
        (Array(2, high=-0.5), [-0.5, -0.5]),
        (Array(2, low=-1.0, high=3.0), [0.0, 0.0]),
        (Array(4, constraint=constraints.simplex()), [0.25] * 4),
        (Array(2, init=3.0), [3.0, 3.0]),
        (Array((1, 2), init=np.array([[1, 2]])), [[1.0, 2.0]]),
        (Array(2, init=torch.tensor([0.1, 0.7])), torch.tensor([0.1, 0.7]).tolist()),
        (Array(2, init=F32(0.5)), [0.5, 0.5]),
    ],
)
def test_an_array_starts_at_its_init_or_at_the_projection_of_zero(array: Array, start: Any) -> None:
    assert torch.equal(array.start, torch.tensor(start, dtype=torch.float64))


def test_writing_into_the_start_does_not_change_the_array() -> None:
    array = Array(2, init=[1.0, 2.0])
    array.start.fill_(9.0)
    assert array.start.tolist() == [1.0, 2.0]


@pytest.mark.parametrize(
    ("array", "unit"),
    [
        (Array((2, 2), low=2.0, high=6.0), [0.0, 0.25, 0.5, 1.0]),
        (Array((2, 2)), [2.0, 3.0, 4.0, 6.0]),
        (Array((2, 2), low=2.0), [2.0, 3.0, 4.0, 6.0]),
        (Array((2, 2), high=6.0), [2.0, 3.0, 4.0, 6.0]),
    ],
)
def test_only_an_array_in_a_finite_box_is_rescaled(array: Array, unit: list[float]) -> None:
    value = torch.tensor([[2.0, 3.0], [4.0, 6.0]], dtype=torch.float64)
    u = array.to_unit(value)
    assert u.tolist() == unit
    assert torch.equal(array.from_unit(u), value)


def test_array_projects_on_box_and_constraint_together() -> None:
    x = torch.tensor([3.0, -1.0, 0.5])
    assert Array(3, low=0.25, high=1.0).project(x).tolist() == [1.0, 0.25, 0.5]
    array = Array(3, low=0.25, high=1.0, constraint=constraints.sum_at_most(1.5))
    assert array.project(x).tolist() == [1.0, 0.25, 0.25]


def test_the_way_out_of_the_cube_does_not_project() -> None:
    array = Array(2, low=1.0, high=3.0, constraint=constraints.sum_at_most(2.5))
    assert array.from_unit(torch.tensor([1.5, 0.0])).tolist() == [4.0, 1.0]


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("Array(0)", "positive ints, got 0"),
        ("Array(())", "Use Float"),
        ("Array((2, -1))", r"positive ints, got \(2, -1\)"),
        ("Array(2.0)", "positive ints, got 2.0"),
        ("Array(True)", "positive ints, got True"),
        ("Array(2, low=1.0, high=0.0)", "low=1.0, high=0.0"),
        ("Array(2, low=math.nan)", "got low=nan"),
        ("Array(2, low=INF)", "low=inf"),
        ("Array(2, high=-INF)", "high=-inf"),
        ("Array(2, low=[0.0, 1.0])", r"got low=\[0.0, 1.0\]"),
        ("Array(2, init=[1.0])", r"shape \(2,\), got shape \(1,\)"),
        ('Array(2, init="ab")', "nested numbers, got str"),
        ("Array(2, low=0.0, init=-1.0)", "init within low=0.0"),
        ("Array(2, init=[0.0, math.nan])", "init within"),
        ("Array(2, init=0.4, constraint=constraints.simplex())", "Pass its projection"),
        ("Array(2, constraint=constraints.simplex)", "Call one of"),
        ("Array(2, constraint=constraints.Simplex)", "Call one of"),
        ("Array(2, constraint=constraints.nonnegative_symmetric())", "square"),
        ("Array(2, high=0.1, constraint=constraints.simplex())", "Raise high"),
    ],
)
def test_what_is_ill_formed_is_a_space_error(expression: str, message: str) -> None:
    with pytest.raises(SpaceError, match=message):
        eval(expression)

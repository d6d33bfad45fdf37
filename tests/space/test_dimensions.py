"""Every dimension alone: its values, and its map to the unit cube against closed forms."""

import copy
import math
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hyperopt_dl import constraints
from hyperopt_dl.errors import SpaceError
from hyperopt_dl.space import Array, Categorical, Dimension, Float, Int
from tests.strategies import (
    categoricals,
    log_floats,
    log_ints,
    plain_floats,
    plain_ints,
    stepped_floats,
    units,
)

INF = math.inf
Scalar = Float | Int | Categorical


def plain(value: Any) -> Any:
    return value.item() if isinstance(value, torch.Tensor) else value


@given(dimension=st.one_of(plain_floats(), log_floats()), u=units)
@settings(deadline=None)
def test_a_float_survives_the_way_to_the_unit_cube_and_back(dimension: Float, u: float) -> None:
    value = dimension.from_unit(u).item()
    assert dimension.contains(value)
    unit = dimension.to_unit(value)
    assert 0 <= unit.item() <= 1
    scale = value if dimension.log else max(abs(dimension.low), abs(dimension.high))
    assert dimension.from_unit(unit).item() == pytest.approx(value, rel=1e-12, abs=1e-12 * scale)


@given(dimension=st.one_of(plain_floats(), log_floats()))
@settings(deadline=None)
def test_the_ends_of_the_unit_interval_are_the_bounds_bit_for_bit(dimension: Float) -> None:
    assert dimension.from_unit(0.0).item() == dimension.low
    assert dimension.from_unit(1.0).item() == dimension.high
    assert dimension.to_unit(dimension.low).item() == 0
    assert dimension.to_unit(dimension.high).item() == pytest.approx(1, abs=1e-15)


@given(dimension=st.one_of(stepped_floats(), plain_ints(), log_ints(), categoricals), u=units)
@settings(deadline=None)
def test_a_discrete_value_comes_back_exactly(dimension: Scalar, u: float) -> None:
    value = plain(dimension.from_unit(u))
    assert dimension.contains(value)
    unit = dimension.to_unit(value)
    assert 0 < unit.item() < 1
    again = plain(dimension.from_unit(unit))
    assert again == value
    assert type(again) is type(value)


@given(dimension=st.one_of(plain_floats(), log_floats()), u=st.floats(-2, 3))
@settings(deadline=None)
def test_beyond_the_cube_lies_the_nearest_bound(dimension: Float, u: float) -> None:
    value = dimension.from_unit(u).item()
    assert dimension.low <= value <= dimension.high
    if u <= 0 or u >= 1:
        assert value == (dimension.low if u <= 0 else dimension.high)


def test_known_unit_coordinates() -> None:
    assert Float(2.0, 6.0).to_unit(3.0).item() == 0.25
    assert Float(1e-4, 1.0, log=True).to_unit(1e-3).item() == pytest.approx(0.25, abs=1e-15)
    assert Float(0.3, 0.6, step=0.1).to_unit(0.4).item() == 0.375
    assert Int(5, 8).to_unit(7).item() == 0.625
    assert Int(10, 30, step=10).to_unit(30).item() == pytest.approx(5 / 6, abs=1e-15)
    assert Categorical(["a", "b"]).to_unit("b").item() == 0.75
    expected = math.log(4 / 2.5) / math.log(8.5 / 2.5)
    assert Int(3, 8, log=True).to_unit(4).item() == pytest.approx(expected, abs=1e-15)


@pytest.mark.parametrize(
    "dimension", [Int(-3, 4), Int(7, 27, step=4), Categorical(["a", "b", "c"]), Int(9, 9)]
)
def test_cells_have_equal_width(dimension: Int | Categorical) -> None:
    cells = {dimension.from_unit(u) for u in torch.linspace(0, 1, 999)}
    for value in cells:
        center, half = dimension.to_unit(value).item(), 0.4999 / len(cells)  # type: ignore[arg-type]
        assert dimension.from_unit(center - half) == value
        assert dimension.from_unit(center + half) == value


def test_every_int_of_a_log_interval_has_the_share_that_optuna_gives_it() -> None:
    dimension = Int(3, 12, log=True)
    grid = torch.linspace(0, 1, 20_001, dtype=torch.float64)
    drawn = [dimension.from_unit(u) for u in grid]
    for value in range(3, 13):
        share = math.log((value + 0.5) / (value - 0.5)) / math.log(12.5 / 2.5)
        assert drawn.count(value) / len(drawn) == pytest.approx(share, abs=1e-4)


@pytest.mark.parametrize("dimension", [Float(3.0, 3.0), Float(3.0, 3.0, log=True)])
def test_a_single_value_sits_in_the_middle(dimension: Float) -> None:
    assert dimension.to_unit(3.0).item() == 0.5
    assert dimension.from_unit(0.9).item() == 3.0


@pytest.mark.parametrize("u", [0.0, 0.2, 0.5, 0.7, 1.0])
@pytest.mark.parametrize("dimension", [Float(-3.0, 2.0), Float(2e-3, 0.7, log=True)])
def test_gradient_of_the_value_is_the_closed_form(dimension: Float, u: float) -> None:
    x = torch.tensor(u, dtype=torch.float64, requires_grad=True)
    value = dimension.from_unit(x)
    value.backward()  # type: ignore[no-untyped-call]
    assert x.grad is not None
    if dimension.log:
        expected = value.item() * math.log(dimension.high / dimension.low)
    else:
        expected = dimension.high - dimension.low
    assert x.grad.item() == pytest.approx(expected, rel=1e-13)


@pytest.mark.parametrize("dimension", [Float(-3.0, 2.0), Float(2e-3, 0.7, log=True)])
def test_both_maps_agree_with_finite_differences(dimension: Float) -> None:
    u = torch.tensor([0.1, 0.4, 0.6, 0.9], dtype=torch.float64, requires_grad=True)
    value = dimension.from_unit(torch.tensor(0.3, dtype=torch.float64)).requires_grad_()
    assert torch.autograd.gradcheck(dimension.from_unit, (u,))
    assert torch.autograd.gradcheck(dimension.to_unit, (value,))


@pytest.mark.parametrize("u", [-0.25, -1e-17, 1.0000000000000002, 3.0])
def test_gradient_lives_on_outside_the_cube(u: float) -> None:
    at_bound = 0.0 if u < 0 else 1.0
    dimension = Float(0.1, 0.3, log=True)
    gradients: list[torch.Tensor] = []
    for point in (u, at_bound):
        x = torch.tensor(point, dtype=torch.float64, requires_grad=True)
        gradients += torch.autograd.grad(dimension.from_unit(x), x)
    assert gradients[0].item() == gradients[1].item() != 0


@pytest.mark.filterwarnings("ignore:`torch.jit.script`:DeprecationWarning")  # torch's own
def test_forward_and_batched_derivatives_are_the_reverse_ones() -> None:
    dimension = Float(0.1, 0.3, log=True)
    u = torch.tensor([-0.1, 0.2, 0.8, 1.5], dtype=torch.float64)
    tangent = torch.func.jvp(dimension.from_unit, (u,), (torch.ones_like(u),))[1]
    gradient = torch.func.vmap(torch.func.grad(dimension.from_unit))(u)
    expected = dimension.from_unit(u) * math.log(3)
    torch.testing.assert_close(tangent, expected)
    torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize(
    ("dimension", "differentiable"),
    [
        (Float(1.0, 2.0), True),
        (Float(1.0, 2.0, step=0.5), False),
        (Int(1, 2), False),
        (Categorical(["a"]), False),
        (Array(3), True),
    ],
)
def test_differentiable_says_what_has_a_gradient(
    dimension: Dimension, differentiable: bool
) -> None:
    u = torch.full((dimension.size,), 0.4, requires_grad=True)
    value = dimension.from_unit(u if isinstance(dimension, Array) else u[0])
    has_graph = isinstance(value, torch.Tensor) and value.requires_grad
    assert dimension.differentiable == has_graph == differentiable


@pytest.mark.parametrize(
    ("dimension", "value"),
    [
        (Float(1.0, 2.0), 1),
        (Float(1.0, 2.0), np.float32(1.5)),
        (Float(1.0, 2.0), np.int64(2)),
        (Float(1.0, 2.0), torch.tensor(1.5)),
        (Float(0.0, 1.0, step=0.1), 0.1 + 0.2),
        (Float(0.0, 1.0, step=0.1), 0.3),
        (Int(1, 9, step=2), 7),
        (Int(1, 9), np.int32(7)),
        (Int(1, 9), torch.tensor(7)),
        (Categorical([True, "a", None]), None),
        (Categorical([True, "a", None]), np.True_),
        (Array((2, 1), low=0.0), [[1.0], [2]]),
        (Array(2, low=0.0), np.array([1, 2])),
        (Array(2, constraint=constraints.simplex()), torch.tensor([0.3, 0.7])),
    ],
)
def test_values_inside(dimension: Dimension, value: object) -> None:
    assert dimension.contains(value)


@pytest.mark.parametrize(
    ("dimension", "value"),
    [
        (Float(1.0, 2.0), 2.0000001),
        (Float(1.0, 2.0), 0.5),
        (Float(1.0, 2.0), math.nan),
        (Float(1.0, 2.0), True),
        (Float(1.0, 2.0), "1.5"),
        (Float(1.0, 2.0), torch.tensor([1.2, 1.5])),
        (Float(1.0, 2.0), torch.tensor(math.nan)),
        (Float(0.0, 1.0, step=0.1), 0.25),
        (Float(0.0, 1.0, step=0.1), torch.tensor(0.25)),
        (Int(1, 9, step=2), 4),
        (Int(1, 9), 7.0),
        (Int(0, 9), True),
        (Int(1, 9), 10),
        (Int(1, 9), None),
        (Categorical([1, 2]), True),
        (Categorical([1, 2]), 1.0),
        (Categorical(["a"]), "b"),
        (Array(2), [1.0, 2.0, 3.0]),
        (Array(2), [1.0, math.nan]),
        (Array(2), [1.0, INF]),
        (Array(2), "ab"),
        (Array(2), None),
        (Array(2), torch.tensor([True, False])),
        (Array(2, low=0.0), [0.1, -0.1]),
        (Array(2, low=0.0, high=1e-8), [0.0, 5e-7]),
        (Array(2, constraint=constraints.simplex()), [0.3, 0.8]),
        # every entry off by 5e-7, the sum by 5 per cent
        (Array(100_000, constraint=constraints.simplex()), torch.full((100_000,), 1.05e-5)),
    ],
)
def test_values_outside(dimension: Dimension, value: object) -> None:
    assert not dimension.contains(value)


@pytest.mark.parametrize(
    ("dimension", "value"),
    [(Float(1.0, 2.0), 3.0), (Int(1, 2), 3), (Categorical(["a"]), "b"), (Array(2), [1.0])],
)
def test_a_value_outside_has_no_unit_coordinate(dimension: Dimension, value: Any) -> None:
    with pytest.raises(SpaceError, match=r"Pass one that is|Reshape"):
        dimension.to_unit(value)


@pytest.mark.parametrize(
    ("dimension", "u", "message"),
    [
        (Int(1, 2), math.nan, "none that is NaN"),
        (Categorical(["a"]), torch.tensor([0.1, 0.2]), "one by one"),
        (Float(1.0, 2.0), torch.tensor(1), "floating"),
        (Array(2), torch.zeros(3), r"shape \[2\], got \[3\]"),
        (Array((2, 2)), torch.zeros(2, 2), r"shape \[4\], got \[2, 2\]"),
    ],
)
def test_what_is_no_unit_coordinate_is_refused(dimension: Dimension, u: Any, message: str) -> None:
    with pytest.raises(SpaceError, match=message):
        dimension.from_unit(u)


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("Float(2.0, 1.0)", "low <= high, got low=2.0, high=1.0"),
        ("Float(math.nan, 1.0)", "finite number as low, got low=nan"),
        ("Float(0.0, INF)", "finite number as high, got high=inf"),
        ("Float(-1e308, 1e308)", "finite double"),
        ("Float(0.0, 10**400)", "finite number as high"),
        ('Float("0", 1.0)', "finite number as low, got low='0'"),
        ("Float(False, 1.0)", "finite number as low, got low=False"),
        ("Float(0.0, 1.0, log=True)", r"Float\(log=True\) needs low > 0, got low=0.0"),
        ("Float(1.0, 2.0, log=1)", "log=True or log=False, got log=1"),
        ("Float(1.0, 2.0, log=True, step=0.5)", "not both, got step=0.5"),
        ("Float(1.0, 2.0, step=0.0)", "step > 0, got step=0.0"),
        ("Float(1.0, 2.0, step=-1)", "step > 0, got step=-1.0"),
        ("Float(0.1, 0.95, step=0.2)", "Use high=0.9"),
        ("Float(1.0, 1.5, step=2.0)", "Use high=1.0"),
        ("Float(0.0, 1.0, step=1e-9)", "at least 1e-7"),
        ("Float(1e9, 1e9 + 1, step=0.5)", "at least 1e-7"),
        ("Float(1.0, 2.0, init=3.0)", r"got Float\(1.0, 2.0, init=3.0\)"),
        ("Float(1.0, 2.0, step=0.5, init=1.2)", "init must be a value"),
        ('Float(1.0, 2.0, init="a")', "finite number as init"),
        ("Int(3, 1)", "low <= high, got low=3, high=1"),
        ("Int(0.5, 3)", "whole number as low, got low=0.5"),
        ("Int(1, 3.0)", "whole number as high, got high=3.0"),
        ("Int(True, 3)", "whole number as low, got low=True"),
        ("Int(1, INF)", "whole number as high, got high=inf"),
        ("Int(0, 3, log=True)", r"Int\(log=True\) needs low >= 1, got low=0"),
        ("Int(1, 9, log=True, step=2)", "not both, got step=2"),
        ("Int(1, 3, step=0)", "step > 0, got step=0"),
        ("Int(1, 3, step=None)", "whole number as step, got step=None"),
        ("Int(1, 10, step=4)", "Use high=9"),
        ("Int(0, 2**41)", r"within ±2\*\*40"),
        ("Int(1, 3, init=4)", r"got Int\(1, 3, init=4\)"),
        ("Int(1, 3, init=2.0)", "whole number as init"),
        ("Categorical([])", "at least one choice"),
        ('Categorical("abc")', "list or tuple"),
        ('Categorical({"a", "b"})', "list or tuple"),
        ('Categorical(["a", "b", "a"])', "got 'a' after 'a'"),
        ("Categorical([1, 2, True])", "got True after 1"),
        ("Categorical([1.0, 1])", "got 1 after 1.0"),
        ("Categorical([0.5, math.nan])", "NaN"),
        ("Categorical([torch.relu])", "look the objects up in a dict"),
        ("Categorical([(1, 2)])", r"got \(1, 2\) of type tuple"),
        ('Categorical(["a"], init="b")', "got init='b'"),
        ("Categorical([1, 2], init=True)", "got init=True"),
    ],
)
def test_what_is_ill_formed_is_a_space_error(expression: str, message: str) -> None:
    with pytest.raises(SpaceError, match=message):
        eval(expression)


@pytest.mark.parametrize("high", [0.1, 0.3, 0.9, 2.7])
def test_the_high_that_the_error_names_is_accepted(high: float) -> None:
    with pytest.raises(SpaceError) as error:
        Float(-0.3, high + 0.05, step=0.2)
    named = float(str(error.value).split("Use high=")[1].split(",")[0])
    assert Float(-0.3, named, step=0.2).distribution.high == named  # and Optuna does not warn


def test_numpy_numbers_become_python_numbers() -> None:
    f32: Any = np.float32
    i64: Any = np.int64
    dimension = Float(np.float64(0.5), i64(2), init=f32(1.5))
    assert [type(x) for x in (dimension.low, dimension.high, dimension.init)] == [float] * 3
    assert repr(Int(i64(1), i64(5), init=i64(2))) == "Int(1, 5, init=2)"
    assert repr(Categorical(list(np.array([1, 2])))) == "Categorical([1, 2])"
    assert Array(i64(3), low=f32(0.5)) == Array((3,), low=0.5)


DIMENSIONS: list[Dimension] = [
    Float(-1.0, 2.5),
    Float(1e-5, 10, log=True, init=0.1),
    Float(0.3, 0.9, step=0.1, init=0.5),
    Int(-3, 7),
    Int(16, 256, log=True, init=64),
    Int(10, 50, step=20),
    Categorical(["relu", "gelu"]),
    Categorical([None, True, 2, 0.5, "x"], init=2),
    Array(3),
    Array((2, 3), low=0.5, high=2.0, init=1.0),
    Array((2, 2), high=5.0, init=[[1.0, 2.0], [3.0, 4.0]]),
    Array(4, constraint=constraints.simplex()),
    Array(4, low=0.0, constraint=constraints.sum_at_most(2.0), init=0.5),
]


@pytest.mark.parametrize("dimension", DIMENSIONS, ids=repr)
class TestEveryDimension:
    def test_repr_evaluates_to_an_equal_dimension(self, dimension: Dimension) -> None:
        assert eval(repr(dimension), {**globals(), **vars(constraints)}) == dimension

    def test_copies_are_equal_and_hash_alike(self, dimension: Dimension) -> None:
        for twin in (copy.deepcopy(dimension), pickle.loads(pickle.dumps(dimension))):
            assert twin == dimension
            assert hash(twin) == hash(dimension)

    def test_no_other_dimension_is_equal(self, dimension: Dimension) -> None:
        assert sum(other == dimension for other in DIMENSIONS) == 1

    def test_is_frozen(self, dimension: Dimension) -> None:
        with pytest.raises(AttributeError, match="cannot assign"):
            dimension.init = 0.5  # type: ignore[misc]

    def test_init_is_contained(self, dimension: Dimension) -> None:
        init = dimension.start if isinstance(dimension, Array) else dimension.init
        assert init is None or dimension.contains(init)


@pytest.mark.parametrize(
    ("dimension", "text"),
    [
        (Float(1e-4, 1, log=True), "Float(0.0001, 1.0, log=True)"),
        (Float(0, 1, step=0.5, init=0), "Float(0.0, 1.0, step=0.5, init=0.0)"),
        (Int(1, 8), "Int(1, 8)"),
        (Categorical(("a", "b"), "b"), "Categorical(['a', 'b'], init='b')"),
        (Array(3, low=0), "Array((3,), low=0.0)"),
        (Array(3, init=0), "Array((3,))"),
        (Array(100, init=range(100)), "Array((100,), init=<100 numbers>)"),
    ],
)
def test_repr_shows_only_what_is_not_the_default(dimension: Dimension, text: str) -> None:
    assert repr(dimension) == text


def test_choices_differ_by_type() -> None:
    assert Categorical([0, 2]) != Categorical([False, 2])
    assert Categorical([False, True]).contains(False)
    assert not Categorical([False, True]).contains(0)

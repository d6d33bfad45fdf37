"""Spaces, against Optuna's sampler and its own validation, and under renaming and reordering."""

import math
import pickle
import random
from typing import Any

import optuna
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from hyperopt_dl.errors import SpaceError
from hyperopt_dl.space import Array, Categorical, Float, Int, Space
from tests.strategies import spaces, units

INF = math.inf
Scalar = Float | Int | Categorical


def sampled(space: Space, seed: int, n_trials: int) -> list[dict[str, Any]]:
    """Parameters that Optuna's own random sampler takes from the space."""
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    return [study.ask(space.distributions()).params for _ in range(n_trials)]


def plain(params: dict[str, Any]) -> dict[str, Any]:
    return {k: v.item() if isinstance(v, torch.Tensor) else v for k, v in params.items()}


@pytest.fixture(autouse=True, scope="module")
def quiet_optuna() -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)


DRAWN = Space(
    {
        "lr/layer1": Float(1e-4, 1.0, log=True, init=0.01),
        "momentum": Float(0.5, 0.99),
        "width": Int(16, 256, log=True),
        "act": Categorical(["relu", "gelu"], init="gelu"),
    }
)


def test_a_space_is_a_mapping_in_the_order_given() -> None:
    assert list(DRAWN) == ["lr/layer1", "momentum", "width", "act"]
    assert len(DRAWN) == 4
    assert DRAWN["momentum"] == Float(0.5, 0.99)
    assert "lr" not in DRAWN
    with pytest.raises(TypeError):
        DRAWN["lr"] = Float(0.0, 1.0)  # type: ignore[index]


@given(space=spaces, seed=st.integers(0, 99))
@settings(deadline=None, max_examples=50)
def test_the_order_of_dimensions_changes_nothing_but_the_coordinates(
    space: Space, seed: int
) -> None:
    order = list(space)
    random.Random(seed).shuffle(order)
    shuffled = Space({name: space[name] for name in order})
    assert shuffled == space
    assert hash(shuffled) == hash(space)
    (params,) = sampled(space, seed, n_trials=1)
    by_name = dict(zip(space, space.to_unit(params), strict=True))
    assert [u.item() for u in shuffled.to_unit(params)] == [by_name[n].item() for n in order]
    assert plain(shuffled.from_unit(shuffled.to_unit(params))) == plain(
        space.from_unit(space.to_unit(params))
    )


@given(space=spaces, seed=st.integers(0, 99))
@settings(deadline=None, max_examples=50)
def test_new_names_change_nothing_but_the_names(space: Space, seed: int) -> None:
    renamed = Space({f"new {name}": dimension for name, dimension in space.items()})
    assert renamed != space
    (params,) = sampled(space, seed, n_trials=1)
    u = renamed.to_unit({f"new {name}": value for name, value in params.items()})
    assert torch.equal(u, space.to_unit(params))
    assert list(plain(renamed.from_unit(u)).values()) == list(plain(space.from_unit(u)).values())


def test_spaces_that_differ_are_unequal() -> None:
    assert Space(a=Float(0.0, 1.0)) != Space(a=Float(0.0, 2.0))
    assert Space(a=Float(0.0, 1.0)) != Space(b=Float(0.0, 1.0))
    assert Space(a=Int(1, 2)) != Space(a=Int(1, 2), b=Int(1, 2))


@pytest.mark.parametrize(
    "space",
    [
        DRAWN,
        Space(lr=Float(1e-3, 1.0, log=True), weights=Array(3, low=0.0)),
        Space({"lambda": Int(1, 3)}),
        Space(self=Int(1, 3), dimensions=Int(2, 5)),
    ],
    ids=repr,
)
def test_repr_of_a_space_evaluates_to_an_equal_space(space: Space) -> None:
    again = eval(repr(space), dict(globals()))
    assert again == space
    assert list(again) == list(space)
    assert pickle.loads(pickle.dumps(space)) == space


@given(space=spaces)
@settings(deadline=None)
def test_optuna_distributions_make_the_same_space(space: Space) -> None:
    assert Space.from_optuna(space.distributions()) == space


@pytest.mark.parametrize(
    ("dimension", "distribution"),
    [
        (Float(0.5, 2), FloatDistribution(0.5, 2.0)),
        (Float(0.5, 2, log=True), FloatDistribution(0.5, 2.0, log=True)),
        (Float(0.5, 2, step=0.5), FloatDistribution(0.5, 2.0, step=0.5)),
        (Int(2, 8), IntDistribution(2, 8)),
        (Int(2, 8, log=True), IntDistribution(2, 8, log=True)),
        (Int(2, 8, step=3), IntDistribution(2, 8, step=3)),
        (Categorical(["a", None]), CategoricalDistribution(["a", None])),
    ],
)
def test_a_dimension_and_its_distribution_say_the_same(
    dimension: Scalar, distribution: BaseDistribution
) -> None:
    assert dimension.distribution == distribution
    assert Space(x=distribution) == Space(x=dimension)


def test_an_array_has_no_distribution() -> None:
    space = Space(lr=Float(0.0, 1.0), weights=Array(3), more=Array((2, 2)))
    assert space.arrays == ("weights", "more")
    assert space.size == 8
    with pytest.raises(SpaceError, match=r"Array 'weights'.*differentiate a rollout"):
        space.distributions()


def test_defaults_are_the_inits_given_and_the_starts_of_arrays() -> None:
    assert DRAWN.defaults == {"lr/layer1": 0.01, "act": "gelu"}
    space = Space(n=Int(0, 4, init=0), m=Int(0, 4), w=Array(2, init=[1.0, 2.0]))
    assert list(space.defaults) == ["n", "w"]
    assert space.defaults["n"] == 0
    assert space.defaults["w"].tolist() == [1.0, 2.0]


def test_validate_lists_everything_that_is_wrong() -> None:
    with pytest.raises(SpaceError) as error:
        DRAWN.validate({"momentum": 1.5, "widht": 32, "act": "relu", "lr/layer1": 0.1})
    message = str(error.value)
    assert "['width'] missing" in message
    assert "['widht'] unknown" in message
    assert "momentum=1.5 is not in Float(0.5, 0.99)" in message
    assert "act=" not in message


def test_validate_accepts_a_part_only_when_told() -> None:
    DRAWN.validate({"momentum": 0.75}, partial=True)
    with pytest.raises(SpaceError, match="missing"):
        DRAWN.validate({"momentum": 0.75})
    with pytest.raises(SpaceError, match="unknown"):
        DRAWN.validate({"lr": 0.75}, partial=True)


def test_to_unit_validates() -> None:
    with pytest.raises(SpaceError, match="missing"):
        DRAWN.to_unit({"momentum": 0.75})


@pytest.mark.parametrize("shape", [(3,), (5,), (1, 4), ()])
def test_a_point_of_another_cube_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(SpaceError, match=r"shape \[4\]"):
        DRAWN.from_unit(torch.full(shape, 0.5))


@given(space=spaces, seed=st.integers(0, 2**16))
@settings(deadline=None, max_examples=50)
def test_whatever_optuna_suggests_is_contained_and_comes_back(space: Space, seed: int) -> None:
    for params in sampled(space, seed, n_trials=3):
        space.validate(params)
        u = space.to_unit(params)
        assert u.shape == (space.size,)
        assert bool(((u >= 0) & (u <= 1)).all())
        again = plain(space.from_unit(u))
        for name, value in params.items():
            dimension = space[name]
            if not isinstance(dimension, Float):
                assert again[name] == value
            else:
                scale = max(abs(dimension.low), abs(dimension.high))
                slack = 0 if dimension.log else 1e-12 * scale
                assert again[name] == pytest.approx(value, rel=1e-11, abs=slack)


@given(space=spaces, data=st.data())
@settings(deadline=None, max_examples=50)
def test_whatever_leaves_the_unit_cube_is_what_optuna_accepts(
    space: Space, data: st.DataObject
) -> None:
    u = data.draw(st.lists(units, min_size=space.size, max_size=space.size))
    params = plain(space.from_unit(torch.tensor(u, dtype=torch.float64)))
    trial = optuna.create_trial(  # raises ValueError for a parameter outside its distribution
        params=params, distributions=space.distributions(), value=0.0
    )
    assert trial.params == params


def test_gradient_flows_through_a_whole_space() -> None:
    space = Space(
        lr=Float(1e-3, 0.1, log=True), n=Int(1, 4), w=Array(2, low=1.0, high=3.0), b=Array(1)
    )
    u = torch.tensor([0.25, 0.6, 0.5, 0.75, -2.0], dtype=torch.float64, requires_grad=True)
    params = space.from_unit(u)
    assert params["n"] == 3
    (params["lr"] + 10 * params["w"].sum() + 100 * params["b"].sum()).backward()
    lr = 10**-2.5
    expected = torch.tensor([lr * math.log(100), 0.0, 20.0, 20.0, 100.0], dtype=torch.float64)
    torch.testing.assert_close(u.grad, expected)
    again = space.to_unit(params)
    assert again.requires_grad
    torch.testing.assert_close(again[[0, 2, 3, 4]], u[[0, 2, 3, 4]])


def test_values_keep_the_dtype_of_their_coordinates() -> None:
    space = Space(
        a=Float(0.1, 0.3), b=Float(0.1, 0.3, step=0.1), c=Array((2, 2), low=0.0, high=1.0)
    )
    params = space.from_unit(torch.tensor([1.0, 1.0, 0.1, 0.2, 0.3, 0.4], dtype=torch.float32))
    assert {value.dtype for value in params.values()} == {torch.float32}
    space.validate(params)  # although float32(0.3) > 0.3
    assert space.to_unit(params).dtype == torch.float64


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("Space()", "at least one dimension"),
        ("Space({})", "at least one dimension"),
        ("Space(lr=0.1)", "dimension for 'lr', got 0.1"),
        ("Space(lr=Float)", "dimension for 'lr'"),
        ('Space([("lr", Float(0.0, 1.0))])', "mapping from names"),
        ('Space({"": Float(0.0, 1.0)})', "string of 1 to 512 characters, got ''"),
        ("Space({1: Float(0.0, 1.0)})", "string of 1 to 512 characters, got 1"),
        ('Space({"a" * 513: Float(0.0, 1.0)})', "string of 1 to 512"),
        ('Space({"a": Float(0.0, 1.0)}, a=Int(1, 2))', r"every name once, got \['a'\]"),
        ('Space.from_optuna({"a": FloatDistribution(0, 1), "b": 3})', "dimension for 'b'"),
    ],
)
def test_what_is_ill_formed_is_a_space_error(expression: str, message: str) -> None:
    with pytest.raises(SpaceError, match=message):
        eval(expression)

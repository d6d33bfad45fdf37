"""The search space as a model sees it, and the trials that lie in it."""

import math
from datetime import datetime, timedelta
from typing import Any

import optuna
import pytest
import torch
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import FrozenTrial, TrialState

from hyperopt_dl.space import Space
from hyperopt_dl.tuners.cube import Cube, searchable
from hyperopt_dl.tuners.observations import common_space, observe

EVERY: dict[str, BaseDistribution] = {
    "linear": FloatDistribution(-3.0, 5.0),
    "log": FloatDistribution(1e-6, 1e2, log=True),
    "step": FloatDistribution(-10.2, 10.2, step=0.1),
    "int": IntDistribution(-4, 9),
    "sparse": IntDistribution(3, 9, step=2),
    "log_int": IntDistribution(1, 100, log=True),
    "huge": IntDistribution(1, 10**9, log=True),
    "choice": CategoricalDistribution(["a", None, 3, 3.5]),
}
CUBE = Cube(EVERY)


def sampled(n: int) -> list[dict[str, Any]]:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(0))
    return [study.ask(EVERY).params for _ in range(n)]


def test_decoding_inverts_encoding() -> None:
    params = sampled(40)
    x, inside = CUBE.encode(params)
    assert bool(inside.all())
    for row, given in zip(x, params, strict=True):
        decoded = CUBE.decode(row)
        assert {k: type(v) for k, v in decoded.items()} == {k: type(v) for k, v in given.items()}
        assert decoded.pop("choice") == given["choice"]
        assert decoded == pytest.approx({k: given[k] for k in decoded}, rel=1e-9)


def test_coordinates_are_those_of_the_space() -> None:
    params = sampled(10)
    names = [name for name in EVERY if name != "choice"]  # an index here, a cell's centre there
    space = Space({name: EVERY[name] for name in names})
    expected = torch.stack([space.to_unit({k: given[k] for k in names}) for given in params])
    torch.testing.assert_close(CUBE.encode(params)[0][:, : len(names)], expected)


def test_encoded_points_are_valid_and_so_is_every_level() -> None:
    x, _ = CUBE.encode(sampled(40))
    torch.testing.assert_close(CUBE.domain.nearest(x), x, atol=1e-12, rtol=0)
    sizes = [None if levels is None else len(levels) for levels in CUBE.domain.levels]
    assert sizes == [None, None, 205, 14, 4, 100, None, 4]


def test_a_value_outside_is_told() -> None:
    params = sampled(3)
    params[1]["linear"] = 6.0
    assert CUBE.encode(params)[1].tolist() == [True, False, True]


def test_what_has_one_value_or_no_place_in_a_cube_is_not_searched() -> None:
    constant = {"one": IntDistribution(2, 2), "beyond": IntDistribution(0, 2**50)}
    assert set(searchable({**EVERY, **constant})) == set(EVERY)


SPACE: dict[str, BaseDistribution] = {"x": FloatDistribution(0.0, 1.0)}
START = datetime(2024, 1, 1)


def trial(
    number: int,
    x: float,
    state: TrialState = TrialState.COMPLETE,
    *,
    value: float | None = None,
    ended: int = 0,
    **more: Any,
) -> FrozenTrial:
    made = optuna.create_trial(
        state=state, params={"x": x}, distributions=SPACE, value=value, **more
    )
    made.number = number
    made.datetime_complete = START + timedelta(seconds=ended) if state.is_finished() else None
    return made


def test_trials_are_told_apart_by_how_they_ended() -> None:
    trials = [
        trial(0, 0.0, value=3.0, ended=5),
        trial(1, 0.1, value=1.0, ended=2),
        trial(2, 0.2, TrialState.FAIL, ended=3),
        trial(3, 0.3, TrialState.FAIL, ended=3, user_attrs={"failure": "interrupted"}),
        trial(4, 0.4, value=math.inf, ended=4),
        trial(5, 0.5, TrialState.PRUNED, ended=6, intermediate_values={1: 9.0, 2: 2.0}),
        trial(6, 0.6, TrialState.PRUNED, ended=7),
        trial(7, 0.7, TrialState.RUNNING),
    ]
    seen = observe(trials, Cube(SPACE), sign=1.0, running={7})
    assert seen.x.squeeze(-1).tolist() == [0.1, 0.0, 0.5]  # in the order in which they ended
    assert seen.losses.tolist() == [1.0, 3.0, 3.0]  # reported 2, but the median is 3
    assert seen.failed.squeeze(-1).tolist() == [0.2, 0.4, 0.6]
    assert seen.pending.squeeze(-1).tolist() == [0.7]


def test_maximizing_turns_the_sign() -> None:
    seen = observe([trial(0, 0.0, value=3.0)], Cube(SPACE), sign=-1.0, running=())
    assert seen.losses.tolist() == [-3.0]


def test_a_later_trial_changes_no_earlier_loss() -> None:
    pruned = trial(1, 0.5, TrialState.PRUNED, ended=1, intermediate_values={1: 2.0})
    before = [trial(0, 0.0, value=5.0), pruned]
    after = [*before, trial(2, 0.2, value=50.0, ended=2), trial(3, 0.3, value=60.0, ended=3)]
    early, late = (observe(t, Cube(SPACE), sign=1.0, running=()) for t in (before, after))
    assert late.losses[:2].tolist() == early.losses.tolist()


def test_constraints_are_read_by_name_and_absent_ones_hold() -> None:
    trials = [
        trial(0, 0.0, value=1.0, ended=0, constraints={"a": 1.0}),
        trial(1, 0.1, value=1.0, ended=1, constraints={"a": -1.0, "b": 0.0}),
        trial(2, 0.2, value=1.0, ended=2),
    ]
    seen = observe(trials, Cube(SPACE), sign=1.0, running=())
    assert {k: v.tolist() for k, v in seen.constraints.items()} == {
        "a": [1.0, -1.0, -math.inf],
        "b": [-math.inf, 0.0, -math.inf],
    }
    assert seen.feasible.tolist() == [False, True, True]


def test_the_space_is_what_the_trials_agree_on() -> None:
    wider: dict[str, BaseDistribution] = {
        "x": FloatDistribution(0.0, 2.0),
        "y": FloatDistribution(0.0, 1.0),
    }
    params = {"x": 0.5, "y": 0.5}
    other = optuna.create_trial(params=params, distributions=wider, value=1.0)
    same = optuna.create_trial(params=params, distributions={**SPACE, "y": wider["y"]}, value=1.0)
    assert set(common_space([same, same], {})) == {"x", "y"}
    assert set(common_space([same, other], {})) == {"y"}
    assert set(common_space([trial(0, 0.1, TrialState.RUNNING)], {})) == {"x"}
    assert set(common_space([trial(0, 0.1, TrialState.RUNNING), other], {})) == {"x", "y"}
    assert common_space([], {}) == {}


def test_bounds_that_are_stated_hold_for_all_trials() -> None:
    now: dict[str, BaseDistribution] = {
        "x": FloatDistribution(0.0, 0.7),
        "z": FloatDistribution(0.0, 1.0),
    }
    moved = optuna.create_trial(
        params={"x": 0.5}, distributions={"x": FloatDistribution(0.0, 2.0)}, value=1.0
    )
    trials = [trial(0, 0.1, value=1.0, ended=0), moved]
    assert common_space(trials, {}) == {}
    assert common_space(trials, now) == {"x": now["x"]}


@pytest.mark.parametrize("trials", [0, 3])
def test_a_space_of_constants_alone_has_points_without_coordinates(trials: int) -> None:
    x, inside = Cube({}).encode([{"k": 5}] * trials)
    assert x.shape == (trials, 0)
    assert inside.tolist() == [True] * trials

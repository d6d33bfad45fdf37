"""What randomized telescoping learns from its calibrations, and which settings it refuses."""

from typing import Any, get_args

import numpy as np
import pytest

from hyperopt_dl.errors import TrainingError
from hyperopt_dl.hypergrad import Reverse, Telescoping, hypergradient
from hyperopt_dl.hypergrad.estimator import Learner
from hyperopt_dl.hypergrad.telescope.learned import Measured, average
from hyperopt_dl.hypergrad.telescope.optimum import FLOOR
from hyperopt_dl.hypergrad.telescope.weights import Scheme
from tests.problems import Quadratic

schemes = pytest.mark.parametrize("scheme", get_args(Scheme))

# what is learned


def calibrated(*G: float, steps: float = 20.0) -> dict[str, Any]:
    """The note of a calibration with such gradients, at the levels 1, 2, 4, ..."""
    rows = np.array([0.0, *G])
    D = np.square(rows[:, None] - rows[None])
    levels = [2**n for n in range(len(G))]
    made = {"do": "calibrate", "levels": levels, "steps": steps}
    return {**made, "measured": levels, "distances": D.tolist()}


def test_it_is_a_learner() -> None:
    assert isinstance(Telescoping(), Learner)
    assert not isinstance(Reverse(), Learner)


def test_the_first_trials_calibrate_until_one_has_measured() -> None:
    estimator = Telescoping()
    assert estimator.next_plan([], []) == {"do": "calibrate"}
    assert estimator.next_plan([], [{"do": "calibrate"}]) == {"do": "calibrate"}
    failed = {"do": "calibrate", "levels": [1, 2], "measured": [1, 2], "distances": None}
    assert estimator.next_plan([failed], []) == {"do": "calibrate"}
    assert Telescoping(tune=False).next_plan([], []) == {"do": "draw"}


@schemes
def test_the_odds_follow_from_the_distances(scheme: Scheme) -> None:
    plan = Telescoping(scheme).next_plan([calibrated(0.9, 0.99, 0.999, 1.0)], [])
    assert plan["levels"][-1] == 8
    assert plan["levels"][0] == 1
    assert plan["probabilities"][0] > 0.5
    assert sum(plan["probabilities"]) == pytest.approx(1)
    assert 0 < plan["factor"] < 1
    assert min(plan["probabilities"]) >= FLOOR / len(plan["levels"])
    useless = Telescoping(scheme).next_plan([calibrated(-3.0, 5.0, -2.0, 1.0)], [])
    assert (useless["levels"], useless["probabilities"]) == ([8], [1.0])
    assert useless["factor"] == pytest.approx(1)


def test_distances_are_averaged_over_calibrations_with_the_same_levels() -> None:
    estimator = Telescoping()
    first, second = calibrated(0.5, 1.0), calibrated(0.1, 3.0)
    w1, w2 = 0.9 / 1.9, 1.0 / 1.9
    D = w1 * np.array(first["distances"]) + w2 * np.array(second["distances"])
    expected = estimator.next_plan([{**first, "distances": D.tolist()}], [])
    found = estimator.next_plan([calibrated(1.0, 2.0, 7.0), first, second], [])
    assert found["levels"] == expected["levels"]
    assert found["probabilities"] == pytest.approx(expected["probabilities"])
    assert found["factor"] == pytest.approx(expected["factor"])


def test_an_average_of_one_is_that_one_and_the_latest_weighs_most() -> None:
    one, other = np.eye(2), 3 * np.eye(2)
    first, second = Measured((0,), one), Measured((0,), other)
    np.testing.assert_allclose(average([first], 1), one)
    np.testing.assert_allclose(average([first, second], 1), (0.9 * one + other) / 1.9)


def test_what_was_measured_in_part_weighs_as_much_as_the_whole_before_it() -> None:
    def of(*places: int) -> Measured:
        return Measured(places, np.full((len(places) + 1,) * 2, float(next(values))))

    values = iter([1, 2, 4, 8, 16])
    found = average([of(0, 1, 2), of(0), of(0, 2), of(0, 1, 2), of(1)], 3)
    old = 0.9
    assert found[0, 1] == pytest.approx((old * (1 + 2 + 4) + 8) / (3 * old + 1))
    assert found[1, 3] == found[3, 1] == pytest.approx((old * (1 + 4) + 8) / (2 * old + 1))
    assert found[2, 2] == pytest.approx((old * 1 + 8 + 16) / (old + 2))
    assert found[1, 2] == pytest.approx((old * 1 + 8) / (old + 1))


def test_it_calibrates_again_after_so_many_whole_runs_of_compute() -> None:
    estimator, first = Telescoping(calibrate_every=2.0), calibrated(0.5, 0.9, 1.0)  # H = 4
    draw = {"do": "draw", "steps": 5}
    assert estimator.next_plan([first, draw, draw, draw], [])["do"] == "draw"
    due = [first, draw, draw, draw, draw]
    assert estimator.next_plan(due, [{"do": "draw"}]) == {"do": "calibrate"}
    assert estimator.next_plan(due, [{"do": "calibrate"}])["do"] == "draw"
    assert estimator.next_plan([*due, first], [])["do"] == "draw"


def test_what_was_measured_at_other_levels_than_those_asked_for_is_not_used() -> None:
    assert Telescoping(levels=(2,)).next_plan([calibrated(0.5, 0.9, 1.0)], []) == {
        "do": "calibrate"
    }
    assert Telescoping(levels=(1, 2)).next_plan([calibrated(0.5, 0.9, 1.0)], [])["do"] == "draw"


# errors


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"scheme": "roulette"}, "scheme must be one of"),
        ({"calibrate_every": 0.0}, "calibrate_every must be a positive number"),
        ({"mode": Reverse(last=3)}, "Reverse.. without last="),
        ({"mode": "all"}, "Reverse.. without last="),
    ],
)
def test_a_setting_that_is_none_is_an_error(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        Telescoping(**settings)


def test_levels_beyond_the_training_are_an_error() -> None:
    with pytest.raises(TrainingError, match="between 1 and the 10 of the training"):
        hypergradient(Quadratic(steps=10), {"lr": 0.1}, estimator=Telescoping(levels=(4, 20)))

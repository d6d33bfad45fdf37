"""What is a setback where losses are noisy, and what is luck."""

import math
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from torch import Tensor

import hyperopt_dl as hd
from hyperopt_dl.tuners.chain import Visit
from hyperopt_dl.tuners.setback import RARE, is_setback, luck, predicted_change
from tests.problems import Quadratic


def changes(losses: list[float]) -> list[float]:
    """What gradients predict where they explain all."""
    return [b - a for a, b in pairwise(losses)]


def test_gradients_predict_the_change_of_a_quadratic_exactly() -> None:
    g = torch.Generator().manual_seed(0)
    A, a, b = (torch.randn(n, 4, generator=g, dtype=torch.double) for n in (4, 1, 1))
    A, a, b = A + A.T, a[0], b[0]
    exact = (b @ A @ b - a @ A @ a) / 2
    assert predicted_change(Visit(a, A @ a), Visit(b, A @ b)) == pytest.approx(float(exact))


@pytest.mark.parametrize(
    ("before", "value", "expected"),
    [
        ([], 9.0, False),
        ([1.0], 9.0, False),  # nothing has been won yet
        ([1.0, 1.5], 9.0, False),
        ([1.0, 0.5], 1.0, False),
        ([1.0, 0.5], 1.1, True),
        ([1.0, 2.0, 0.5], 1.9, False),
        ([1.0, 2.0, 0.5], 2.1, True),
        ([1.0, 0.5, 3.0], 2.0, True),  # what came after the lowest does not count
    ],
)
def test_where_gradients_explain_all_a_setback_is_above_all_that_led_to_the_lowest(
    before: list[float], value: float, expected: bool
) -> None:
    losses = [*before, value]
    assert is_setback(losses, changes(losses)) is expected


def test_a_rise_that_gradients_do_not_see_is_a_setback_if_it_is_more_than_luck() -> None:
    predicted = [-0.9, -0.4, -0.7]  # r = -0.1, 0.1
    most = luck([-0.1, 0.1])
    assert most == pytest.approx(0.1 * scipy.stats.t.ppf(0.99, 2), rel=1e-3)
    for rise, expected in ((most - 1e-9, False), (most + 1e-9, True)):
        assert is_setback([2.0, 1.0, 0.7, 2.0 + rise], predicted) is expected


def test_a_rise_that_gradients_see_is_a_setback_though_luck_is_great() -> None:
    losses = [1.0, 0.2, 0.7, 1.1]
    assert is_setback(losses, [-0.3, 0.4, 0.3])
    assert not is_setback(losses, [-0.3, 0.4, -0.2])


def test_what_was_before_the_highest_loss_does_not_count() -> None:
    assert not is_setback([1.0, 2.0, 0.5, 2.1], [1.9, -1.5, -0.2])
    assert is_setback([1.0, 2.0, 0.5, 2.1], [-1.9, -1.5, 1.6])


def test_a_gradient_that_has_exploded_tells_nothing() -> None:
    losses = [1.0, 0.6, 0.7, 0.9, 1.05]
    assert is_setback(losses, [-0.2, -50.0, 0.1, 0.1])
    assert is_setback(losses, [-0.2, 50.0, 0.1, 0.1])
    assert not is_setback(losses, [-0.2, -0.5, 0.1, 0.1])
    # The loss of the last step is a change that was seen, in place of what is predicted.
    assert is_setback([1.0, 0.6, 1.1], [-0.3, -50.0])
    assert not is_setback([1.0, 0.6, 1.1], [-0.3, -0.5])


def test_luck_is_what_students_t_exceeds_once_in_a_hundred_times() -> None:
    quantiles = scipy.stats.t.ppf(0.99, np.arange(1, len(RARE) + 1))
    np.testing.assert_allclose(RARE, quantiles, atol=0.006)
    assert luck([0.3]) == pytest.approx(RARE[0] * 0.3)
    assert luck([3.0, -4.0]) == pytest.approx(RARE[1] * 5 / math.sqrt(2))
    assert luck([0.5] * 40) == pytest.approx(RARE[-1] * 0.5)
    assert luck([]) == math.inf


@pytest.mark.parametrize("slope", [0.0, -0.05])
def test_losses_that_differ_by_luck_alone_are_hardly_ever_a_setback(slope: float) -> None:
    draws, trials = np.random.default_rng(0).normal(size=(400, 20)), 0
    setbacks, misled = 0, 0
    for row in draws + slope * np.arange(20):
        for n in range(1, 20):
            losses = row[: n + 1].tolist()
            won = losses[: int(np.argmin(losses[:-1])) + 1]
            misled += len(won) > 1 and losses[-1] > max(won)
            setbacks += is_setback(losses, [slope] * n)
            trials += 1
    assert misled > 0.02 * trials  # by the losses alone
    assert setbacks < 0.002 * trials


# In a study


def bowl(cliff: float = 0.0, noise: float = 0.0) -> Any:
    """An estimator ``(x - 3)**2`` plus noise of the trial's seed, and a cliff below x."""

    def estimator(
        training: hd.Training, hparams: Mapping[str, Any], *, seed: int, device: Any
    ) -> tuple[Tensor, dict[str, Tensor]]:
        g, x = torch.Generator().manual_seed(seed % 2**32), hparams["x"]
        luck = noise * float(torch.randn((), generator=g, dtype=torch.double))
        value, slope = ((x - 3) ** 2, 2 * (x - 3)) if x >= cliff else (50.0, 1e-3)
        return torch.tensor(value + luck, dtype=torch.double), {
            "x": torch.tensor(slope, dtype=torch.double)
        }

    return estimator


def descended(
    estimator: Any, n: int = 20, start: float = 6.0, seed: int = 0, **options: Any
) -> hd.Study:
    settings = {"optimizer": "sgd", "lr": 0.002, **options}
    space = hd.Space(x=hd.Float(0.0, 10.0))
    study = hd.Study(space, tuner=hd.Hypergradient(estimator, **settings), seed=seed)
    study.enqueue({"x": start})
    study.optimize(Quadratic(), n_trials=n, progress=False)
    return study


def points(study: hd.Study) -> list[float]:
    return [trial.params["x"] for trial in study.trials]


def test_noise_in_the_losses_does_not_move_the_points() -> None:
    noisy = descended(bowl(noise=1.0), start=3.4, seed=6)
    losses = [trial.value or 0.0 for trial in noisy.trials]
    worst = max(losses[: losses.index(min(losses)) + 1])
    assert max(losses[losses.index(min(losses)) :]) > worst  # which looks like a setback
    assert points(noisy) == points(descended(bowl(), start=3.4, seed=6))


def test_a_cliff_is_a_setback_under_noise_too() -> None:
    study = descended(bowl(cliff=2.9, noise=0.3), optimizer="adam", lr=0.05)
    below = [x < 2.9 for x in points(study)]
    assert any(below)
    for number in (n for n, fell in enumerate(below[:-1]) if fell):
        anchor = next(x for x in reversed(points(study)[:number]) if x >= 2.9)
        assert abs(points(study)[number + 1] - anchor) < abs(points(study)[number] - anchor)
    assert sum(not fell for fell in below[7:]) > 3
    assert min(x for x in points(study) if x >= 2.9) < 2.95


def test_a_noisy_study_in_pieces_is_a_study_in_one_piece(tmp_path: Path) -> None:
    whole = descended(bowl(cliff=2.9, noise=0.3), optimizer="adam", lr=0.05, n=16)
    for _ in range(4):
        tuner = hd.Hypergradient(bowl(cliff=2.9, noise=0.3), optimizer="adam", lr=0.05)
        space = hd.Space(x=hd.Float(0.0, 10.0))
        piece = hd.Study(space, tuner=tuner, storage=tmp_path / "s.log", seed=0)
        if not piece.trials:
            piece.enqueue({"x": 6.0})
        piece.optimize(Quadratic(), n_trials=4, progress=False)
    assert points(piece) == points(whole)

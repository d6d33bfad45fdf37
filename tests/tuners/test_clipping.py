"""Gradients that explode: how far they are shortened, and what a descent makes of them."""

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import hyperopt_dl as hd
from hyperopt_dl.hypergrad.estimator import Note, Plan
from hyperopt_dl.tuners.chain import Descent, Visit
from hyperopt_dl.tuners.clipping import ESTIMATED, EXACT, clipped
from tests.problems import Quadratic


def vector(*entries: float) -> Tensor:
    return torch.tensor(entries, dtype=torch.double)


@pytest.mark.parametrize(
    ("lengths", "most", "length"),
    [
        ([1.0], 2.0, 2.0),
        ([1.0, 3.0], 2.0, 4.0),
        ([9.0, 1.0, 3.0], 2.0, 6.0),
        ([1.0, 3.0], 10.0, 20.0),
        ([1.0, 1.0, 1e9], 2.0, 2.0),  # what has exploded once sets no example
        ([0.0, 0.0, 0.0, 3.0], 2.0, 6.0),  # where nothing moves, nothing is said
        ([30.0], 2.0, 50.0),
        ([], 2.0, 50.0),
        ([0.0], 2.0, 50.0),
    ],
)
def test_a_gradient_is_at_most_so_long_and_points_where_it_did(
    lengths: list[float], most: float, length: float
) -> None:
    got = clipped(vector(30.0, -40.0), lengths, most)
    torch.testing.assert_close(got, length * vector(0.6, -0.8), rtol=1e-15, atol=0)


def test_a_gradient_that_is_short_enough_stays_bit_by_bit() -> None:
    g = vector(0.1, 0.2, -0.7)
    assert torch.equal(clipped(g, [float(g.norm()) / 2], 2.0), g)
    assert torch.equal(clipped(torch.zeros(3), [1.0], 2.0), torch.zeros(3))


@given(
    st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=9),
    st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=4),
    st.floats(1e-3, 1e3),
)
@settings(deadline=None, max_examples=60)
def test_the_unit_of_the_loss_and_the_order_do_not_matter(
    lengths: list[float], entries: list[float], unit: float
) -> None:
    g = vector(*entries)
    other = clipped(unit * g, [unit * length for length in reversed(lengths)], 2.0)
    torch.testing.assert_close(other, unit * clipped(g, lengths, 2.0), rtol=1e-9, atol=1e-12)


# In a descent


def steps(optimizer: Any, gradients: Sequence[float], lr: float, **options: float) -> list[float]:
    """The steps of a descent that stays at one point and sees these gradients."""
    point, moves = vector(0.0), []
    descent = Descent(optimizer, lr, Visit(point, vector(gradients[0])), **options)
    moves.append(descent.ahead(0).item())
    for gradient in gradients[1:]:
        descent.follow(Visit(point, vector(gradient)))
        moves.append(descent.ahead(0).item())
    return moves


def test_a_descent_compares_with_the_lengths_as_they_were_and_so_follows_growth() -> None:
    # Medians before: none, 1, 5.5, 10, 10; the second and the last are longer than twice these.
    wanted = [1.0, 2.0, 10.0, 10.0, 20.0]
    assert steps("sgd", [1.0, -10.0, 10.0, 10.0, 90.0], 0.1) == pytest.approx(
        [-0.1 * w * s for w, s in zip(wanted, (1, -1, 1, 1, 1), strict=True)], rel=1e-14
    )


def test_adam_soon_forgets_a_gradient_that_has_exploded() -> None:
    gradients = [1.0] * 5 + [-1000.0] + [1.0] * 8
    moments, wanted = [0.0, 0.0], []  # Adam's, by hand; the exploded gradient is -2
    for k, g in enumerate([1.0] * 5 + [-2.0] + [1.0] * 8, start=1):
        moments = [0.9 * moments[0] + 0.1 * g, 0.999 * moments[1] + 0.001 * g * g]
        first, second = moments[0] / (1 - 0.9**k), moments[1] / (1 - 0.999**k)
        wanted.append(-0.05 * first / (math.sqrt(second) + 1e-8))
    got = steps("adam", gradients, 0.05)
    assert got == pytest.approx(wanted, rel=1e-9)
    assert all(step < 0 for step in got)  # it never turns
    unclipped = steps("adam", gradients, 0.05, most=math.inf)
    assert all(step > 0 for step in unclipped[5:])  # and would have turned for good


def test_a_descent_may_let_gradients_be_longer() -> None:
    got = steps("sgd", [1.0, 8.0, 1.0, 99.0], 0.1, most=ESTIMATED)
    assert got == pytest.approx([-0.1, -0.8, -0.1, -1.0])


# In a study


class Exact:
    """An estimator of ``(x - 3)**2`` whose slope is 40 times as steep where x is 4 to 4.5."""

    def __call__(
        self,
        training: hd.Training,
        hparams: Mapping[str, Any],
        *,
        seed: int,
        device: Any,
        **of_a_trial: Any,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        x = hparams["x"]
        return vector((x - 3) ** 2)[0], {"x": vector(slope(x))[0]}


class Drawn(Exact):
    """The same as an estimator that learns from trial to trial what to draw."""

    def next_plan(self, notes: Sequence[Note], running: Sequence[Plan]) -> Plan:
        return {}

    def last_plan(self) -> Plan:
        return {}


def slope(x: float) -> float:
    return 2 * (x - 3) * (40 if 4 < x < 4.5 else 1)


def descended(estimator: Any, totals: Sequence[int], storage: Path | None = None) -> list[float]:
    """The points of a descent by steps of 0.002, gone on with up to each of some totals."""
    for total in totals:
        tuner = hd.Hypergradient(estimator, "sgd", lr=0.002)
        study = hd.Study({"x": hd.Float(0.0, 10.0)}, tuner=tuner, storage=storage, seed=0)
        if not study.trials:
            study.enqueue({"x": 6.5})
        study.optimize(Quadratic(), total_trials=total, progress=False)
    return [trial.params["x"] for trial in study.trials[: totals[-1]]]


@pytest.mark.parametrize(("estimator", "most"), [(Exact(), EXACT), (Drawn(), ESTIMATED)])
def test_a_study_shortens_what_explodes_and_draws_less_than_exact_gradients(
    estimator: Any, most: float
) -> None:
    x, wanted = 6.5, []
    lengths: list[float] = []
    for _ in range(6):  # in the cube, u = x / 10
        wanted.append(x)
        g = 10 * slope(x)
        limit = most * statistics.median(lengths) if lengths else math.inf
        lengths.append(abs(g))
        x = min(10.0, max(0.0, x - 10 * 0.002 * math.copysign(min(abs(g), limit), g)))
    assert max(lengths) > 10 * lengths[0]
    assert descended(estimator, [6]) == pytest.approx(wanted, rel=1e-12)


def test_a_study_in_pieces_clips_as_a_study_in_one_piece(tmp_path: Path) -> None:
    whole = descended(Exact(), [7])
    assert descended(Exact(), [1, 2, 4, 7], tmp_path / "s.log") == whole

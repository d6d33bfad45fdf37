"""`hd.Hypergradient` in a study: what makes, ends and separates its chains."""

import itertools
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState

import hyperopt_dl as hd
from tests.tuners.descents import LR, MIXED, PROBLEM, bowl, column, params, told, tuned


def test_what_is_discrete_stays_fixed_in_a_chain_and_is_drawn_anew_with_the_next() -> None:
    study = tuned(MIXED, 32, estimator=bowl, chain_length=4)
    drawn = [(t.params["grid"], t.params["n"], t.params["kind"]) for t in study.trials]
    chains = [drawn[i : i + 4] for i in range(0, 32, 4)]
    assert all(len(set(chain)) == 1 for chain in chains)
    assert len({chain[0] for chain in chains}) > 5
    assert {kind for _, _, kind in drawn} == {"a", "b"}


def test_a_chain_begins_anew_after_its_length() -> None:
    study = tuned(MIXED, 6, estimator=bowl, chain_length=3, lr=0.01)
    u = [MIXED.to_unit(trial.params)[:2] for trial in study.trials]
    steps = [float((b - a).abs().max()) for a, b in itertools.pairwise(u)]
    assert [step < 0.011 for step in steps] == [True, True, False, True, True]


def test_two_chains_are_two_descents_that_take_turns() -> None:
    starts = [{"lr": 0.1}, {"lr": 0.4}]
    alone = [column(tuned(LR, 4, start=start), "lr") for start in starts]
    study = hd.Study(LR, tuner=hd.Hypergradient(chains=2), seed=0)
    for start in starts:
        study.enqueue(start)
    study.optimize(PROBLEM, n_trials=8, progress=False)
    together = column(study, "lr")
    assert [together[::2], together[1::2]] == alone


def test_a_chain_goes_on_with_a_range_that_has_changed(tmp_path: Path) -> None:
    for space in (hd.Space(x=hd.Float(2.0, 6.0)), hd.Space(x=hd.Float(1.0, 9.0))):
        tuner = hd.Hypergradient(bowl, optimizer="sgd", lr=0.01)
        study = hd.Study(space, tuner=tuner, storage=tmp_path / "s.log", seed=0)
        if not study.trials:
            study.enqueue({"x": 5.0})
        study.optimize(PROBLEM, n_trials=2, progress=False)
    x = column(study, "x")
    widths = [4.0, 4.0, 8.0]  # the third trial is proposed in the old range, the fourth in the new
    for before, after, width in zip(x, x[1:], widths, strict=False):
        assert after == pytest.approx(before - 0.01 * width**2 * 2 * (before - 3))


def test_a_range_that_leaves_a_chain_outside_begins_it_in_the_new_range(tmp_path: Path) -> None:
    for low in (2.0, 5.5):
        tuner = hd.Hypergradient(bowl, lr=0.01)
        space = hd.Space(x=hd.Float(low, 6.0))
        study = hd.Study(space, tuner=tuner, storage=tmp_path / "s.log", seed=0)
        if not study.trials:
            study.enqueue({"x": 5.0})
        study.optimize(PROBLEM, n_trials=3, progress=False)
    new = column(study, "x")[3:]
    alone = tuned(space, 3, start={"x": new[0]}, estimator=bowl, lr=0.01)
    assert new == column(alone, "x")


def test_an_enqueued_trial_begins_its_chain() -> None:
    start = {"x": 5.0, "y": 0.5, "grid": 0.5, "n": 2, "kind": "a"}
    alone = tuned(MIXED, 4, start=start, estimator=bowl)
    later = tuned(MIXED, 3, estimator=bowl)
    later.enqueue(start)
    later.optimize(PROBLEM, n_trials=4, progress=False)
    assert params(later)[3:] == params(alone)


def test_a_trial_without_a_gradient_ends_its_chain() -> None:
    study = hd.Study(hd.Space(x=hd.Float(2.0, 6.0)), tuner=hd.Hypergradient(lr=1e-3), seed=0)
    x = [told(study, gradient) for gradient in (1.0, 1.0, None, 1.0, 1.0)]
    moved = [abs(b - a) < 0.01 for a, b in itertools.pairwise(x)]
    assert moved == [True, True, False, True]


def test_a_chain_that_fails_ten_times_begins_anew() -> None:
    study = hd.Study(hd.Space(x=hd.Float(2.0, 6.0)), tuner=hd.Hypergradient(lr=1e-3), seed=0)
    x = [told(study, 1.0), *(told(study, None, TrialState.FAIL) for _ in range(10))]
    assert max(x) - min(x) < 0.01
    assert abs(told(study, 1.0) - x[0]) > 0.1


def test_running_trials_are_in_chains_of_their_own() -> None:
    study = hd.Study(hd.Space(x=hd.Float(2.0, 6.0)), tuner=hd.Hypergradient(lr=0.01), seed=0)
    first, second = study.ask(2)
    for trial in (first, second):
        trial.set_user_attr("hypergradient", {"x": 1.0})
        study.tell(trial, 1.0)
    third, fourth = study.ask(2)
    assert third.params["x"] == pytest.approx(first.params["x"] - 0.04, abs=1e-6)
    assert fourth.params["x"] == pytest.approx(second.params["x"] - 0.04, abs=1e-6)


class Away:
    """An estimator that a worker process cannot import."""

    __module__ = "__main__"

    def __call__(self, *args: Any, **options: Any) -> Any:
        return bowl(*args, **options)


@pytest.mark.slow
def test_workers_run_the_estimator_and_every_trial_is_in_a_chain() -> None:
    study = hd.Study(MIXED, tuner=hd.Hypergradient(Away(), lr=0.02, chains=2), seed=0)
    processes = hd.executors.Processes(devices="cpu", per_device=2, threads_per_worker=1)
    study.optimize(PROBLEM, n_trials=8, executor=processes, progress=False)
    for trial in study.trials:
        value, gradient = bowl(PROBLEM, trial.params, seed=0, device="cpu")
        assert trial.value == value.item()
        assert trial.user_attrs["hypergradient"] == {n: d.item() for n, d in gradient.items()}
    chains = {(t.params["grid"], t.params["n"], t.params["kind"]) for t in study.trials}
    assert len(chains) == 2

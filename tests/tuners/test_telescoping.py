"""Randomized telescoping in a study: what a trial records, what is learned, and how it ends."""

import itertools
import math
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import optuna
import pytest
import torch
from optuna.trial import FrozenTrial, TrialState
from torch import Tensor

import hyperopt_dl as hd
from hyperopt_dl.executors.serial import SerialPool
from hyperopt_dl.hypergrad import Reverse, Telescoping
from hyperopt_dl.seeds import derive
from hyperopt_dl.training import HParams, State
from tests.problems import Quadratic


@dataclass(frozen=True)
class Toward:
    """``x' = x + (aim - x) / 2`` and noise, from 0: gradients converge as fast as x does."""

    steps: int = 32

    def init(self, hparams: HParams, *, seed: int, device: torch.device | str) -> State:
        return {"x": torch.zeros((), dtype=torch.double), "seed": torch.tensor(seed)}

    def step(self, state: State, hparams: HParams, t: int) -> State:
        g = torch.Generator().manual_seed(derive(int(state["seed"]), "noise", t))
        noise = 0.02 * torch.randn((), generator=g, dtype=torch.double)
        return {**state, "x": state["x"] + (hparams["aim"] - state["x"]) / 2 + noise}

    def loss(self, state: State, hparams: HParams) -> Tensor:
        return (state["x"] - 1).square()


PROBLEM = Toward()
SPACE = hd.Space(aim=hd.Float(0.1, 10.0, log=True))
WIDTH = math.log(100.0)  # aim = 0.1 * 100**u
START = {"aim": 4.0}
EXACT = Reverse("all")


def loss_after_all_steps(trial: FrozenTrial) -> float:
    seed = trial.user_attrs["hd:run"]["seed"]
    return float(PROBLEM.loss(hd.rollout(PROBLEM, trial.params, seed=seed), trial.params))


def coordinate(trial: FrozenTrial) -> float:
    aim: float = trial.params["aim"]
    return math.log(aim / 0.1) / WIDTH


def slope(trial: FrozenTrial) -> float:
    """dE/du as the trial recorded it."""
    return float(trial.user_attrs["hypergradient"]["aim"] * trial.params["aim"] * WIDTH)


def tuned(n: int, estimator: Any = None, *, seed: int = 0, **options: Any) -> hd.Study:
    estimator = Telescoping(mode=EXACT) if estimator is None else estimator
    settings = {"optimizer": "sgd", "lr": 1e-3, **options}
    study = hd.Study(SPACE, tuner=hd.Hypergradient(estimator, **settings), seed=seed)
    study.enqueue(START)
    study.optimize(PROBLEM, n_trials=n, progress=False)
    return study


def note(trial: FrozenTrial) -> dict[str, Any]:
    return dict(trial.user_attrs["estimator"])


def kinds(study: hd.Study) -> list[str]:
    return [note(trial)["do"] for trial in study.trials]


@pytest.fixture(scope="module")
def study() -> hd.Study:
    return tuned(40)


# What a trial leaves behind


def test_the_first_trial_calibrates_and_the_others_draw(study: hd.Study) -> None:
    assert kinds(study)[:4] == ["calibrate", "draw", "draw", "draw"]


def test_a_trial_records_its_level_its_probability_its_cost_and_the_estimate(
    study: hd.Study,
) -> None:
    draws = [note(trial) for trial in study.trials if note(trial)["do"] == "draw"]
    for drawn in draws:
        place = drawn["levels"].index(drawn["level"])
        assert drawn["probability"] == drawn["probabilities"][place]
        assert drawn["steps"] == 2 * drawn["level"]
        assert isinstance(drawn["estimate"], float)
    assert len({drawn["level"] for drawn in draws}) > 2
    assert all(set(trial.user_attrs["hypergradient"]) == {"aim"} for trial in study.trials[:-1])


@pytest.mark.parametrize("tune", [True, False])
def test_only_the_value_of_a_trial_that_stopped_early_is_marked_as_an_estimate(
    study: hd.Study, tune: bool
) -> None:
    trials = study.trials if tune else tuned(12, Telescoping(tune=False, levels=(16,))).trials
    assert {note(trial)["exact"] for trial in trials[:-1]} == {True, False}
    for trial in trials:
        early = note(trial)["level"] < PROBLEM.steps
        assert note(trial)["exact"] is not early
        assert trial.constraints == ({"value_is_an_estimate": 1.0} if early else {})
        expected = note(trial)["estimate"] if early else loss_after_all_steps(trial)
        assert trial.value == pytest.approx(expected)
        assert trial.intermediate_values == ({} if early else {32: trial.value})


def test_the_best_trial_is_one_that_made_all_steps(study: hd.Study) -> None:
    exact = [t for t in study.trials if note(t)["exact"]]
    assert study.best.number == min(exact, key=lambda t: t.value or 0.0).number
    assert study.optuna.best_trial.number == study.best.number
    assert min(t.value or 0.0 for t in study.trials) < study.best.value  # type: ignore[operator]


# What is learned


def test_draws_follow_the_odds_of_the_calibrations_before_them(study: hd.Study) -> None:
    estimator = Telescoping(mode=EXACT)
    notes = [note(trial) for trial in study.trials]
    for number, made in enumerate(notes):
        plan = estimator.next_plan(notes[:number], [])
        if made["do"] == "draw":
            assert made["probabilities"] == plan["probabilities"]
            assert made["levels"] == plan["levels"]
            assert made["factor"] == plan["factor"]


def test_distances_are_measured_in_the_unit_cube(study: hd.Study) -> None:
    trial = study.trials[0]
    assert note(trial)["distances"][0][-1] == pytest.approx(slope(trial) ** 2)


def test_it_calibrates_again_when_so_much_compute_has_gone_by() -> None:
    notes = [note(t) for t in tuned(30, Telescoping(calibrate_every=1.0, mode=EXACT)).trials]
    again = [number for number, made in enumerate(notes) if made["do"] == "calibrate"]
    assert len(again) > 2
    for first, second in itertools.pairwise(again):
        between = [made["steps"] for made in notes[first + 1 : second]]
        assert sum(between[:-1]) < 2 * PROBLEM.steps <= sum(between)


def test_without_tuning_no_trial_calibrates_and_all_levels_are_drawn() -> None:
    study = tuned(3, Telescoping(tune=False, levels=(4, 16)))
    assert kinds(study) == ["draw", "draw", "draw", "evaluate"]
    assert note(study.trials[0])["levels"] == [4, 16, 32]


# Moves


def test_a_step_along_a_draw_is_shortened_by_its_factor(study: hd.Study) -> None:
    trials = study.trials[:6]
    assert any(note(trial)["factor"] < 0.95 for trial in trials)
    for trial, ahead in itertools.pairwise(trials):
        u = coordinate(trial) - 1e-3 * note(trial)["factor"] * slope(trial)
        assert coordinate(ahead) == pytest.approx(min(1, max(0, u)))


@pytest.mark.parametrize(
    ("values", "estimates", "setback"),
    [
        ([5.0, 4.0, 90.0, 3.0], [], True),
        ([5.0, 4.0, 90.0, 3.0], [90.0], False),
        ([5.0, 99.0, 4.0, 90.0, 3.0], [99.0], True),
    ],
)
def test_only_losses_after_all_steps_are_compared(
    values: list[float], estimates: list[float], setback: bool
) -> None:
    left = iter(values)

    def estimator(training: Any, hparams: Any, *, seed: int, device: Any, note: Any = None) -> Any:
        value = next(left)
        note({"exact": value not in estimates})
        return torch.tensor(value), {"lr": torch.tensor(-0.1).double()}

    tuner = hd.Hypergradient(estimator, optimizer="sgd", lr=0.1)
    study = hd.Study(hd.Space(lr=hd.Float(0.0, 1.0)), tuner=tuner, seed=0)
    study.enqueue({"lr": 0.2})
    study.optimize(PROBLEM, n_trials=len(values), progress=False)
    *_, good, last, ahead = (trial.params["lr"] for trial in study.trials)
    assert ahead == pytest.approx(good + 0.005 if setback else last + 0.01)


# The end


@pytest.mark.parametrize("part", [0.25, 0.5, 1.0])
def test_the_last_points_are_averaged_in_the_cube_and_run_in_full(part: float) -> None:
    study = tuned(12, average_last=part)
    *own, closing = study.trials
    u = [coordinate(trial) for trial in own[-round(12 * part) :]]
    assert coordinate(closing) == pytest.approx(sum(u) / len(u))
    assert note(closing)["do"] == "evaluate"
    assert note(closing)["steps"] == 32
    assert closing.value == pytest.approx(loss_after_all_steps(closing))


def test_a_study_goes_on_from_where_its_chain_was_after_a_closing_trial() -> None:
    study = tuned(5)
    study.optimize(PROBLEM, n_trials=3, progress=False)
    assert [kind == "evaluate" for kind in kinds(study)] == [*[False] * 5, True, *[False] * 3, True]
    last, ahead = study.trials[4], study.trials[6]
    u = coordinate(last) - 1e-3 * note(last)["factor"] * slope(last)
    assert coordinate(ahead) == pytest.approx(min(1, max(0, u)))


def test_no_worker_is_waited_for_that_has_nothing_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    wait = SerialPool.wait

    def busy(pool: SerialPool, timeout: float | None = None) -> Any:
        assert not pool.free, "a process would wait for ever"
        return wait(pool, timeout)

    monkeypatch.setattr(SerialPool, "wait", busy)
    assert kinds(tuned(2))[-1] == "evaluate"


@pytest.mark.slow
def test_processes_calibrate_draw_and_close() -> None:
    tuner = hd.Hypergradient(Telescoping(), lr=0.02, chains=2)
    study = hd.Study(SPACE, tuner=tuner, seed=0)
    executor = hd.executors.Processes(devices=["cpu"], per_device=2, threads_per_worker=1)
    study.optimize(PROBLEM, n_trials=8, executor=executor, progress=False)
    assert [trial.state.name for trial in study.trials] == ["COMPLETE"] * 10
    *own, second_last, last = kinds(study)
    assert second_last == last == "evaluate"
    calibrated = own.count("calibrate")  # once, if a worker starts when the other has calibrated
    assert own == ["calibrate"] * calibrated + ["draw"] * (8 - calibrated)
    assert calibrated in (1, 2)


def test_every_chain_is_closed() -> None:
    assert kinds(tuned(7, chains=3))[-3:] == ["evaluate"] * 3


def test_a_study_that_is_full_is_not_closed_again() -> None:
    study = tuned(4)
    study.optimize(PROBLEM, total_trials=4, progress=False)
    study.optimize(PROBLEM, n_trials=0, progress=False)
    assert len(study.trials) == 5


def test_a_study_whose_values_are_exact_is_not_closed() -> None:
    assert len(tuned(4, Reverse()).trials) == 4


def test_a_study_that_was_stopped_is_not_closed_and_goes_on_as_if_it_had_not_been(
    study: hd.Study,
) -> None:
    def stop(study: optuna.Study, trial: FrozenTrial) -> None:
        if trial.number == 3:
            study.stop()

    tuner = hd.Hypergradient(Telescoping(mode=EXACT), optimizer="sgd", lr=1e-3)
    other = hd.Study(SPACE, tuner=tuner, seed=0)
    other.enqueue(START)
    other.optimize(PROBLEM, n_trials=9, callbacks=[stop], progress=False)
    assert len(other.trials) == 4
    other.optimize(PROBLEM, n_trials=5, progress=False)
    assert [t.params for t in other.trials[:9]] == [t.params for t in study.trials[:9]]
    assert [t.value for t in other.trials[:9]] == [t.value for t in study.trials[:9]]


def test_trials_that_wait_are_not_mistaken_for_the_closing_one() -> None:
    study = tuned(3)
    study.enqueue({"aim": 0.3})
    study.enqueue({"aim": 0.4})
    study.optimize(PROBLEM, n_trials=1, progress=False)
    assert [t.state for t in study.trials[-2:]] == [TrialState.COMPLETE, TrialState.WAITING]
    assert study.trials[-1].system_attrs["fixed_params"] == {"aim": 0.4}


def test_a_chain_that_has_not_moved_on_is_not_closed_again() -> None:
    class Broken(Toward):
        def step(self, state: State, hparams: HParams, t: int) -> State:
            raise RuntimeError("broken")

    study = tuned(3)
    study.optimize(Broken(), n_trials=2, progress=False)
    assert [trial.state.name for trial in study.trials[4:]] == ["FAIL", "FAIL"]


@pytest.mark.parametrize("part", [0.0, -0.5, 1.5])
def test_a_part_of_the_points_that_is_none_is_an_error(part: float) -> None:
    with pytest.raises(hd.StudyError, match="average_last must be a part of the points"):
        hd.Hypergradient(average_last=part)


# Elsewhere


class Vector(Quadratic):
    """The start is an Array, on top of the learning rate."""

    def init(self, hparams: HParams, *, seed: int, device: torch.device | str) -> State:
        state = super().init(hparams, seed=seed, device=device)
        return {**state, "x": state["x"] + hparams["shift"]}


def test_an_array_is_measured_by_its_range_and_averaged_entry_by_entry() -> None:
    space = hd.Space(lr=hd.Float(0.01, 0.5), shift=hd.Array(3, low=-2.0, high=6.0), n=hd.Int(1, 4))
    tuner = hd.Hypergradient(Telescoping(levels=(2,)), optimizer="sgd", lr=1e-3, average_last=1.0)
    study = hd.Study(space, tuner=tuner, seed=0)
    study.optimize(Vector(steps=4), n_trials=3, progress=False)
    assert study.trials[0].user_attrs["hd:keywords"]["scale"] == {
        "lr": pytest.approx(0.49),
        "shift": pytest.approx(8.0),
    }
    shifts = torch.stack([study.params(n)["shift"] for n in range(3)])
    torch.testing.assert_close(study.params(3)["shift"], shifts.mean(0))
    assert study.params(3)["n"] == study.params(2)["n"]


def test_a_plan_is_kept_for_another_attempt_at_a_trial() -> None:
    study = hd.Study(SPACE, tuner=hd.Hypergradient(Telescoping(levels=(2,))), seed=0)
    (first, link), (second, other) = study._ledger.ask(), study._ledger.ask()
    made = {"do": "calibrate", "levels": [2, 4], "measured": [2, 4], "steps": 8}
    link.set_user_attr("estimator", {**made, "distances": [[0, 9, 16], [9, 0, 1], [16, 1, 0]]})
    study.tell(first.number, 1.0)
    job, _ = study._ledger.ask()
    assert job.keywords["plan"]["do"] == "draw"
    other.set_user_attr("estimator", {**made, "distances": [[0, 16, 25], [16, 0, 1], [25, 1, 0]]})
    study.tell(second.number, 1.0)
    again, _ = study._ledger._prepare(study._ledger.again(job.number, 1), job.seed)
    assert again.keywords == job.keywords
    assert pickle.loads(pickle.dumps(again)) == again


def test_in_plain_optuna_evaluate_keeps_notes_and_the_best_trial_is_exact() -> None:
    sampler = hd.Hypergradient(Telescoping(mode=EXACT), lr=0.02, seed=0)
    study = optuna.create_study(sampler=sampler)

    def objective(trial: optuna.Trial) -> float:
        trial.suggest_float("aim", 0.1, 10.0, log=True)
        return hd.evaluate(trial, PROBLEM)

    study.optimize(objective, n_trials=12)
    notes = [note(trial) for trial in study.trials]
    assert [made["do"] for made in notes[:2]] == ["calibrate", "draw"]
    assert not all(made["exact"] for made in notes)
    assert note(study.best_trial)["exact"]


def test_a_model_of_the_loss_refuses_estimates_of_it() -> None:
    with pytest.raises(hd.StudyError, match="needs the loss after all steps, but Telescoping"):
        hd.AdditiveBO(use_gradients=True, estimator=Telescoping())


def test_an_estimator_that_names_no_keyword_is_given_none() -> None:
    def plain(
        training: hd.Training, hparams: Mapping[str, Any], *, seed: int, device: Any
    ) -> tuple[Tensor, dict[str, Tensor]]:
        return torch.tensor(1.0), {"aim": torch.tensor(0.5).double()}

    study = hd.Study(SPACE, tuner=hd.Hypergradient(plain), seed=0)
    study.optimize(PROBLEM, n_trials=2, progress=False)
    assert [t.value for t in study.trials] == [1.0, 1.0]
    assert "hd:keywords" not in study.trials[0].user_attrs

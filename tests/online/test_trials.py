"""Supervised(online=...): the rates tune themselves in each trial, and a sampler tunes the rest."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import hyperopt_dl as hd
from hyperopt_dl.executors import Processes
from hyperopt_dl.hypergrad.steps.held_out import HeldOut
from hyperopt_dl.online import Descent, Forward, ForwardTuner, HypergradientDescent
from hyperopt_dl.optimizers import SGD, Adagrad, Adam, AdamW, ClipNorm, Optimizer, RMSprop
from hyperopt_dl.trial import Outcome
from tests import scripted
from tests.online.trials import LR, SPACE, STEPS, TRAIN, VALIDATION, training, tuned


def plain(_: Mapping[str, Any]) -> nn.Module:
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2)).double()


def run(made: hd.Supervised, seed: int = 3, **params: Any) -> tuple[Outcome, scripted.Recorder]:
    notes = scripted.Recorder()
    outcome = scripted.run(made, notes, params=params, seed=seed)
    assert outcome.state == "complete", outcome.error
    return outcome, notes


def reports(notes: scripted.Recorder) -> dict[int, float]:
    return {step: value for value, step in notes.of("report")}


GROUPS: Any = {"4.*": {"lr": 0.01}, "*.bias": {"weight_decay": 0.0}}
OPTIMIZERS: dict[str, Optimizer] = {
    "SGD": SGD(lr=0.05, momentum=0.5, nesterov=True, weight_decay=0.1, groups=GROUPS),
    "Adam": Adam(lr=0.05, betas=(0.8, 0.9), amsgrad=True, groups={"0.*": {"betas": (0.5, 0.6)}}),
    "AdamW": AdamW(lr=0.05, weight_decay=0.2, groups=GROUPS),
    "RMSprop": RMSprop(lr=0.01, momentum=0.5, centered=True, weight_decay=0.1),
    "Adagrad": Adagrad(lr=0.05, lr_decay=0.1, initial_accumulator_value=0.3),
    "ClipNorm": ClipNorm(SGD(lr=0.3, momentum=0.5, groups=GROUPS), max_norm=0.2),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("tuner", ["Forward", "Descent"])
def test_a_tuner_that_does_not_move_leaves_the_trial_as_it_is(tuner: str, name: str) -> None:
    if tuner == "Descent" and name in ("RMSprop", "Adagrad"):
        pytest.skip("of another family")
    optimizer = OPTIMIZERS[name]
    online = Forward({"lr@0": LR}, hyper_lr=0.0) if tuner == "Forward" else Descent(hyper_lr=0.0)
    expected, expected_notes = run(training(optimizer=optimizer))
    outcome, notes = run(training(optimizer=optimizer, online=online))
    assert outcome.values == pytest.approx(expected.values, rel=1e-9)
    assert list(reports(notes)) == list(reports(expected_notes)) == list(range(1, STEPS + 1))
    assert reports(notes) == pytest.approx(reports(expected_notes), rel=1e-9)
    assert notes.attrs.keys() == {"metrics", "test"}
    for kind in ("metrics", "test"):
        assert notes.attrs[kind] == pytest.approx(expected_notes.attrs[kind], rel=1e-9)


def by_hand(tuner_of: Callable[[Any], Any], seed: int) -> tuple[Any, float]:
    """The same run as a user's own loop, on the whole training set at every step."""
    still = training(model=plain, batch_size=None)
    start = still.init({}, seed=seed, device="cpu")
    model: Any = still.module(start, {}).train()
    optimizer = torch.optim.SGD(
        [
            {"params": model[0].parameters(), "lr": 0.05},
            {"params": model[2].parameters(), "lr": 0.02},
        ],
        momentum=0.5,
    )
    tuner = tuner_of(optimizer)
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = cross_entropy(model(TRAIN[0]), TRAIN[1])
        if isinstance(tuner, ForwardTuner):
            tuner.backward(loss)
            optimizer.step()
            if tuner.steps % 3 == 0:
                tuner.step(cross_entropy(model(VALIDATION[0]), VALIDATION[1]))
        else:
            loss.backward()  # type: ignore[no-untyped-call]
            tuner.step()
            optimizer.step()
    return tuner, cross_entropy(model(VALIDATION[0]), VALIDATION[1]).item()


TUNE = {"lr@1": LR, "momentum": hd.Float(0.1, 0.9)}
BY_HAND: dict[str, tuple[Any, Callable[[Any], Any]]] = {
    "Forward": (
        Forward(TUNE, hyper_lr="rate", discount="discount", every=3),
        lambda optimizer: ForwardTuner(optimizer, TUNE, hyper_lr=0.3, discount=0.9),
    ),
    "Forward, adaptive": (
        Forward({"lr": LR}, hyper_lr="rate", discount="adaptive", every=3),
        lambda optimizer: ForwardTuner(optimizer, {"lr": LR}, hyper_lr=0.3, discount="adaptive"),
    ),
    "Descent": (
        Descent(hyper_lr="rate"),
        lambda optimizer: HypergradientDescent(optimizer, hyper_lr=0.3),
    ),
}


@pytest.mark.parametrize("kind", BY_HAND)
def test_a_trial_is_the_run_of_a_loop_with_the_same_tuner(kind: str) -> None:
    online, tuner_of = BY_HAND[kind]
    optimizer = SGD(lr="lr", momentum=0.5, groups={"2.*": {"lr": 0.02}})
    made = training(model=plain, batch_size=None, optimizer=optimizer, online=online)
    outcome, _ = run(made, lr=0.05, rate=0.3, discount=0.9)
    tuner, value = by_hand(tuner_of, seed=3)
    assert outcome.values == pytest.approx((value,), rel=1e-9)
    record = outcome.online
    assert record is not None
    assert (record.tuner, record.steps) == (type(tuner).__name__, STEPS)
    assert [move.step for move in record.history] == [move.step for move in tuner.history]
    for got, expected in zip(record.history, tuner.history, strict=True):
        assert got.values == pytest.approx(expected.values, rel=1e-9)
        assert got.gradient == pytest.approx(expected.gradient, rel=1e-6, abs=1e-12)
        assert (got.loss or 0.0) == pytest.approx(expected.loss or 0.0, rel=1e-9)
    assert record.history[-1].values != record.history[0].values


def test_a_run_can_be_looked_at_between_its_steps() -> None:
    made = training()
    going = Forward({"lr": LR}, hyper_lr=0.0).start(made, {}, seed=3, device="cpu")
    kept = [(going.advance(stop), hd.rollout(made, {}, seed=3, stop=stop)) for stop in (4, 4, 9)]
    for state, expected in kept:
        assert state.keys() == {n for n in expected if not n.startswith("optimizer/")}
        for name, value in state.items():
            torch.testing.assert_close(value, expected[name], rtol=1e-9, atol=1e-12)
            assert not value.requires_grad


def test_every_trial_has_a_tuner_of_its_own() -> None:
    made = training(online=Forward({"lr": LR}, every=4))
    first, _ = run(made)
    again, _ = run(made)
    other, _ = run(made, seed=4)
    assert first == again
    assert first.values != other.values
    assert first.online is not None
    assert [move.step for move in first.online.history] == [4, 8, 12]


def test_a_move_looks_at_the_examples_that_it_was_told() -> None:
    whole = training(model=plain, online=Forward({"lr": LR}, every=4))
    every = training(model=plain, online=Forward({"lr": LR}, every=4, batch_size=20))
    part = training(model=plain, online=Forward({"lr": LR}, every=4, batch_size=5))
    state = part.init({}, seed=3, device="cpu")
    losses = [float(HeldOut(part, 5).loss(state, {}, t)) for t in range(4)]
    assert len(set(losses)) == 4  # of an epoch, other examples each time
    assert sum(losses) / 4 == pytest.approx(float(part.loss(state, {})), rel=1e-12)
    records = [run(made)[0].online for made in (whole, every, part)]
    moves = [[move.loss for move in record.history] for record in records if record is not None]
    assert moves[0] == pytest.approx(moves[1], rel=1e-12)
    assert moves[0] != pytest.approx(moves[2], rel=1e-3)


def study_of(executor: Any = None, **options: Any) -> hd.Study:
    study = hd.Study(SPACE, seed=5, pruner=optuna.pruners.NopPruner(), **options)
    study.optimize(tuned(), n_trials=3, executor=executor, progress=False)
    return study


def shown(study: hd.Study) -> list[Any]:
    return [(t.params, t.value, study.online_history(t.number)) for t in study.trials]


def test_a_sampler_tunes_what_the_online_tuner_does_not() -> None:
    study = study_of()
    for trial in study.trials:
        assert trial.params.keys() == SPACE.keys()
        moves = study.online_history(trial.number)
        assert [move.step for move in moves] == [3, 6, 9, 12]
        assert trial.user_attrs["online"]["values"] == moves[-1].values
        assert trial.user_attrs["online"]["tuner"] == "ForwardTuner"
        assert trial.user_attrs["metrics"].keys() == {"accuracy"}
        assert trial.intermediate_values[STEPS] == trial.value
        (lr,) = moves[0].values.values()
        assert 0 < abs(math.log(lr / trial.params["lr"])) <= trial.params["hyper_lr"] * 1.001
    assert shown(study) == shown(study_of())


def test_a_history_outlives_its_process(tmp_path: Path) -> None:
    study = study_of(storage=tmp_path / "s.log")
    again = hd.Study(SPACE, storage=tmp_path / "s.log")
    assert shown(again) == shown(study)
    assert len(list((tmp_path / "s.log.artifacts").iterdir())) == 3


@pytest.mark.slow
def test_processes_run_the_trials_that_serial_runs() -> None:
    assert shown(study_of(Processes(devices=["cpu"], threads_per_worker=1))) == shown(study_of())


def test_a_pruner_ends_a_run_between_two_reports() -> None:
    study = hd.Study(SPACE, seed=5, pruner=optuna.pruners.ThresholdPruner(upper=0.0))
    study.optimize(tuned(), n_trials=1, progress=False)
    (trial,) = study.trials
    assert trial.state.name == "PRUNED"
    assert list(trial.intermediate_values) == [1]


def test_a_run_that_stops_early_is_as_good_as_its_best_report() -> None:
    stopping = hd.EarlyStopping(patience=2)
    online = Descent(hyper_lr=0.9)
    made = training(optimizer=SGD(lr=1.0), online=online, steps=40, early_stopping=stopping)
    outcome, notes = run(made)
    assert len(reports(notes)) < 10
    assert outcome.values == (min(reports(notes).values()),)
    assert notes.attrs["best_step"] == min(reports(notes), key=reports(notes).__getitem__)


def test_a_run_that_stops_before_the_first_move_has_an_empty_history() -> None:
    study = hd.Study(SPACE, seed=5)
    made = training(
        online=Forward({"lr": LR}, every=STEPS),
        early_stopping=hd.EarlyStopping("accuracy", patience=1, mode="max"),
        metrics={"accuracy": lambda output, target: 0.5},
        report_every=1,
    )
    study.optimize(made, n_trials=1, progress=False)
    assert study.trials[0].state.name == "COMPLETE"
    assert study.trials[0].user_attrs["online"]["steps"] == 2
    assert study.online_history(0) == []


def infinite_in_the_end(output: Tensor, target: Tensor) -> Tensor:
    """Finite where a tuner differentiates it, and not where a trial reads its value."""
    return cross_entropy(output, target) + (0.0 if torch.is_grad_enabled() else math.inf)


def test_a_value_that_is_not_finite_fails_the_trial_and_keeps_the_history() -> None:
    study = hd.Study(SPACE, seed=5)
    online = Forward({"lr": LR}, every=4)
    made = training(online=online, validation_loss=infinite_in_the_end, report_every=STEPS)
    study.optimize(made, n_trials=1, progress=False)
    assert study.trials[0].user_attrs["failure"] == "nan"
    assert [move.step for move in study.online_history(0)] == [4, 8, 12]

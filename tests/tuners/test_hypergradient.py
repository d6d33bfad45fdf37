"""`hd.Hypergradient` in a study: what a trial leaves behind, how it moves, and what failures do."""

import math
from typing import Any

import optuna
import pytest
import torch
from optuna.trial import TrialState

import hyperopt_dl as hd
from tests.tuners.descents import LR, MIXED, PROBLEM, bowl, broken_below, column, told, tuned

# What a trial leaves behind


def test_a_trial_has_the_loss_and_its_derivative() -> None:
    for trial in tuned(LR, 3).trials:
        lr = trial.params["lr"]
        assert trial.value == pytest.approx(PROBLEM.exact_loss(lr), rel=1e-10)
        exact = PROBLEM.exact_gradient(lr).item()
        assert trial.user_attrs["hypergradient"] == {"lr": pytest.approx(exact, rel=1e-9)}


def test_the_loss_is_reported_at_the_last_step_alone() -> None:
    trial = tuned(LR, 1).trials[0]
    assert trial.intermediate_values == {PROBLEM.steps: trial.value}


def test_nothing_is_pruned_by_default() -> None:
    assert isinstance(
        hd.Study(LR, tuner=hd.Hypergradient()).optuna.pruner, optuna.pruners.NopPruner
    )
    median = optuna.pruners.MedianPruner()
    assert hd.Study(LR, tuner=hd.Hypergradient(), pruner=median).optuna.pruner is median


# Moves


def test_sgd_moves_in_the_unit_cube_of_a_linear_scale() -> None:
    study = tuned(LR, 2, start={"lr": 0.2}, optimizer="sgd", lr=0.01)
    slope = PROBLEM.exact_gradient(0.2).item()  # dE/du = 0.4 dE/dlr
    assert column(study, "lr")[1] == pytest.approx(0.2 - 0.4 * 0.01 * 0.4 * slope, rel=1e-10)


def test_sgd_moves_in_the_unit_cube_of_a_log_scale() -> None:
    space = hd.Space(lr=hd.Float(0.05, 0.45, log=True))
    study = tuned(space, 2, start={"lr": 0.2}, optimizer="sgd", lr=0.01)
    width = math.log(9.0)  # lr = 0.05 * 9**u
    slope = PROBLEM.exact_gradient(0.2).item() * 0.2 * width
    assert column(study, "lr")[1] == pytest.approx(0.2 * 9.0 ** (-0.01 * slope), rel=1e-10)


def test_adam_is_torchs_on_the_unit_cube() -> None:
    start = {"x": 5.0, "y": 0.5, "grid": 0.5, "n": 2, "kind": "a"}
    study = tuned(MIXED, 6, start=start, estimator=bowl, lr=0.03)
    u = torch.nn.Parameter(MIXED.to_unit(start)[:2])
    adam = torch.optim.Adam([u], lr=0.03)
    continuous = hd.Space(x=MIXED["x"], y=MIXED["y"])
    for trial in study.trials:
        got = continuous.to_unit({"x": trial.params["x"], "y": trial.params["y"]})
        torch.testing.assert_close(got, u.detach(), rtol=0, atol=1e-12)
        at = continuous.from_unit(u)
        u.grad = None
        ((at["x"] - 3) ** 2 + torch.log(at["y"] / 0.01) ** 2).backward()
        adam.step()


def test_a_move_ends_at_the_bound() -> None:
    study = tuned(hd.Space(x=hd.Float(3.5, 6.0)), 3, estimator=bowl, optimizer="sgd", lr=10.0)
    assert column(study, "x")[1:] == [3.5, 3.5]


def test_a_study_that_maximizes_ascends() -> None:
    study = optuna.create_study(direction="maximize", sampler=hd.Hypergradient(bowl, lr=0.1))
    study.enqueue_trial({"x": 5.0})

    def objective(trial: optuna.Trial) -> float:
        trial.suggest_float("x", 2.0, 6.0)
        return hd.evaluate(trial, PROBLEM)

    study.optimize(objective, n_trials=3)
    assert [t.params["x"] for t in study.trials] == pytest.approx([5.0, 5.4, 5.8], abs=1e-3)


def test_a_supervised_run_gets_better_than_its_start() -> None:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(80, 4, generator=generator)
    y = torch.sin(x @ torch.randn(4, generator=generator))
    training = hd.Supervised(
        model=lambda hp: torch.nn.Sequential(
            torch.nn.Linear(4, 12), torch.nn.Tanh(), torch.nn.Linear(12, 1), torch.nn.Flatten(0)
        ),
        loss=torch.nn.functional.mse_loss,
        optimizer=hd.optimizers.SGD(lr="lr", momentum="momentum", weight_decay="weight_decay"),
        train=(x[:50], y[:50]),
        validation=(x[50:], y[50:]),
        steps=30,
        batch_size=25,
    )
    space = hd.Space(
        lr=hd.Float(1e-4, 0.3, log=True),
        momentum=hd.Float(0.0, 0.95),
        weight_decay=hd.Float(1e-6, 1e-1, log=True),
    )
    start = {"lr": 1e-3, "momentum": 0.2, "weight_decay": 1e-3}
    study = tuned(space, 15, training=training, start=start)
    values = [trial.value or 0.0 for trial in study.trials]
    assert max(values[-3:]) < 0.75 * values[0]


# Failures


@pytest.mark.parametrize(
    ("value", "derivative", "state"),
    [(math.nan, math.nan, "FAIL"), (1.0, math.nan, "COMPLETE"), (1.0, math.inf, "COMPLETE")],
    ids=["value", "derivative nan", "derivative inf"],
)
def test_a_number_that_is_not_finite_halves_the_step_from_the_last_good_point(
    value: float, derivative: float, state: str
) -> None:
    estimator = broken_below(2.6, value, derivative)
    study = tuned(
        hd.Space(x=hd.Float(2.0, 6.0)),
        5,
        start={"x": 4.0},
        estimator=estimator,
        optimizer="sgd",
        lr=2**-5,
    )
    # A step of SGD is 4**2 * lr * 2 x = x long: from 4 by 4 (to the bound), by 2, by 1; then from
    # 3, where the loss is good, by 3 / 4.
    wanted = [4.0, 2.0, 2.0, 3.0, 2.25]
    assert column(study, "x") == pytest.approx(wanted)
    assert [t.state.name for t in study.trials] == ["COMPLETE", state, state, "COMPLETE", state]


@pytest.mark.parametrize("direction", ["minimize", "maximize"])
def test_a_loss_above_all_before_halves_the_step_from_the_last_good_point(direction: Any) -> None:
    sign = 1 if direction == "minimize" else -1
    inner = broken_below(2.6, 1000.0, -50.0)

    def estimator(training: hd.Training, hparams: Any, **_: Any) -> Any:
        value, gradient = inner(training, hparams)
        return sign * value, {name: sign * slope for name, slope in gradient.items()}

    def objective(trial: optuna.Trial) -> float:
        trial.suggest_float("x", 2.0, 6.0)
        return hd.evaluate(trial, PROBLEM)

    tuner = hd.Hypergradient(estimator, optimizer="sgd", lr=2**-7)
    study = optuna.create_study(direction=direction, sampler=tuner)
    study.enqueue_trial({"x": 5.0})
    study.optimize(objective, n_trials=7)
    # A step of SGD is 4**2 * lr * 2 x = x / 4 long. Below 2.6 the loss is above that of the start:
    # twice half the step from 2.8125, and so a quarter of it from then on.
    last = 2.8125 * (1 - 1 / 16)
    wanted = [5.0, 3.75, 2.8125, 2.8125 * 0.75, 2.8125 * 0.875, last, last * (1 - 1 / 16)]
    assert [trial.params["x"] for trial in study.trials] == pytest.approx(wanted)


def test_a_derivative_that_is_not_finite_is_recorded_as_null() -> None:
    study = tuned(
        hd.Space(x=hd.Float(2.0, 6.0)), 1, start={"x": 2.0}, estimator=broken_below(3.0, 1.0)
    )
    assert study.trials[0].user_attrs["hypergradient"] == {"x": None}


def test_a_start_that_fails_is_drawn_again() -> None:
    study = tuned(hd.Space(x=hd.Float(2.0, 6.0)), 4, estimator=broken_below(9.0))
    assert len({trial.params["x"] for trial in study.trials}) == 4


def test_a_pruned_trial_counts_as_a_failure() -> None:
    tuner = hd.Hypergradient(optimizer="sgd", lr=0.1)
    study = hd.Study(hd.Space(x=hd.Float(2.0, 6.0)), tuner=tuner, seed=0)
    study.enqueue({"x": 4.0})
    moves = [told(study, 1.0), told(study, None, TrialState.PRUNED), told(study, 1.0)]
    assert moves == pytest.approx([4.0, 2.4, 3.2])


def test_an_interrupted_trial_is_proposed_again() -> None:
    def interrupted(training: hd.Training, hparams: Any, **options: Any) -> Any:
        if hparams["x"] < 4.0 and not seen:
            seen.append(hparams["x"])
            raise KeyboardInterrupt
        return bowl(training, hparams, **options)

    seen: list[float] = []
    study = hd.Study(hd.Space(x=hd.Float(2.0, 6.0)), tuner=hd.Hypergradient(interrupted), seed=0)
    study.enqueue({"x": 4.0})
    with pytest.raises(KeyboardInterrupt):
        study.optimize(PROBLEM, n_trials=3, progress=False)
    study.optimize(PROBLEM, n_trials=1, progress=False)
    assert column(study, "x")[1] == column(study, "x")[2] == seen[0]

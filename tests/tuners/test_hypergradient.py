"""The sampler in a study: its moves, its chains, and that nothing but the trials decides them."""

import functools
import itertools
import math
import os
import pickle
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from optuna.trial import TrialState
from torch import Tensor

import hyperopt_dl as hd
from tests.problems import Quadratic

PROBLEM = Quadratic()
LR = hd.Space(lr=hd.Float(0.05, 0.45))
MIXED = hd.Space(
    x=hd.Float(2.0, 6.0),
    y=hd.Float(1e-3, 1.0, log=True),
    grid=hd.Float(0.0, 1.0, step=0.125),
    n=hd.Int(1, 9),
    kind=hd.Categorical(["a", "b"]),
)


def bowl(
    training: hd.Training,
    hparams: Mapping[str, Any],
    *,
    seed: int,
    device: torch.device | str,
    observe: Any = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """An estimator that needs no run: ``(x - 3)**2 + log(y / 0.01)**2``, and its derivatives."""
    x = torch.tensor(hparams["x"], dtype=torch.double)
    logarithm = torch.tensor(math.log(hparams.get("y", 0.01) / 0.01), dtype=torch.double)
    slopes = {"x": 2 * (x - 3), "y": 2 * logarithm / hparams.get("y", 0.01)}
    slopes["grid"] = torch.ones((), dtype=torch.double)  # a float, so an estimator knows it
    gradient = {name: slopes[name] for name in slopes if name in hparams}
    return (x - 3) ** 2 + logarithm**2, gradient


def broken_below(low: float, value: float = math.nan, derivative: float = math.nan) -> Any:
    """An estimator ``x**2`` on x >= low that gives something else below."""

    def estimator(training: hd.Training, hparams: Any, **_: Any) -> Any:
        x = hparams["x"]
        good = x >= low
        slope = torch.tensor(2 * x if good else derivative, dtype=torch.double)
        return torch.tensor(x**2 if good else value, dtype=torch.double), {"x": slope}

    return estimator


def tuned(
    space: hd.Space, n: int, *, training: Any = PROBLEM, start: Any = None, **options: Any
) -> hd.Study:
    study = hd.Study(space, tuner=hd.Hypergradient(**options), seed=0)
    if start is not None:
        study.enqueue(start)
    study.optimize(training, n_trials=n, progress=False)
    return study


def params(study: hd.Study) -> list[dict[str, Any]]:
    return [trial.params for trial in study.trials]


def column(study: hd.Study, name: str) -> list[Any]:
    return [trial.params[name] for trial in study.trials]


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


def told(study: hd.Study, gradient: float | None, state: TrialState | None = None) -> float:
    """Tell a trial that one computes by oneself, and return where it was."""
    trial = study.ask()
    if gradient is not None:
        trial.set_user_attr("hypergradient", {"x": gradient})
    study.tell(trial, None if state else 1.0, state=state)
    return float(trial.params["x"])


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


# Chains


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


# Nothing but the trials and the seed decides


def test_one_seed_gives_the_same_study_again() -> None:
    assert params(tuned(MIXED, 9, estimator=bowl, chain_length=3)) == params(
        tuned(MIXED, 9, estimator=bowl, chain_length=3)
    )


def test_another_seed_of_the_tuner_gives_other_starts() -> None:
    first, second = (tuned(MIXED, 9, estimator=bowl, chain_length=3, seed=s) for s in (0, 1))
    assert params(first)[3:] != params(second)[3:]


def test_a_study_in_pieces_is_a_study_in_one_piece(tmp_path: Path) -> None:
    def tuner() -> hd.Hypergradient:
        return hd.Hypergradient(broken_below(4.5), chains=2, chain_length=5, lr=0.1)

    space = hd.Space(x=hd.Float(2.0, 9.0), n=hd.Int(1, 9))
    whole = hd.Study(space, tuner=tuner(), seed=1)
    whole.optimize(PROBLEM, n_trials=20, progress=False)
    for total in (1, 4, 9, 20):
        piece = hd.Study(space, tuner=tuner(), storage=tmp_path / "s.log", seed=1)
        piece.optimize(PROBLEM, total_trials=total, progress=False)
    assert {t.state for t in whole.trials} == {TrialState.COMPLETE, TrialState.FAIL}
    assert params(piece) == params(whole)


SCRIPT = """
import hyperopt_dl as hd
from tests.tuners.test_hypergradient import MIXED, bowl, params, tuned
print(params(tuned(MIXED, 8, estimator=bowl, chains=2, chain_length=3)))
"""


@pytest.mark.slow
def test_another_process_with_other_hashes_proposes_the_same() -> None:
    here = params(tuned(MIXED, 8, estimator=bowl, chains=2, chain_length=3))
    there = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env={**os.environ, "PYTHONHASHSEED": "4321"},
        cwd=Path(__file__).parents[2],
        check=True,
        capture_output=True,
        text=True,
    )
    assert there.stdout.strip() == str(here)


@pytest.mark.parametrize(
    "optimizer", ["sgd", torch.optim.RMSprop, functools.partial(torch.optim.SGD, momentum=0.9)]
)
def test_a_pickled_copy_proposes_the_same(optimizer: Any) -> None:
    sampler = hd.Hypergradient(bowl, optimizer, chain_length=3, seed=4)
    copy = pickle.loads(pickle.dumps(sampler))
    runs = []
    for tuner in (sampler, copy):
        study = hd.Study(MIXED, tuner=tuner)
        study.optimize(PROBLEM, n_trials=6, progress=False)
        runs.append(params(study))
    assert runs[0] == runs[1]


def test_a_lambda_is_an_optimizer_also_in_a_study_with_a_seed() -> None:
    momentum = lambda ps, lr: torch.optim.SGD(ps, lr=lr, momentum=0.9)  # noqa: E731
    assert len(tuned(LR, 3, optimizer=momentum).trials) == 3


def test_reseeding_gives_other_starts() -> None:
    def first(reseed: bool) -> float:
        sampler = hd.Hypergradient(seed=4)
        if reseed:
            sampler.reseed_rng()
        return float(hd.Study(LR, tuner=sampler).ask().params["lr"])

    assert first(False) == first(False)
    assert first(True) != first(True)


def test_starts_may_be_any_sampler() -> None:
    grid = optuna.samplers.GridSampler({"x": [5.0, 4.0, 3.5]}, seed=0)
    study = hd.Study(
        hd.Space(x=hd.Float(2.0, 6.0)),
        tuner=hd.Hypergradient(bowl, starts=grid, chain_length=2),
        seed=0,
    )
    study.optimize(PROBLEM, n_trials=6, progress=False)
    assert sorted(column(study, "x")[::2]) == [3.5, 4.0, 5.0]


# What cannot be


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"estimator": "reverse"}, "estimator must be .auto. or an estimator"),
        ({"optimizer": "lbfgs"}, "'adam', 'sgd' or a factory"),
        ({"lr": 0.0}, "lr must be a positive number"),
        ({"lr": math.nan}, "lr must be a positive number"),
        ({"chains": 0}, "chains must be at least 1, got 0"),
        ({"chain_length": 0}, "chain_length must be at least 1"),
        ({"starts": "sobol"}, "starts must be a sampler"),
    ],
)
def test_a_tuner_that_cannot_be_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(hd.StudyError, match=message):
        hd.Hypergradient(**options)


def test_a_black_box_is_refused_before_trial_0() -> None:
    study = hd.Study(LR, tuner=hd.Hypergradient())
    with pytest.raises(hd.StudyError, match="Hypergradient needs a Training"):
        study.optimize(lambda trial: 1.0, n_trials=1)
    assert study.trials == []


def test_a_space_in_which_nothing_moves_is_refused_before_trial_0() -> None:
    study = hd.Study(hd.Space(lr=hd.Float(0.1, 0.4, step=0.1)), tuner=hd.Hypergradient())
    with pytest.raises(hd.StudyError, match="needs a Float without a step"):
        study.optimize(PROBLEM, n_trials=1)
    assert study.trials == []


def test_a_pruner_that_hides_trials_is_refused() -> None:
    study = optuna.create_study(sampler=hd.Hypergradient(), pruner=optuna.pruners.HyperbandPruner())
    with pytest.raises(ValueError, match="HyperbandPruner"):
        study.ask().suggest_float("x", 0.0, 1.0)


def test_nothing_is_pruned_by_default() -> None:
    assert isinstance(
        hd.Study(LR, tuner=hd.Hypergradient()).optuna.pruner, optuna.pruners.NopPruner
    )
    median = optuna.pruners.MedianPruner()
    assert hd.Study(LR, tuner=hd.Hypergradient(), pruner=median).optuna.pruner is median

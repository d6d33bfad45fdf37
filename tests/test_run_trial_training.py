"""One trial of a training: its reports, metrics, early stopping and estimator."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from hyperopt_dl.early_stopping import EarlyStopping
from hyperopt_dl.optimizers import SGD
from hyperopt_dl.supervised import Supervised
from hyperopt_dl.training import State, rollout
from hyperopt_dl.trial import Job, Outcome, Trial, run_trial
from tests.problems import Quadratic
from tests.scripted import INF, NAN, Recorder, Scripted, run


def test_a_training_is_run_to_its_exact_loss() -> None:
    problem = Quadratic(steps=20, noise=0.3)
    outcome = run(problem, params={"lr": 0.2}, seed=9)
    assert outcome.values is not None
    assert outcome.values[0] == pytest.approx(problem.exact_loss(0.2, seed=9), rel=1e-12)


def test_a_training_without_options_reports_once_at_its_end() -> None:
    link = Recorder()
    problem = Quadratic(steps=20)
    outcome = run(problem, link, params={"lr": 0.2})
    assert outcome.values is not None
    assert link.calls == [("report", outcome.values[0], 20)]


@pytest.mark.parametrize(
    ("every", "steps"),
    [(1, [1, 2, 3, 4, 5, 6, 7]), (3, [3, 6, 7]), (7, [7]), (50, [7])],
)
def test_a_training_reports_every_so_many_steps_and_at_its_end(
    every: int, steps: list[int]
) -> None:
    link = Recorder()
    losses = [0.5, 1.5, 2.5, 3.5, 4.5, 5.5, 6.5]
    training = Scripted(losses, every=every)
    assert run(training, link).values == (6.5,)
    assert link.of("report") == [(losses[step - 1], step) for step in steps]
    assert training.taken == list(range(7))


def test_a_training_asks_the_pruner_after_every_report_but_the_last() -> None:
    link = Recorder()
    run(Scripted([3.0, 2.0, 1.0], every=1), link)
    kinds = [call[0] for call in link.calls if call[0] != "attr"]
    assert kinds == ["report", "should_prune", "report", "should_prune", "report"]


def test_a_pruned_training_takes_no_further_step() -> None:
    link, training = Recorder(prune_at=2), Scripted([4.0, 3.0, 2.0, 1.0], every=1)
    assert run(training, link) == Outcome("pruned")
    assert training.taken == [0, 1]
    assert link.attrs == {}


def test_metrics_and_test_metrics_of_the_last_state_are_recorded() -> None:
    link = Recorder()
    run(Scripted([3.0, 1.0, 2.0], every=1), link)
    assert link.attrs == {"metrics": {"t": 3.0}, "test": {"loss": 103.0}}


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_a_loss_that_is_not_finite_ends_the_run(bad: float) -> None:
    link, training = Recorder(), Scripted([3.0, bad, 1.0], every=1)
    outcome = run(training, link)
    assert (outcome.state, outcome.failure) == ("failed", "nan")
    assert training.taken == [0, 1]
    assert len(link.of("report")) == 2
    assert link.attrs == {}


def test_a_step_that_fails_fails_the_trial() -> None:
    outcome = run(Quadratic(), params={"momentum": 0.2})
    assert outcome.failure == "exception"
    assert outcome.error.endswith("KeyError: 'lr'")


def test_a_training_records_no_graph() -> None:
    class Watched(Scripted):
        def step(self, state: State, hparams: Any, t: int) -> State:
            assert not torch.is_grad_enabled()
            return super().step(state, hparams, t)

    assert run(Watched([1.0, 2.0])).state == "complete"
    assert torch.is_grad_enabled()


# -------------------------------------------------------------------------------- early stopping


FALLS_AND_RISES = [5.0, 3.0, 4.0, 3.5, 2.0, 6.0]
SCENARIOS: dict[str, tuple[list[float], EarlyStopping, int, int]] = {
    "patience_1": (FALLS_AND_RISES, EarlyStopping(patience=1), 3, 2),
    "patience_2": (FALLS_AND_RISES, EarlyStopping(patience=2), 4, 2),
    "patience_3": (FALLS_AND_RISES, EarlyStopping(patience=3), 6, 5),
    "waits_anew": ([5.0, 3.0, 4.0, 2.0, 4.0, 1.0], EarlyStopping(patience=2), 6, 6),
    "always_better": ([3.0, 2.0, 1.0], EarlyStopping(patience=1), 3, 3),
    "a_tie_is_no_gain": ([3.0, 3.0, 3.0], EarlyStopping(patience=2), 3, 1),
    "min_delta": ([5.0, 4.9, 4.8, 4.0], EarlyStopping(patience=2, min_delta=0.5), 3, 1),
    "slow_gain": ([5.0, 4.7, 4.4, 4.0], EarlyStopping(patience=2, min_delta=0.5), 4, 3),
    "larger_is_better": ([1.0, 2.0, 3.0, 2.5], EarlyStopping(patience=9, mode="max"), 4, 3),
}


@pytest.mark.parametrize(("losses", "stopping", "taken", "best"), SCENARIOS.values(), ids=SCENARIOS)
def test_a_stopped_run_is_as_good_as_its_best_report(
    losses: list[float], stopping: EarlyStopping, taken: int, best: int
) -> None:
    link, training = Recorder(), Scripted(losses, every=1, stopping=stopping)
    assert run(training, link).values == (losses[best - 1],)
    assert len(training.taken) == taken
    assert link.of("report") == [(losses[i], i + 1) for i in range(taken)]
    assert link.attrs == {
        "best_step": best,
        "metrics": {"t": float(best)},
        "test": {"loss": 100.0 + best},
    }


def test_a_run_that_diverges_after_a_good_report_is_as_good_as_that() -> None:
    link = Recorder()
    training = Scripted([3.0, 1.0, NAN, 0.5], every=1, stopping=EarlyStopping(patience=9))
    assert run(training, link).values == (1.0,)
    assert link.attrs["best_step"] == 2
    assert training.taken == [0, 1, 2]


def test_a_training_of_no_step_fails_with_a_reason() -> None:
    assert "at least one step, got steps=0" in run(Scripted([])).error


def test_a_metric_may_decide_instead_of_the_loss() -> None:
    stopping = EarlyStopping("score", mode="max", patience=2)
    link = Recorder()
    training = Scripted(
        [4.0, 3.0, 2.0, 1.0, 0.5], every=1, stopping=stopping, metric=[0.1, 0.9, 0.5, 0.9, 1.0]
    )
    assert run(training, link).values == (3.0,)
    assert link.attrs["best_step"] == 2
    assert link.attrs["metrics"] == {"t": 2.0, "score": 0.9}
    assert training.taken == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("metric", "taken", "best"),
    [
        ([NAN, 0.5, 0.4, 0.3], 4, 2),
        ([0.5, NAN, NAN, 0.9], 3, 1),
        ([NAN, NAN, NAN, 0.9], 3, 1),
    ],
)
def test_a_metric_of_nan_is_never_an_improvement(
    metric: list[float], taken: int, best: int
) -> None:
    stopping = EarlyStopping("score", mode="max", patience=2)
    link = Recorder()
    training = Scripted([1.0, 2.0, 3.0, 4.0], every=1, stopping=stopping, metric=metric)
    assert run(training, link).values == (float(best),)
    assert len(training.taken) == taken
    assert link.attrs["best_step"] == best


def test_patience_counts_reports_and_not_steps() -> None:
    stopping = EarlyStopping(patience=1)
    training = Scripted([1.0, 9.0, 0.9, 9.0, 0.8, 9.0, 0.9, 9.0], every=2, stopping=stopping)
    link = Recorder()
    assert run(training, link).values == (9.0,)
    assert link.attrs["best_step"] == 2
    assert training.taken == [0, 1, 2, 3]


def test_a_metric_that_fails_costs_the_trial_neither_its_loss_nor_its_other_numbers() -> None:
    class Broken(Scripted):
        def metrics(self, state: State, hparams: Any) -> dict[str, float]:
            raise ValueError("no such class")

    link = Recorder()
    outcome = run(Broken([3.0, 2.0, 1.0]), link)
    assert (outcome.state, outcome.values) == ("complete", (1.0,))
    assert link.attrs["metrics_error"].endswith("ValueError: no such class")
    assert link.attrs["test"] == {"loss": 103.0}


def test_a_metric_that_the_training_does_not_have_fails_the_trial() -> None:
    outcome = run(Scripted([1.0], stopping=EarlyStopping("accuracy", mode="max")))
    assert outcome.failure == "exception"
    assert "accuracy" in outcome.error


# ------------------------------------------------------------------------------------ Supervised


def overfitting(**settings: Any) -> Supervised:
    """Random labels: the validation loss falls for a few steps, then rises."""
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(40, 5, generator=g), torch.randint(0, 2, (40,), generator=g)
    return Supervised(
        model=lambda hp: nn.Sequential(nn.Linear(5, 16), nn.Tanh(), nn.Linear(16, 2)),
        loss=cross_entropy,
        optimizer=SGD(lr="lr", momentum=0.9),
        train=(x[:20], y[:20]),
        validation=(x[20:30], y[20:30]),
        test=(x[30:], y[30:]),
        metrics={"error": lambda output, target: (output.argmax(1) != target).float().mean()},
        steps=60,
        report_every=4,
        **settings,
    )


def test_a_supervised_run_that_stops_early_is_the_run_of_its_best_step() -> None:
    training = overfitting(early_stopping=EarlyStopping(patience=2))
    link = Recorder()
    outcome = run(training, link, params={"lr": 0.3}, seed=3)
    step = link.attrs["best_step"]
    reports = [value for value, _ in link.of("report")]
    assert step == 4 * (1 + reports.index(min(reports))) < 60
    assert len(reports) == step // 4 + 2
    state = rollout(training, {"lr": 0.3}, seed=3, stop=step)
    assert outcome.values == (float(training.loss(state, {"lr": 0.3})),)
    assert link.attrs["metrics"] == training.metrics(state, {"lr": 0.3})
    assert link.attrs["test"] == training.test_metrics(state, {"lr": 0.3})


def test_a_supervised_run_reports_the_losses_of_its_path() -> None:
    training = overfitting()
    link = Recorder()
    outcome = run(training, link, params={"lr": 0.3}, seed=3)
    for value, step in link.of("report"):
        state = rollout(training, {"lr": 0.3}, seed=3, stop=step)
        assert value == float(training.loss(state, {"lr": 0.3}))
    assert outcome.values == (link.of("report")[-1][0],)
    assert [step for _, step in link.of("report")] == list(range(4, 61, 4))


def test_a_diverging_supervised_run_fails_as_nan() -> None:
    training = overfitting()
    outcome = run(training, params={"lr": 3e38})
    assert (outcome.state, outcome.failure) == ("failed", "nan")


# ------------------------------------------------------------------- a training and its estimator


def differentiated(value: float, slope: float = 2.0, link: Recorder | None = None) -> Outcome:
    def estimator(
        training: Any, hparams: Any, *, seed: int, device: Any, observe: Any = None
    ) -> Any:
        assert (seed, device, hparams) == (7, torch.device("cpu"), {"lr": 0.5})
        return torch.tensor(value), {"lr": torch.tensor(slope, dtype=torch.double)}

    training = Scripted([9.0, 9.0, 9.0], every=1, stopping=EarlyStopping())
    job = Job(number=4, params={"lr": 0.5}, seed=7)
    trial = Trial(job, link or Recorder(), torch.device("cpu"))
    outcome = run_trial(training, trial, estimator=estimator)
    assert training.taken == []
    return outcome


def test_an_estimator_runs_the_training() -> None:
    outcome = differentiated(1.5)
    assert (outcome.state, outcome.values, outcome.gradient) == ("complete", (1.5,), {"lr": 2.0})


def test_an_estimated_loss_is_reported_once() -> None:
    link = Recorder()
    differentiated(1.5, link=link)
    assert [call[0] for call in link.calls] == ["report"]


def test_an_estimated_loss_that_is_not_finite_fails_the_trial_without_a_gradient() -> None:
    outcome = differentiated(float("nan"))
    assert (outcome.failure, outcome.gradient) == ("nan", None)


def test_a_loss_with_a_gradient_that_is_not_finite_is_a_loss() -> None:
    outcome = differentiated(1.5, slope=float("inf"))
    assert (outcome.values, outcome.gradient) == ((1.5,), {"lr": float("inf")})


def shown(estimator: Any, losses: list[float]) -> dict[str, Any]:
    """The attributes of a differentiated trial."""
    link = Recorder()
    trial = Trial(Job(number=0, params={"lr": 0.5}, seed=0), link, torch.device("cpu"))
    run_trial(Scripted(losses), trial, estimator=estimator)
    return link.attrs


def test_the_metrics_are_those_of_the_state_that_the_estimator_shows() -> None:
    def estimator(training: Any, hparams: Any, *, observe: Any, **_: Any) -> Any:
        observe({"t": torch.tensor(2)})
        return torch.tensor(training._losses[-1]), {"lr": torch.tensor(1.0)}

    assert shown(estimator, [3.0, 2.0, 1.0]) == {"metrics": {"t": 2.0}, "test": {"loss": 102.0}}
    assert shown(estimator, [3.0, 2.0, NAN]) == {}


def test_an_estimator_that_shows_nothing_leaves_the_metrics_out() -> None:
    def estimator(training: Any, hparams: Any, *, seed: int, device: Any) -> Any:
        return torch.tensor(1.0), {"lr": torch.tensor(1.0)}

    assert shown(estimator, [3.0, 2.0, 1.0]) == {}


def test_the_derivative_in_an_array_is_a_tensor() -> None:
    def estimator(training: Any, hparams: Any, **_: Any) -> Any:
        return torch.tensor(1.0), {"w": torch.ones(1), "lr": torch.ones(1)}

    params = {"w": torch.zeros(1), "lr": 0.5}
    trial = Trial(Job(number=0, params=params, seed=0), Recorder(), torch.device("cpu"))
    gradient = run_trial(Scripted([1.0]), trial, estimator=estimator).gradient
    assert gradient is not None
    assert isinstance(gradient["w"], Tensor)
    assert gradient["lr"] == 1.0


def test_an_estimator_that_fails_fails_the_trial() -> None:
    def estimator(*_: Any, **__: Any) -> Any:
        raise MemoryError

    trial = Trial(Job(number=0, params={}, seed=0), Recorder(), torch.device("cpu"))
    assert run_trial(Scripted([1.0]), trial, estimator=estimator).failure == "oom"

"""Which mode is chosen, and what is said of its cost."""

import logging
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch

import hyperopt_dl as hd
from hyperopt_dl.hypergrad import Auto, Forward, Reverse, auto, hypergradient, reverse
from hyperopt_dl.hypergrad.auto import forward_cost
from hyperopt_dl.hypergrad.reverse import Memory, steps_of
from hyperopt_dl.optimizers import SGD
from hyperopt_dl.supervised import Supervised
from hyperopt_dl.training import Training
from tests.contracts.estimator import assert_same_answer
from tests.hypergrad.rules import Averaged
from tests.hypergrad.runs import DOUBLE, fresh, mlp, supervised, vectors
from tests.problems import Quadratic, Spiral

CPU = torch.device("cpu")
ONE: dict[str, Any] = {"lr": 0.1, "momentum": hd.hypergrad.Constant(0.5)}
TWO: dict[str, Any] = {"lr": 0.1, "momentum": 0.5}
THREE: dict[str, Any] = {**TWO, "decay": 0.01}


def training(steps: int = 40) -> Supervised:
    decay = SGD("lr", "momentum", weight_decay="decay")
    return supervised(fresh(mlp), vectors(), vectors(1), optimizer=decay, steps=steps)


Choice = Callable[[Training, dict[str, Any]], str]


@pytest.fixture
def choice(caplog: pytest.LogCaptureFixture) -> Choice:
    """What is chosen for a training, by the log; the answer is that of the chosen one."""

    def choose(problem: Training, hparams: dict[str, Any]) -> str:
        caplog.clear()
        with caplog.at_level(logging.INFO, logger="hyperopt_dl.hypergrad.auto"):
            found = hypergradient(problem, hparams, estimator=Auto(), seed=2)
        (record,) = (r for r in caplog.records if r.name == "hyperopt_dl.hypergrad.auto")
        name = record.getMessage().split()[0]
        estimator = {"Forward": Forward, "Reverse": Reverse}[name]()
        assert_same_answer(found, hypergradient(problem, hparams, estimator=estimator, seed=2))
        return name

    return choose


def room(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    """Let so many bytes be free."""
    for module in (auto, reverse):
        monkeypatch.setattr(module, "available_bytes", lambda _: size)


def test_one_number_goes_forward_and_three_go_back(choice: Choice) -> None:
    assert choice(training(), {**ONE, "decay": 0}) == "Forward"
    assert choice(training(), THREE) == "Reverse"


def test_where_a_run_is_too_long_for_its_memory_a_few_numbers_go_forward(
    choice: Choice, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = 2 * 8 * len(training().init(THREE, seed=2, device="cpu")["params"])
    room(monkeypatch, 4 * 4 * 3 * state)  # the tangents of three, and twelve states
    assert choice(training(steps=10), THREE) == "Reverse"
    assert choice(training(steps=400), THREE) == "Forward"


def test_tangents_that_do_not_fit_go_back(choice: Choice, monkeypatch: pytest.MonkeyPatch) -> None:
    state = 2 * 8 * len(training().init(ONE, seed=2, device="cpu")["params"])
    room(monkeypatch, 4 * 4 * state - 1)
    assert choice(training(), {**ONE, "decay": 0}) == "Reverse"


def test_any_training_is_differentiated(choice: Choice) -> None:
    at = {"start": torch.tensor([1.2, -0.7], dtype=DOUBLE), "decay": 0.4, "frequency": 2.5}
    assert choice(Spiral(steps=5), at) == "Reverse"
    assert choice(Quadratic(steps=5), {"lr": 0.1}) == "Forward"
    assert choice(Quadratic(steps=1), {"lr": 0.1}) == "Forward"


@pytest.mark.parametrize(
    ("memory", "calls"),
    [("activations", 10), ("all", 20), ("sqrt", 26), (1, 65), (3, 28), (1000, 20)],
)
def test_the_cost_of_reverse_mode_is_its_steps_and_a_product_for_each(
    memory: Memory, calls: int
) -> None:
    run = steps_of(Quadratic(steps=10), {"lr": 0.1}, seed=0, device=CPU)
    assert Reverse(memory).cost(run, 10) == calls + 10


def test_the_cost_of_the_last_steps_is_that_of_the_others_without_a_graph_and_of_theirs() -> None:
    run = steps_of(Quadratic(steps=10), {"lr": 0.1}, seed=0, device=CPU)
    assert Reverse("all", last=4).cost(run, 10) == 10 + 2 * 4


def test_the_cost_of_forward_mode_is_a_product_for_each_number() -> None:
    split = steps_of(training(), THREE, seed=0, device=CPU)
    assert forward_cost(split, 3, 40) == 40 * 4
    whole = Averaged(
        model=fresh(mlp),
        loss=torch.nn.functional.cross_entropy,
        optimizer=SGD("lr"),
        train=vectors(),
        validation=vectors(1),
        steps=5,
    )
    assert forward_cost(steps_of(whole, {"lr": 0.1}, seed=0, device=CPU), 3, 40) == 40 * 5


def test_predicted_and_measured_cost_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="hyperopt_dl.hypergrad.auto"):
        hypergradient(training(), THREE, estimator=Auto())
    said = re.fullmatch(
        r"Reverse for 3 hyperparameters and 40 steps: predicted 160 gradients \(forward\) and 80 "
        r"\(reverse\), ([\d.e-]+) s; measured ([\d.e-]+) s\.",
        caplog.records[-1].getMessage(),
    )
    assert said is not None
    assert all(float(seconds) > 0 for seconds in said.groups())


def test_a_study_may_leave_the_choice_to_its_tuner() -> None:
    tuner = hd.Hypergradient("auto", seed=0)
    assert tuner.estimator == Auto()
    space = {"lr": hd.Float(0.01, 0.5, log=True), "momentum": hd.Float(0.0, 0.9)}
    problem = supervised(fresh(mlp), vectors(), vectors(1), optimizer=SGD("lr", "momentum"))
    study = hd.Study(space, tuner=tuner, seed=0)
    study.optimize(problem, n_trials=2)
    assert len(study.optuna.trials) == 2
    assert "hypergradient" in study.optuna.trials[0].user_attrs

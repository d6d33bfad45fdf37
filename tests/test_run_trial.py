"""One trial, seen from the storage's side: what is recorded of it and how it ends."""

from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from optuna.distributions import FloatDistribution
from torch import nn

from hyperopt_dl.trial import Outcome, Trial, TrialPruned
from tests.scripted import INF, NAN, Recorder, raising, run

# ------------------------------------------------------------------- what an objective returns


@pytest.mark.parametrize(
    ("result", "value"),
    [
        (1.5, 1.5),
        (3, 3.0),
        (True, 1.0),
        (np.float32(0.5), 0.5),
        (np.int64(7), 7.0),
        (np.array(2.5), 2.5),
        (np.array([2.5]), 2.5),
        (torch.tensor(2.5), 2.5),
        (torch.tensor([2.5]), 2.5),
        (torch.tensor([[4]]), 4.0),
        (torch.tensor(2.5, requires_grad=True), 2.5),
        (Decimal("0.5"), 0.5),
        (Fraction(1, 4), 0.25),
        ([1.5], 1.5),
        ((torch.tensor(1.5),), 1.5),
        (-0.0, 0.0),
    ],
    ids=repr,
)
def test_a_number_completes_the_trial(result: Any, value: float) -> None:
    outcome = run(lambda trial: result)
    assert outcome == Outcome("complete", (value,))
    assert outcome.values is not None
    assert type(outcome.values[0]) is float


@pytest.mark.parametrize(
    ("result", "failure", "fragment"),
    [
        (NAN, "nan", "returned (nan,)"),
        (INF, "nan", "returned (inf,)"),
        (-INF, "nan", "returned (-inf,)"),
        (torch.tensor(NAN), "nan", "returned (nan,)"),
        (np.float64(INF), "nan", "returned (inf,)"),
        ([NAN], "nan", "returned (nan,)"),
        (None, "exception", "returned None, which is no number"),
        ("1.5", "exception", "returned '1.5', which is no number"),
        (b"1.5", "exception", "returned b'1.5', which is no number"),
        (10**400, "exception", "which is no number"),
        (10**5000, "exception", "returned"),
        (1j, "exception", "complex 1j, which is no number"),
        ({"loss": 1.0}, "exception", "dict {'loss': 1.0}, which is no number"),
        (object, "exception", "which is no number"),
        (np.array([1.0, 2.0]), "exception", "ndarray [1. 2.], which is no number"),
        (torch.tensor([1.0, 2.0]), "exception", "a tensor of shape (2,) where a number belongs"),
        (torch.ones(0), "exception", "a tensor of shape (0,) where a number belongs"),
        ([1.0, 2.0], "exception", "must return 1 value(s), got 2: [1.0, 2.0]"),
        ([], "exception", "must return 1 value(s), got 0"),
        (["1.5"], "exception", "'1.5', which is no number"),
    ],
    ids=lambda value: repr(value)[:20] if not isinstance(value, int) else "huge",
)
def test_anything_else_fails_the_trial(result: Any, failure: str, fragment: str) -> None:
    outcome = run(lambda trial: result)
    assert (outcome.state, outcome.values, outcome.failure) == ("failed", None, failure)
    assert fragment in outcome.error


@pytest.mark.parametrize("kind", [tuple, list])
def test_several_objectives_have_one_value_each(kind: Any) -> None:
    result = kind([1, torch.tensor(2.5)])
    assert run(lambda trial: result, objectives=2) == Outcome("complete", (1.0, 2.5))


@pytest.mark.parametrize(
    ("result", "failure", "fragment"),
    [
        (1.0, "exception", "must return 2 value(s), got 1"),
        ((1.0, 2.0, 3.0), "exception", "must return 2 value(s), got 3"),
        ((1.0, NAN), "nan", "(1.0, nan)"),
        ((1.0, None), "exception", "None, which is no number"),
    ],
)
def test_several_objectives_fail_together(result: Any, failure: str, fragment: str) -> None:
    outcome = run(lambda trial: result, objectives=2)
    assert (outcome.state, outcome.values, outcome.failure) == ("failed", None, failure)
    assert fragment in outcome.error


# --------------------------------------------------------------------------- what it may raise


class CustomTimeoutError(TimeoutError):
    pass


@pytest.mark.parametrize(
    ("error", "failure", "last"),
    [
        (MemoryError("no more"), "oom", "MemoryError: no more"),
        (torch.OutOfMemoryError("CUDA"), "oom", "torch.OutOfMemoryError: CUDA"),
        (TimeoutError("slow"), "timeout", "TimeoutError: slow"),
        (CustomTimeoutError("slow"), "timeout", "CustomTimeoutError: slow"),
        (SystemExit(3), "exception", "SystemExit: 3"),
        (ValueError("wrong"), "exception", "ValueError: wrong"),
        (StopIteration(), "exception", "StopIteration"),
        (GeneratorExit(), "exception", "GeneratorExit"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_an_exception_fails_the_trial_and_is_described(
    error: BaseException, failure: str, last: str
) -> None:
    outcome = run(raising(error))
    assert (outcome.state, outcome.values, outcome.failure) == ("failed", None, failure)
    assert outcome.error.splitlines()[-1].endswith(last)
    assert "in objective" in outcome.error


def test_a_long_error_keeps_its_end() -> None:
    outcome = run(raising(ValueError("x" * 10_000 + "end")))
    assert len(outcome.error) == 4000
    assert outcome.error.endswith("xend")


def test_a_pruned_trial_is_no_failure() -> None:
    assert run(raising(TrialPruned())) == Outcome("pruned")


def test_an_interrupt_ends_more_than_the_trial() -> None:
    with pytest.raises(KeyboardInterrupt):
        run(raising(KeyboardInterrupt()))


# ------------------------------------------------------------------------ what a trial passes on


def test_a_trial_passes_its_calls_to_the_link() -> None:
    link = Recorder()

    def objective(trial: Trial) -> float:
        trial.report(torch.tensor(1.5), step=3)  # type: ignore[arg-type]
        trial.set_constraint("size", np.float32(2.0))  # type: ignore[arg-type]
        trial.set_user_attr("note", {"a": [1, None]})
        return float(trial.should_prune())

    assert run(objective, link) == Outcome("complete", (0.0,))
    assert link.calls == [
        ("report", 1.5, 3),
        ("constraint", "size", 2.0),
        ("attr", "note", {"a": [1, None]}),
        ("should_prune",),
    ]


def test_a_suggestion_joins_the_parameters() -> None:
    link, seen = Recorder(), {}

    def objective(trial: Trial) -> float:
        x = trial.suggest_float("x", 0.1, 1.0, log=True)
        seen.update(trial.params)
        return x

    assert run(objective, link, params={"lr": 0.5}).values == (0.25,)
    assert seen == {"lr": 0.5, "x": 0.25}
    assert link.of("suggest") == [("x", FloatDistribution(0.1, 1.0, log=True))]


def test_a_trial_knows_its_job() -> None:
    def objective(trial: Trial) -> float:
        assert trial.device == torch.device("cpu")
        return trial.number + trial.seed

    assert run(objective, seed=30).values == (34.0,)


@pytest.mark.parametrize(
    "call",
    [
        lambda trial: trial.set_user_attr("net", nn.Linear(1, 1)),
        lambda trial: trial.report(None, step=0),
        lambda trial: trial.report("1.5", step=0),
    ],
)
def test_what_cannot_be_recorded_fails_the_trial_before_it_reaches_the_link(call: Any) -> None:
    link = Recorder()
    outcome = run(call, link)
    assert outcome.failure == "exception"
    assert "TypeError" in outcome.error
    assert link.calls == []

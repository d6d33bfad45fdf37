"""Reverse mode on networks, against autograd through the whole run and finite differences."""

import functools
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy

from hyperopt_dl.errors import TrainingError
from hyperopt_dl.hypergrad import Reverse, hypergradient
from hyperopt_dl.hypergrad.reverse import Memory
from hyperopt_dl.optimizers import SGD
from hyperopt_dl.supervised import Supervised
from tests.contracts.estimator import assert_same_answer
from tests.contracts.training import Case, assert_close_vector, central_difference
from tests.hypergrad.rules import RULES, SMOOTH, Averaged, Softsign, of_rule, square_of_penalty
from tests.hypergrad.runs import (
    ALL,
    DOUBLE,
    NETS,
    N,
    all_together,
    assert_close,
    fresh,
    mean_smoothed,
    mlp,
    supervised,
    unroll,
    vectors,
)
from tests.problems import Quadratic, Spiral

# ---------------------------------------------------------------------------------------- exactness


@pytest.mark.usefixtures("second_derivatives")
@pytest.mark.parametrize("net", NETS, ids=lambda name: name.replace(" ", "_"))
def test_every_net_gives_the_derivative_of_the_whole_run(net: str, path: str) -> None:
    # A last, smaller batch is a second kind of input; for the dear traces there is only one.
    dear = path == "traced" and net not in ("mlp", "batch norm")
    training = all_together(net, batch_size=None if dear else 4)
    found = hypergradient(training, ALL, seed=2)
    assert_close(found, unroll(training, ALL, seed=2), 1e-10)


FLOAT32 = 1e-5  # mostly 1e-7; one derivative here is a difference of terms ten times its size


@pytest.mark.usefixtures("second_derivatives")
@pytest.mark.parametrize("net", NETS, ids=lambda name: name.replace(" ", "_"))
def test_in_float32_every_net_gives_the_derivative_of_the_whole_run(net: str) -> None:
    training = all_together(net, torch.float32)
    found = hypergradient(training, ALL, seed=2)
    assert found[0].dtype == torch.float32
    assert_close(found, unroll(training, ALL, seed=2), FLOAT32)


@pytest.mark.usefixtures("second_derivatives", "trace_everything")
@pytest.mark.parametrize("net", ["mlp", "batch norm", "transformer with dropout"])
def test_in_float32_a_traced_net_gives_the_derivative_of_the_whole_run(net: str) -> None:
    training = all_together(net, torch.float32, batch_size=None)
    assert_close(hypergradient(training, ALL, seed=2), unroll(training, ALL, seed=2), FLOAT32)


@pytest.mark.parametrize("rule", RULES, ids=lambda name: name.replace(" ", "_"))
def test_every_optimizer_gives_the_derivative_of_the_whole_run(rule: str) -> None:
    training, hparams = of_rule(rule)
    assert_close(hypergradient(training, hparams, seed=2), unroll(training, hparams, seed=2), 1e-10)


@pytest.mark.parametrize("rule", SMOOTH, ids=lambda name: name.replace(" ", "_"))
def test_every_optimizer_gives_the_central_difference(rule: str) -> None:
    training, hparams = of_rule(rule)
    assert_central_difference(training, hparams)


@pytest.mark.parametrize("batch_size", [4, 5, N, None])
def test_a_mlp_with_all_hyperparameters_together_gives_the_central_difference(
    batch_size: int | None,
) -> None:
    assert_central_difference(all_together("dropout", batch_size=batch_size), ALL)


def assert_central_difference(training: Supervised, hparams: Mapping[str, Any]) -> None:
    points = {name: torch.as_tensor(value, dtype=DOUBLE) for name, value in hparams.items()}
    case = Case(training, points, {}, seed=2)
    _, gradient = hypergradient(training, hparams, seed=2)
    for name in points:
        assert_close_vector(gradient[name], central_difference(case, name), rtol=1e-6)


def test_a_thousand_data_weights_give_the_derivative_of_the_whole_run(path: str) -> None:
    training = supervised(
        fresh(mlp), vectors(n=1000), vectors(1), weights="w", batch_size=150, steps=9
    )
    w = torch.rand(1000, generator=torch.Generator().manual_seed(0), dtype=DOUBLE)
    found = hypergradient(training, {"w": w, "lr": 0.5}, seed=2)
    assert_close(found, unroll(training, {"w": w, "lr": 0.5}, seed=2), 1e-10)
    assert (found[1]["w"] != 0).all()


def test_an_outer_loss_may_depend_on_hyperparameters_by_itself() -> None:
    training = supervised(
        fresh(mlp), vectors(), vectors(1), loss=mean_smoothed, validation_loss=mean_smoothed
    )
    hparams = {"lr": 0.3, "smoothing": 0.1, "penalty": 0.2}
    assert_close(hypergradient(training, hparams, seed=2), unroll(training, hparams, seed=2), 1e-10)


def test_an_outer_loss_may_depend_on_nothing_but_hyperparameters() -> None:
    settings: dict[str, Any] = {"loss": mean_smoothed, "validation_loss": square_of_penalty}
    training = supervised(fresh(mlp), vectors(), vectors(1), **settings)
    hparams = {"lr": 0.3, "smoothing": 0, "penalty": 0.2}
    value, gradient = hypergradient(training, hparams, seed=2)
    assert float(value) == pytest.approx(0.04)
    assert gradient == {"lr": 0, "penalty": pytest.approx(0.4)}


def test_an_optimizer_of_ones_own_gives_the_derivative_of_the_whole_run(path: str) -> None:
    training = supervised(fresh(mlp), vectors(), vectors(1), optimizer=Softsign(), batch_size=None)
    hparams = {"lr": 0.3, "scale": 0.5}
    assert_close(hypergradient(training, hparams, seed=2), unroll(training, hparams, seed=2), 1e-10)


def test_a_subclass_with_a_step_of_its_own_gives_the_derivative_of_that(path: str) -> None:
    training = Averaged(
        model=fresh(mlp),
        loss=cross_entropy,
        optimizer=SGD(lr="lr"),
        train=vectors(),
        validation=vectors(1),
        steps=5,
    )
    found = hypergradient(training, {"lr": 0.3}, seed=2)
    assert_close(found, unroll(training, {"lr": 0.3}, seed=2), 1e-10)


# ----------------------------------------------------------------------------------- the last steps


@pytest.mark.parametrize("memory", ["activations", "all", "sqrt", 1, 3, "1 GiB"])
@pytest.mark.parametrize("last", [1, 3, 8])
def test_the_last_steps_give_the_derivative_of_a_run_cut_before_them(
    last: int, memory: Memory, path: str
) -> None:
    training = cut(path)
    found = hypergradient(training, ALL, estimator=Reverse(memory, last=last), seed=2)
    expected = unroll(training, ALL, seed=2, last=last)
    assert_close(found, expected, 1e-10)


@functools.cache
def cut(path: str) -> Supervised:
    """A training of full batches, traced only once, in which each step uses everything."""
    return all_together("dropout", steps=9, batch_size=None)


@pytest.mark.parametrize("last", [9, 10, 1000])
def test_as_many_last_steps_as_there_are_give_the_whole_derivative(last: int, path: str) -> None:
    found = hypergradient(cut(path), ALL, estimator=Reverse(last=last), seed=2)
    assert_same_answer(found, hypergradient(cut(path), ALL, seed=2))


@pytest.mark.parametrize("memory", ["activations", "all", "sqrt", 2])
def test_the_last_step_alone_has_a_closed_form(memory: Memory) -> None:
    problem = Quadratic(steps=7)
    estimator = Reverse(memory, last=1)
    value, gradient = hypergradient(problem, {"lr": 0.1}, estimator=estimator)
    end, before = problem.exact_state(0.1), problem.exact_state(0.1, t=6)
    slope = problem.curvature * (before - problem.centre)
    assert float(value) == pytest.approx(problem.exact_loss(0.1), rel=1e-12)
    expected = -((end - problem.target) * slope).sum()
    torch.testing.assert_close(gradient["lr"], expected, rtol=1e-12, atol=0)
    assert abs(float(expected - problem.exact_gradient(0.1))) > 0.1


def test_what_only_steps_before_the_last_ones_use_is_an_error_that_says_so() -> None:
    hparams = {"start": torch.ones(2, dtype=DOUBLE), "decay": 0.4, "frequency": 2.5}
    with pytest.raises(TrainingError, match=r"\['start'\].*or, with last=, only earlier steps"):
        hypergradient(Spiral(), hparams, estimator=Reverse(last=3))

"""What is checked of a row that is a ``Supervised``."""

import functools
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

import hyperopt_dl as hd
from hyperopt_dl.errors import TrainingError
from tests.zoo import oracle
from tests.zoo.row import Row

ESTIMATORS: Mapping[str, hd.hypergrad.Estimator] = {
    "reverse": hd.hypergrad.Reverse(),
    "states": hd.hypergrad.Reverse("all"),
    "forward": hd.hypergrad.Forward(),
}
SIZES = (1e-4, 1e-6, 1e-7)
"""The steps of difference quotients: the first rounds least, the others are for kinks and bends."""
UNTRACED = "Hypergradients of this training are computed without tracing"
"""The warning of a training that is differentiated step by step: right, and slower."""


@contextmanager
def quiet(row: Row) -> Iterator[None]:
    """Let the warnings pass that belong to a row."""
    with warnings.catch_warnings():
        for text in (UNTRACED, *row.quiet):
            warnings.filterwarnings("ignore", message=text)
        yield


def check_run(row: Row) -> None:
    """Check that the value and the state after a run, and again, are those of a plain loop."""
    expected, right = oracle.plain_run(row.case(row.dtype), row.case().hp, row.steps)
    case = row.case(row.dtype)
    training = case.training(row.steps)
    tolerance = 1e-9 if row.dtype == torch.double else 100 * torch.finfo(row.dtype).eps
    for _ in range(2):
        with torch.no_grad():
            state = hd.rollout(training, case.hp, seed=oracle.SEED)
            found = float(training.loss(state, case.hp))
        error = abs(found - expected)
        assert error <= tolerance * (1 + abs(expected)), f"value {found} for {expected}"
    held = training.module(state, case.hp).state_dict()
    for name, tensor in right.items():
        torch.testing.assert_close(
            held[name],
            tensor,
            rtol=100 * tolerance,
            atol=tolerance,
            msg=lambda text, n=name: f"{n}: {text}",  # type: ignore[misc]
        )


def check_gradient(row: Row, estimator: str, steps: int, *, quotients: bool = True) -> None:
    """Check a hypergradient, twice, against the references.

    Args:
        row: The row.
        estimator: The name of an estimator.
        steps: The steps of the run.
        quotients: Whether to look at difference quotients where there is the unrolled loop too.
    """
    case = row.case(row.dtype)
    training = case.training(steps)
    expected = _value(row, steps)
    unroll = _unrolled(row, steps) if row.unroll else None
    double = row.dtype == torch.double and row.quotients
    exact = (1e-8, 1e-10) if double else (row.tolerance, 1e-7)
    for _ in range(2):
        value, gradient = hd.hypergradient(
            training, case.hp, estimator=ESTIMATORS[estimator], seed=oracle.SEED
        )
        error = abs(float(value) - expected)
        tolerance = 1e-8 if double else row.tolerance
        assert error <= tolerance * (1 + abs(expected)), f"value {float(value)} for {expected}"
        if unroll is not None:
            _close(gradient, unroll, *exact)
        if row.quotients and (quotients or unroll is None):
            _close_to_quotients(row, gradient, steps)


def check_refusal(row: Row, estimator: str, steps: int) -> None:
    """Check that a hypergradient is refused, and refused again, by a sentence that helps."""
    case = row.case(row.dtype)
    training = case.training(steps)
    for _ in range(2):
        with pytest.raises(TrainingError, match=f"(?is){row.match}"):
            hd.hypergradient(training, case.hp, estimator=ESTIMATORS[estimator], seed=oracle.SEED)


def check_refused_run(row: Row) -> None:
    """Check that a run is refused, if not when the training is made then when it is run."""
    for _ in range(2):
        case = row.case(row.dtype)
        with pytest.raises(TrainingError, match=f"(?is){row.match}"), torch.no_grad():  # noqa: PT012
            training = case.training(row.steps)
            training.loss(hd.rollout(training, case.hp, seed=oracle.SEED), case.hp)


def _close_to_quotients(row: Row, found: Mapping[str, Tensor], steps: int) -> None:
    """Assert that a derivative is close to a difference quotient, of some the best one."""
    rough = _quotients(row, steps, SIZES[0])
    moving = [name for name, slope in rough.items() if float(slope.abs().max()) > 1e-6]
    assert moving == list(rough), f"only {moving} of {list(rough)} matter"
    for size in SIZES:
        try:
            return _close(found, _quotients(row, steps, size), row.tolerance, 1e-7)
        except AssertionError:
            if size == SIZES[-1]:
                raise
    return None


def _close(
    found: Mapping[str, Tensor], right: Mapping[str, Tensor], relative: float, absolute: float
) -> None:
    assert set(found) == set(right), f"derivatives in {set(found)} for {set(right)}"
    for name, expected in right.items():
        error = (found[name].double() - expected).abs()
        wrong = (error > relative * expected.abs() + absolute) | error.isnan()
        assert not bool(wrong.any()), (
            f"d/d{name}: got {found[name].tolist()}, right {expected.tolist()}"
        )


@functools.cache
def _value(row: Row, steps: int) -> float:
    case = row.case()
    return oracle.plain_run(case, case.hp, steps)[0]


@functools.cache
def _quotients(row: Row, steps: int, size: float) -> dict[str, Tensor]:
    return oracle.quotients(row.case, steps, size)


@functools.cache
def _unrolled(row: Row, steps: int) -> dict[str, Tensor]:
    return oracle.unrolled(row.case(), steps)

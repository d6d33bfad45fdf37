"""Networks, losses and loops as people write them: exact, or refused by a sentence that helps.

Every row of a ``Supervised`` is looked at in a run without derivatives; in a long run with one of
the two estimators, turn by turn; and in a short run with the other one. The fast tests take a part
of the short runs, the slow ones all that is left. The environment variable ``ZOO=all`` asks for
every row in short and in long runs with every estimator instead, which takes thrice as long::

    ZOO=all python -m pytest tests/zoo -m "slow or not slow"
"""

import importlib.util
import os
import re
from collections.abc import Callable, Iterable

import pytest

from hyperopt_dl.errors import TrainingError
from tests.zoo import table
from tests.zoo.check import (
    ESTIMATORS,
    check_gradient,
    check_refusal,
    check_refused_run,
    check_run,
    quiet,
)
from tests.zoo.pending import PENDING, PENDING_LONG
from tests.zoo.row import Row
from tests.zoo.rows import ROWS

COMPLETE = os.environ.get("ZOO") == "all"
"""Whether every row is looked at with every estimator, in short and in long runs."""
QUICK = ("reverse", "forward")
"""The estimators that take turns; the third one is for the complete tests."""
ALIKE = {
    "Normalisation",
    "Reparametrised weights",
    "Convolutions and resampling",
    "Pooling",
    "Activations",
    "Dropout",
    "Attention",
    "Recurrence",
    "Networks that differentiate or solve",
    "Losses",
    "Optimizers of a Supervised",
}
"""Kinds whose rows take the same ways through the library: the fast tests look at every fourth."""


def is_quick(row: Row, estimator: str, number: int) -> bool:
    """Whether the fast tests look at a derivative of a row, the so-manieth."""
    seldom = row.kind in ALIKE
    seen = not seldom or number % 4 == 0
    return row.fast and seen and estimator == QUICK[(number // (4 if seldom else 1)) % 2]


def is_wanted(row: Row, estimator: str, number: int, *, long: bool) -> bool:
    """Whether a derivative of a row, the so-manieth, is looked at in a long or a short run."""
    if COMPLETE or (not long and is_quick(row, estimator, number)):
        return True
    return estimator == QUICK[(number + (not long)) % 2]


def marks(row: Row, *, slow: bool, long: bool = False) -> Iterable[pytest.MarkDecorator]:
    """What pytest is to know of a row."""
    if slow:
        yield pytest.mark.slow
    if row.needs is not None and importlib.util.find_spec(row.needs) is None:
        yield pytest.mark.skip(reason=f"needs the package {row.needs}")
    pending = {**PENDING_LONG, **PENDING} if long else PENDING
    if row.id in pending:
        yield pytest.mark.xfail(reason=pending[row.id], strict=False)


def params(wanted: Callable[[Row], bool], *, slow: bool | None = None) -> list[object]:
    """The rows that are wanted; slow where they are not fast, unless it is said."""
    return [
        pytest.param(
            row, marks=list(marks(row, slow=not row.fast if slow is None else slow)), id=row.id
        )
        for row in ROWS
        if wanted(row)
    ]


def with_estimators(wanted: Callable[[Row], bool], *, long: bool) -> list[object]:
    """The rows that are wanted, with the estimators that are."""
    return [
        pytest.param(
            *(row, estimator),
            marks=list(marks(row, slow=long or not is_quick(row, estimator, number), long=long)),
            id=f"{row.id}, {estimator}",
        )
        for number, row in enumerate(ROWS)
        if wanted(row)
        for estimator in ESTIMATORS
        if is_wanted(row, estimator, number, long=long)
    ]


def is_run(row: Row) -> bool:
    return row.make is not None and row.expectation != "refused"


def is_exact(row: Row) -> bool:
    return row.make is not None and row.expectation == "exact"


def has_refused_derivatives(row: Row) -> bool:
    return row.make is not None and row.expectation == "runs"


@pytest.mark.parametrize("row", params(is_run))
def test_a_run_is_that_of_a_plain_loop_with_torch_optim(row: Row) -> None:
    with quiet(row):
        check_run(row)


@pytest.mark.parametrize(("row", "estimator"), with_estimators(is_exact, long=False))
def test_the_hypergradient_of_a_short_run_is_exact(row: Row, estimator: str) -> None:
    with quiet(row):
        check_gradient(row, estimator, row.steps, quotients=estimator not in QUICK)


@pytest.mark.parametrize(("row", "estimator"), with_estimators(is_exact, long=True))
def test_the_hypergradient_of_a_long_run_is_exact(row: Row, estimator: str) -> None:
    with quiet(row):
        check_gradient(row, estimator, row.long, quotients=False)


@pytest.mark.parametrize(("row", "estimator"), with_estimators(has_refused_derivatives, long=False))
def test_a_hypergradient_of_a_short_run_is_refused(row: Row, estimator: str) -> None:
    with quiet(row):
        check_refusal(row, estimator, row.steps)


@pytest.mark.parametrize(("row", "estimator"), with_estimators(has_refused_derivatives, long=True))
def test_a_hypergradient_of_a_long_run_is_refused(row: Row, estimator: str) -> None:
    with quiet(row):
        check_refusal(row, estimator, row.long)


@pytest.mark.parametrize(
    "row", params(lambda row: row.make is not None and row.expectation == "refused")
)
def test_a_run_is_refused(row: Row) -> None:
    with quiet(row):
        check_refused_run(row)


@pytest.mark.parametrize(
    "row", params(lambda row: row.loop is not None and row.expectation == "exact")
)
def test_a_loop_is_exact(row: Row) -> None:
    assert row.loop is not None
    with quiet(row):
        row.loop()


@pytest.mark.parametrize(
    "row", params(lambda row: row.loop is not None and row.expectation == "refused")
)
def test_a_loop_is_refused(row: Row) -> None:
    assert row.loop is not None
    for _ in range(2):
        with quiet(row), pytest.raises(TrainingError, match=f"(?is){row.match}"):
            row.loop()


def test_rows_have_names_of_their_own() -> None:
    names = [row.id for row in ROWS]
    assert len(set(names)) == len(names) >= 120


def test_what_is_pending_is_a_row() -> None:
    assert {*PENDING, *PENDING_LONG} <= {row.id for row in ROWS}


@pytest.mark.parametrize("row", params(lambda row: row.expectation != "exact", slow=False))
def test_a_refusal_says_what_to_do(row: Row) -> None:
    assert row.says
    re.compile(row.match)


def test_the_page_of_the_documentation_is_up_to_date() -> None:
    assert table.PAGE.read_text() == table.page(), "run python tests/zoo/table.py"

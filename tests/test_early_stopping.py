"""When a metric counts as improved, and what an EarlyStopping may be."""

import math
from typing import Any

import pytest

from hyperopt_dl.early_stopping import EarlyStopping
from hyperopt_dl.errors import TrainingError

NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    ("mode", "min_delta", "new", "best", "improves"),
    [
        ("min", 0.0, 1.0, None, True),
        ("min", 0.0, 1.0, 2.0, True),
        ("min", 0.0, 2.0, 2.0, False),
        ("min", 0.0, 3.0, 2.0, False),
        ("max", 0.0, 3.0, 2.0, True),
        ("max", 0.0, 2.0, 2.0, False),
        ("max", 0.0, 1.0, 2.0, False),
        ("min", 0.5, 1.6, 2.0, False),
        ("min", 0.5, 1.5, 2.0, False),
        ("min", 0.5, 1.4, 2.0, True),
        ("max", 0.5, 2.4, 2.0, False),
        ("max", 0.5, 2.6, 2.0, True),
        ("min", 0.0, NAN, 2.0, False),
        ("min", 0.0, NAN, None, False),
        ("min", 0.0, 5.0, NAN, True),
        ("max", 0.0, 5.0, NAN, True),
        ("min", 0.0, NAN, NAN, False),
        ("min", 0.0, 5.0, INF, True),
        ("max", 0.0, -INF, -INF, False),
    ],
)
def test_an_improvement_is_a_gain_of_more_than_min_delta(
    mode: Any, min_delta: float, new: float, best: float | None, improves: bool
) -> None:
    stopping = EarlyStopping(mode=mode, min_delta=min_delta)
    assert stopping.improves(new, best) is improves


@pytest.mark.parametrize(
    ("settings", "fragment"),
    [
        ({"patience": 0}, "patience >= 1 (reports), got 0"),
        ({"min_delta": -0.1}, "min_delta >= 0, got -0.1"),
        ({"min_delta": NAN}, "min_delta >= 0, got nan"),
        ({"mode": "maximize"}, "mode 'min' or 'max', got 'maximize'"),
        ({"mode": "up", "metric": "f1"}, "a smaller or a larger 'f1' is better"),
    ],
    ids=str,
)
def test_what_cannot_be_is_an_error(settings: dict[str, Any], fragment: str) -> None:
    with pytest.raises(TrainingError) as caught:
        EarlyStopping(**settings)
    assert fragment in str(caught.value)

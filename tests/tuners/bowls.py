"""A bowl on the unit square and studies of it, for the tests of `hd.AdditiveBO`."""

from collections.abc import Mapping
from typing import Any

import hyperopt_dl as hd

SQUARE = hd.Space(x=hd.Float(0.0, 1.0), y=hd.Float(0.0, 1.0))


def bowl(params: Mapping[str, Any]) -> float:
    return float((params["x"] - 0.31) ** 2 + 2 * (params["y"] - 0.68) ** 2)


def tell(study: hd.Study, n: int, function: Any = bowl) -> list[dict[str, Any]]:
    """Run n trials one by one; return what was proposed."""
    proposed = []
    for _ in range(n):
        trial = study.ask()
        proposed.append(dict(trial.params))
        study.tell(trial, function(trial.params))
    return proposed


def square(**options: Any) -> hd.Study:
    return hd.Study(SQUARE, tuner=hd.AdditiveBO(**{"n_startup": 5, **options}), seed=0)

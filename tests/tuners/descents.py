"""Spaces, estimators and studies for the tests of `hd.Hypergradient` in a study."""

import math
from collections.abc import Mapping
from typing import Any

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


def told(study: hd.Study, gradient: float | None, state: TrialState | None = None) -> float:
    """Tell a trial that one computes by oneself, and return where it was."""
    trial = study.ask()
    if gradient is not None:
        trial.set_user_attr("hypergradient", {"x": gradient})
    study.tell(trial, None if state else 1.0, state=state)
    return float(trial.params["x"])

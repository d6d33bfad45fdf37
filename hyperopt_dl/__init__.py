"""Hyperparameter optimization for deep learning: interchangeable tuners behind one Study.

Define a `Space`, open a `Study`, and `optimize` a workload: a function of a trial, or a `Training`
such as `Supervised`. Any Optuna sampler is a tuner; `Hypergradient` descends a derivative, and
`AdditiveBO` models the loss as a sum of functions of few hyperparameters.
"""

from typing import Any

from hyperopt_dl import constraints, executors, hypergrad, online, optimizers, tuners
from hyperopt_dl.early_stopping import EarlyStopping
from hyperopt_dl.errors import (
    ExecutorError,
    HyperoptError,
    SpaceError,
    StudyError,
    TrainingError,
)
from hyperopt_dl.hypergrad import hypergradient
from hyperopt_dl.optimizers import Schedule
from hyperopt_dl.space import Array, Categorical, Float, Int, Space
from hyperopt_dl.study import Study
from hyperopt_dl.supervised import Supervised
from hyperopt_dl.training import HParams, State, Training, rollout
from hyperopt_dl.trial import Outcome, Trial, TrialPruned
from hyperopt_dl.tuners import Hypergradient, evaluate

__version__ = "0.1.0.dev0"

__all__ = [
    "AdditiveBO",
    "Array",
    "Categorical",
    "EarlyStopping",
    "ExecutorError",
    "Float",
    "HParams",
    "Hypergradient",
    "HyperoptError",
    "Int",
    "Outcome",
    "Schedule",
    "Space",
    "SpaceError",
    "State",
    "Study",
    "StudyError",
    "Supervised",
    "Training",
    "TrainingError",
    "Trial",
    "TrialPruned",
    "constraints",
    "evaluate",
    "executors",
    "hypergrad",
    "hypergradient",
    "online",
    "optimizers",
    "rollout",
]


def __getattr__(name: str) -> Any:
    """Import the tuner that needs BoTorch when it is first asked for."""
    if name == "AdditiveBO":
        return tuners.AdditiveBO
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

"""Tuners of our own; each is an Optuna sampler, and any other Optuna sampler is a tuner too."""

from importlib import import_module
from typing import Any

from hyperopt_dl.tuners.evaluate import evaluate
from hyperopt_dl.tuners.hypergradient import Hypergradient

__all__ = ["AdditiveBO", "Hypergradient", "evaluate"]


def __getattr__(name: str) -> Any:
    """Import the tuner that needs BoTorch when it is first asked for."""
    if name == "AdditiveBO":
        return import_module("hyperopt_dl.tuners.additive_bo").AdditiveBO
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

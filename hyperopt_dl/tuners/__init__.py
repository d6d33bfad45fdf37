"""Tuners of our own; each is an Optuna sampler, and any other Optuna sampler is a tuner too."""

from hyperopt_dl.tuners.evaluate import evaluate
from hyperopt_dl.tuners.hypergradient import Hypergradient

__all__ = ["Hypergradient", "evaluate"]

"""Hyperparameters that are tuned while a network trains, inside the user's own training loop.

A module and an optimizer of torch stay as they are; a tuner stands beside them like a scheduler::

    tuner = ForwardTuner(optimizer, tune={"lr": Float(1e-5, 10, log=True)})

`Forward` and `Descent` put such a tuner into every trial of a ``Supervised``.
"""

from hyperopt_dl.online.declared import Descent, Forward
from hyperopt_dl.online.delta_bar_delta import DeltaBarDelta
from hyperopt_dl.online.forward_tuner import ForwardTuner
from hyperopt_dl.online.history import Move
from hyperopt_dl.online.hypergradient_descent import HypergradientDescent
from hyperopt_dl.online.tuned_run import TunedRun

__all__ = [
    "DeltaBarDelta",
    "Descent",
    "Forward",
    "ForwardTuner",
    "HypergradientDescent",
    "Move",
    "TunedRun",
]

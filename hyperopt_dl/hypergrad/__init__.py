"""Hypergradients: the derivative of the outer loss of a training in its hyperparameters.

A file for each estimator, and folders for what they are made of: ``traces``, the derivatives of a
loss; ``closed_forms``, those of the optimizers' rules; ``steps``, those of one step; ``sweeps`` and
``pushes``, reverse and forward mode through a run; ``telescope``, what a draw of telescoping is.
"""

from hyperopt_dl.hypergrad.auto import Auto
from hyperopt_dl.hypergrad.constant import Constant
from hyperopt_dl.hypergrad.estimator import Estimator
from hyperopt_dl.hypergrad.evolution import PES, ESSingle
from hyperopt_dl.hypergrad.forward import Forward
from hyperopt_dl.hypergrad.hypergradient import hypergradient
from hyperopt_dl.hypergrad.reverse import Reverse
from hyperopt_dl.hypergrad.telescoping import Telescoping

__all__ = [
    "PES",
    "Auto",
    "Constant",
    "ESSingle",
    "Estimator",
    "Forward",
    "Reverse",
    "Telescoping",
    "hypergradient",
]

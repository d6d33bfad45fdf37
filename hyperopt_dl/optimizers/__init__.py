"""Out-of-place, differentiable twins of ``torch.optim`` on one flat parameter vector.

A twin is a frozen description of a rule. Its options are numbers, names of hyperparameters, or
schedules, and its update is a pure function that may be differentiated in every one of them::

    optimizer = SGD(lr="lr", momentum=0.9, groups={"*.bias": {"weight_decay": 0.0}})
"""

from hyperopt_dl.optimizers.adagrad import Adagrad
from hyperopt_dl.optimizers.adam import Adam, AdamW
from hyperopt_dl.optimizers.clip_norm import ClipNorm
from hyperopt_dl.optimizers.optimizer import Optimizer
from hyperopt_dl.optimizers.rmsprop import RMSprop
from hyperopt_dl.optimizers.schedule import Schedule
from hyperopt_dl.optimizers.sgd import SGD

__all__ = ["SGD", "Adagrad", "Adam", "AdamW", "ClipNorm", "Optimizer", "RMSprop", "Schedule"]

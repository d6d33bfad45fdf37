"""What some arguments of ``Hypergradient`` must be; each check raises a StudyError."""

import math
from numbers import Integral, Real

from optuna.samplers import BaseSampler

from hyperopt_dl.errors import StudyError
from hyperopt_dl.tuners.chain import NAMED


def check_descent(optimizer: object, lr: object, average_last: object) -> None:
    """Check what moves a point, how far, and the part of the points that is averaged."""
    if not (callable(optimizer) or optimizer in NAMED):
        raise StudyError(
            f"optimizer must be 'adam', 'sgd' or a factory such as torch.optim.RMSprop, got "
            f"{optimizer!r}."
        )
    if not (isinstance(lr, Real) and 0 < float(lr) < math.inf):
        raise StudyError(f"lr must be a positive number (units of the cube), got {lr!r}.")
    if not (isinstance(average_last, Real) and 0 < float(average_last) <= 1):
        raise StudyError(
            f"average_last must be a part of the points above 0 and up to 1, got {average_last!r}."
        )


def check_chains(chains: object, chain_length: object, starts: object) -> None:
    """Check how many descents there are, how long they are and where they begin."""
    if not (isinstance(chains, Integral) and int(chains) >= 1):
        raise StudyError(f"chains must be at least 1, a whole number, got {chains!r}.")
    if chain_length is not None and not (
        isinstance(chain_length, Integral) and int(chain_length) >= 1
    ):
        raise StudyError(
            f"chain_length must be at least 1, a whole number of trials, or None, got "
            f"{chain_length!r}."
        )
    if not (starts is None or isinstance(starts, BaseSampler)):
        raise StudyError(
            f"starts must be a sampler such as optuna.samplers.RandomSampler(), got {starts!r}."
        )

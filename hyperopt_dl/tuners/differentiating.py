"""What a tuner whose trials are differentiated is given: an estimator, and names to leave out."""

from collections.abc import Collection
from typing import Literal

from hyperopt_dl.errors import StudyError
from hyperopt_dl.hypergrad import Auto, Estimator, Reverse
from hyperopt_dl.hypergrad.estimator import Learner


def estimator_of(given: Estimator | Literal["auto"] | None) -> Estimator:
    """Return the estimator that was given or named; ``None`` names ``Reverse()``."""
    if given is None:
        return Reverse()
    return Auto() if isinstance(given, str) else given


def check_estimator(estimator: object) -> None:
    """Check that an estimator is one, or "auto", or ``None``.

    Raises:
        StudyError: It is not.
    """
    if not (estimator is None or estimator == "auto" or callable(estimator)):
        raise StudyError(
            f"estimator must be 'auto' or an estimator such as hypergrad.Reverse(), got "
            f"{estimator!r}."
        )


def check_fixed(fixed: object) -> None:
    """Check that what is not differentiated is given by names.

    Raises:
        StudyError: It is not.
    """
    names = fixed if isinstance(fixed, Collection) and not isinstance(fixed, str) else [None]
    if not all(isinstance(name, str) for name in names):
        raise StudyError(f"fixed must be names such as ('dropout',), got {fixed!r}.")


def check_use_of_gradients(
    use_gradients: object, estimator: object, fixed: Collection[str]
) -> None:
    """Check the arguments of a tuner that can use gradients, and can do without.

    Raises:
        StudyError: One is not what it must be, or is of no use.
    """
    check_estimator(estimator)
    check_fixed(fixed)
    if not isinstance(use_gradients, bool):
        raise StudyError(f"use_gradients must be True or False, got {use_gradients!r}.")
    if not use_gradients and (estimator is not None or fixed):
        raise StudyError(
            f"estimator and fixed are for use_gradients=True, got estimator={estimator!r} and "
            f"fixed={fixed!r} without. Set it, or leave them out."
        )
    if isinstance(estimator, Learner):
        raise StudyError(
            f"A model of the loss needs the loss after all steps, but {type(estimator).__name__} "
            f"mostly estimates it. Use hypergrad.Reverse(), or the tuner Hypergradient."
        )

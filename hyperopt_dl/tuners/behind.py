"""The study of Optuna that a tuner is asked about."""

from collections.abc import Mapping
from typing import Protocol

import optuna
from optuna.distributions import BaseDistribution

from hyperopt_dl.errors import StudyError


class Around(Protocol):
    """What has a study of Optuna inside, such as ``hyperopt_dl.Study``."""

    @property
    def optuna(self) -> optuna.Study:
        """The study."""


def behind(study: optuna.Study | Around) -> optuna.Study:
    """Return a study of Optuna, or the one that is inside of another.

    Raises:
        StudyError: It is neither.
    """
    found = study if isinstance(study, optuna.Study) else getattr(study, "optuna", None)
    if not isinstance(found, optuna.Study):
        raise StudyError(f"A Study, or a study of Optuna, is needed, got {study!r}.")
    return found


def stated(study: optuna.Study) -> Mapping[str, BaseDistribution]:
    """Return the distributions that a ``hyperopt_dl.Study`` with a space gives its next trials."""
    distributions: Mapping[str, BaseDistribution] = getattr(study, "stated", {})
    return distributions

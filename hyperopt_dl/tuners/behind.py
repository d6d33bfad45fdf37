"""The study of Optuna that a tuner is asked about."""

from typing import Protocol

import optuna


class Around(Protocol):
    """What has a study of Optuna inside, such as ``hyperopt_dl.Study``."""

    @property
    def optuna(self) -> optuna.Study:
        """The study."""


def behind(study: optuna.Study | Around) -> optuna.Study:
    """Return a study of Optuna, or the one that is inside of another."""
    return study if isinstance(study, optuna.Study) else study.optuna

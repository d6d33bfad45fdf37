"""What an estimator of the hypergradient is."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeAlias, runtime_checkable

import torch
from torch import Tensor

from hyperopt_dl.training import State, Training

Observer: TypeAlias = Callable[[State], None]
Note: TypeAlias = Mapping[str, Any]
"""What an estimator writes down of a trial, for JSON: see ``Estimator``."""
Plan: TypeAlias = Mapping[str, Any]
"""What an estimator is to do in a trial, for JSON."""


@runtime_checkable
class Estimator(Protocol):
    """Computes the outer loss at the end of a run, and its derivative in the hyperparameters."""

    def __call__(
        self,
        training: Training,
        hparams: Mapping[str, Any],
        *,
        seed: int,
        device: torch.device | str,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the outer loss (0-dim) and dE/dλ by name.

        The derivative is in the loss's unit per unit of the hyperparameter, float64, of the
        hyperparameter's shape; integers, flags and names have none.

        An estimator may take more keywords, and a study then gives them:

        * ``observe: Observer | None = None``, called once with the state that the outer loss was
          read from, cut from any graph: a study measures its metrics there. Where the loss after
          all steps was not looked at, it is not called;
        * ``scale: Mapping[str, float] | None = None``, natural units per unit of the cube at this
          point, by name: with them an estimator measures lengths, as a tuner does;
        * ``note: Callable[[Note], None] | None = None``, called once with numbers to keep with the
          trial. Where ``"exact"`` among them is false, the value is an estimate, and no candidate
          for the best trial; a ``"loss"`` is the outer loss after all steps;
        * ``plan: Plan | None = None``, what to do this time: see ``Learner``.
        """


@runtime_checkable
class Learner(Protocol):
    """An estimator that learns from one trial what to do in the next."""

    def next_plan(self, notes: Sequence[Note], running: Sequence[Plan]) -> Plan:
        """Return the plan of a new trial.

        Args:
            notes: What the finished trials of the study have noted, in order.
            running: The plans of those that still run.
        """

    def last_plan(self) -> Plan:
        """Return the plan of a trial that only takes the loss after all steps."""


def accepted(estimator: Estimator, keywords: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of the keywords that an estimator names; one with ``**`` takes ``observe``."""
    parameters = inspect.signature(estimator).parameters.values()
    names = {p.name for p in parameters if p.kind != p.VAR_KEYWORD}
    if any(p.kind == p.VAR_KEYWORD for p in parameters):
        names.add("observe")
    return {name: value for name, value in keywords.items() if name in names}

"""Estimators whose losses are not compared with each other.

Under ``Hypergradient`` a loss that lies above all others on the way down sends a descent back, with
half the step for good. Where every trial draws a batch of its own, luck looks like that. A loss
that is noted as an estimate is not compared.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from hyperopt_dl.hypergrad import Estimator, Telescoping
from hyperopt_dl.hypergrad.estimator import Note, Observer, Plan, accepted
from hyperopt_dl.training import Training


class Unranked:
    """An estimator, whose every value is noted as an estimate."""

    def __init__(self, estimator: Estimator) -> None:
        self.estimator = estimator

    def __call__(
        self,
        training: Training,
        hparams: Mapping[str, Any],
        *,
        seed: int,
        device: torch.device | str,
        observe: Observer | None = None,
        note: Any = None,
        plan: Plan | None = None,
        scale: Mapping[str, float] | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return what the estimator returns."""
        noted: dict[str, Any] = {}
        offered = {"observe": observe, "note": noted.update, "plan": plan, "scale": scale}
        keywords = accepted(self.estimator, offered)
        found = self.estimator(training, hparams, seed=seed, device=device, **keywords)
        if note is not None:
            note({**noted, "exact": False})
        return found


class UnrankedTelescoping(Unranked):
    """The same of telescoping, which learns from its notes."""

    estimator: Telescoping

    def next_plan(self, notes: Sequence[Note], running: Sequence[Plan]) -> Plan:
        """Return what telescoping does next."""
        return self.estimator.next_plan(notes, running)

    def last_plan(self) -> Plan:
        """Return what telescoping closes with."""
        return self.estimator.last_plan()

"""Links and trainings for tests of one trial."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from optuna.distributions import BaseDistribution
from torch import Tensor

from hyperopt_dl.early_stopping import EarlyStopping
from hyperopt_dl.training import State
from hyperopt_dl.trial import Job, Outcome, Trial, run_trial

NAN, INF = math.nan, math.inf


@dataclass
class Recorder:
    """A link that notes every call, and prunes at one of the reports."""

    prune_at: int | None = None
    calls: list[tuple[Any, ...]] = field(default_factory=list)

    def suggest(self, name: str, distribution: BaseDistribution) -> Any:
        self.calls.append(("suggest", name, distribution))
        return 0.25

    def report(self, value: float, step: int) -> None:
        self.calls.append(("report", value, step))

    def should_prune(self) -> bool:
        self.calls.append(("should_prune",))
        return self.prune_at is not None and len(self.of("report")) >= self.prune_at

    def set_constraint(self, key: str, value: float) -> None:
        self.calls.append(("constraint", key, value))

    def set_user_attr(self, key: str, value: Any) -> None:
        self.calls.append(("attr", key, value))

    def of(self, kind: str) -> list[tuple[Any, ...]]:
        return [call[1:] for call in self.calls if call[0] == kind]

    @property
    def attrs(self) -> dict[str, Any]:
        return dict(self.of("attr"))


def run(
    workload: Any,
    link: Recorder | None = None,
    *,
    params: dict[str, Any] | None = None,
    seed: int = 0,
    objectives: int = 1,
) -> Outcome:
    job = Job(number=4, params=params or {}, seed=seed, objectives=objectives)
    return run_trial(workload, Trial(job, link or Recorder(), torch.device("cpu")), objectives)


def raising(error: BaseException) -> Callable[[Trial], float]:
    def objective(trial: Trial) -> float:
        raise error

    return objective


class Scripted:
    """A training whose loss after step t is ``losses[t]``; its metric is given in the same way."""

    def __init__(
        self,
        losses: list[float],
        *,
        every: int | None = None,
        stopping: EarlyStopping | None = None,
        metric: list[float] | None = None,
    ) -> None:
        self.steps = len(losses)
        self._losses, self._metric = losses, metric
        self.taken: list[int] = []
        if every is not None:
            self.report_every = every
        if stopping is not None:
            self.early_stopping = stopping

    def init(self, hparams: Any, *, seed: int, device: torch.device | str) -> State:
        return {"t": torch.tensor(0)}

    def step(self, state: State, hparams: Any, t: int) -> State:
        self.taken.append(t)
        return {"t": state["t"] + 1}

    def loss(self, state: State, hparams: Any) -> Tensor:
        return torch.tensor(self._losses[int(state["t"]) - 1], dtype=torch.double)

    def metrics(self, state: State, hparams: Any) -> dict[str, float]:
        t = int(state["t"])
        return {"t": t} | ({} if self._metric is None else {"score": self._metric[t - 1]})

    def test_metrics(self, state: State, hparams: Any) -> dict[str, float]:
        return {"loss": 100.0 + int(state["t"])}

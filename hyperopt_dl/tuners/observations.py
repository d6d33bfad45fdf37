"""What the trials of a study have shown, as tensors: losses, constraints, failures, points."""

import bisect
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState
from torch import Tensor

from hyperopt_dl.tuners.cube import Cube, searchable
from hyperopt_dl.tuners.gradients import gradients_of, offered


@dataclass(frozen=True)
class Observations:
    """The trials that lie in a cube of D dimensions. A loss is to be minimised."""

    x: Tensor
    """``[n, D]``, the points with a loss, in the order in which their trials ended."""
    losses: Tensor
    """``[n]``."""
    constraints: Mapping[str, Tensor]
    """By name ``[n]``, at most 0 where feasible; -inf where a trial has not set it."""
    failed: Tensor
    """``[f, D]``, the points whose trials failed."""
    pending: Tensor
    """``[p, D]``, the points whose trials are running."""
    gradients: Tensor
    """``[n, D]``, the derivatives of the losses per unit of the cube; NaN where not known."""
    unusable: int
    """Derivatives that trials carry and that are not finite, or of a trial without a loss."""

    @property
    def feasible(self) -> Tensor:
        """Which points with a loss are feasible, ``[n]`` of bool."""
        feasible = torch.ones(len(self.losses), dtype=torch.bool)
        for values in self.constraints.values():
            feasible &= values <= 0
        return feasible


def observe(
    trials: Iterable[FrozenTrial], cube: Cube, *, sign: float, running: Collection[int]
) -> Observations:
    """Return what trials have shown.

    A trial that was pruned is known to be bad: its loss is the last that it reported, but at least
    the median of the trials that were complete by then. A trial that failed, whose value is not
    finite, or that was pruned without a report, has a point and no loss; one that an interrupt has
    cut off says nothing.

    Args:
        trials: Of one study.
        cube: The dimensions; a trial that lacks one, or lies outside, says nothing.
        sign: 1 to minimise, -1 to maximise.
        running: The numbers of the trials that count as running, whatever they are by now.
    """
    known = [trial for trial in trials if all(name in trial.params for name in cube.names)]
    x, inside = cube.encode([trial.params for trial in known])
    rows = {trial.number: i for i, trial in enumerate(known) if bool(inside[i])}
    known = [trial for trial in known if trial.number in rows]
    ended = [t for t in known if t.number not in running and t.state.is_finished()]
    ended = [t for t in ended if t.user_attrs.get("failure") != "interrupted"]
    ended.sort(key=lambda trial: (trial.datetime_complete, trial.number))
    losses = _losses(ended, sign)
    with_loss = [trial for trial in ended if trial.number in losses]
    failed = [trial for trial in ended if trial.number not in losses]
    gradients = gradients_of(with_loss, cube, sign=sign)
    names = sorted({name for trial in with_loss for name in trial.constraints})
    return Observations(
        x=x[[rows[trial.number] for trial in with_loss]],
        losses=torch.tensor([losses[t.number] for t in with_loss], dtype=torch.float64),
        constraints={
            name: torch.tensor(
                [trial.constraints.get(name, -math.inf) for trial in with_loss],
                dtype=torch.float64,
            )
            for name in names
        },
        failed=x[[rows[trial.number] for trial in failed]],
        pending=x[[rows[trial.number] for trial in known if trial.number in running]],
        gradients=gradients,
        unusable=offered(ended, cube) - int(gradients.isfinite().sum()),
    )


def common_space(
    trials: Sequence[FrozenTrial], stated: Mapping[str, BaseDistribution]
) -> dict[str, BaseDistribution]:
    """Return the dimensions that all trials agree on.

    Those that gave a value decide; before there are any, those that failed or still run do.

    Args:
        trials: Of one study.
        stated: Distributions that hold from now on. Trials with other bounds agree with them.
    """
    decisive = [t for t in trials if t.state in (TrialState.COMPLETE, TrialState.PRUNED)]
    decisive = [t for t in decisive or trials if t.distributions]
    if not decisive:
        return {}
    common = decisive[0].distributions
    for trial in decisive[1:]:
        theirs = trial.distributions
        if theirs != common:
            common = {
                name: distribution
                for name, distribution in common.items()
                if name in theirs and (name in stated or theirs[name] == distribution)
            }
    return searchable({name: stated.get(name, common[name]) for name in common})


def _losses(ended: Sequence[FrozenTrial], sign: float) -> dict[int, float]:
    """Return the losses of trials by number; what came later changes none of them."""
    losses: dict[int, float] = {}
    complete: list[float] = []
    for trial in ended:
        if trial.state == TrialState.COMPLETE and math.isfinite(trial.values[0]):
            losses[trial.number] = sign * trial.values[0]
            bisect.insort(complete, losses[trial.number])
        elif trial.state == TrialState.PRUNED and (report := _last_report(trial)) is not None:
            median = complete[len(complete) // 2] if complete else -math.inf
            losses[trial.number] = max(median, sign * report)
    return losses


def _last_report(trial: FrozenTrial) -> float | None:
    """Return the last value that a trial reported, if it is finite."""
    reports: dict[int, Any] = trial.intermediate_values
    last = reports[max(reports)] if reports else math.nan
    return float(last) if math.isfinite(last) else None

"""Randomized telescoping: unbiased hypergradients of a long run from runs that mostly stop early.

Letters: T[n] the steps of level n, the last one the horizon H; G[n] the gradient of the loss after
T[n] steps; N the level that is drawn; q its distribution; c[n] what G[n] counts (Beatson & Adams
2019; ``telescope.weights``).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from hyperopt_dl.errors import TrainingError
from hyperopt_dl.hypergrad.estimator import Note, Observer, Plan
from hyperopt_dl.hypergrad.forward import Forward
from hyperopt_dl.hypergrad.level_runs import LevelRuns
from hyperopt_dl.hypergrad.reverse import Reverse
from hyperopt_dl.hypergrad.telescope.learned import (
    Measured,
    Odds,
    average,
    learned,
    prior,
    squared_distances,
)
from hyperopt_dl.hypergrad.telescope.weights import (
    SCHEMES,
    Array,
    Scheme,
    check_levels,
    coefficients,
    draw,
    ladder,
)
from hyperopt_dl.seeds import derive
from hyperopt_dl.training import State, Training

CALIBRATE, DRAW, EVALUATE = "calibrate", "draw", "evaluate"
"""What a plan may say: measure all levels, draw one, or only take the loss after all steps."""


@dataclass(frozen=True)
class Telescoping:
    """An unbiased estimate of the hypergradient after all steps, from runs that mostly end early.

    With G[n] the gradient of the loss after T[n] steps, the gradient after all of them is a sum of
    differences, ``Σ (G[n] - G[n - 1])``. A draw takes some of them, and counts each as much more as
    it is rarely taken. It runs to the level that is drawn and no further, and makes one sweep back,
    in which the losses of other levels are taken up on the way: a draw of level T[N] costs T[N]
    steps forward and T[N] back, under either scheme.

    All levels are states of one run, of ``training.steps`` steps with one seed. A schedule that
    depends on that number needs no care: it is the same for all of them.

    Under ``Hypergradient`` in a ``Study``, with ``tune``: the first trial is a calibration, one
    whole run with the gradients of all levels. From the averages of their distances follow the
    levels worth drawing and the distribution for which expected cost times second moment is least,
    and what a step along a draw is to be shortened by. Another calibration follows from time to
    time. The value of a trial that stops early is an unbiased estimate too, of the loss after all
    steps; it is no candidate for ``study.best``, which calibrations, draws of the last level and
    the evaluation at the end decide.

    Args:
        scheme: ``"single_sample"`` takes one difference, ``G[N] - G[N - 1]``; with
            ``"russian_roulette"`` all differences up to level N.
        levels: Numbers of steps, ascending; the training's own is always the last of them. ``None``
            is ``steps, steps / 2, steps / 4, ...`` down to 1.
        tune: Whether calibrations decide the levels and their probabilities. Without them all
            levels are drawn, as if each difference were as large as any other.
        calibrate_every: The compute between two calibrations, in whole runs with their gradients.
        separate: Whether each level is a run of its own, of ``training.with_steps(T[n])``: for
            a discretization that becomes finer, or a schedule that is to end at each level. A draw
            then costs the runs of all levels that it needs.
        mode: How a run is differentiated. With ``Forward()``, for a few hyperparameters, a draw is
            one run to step T[N] and no way back. Its memory does not grow with the steps, and it
            measures the distances of all levels that it passes, so that calibrations are rare.

    Raises:
        TrainingError: A setting that is none of these; in the call, levels that do not fit the
            training.

    Example:
        >>> import hyperopt_dl as hd
        >>> estimator = hd.hypergrad.Telescoping(levels=(100, 400))
        >>> tuner = hd.Hypergradient(estimator=estimator, optimizer="sgd", lr=0.01)
    """

    scheme: Scheme = "single_sample"
    levels: Sequence[int] | None = None
    tune: bool = True
    calibrate_every: float = 5.0
    separate: bool = False
    mode: Reverse | Forward = field(default_factory=Reverse)

    def __post_init__(self) -> None:
        if self.scheme not in SCHEMES:
            raise TrainingError(f"scheme must be one of {SCHEMES}, got {self.scheme!r}.")
        if self.levels is not None:
            object.__setattr__(self, "levels", tuple(self.levels))
        if not self.calibrate_every > 0:
            raise TrainingError(
                f"calibrate_every must be a positive number of whole runs, got "
                f"{self.calibrate_every!r}."
            )
        biased = isinstance(self.mode, Reverse) and self.mode.last is not None
        if biased or not isinstance(self.mode, (Reverse, Forward)):
            raise TrainingError(
                f"Telescoping needs the mode Forward(), or Reverse() without last=, which would be "
                f"a bias of its own, got {self.mode!r}."
            )

    def __call__(
        self,
        training: Training,
        hparams: Mapping[str, Any],
        *,
        seed: int,
        device: torch.device | str,
        observe: Observer | None = None,
        note: Callable[[Note], None] | None = None,
        plan: Plan | None = None,
        scale: Mapping[str, float] | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return estimates of the outer loss and of its derivative, as ``Estimator`` says.

        The level is drawn by the seed. Without a plan, it is one of all levels, as with
        ``tune=False``.
        """
        place = torch.device(device)
        runs = LevelRuns(
            training, hparams, self.mode, seed=seed, device=place, separate=self.separate
        )
        plan = {"do": DRAW} if plan is None else plan
        levels = self._levels(training.steps)
        if plan["do"] == EVALUATE:
            made = _evaluate(runs)
        elif plan["do"] == CALIBRATE:
            made = _calibrate(runs, levels, scale or {})
        else:
            u = derive(seed, "level") / 2**63
            odds = self._odds(training.steps, plan)
            made = _draw(runs, self.scheme, odds, u, levels, scale or {})
        if observe is not None and made.final is not None:
            observe(made.final)
        if note is not None:
            note({"do": plan["do"], "exact": made.final is not None, **made.note})
        return made.value, made.gradient

    def next_plan(self, notes: Sequence[Note], running: Sequence[Plan]) -> Plan:
        """Return what a new trial does: calibrate, or draw by these odds (see ``Learner``)."""
        if not self.tune:
            return {"do": DRAW}
        whole = [i for i, note in enumerate(notes) if self._has_measured_all(note)]
        if not whole:
            return {"do": CALIBRATE}
        levels = notes[whole[-1]]["measured"]
        spent = sum(note["steps"] for note in notes[whole[-1] + 1 :])
        run = (1 if isinstance(self.mode, Forward) else 2) * levels[-1]
        due = spent >= self.calibrate_every * run
        if due and not any(other["do"] == CALIBRATE for other in running):
            return {"do": CALIBRATE}
        D = average(_history(notes, levels), len(levels))
        odds = learned(self.scheme, levels, D, separate=self.separate)
        return {
            "do": DRAW,
            "levels": list(odds.levels),
            "probabilities": odds.q.tolist(),
            "factor": odds.factor,
        }

    def last_plan(self) -> Plan:
        """Return the plan that only takes the loss after all steps."""
        return {"do": EVALUATE}

    def _has_measured_all(self, note: Note) -> bool:
        """Return whether a trial has measured all levels that these settings ask for."""
        if note.get("distances") is None:
            return False
        return tuple(note["measured"]) == self._levels(note["levels"][-1])

    def _levels(self, steps: int) -> tuple[int, ...]:
        return ladder(steps) if self.levels is None else check_levels(self.levels, steps)

    def _odds(self, steps: int, plan: Plan) -> Odds:
        """Return the odds that a plan names, or those of all levels."""
        if "levels" not in plan:
            return prior(self.scheme, self._levels(steps), separate=self.separate)
        levels = check_levels(plan["levels"], steps)
        return Odds(levels, np.asarray(plan["probabilities"]), plan.get("factor", 1.0))


class _Made(NamedTuple):
    """What came out: ``final`` is the state after all steps, where they were run."""

    value: Tensor
    gradient: dict[str, Tensor]
    final: State | None
    note: dict[str, Any]


def _draw(
    runs: LevelRuns,
    scheme: Scheme,
    odds: Odds,
    u: float,
    levels: Sequence[int],
    scale: Mapping[str, float],
) -> _Made:
    """Draw a level by ``0 <= u < 1``, run to it, and add up what the draw is made of."""
    N = draw(odds.q, u)
    c = coefficients(scheme, odds.q)[N]
    weights = {t: float(w) for t, w in zip(odds.levels, c, strict=True) if w != 0}
    drawn = runs.sum_of(weights, along=levels)
    level = odds.levels[N]
    whole = level == runs.training.steps
    note = {
        "level": level,
        "probability": float(odds.q[N]),
        "levels": list(odds.levels),
        "probabilities": odds.q.tolist(),
        "factor": odds.factor,
        "steps": drawn.steps,
        "estimate": float(drawn.value),
        **_distances(drawn.gradients, scale),
    }
    if whole:
        note["loss"] = drawn.losses[level]
    return _Made(drawn.value, drawn.gradient, drawn.final if whole else None, note)


def _calibrate(runs: LevelRuns, levels: Sequence[int], scale: Mapping[str, float]) -> _Made:
    """Pull back the gradient of every level by itself, and measure their distances."""
    parts = runs.each_of(levels)
    last = parts[-1]
    note = {
        "level": levels[-1],
        "probability": 1.0,
        "levels": list(levels),
        **_distances(dict(zip(levels, (part.gradient for part in parts), strict=True)), scale),
        "factor": 1.0,
        "steps": sum(part.steps for part in parts),
        "estimate": float(last.value),
        "loss": float(last.value),
    }
    return _Made(last.value, last.gradient, last.final, note)


def _evaluate(runs: LevelRuns) -> _Made:
    """Run all steps, without a derivative."""
    final, value = runs.evaluate()
    steps = runs.training.steps
    return _Made(value, {}, final, {"level": steps, "steps": steps, "loss": float(value)})


def _distances(
    gradients: Mapping[int, Mapping[str, Tensor]], scale: Mapping[str, float]
) -> dict[str, Any]:
    """Return what is noted of gradients that are known by themselves, by steps; ``None`` is inf."""
    if not gradients:
        return {}
    measured = sorted(gradients)
    D = squared_distances(np.stack([_flat(gradients[t], scale) for t in measured]))
    return {"measured": measured, "distances": D.tolist() if np.isfinite(D).all() else None}


def _history(notes: Sequence[Note], levels: Sequence[int]) -> list[Measured]:
    """Return what has been measured of some levels, oldest first."""
    place = {t: n for n, t in enumerate(levels)}
    return [
        Measured(tuple(place[t] for t in note["measured"]), np.asarray(note["distances"]))
        for note in notes
        if note.get("distances") is not None
        and note["levels"][-1] == levels[-1]
        and place.keys() >= set(note["measured"])
    ]


def _flat(gradient: Mapping[str, Tensor], scale: Mapping[str, float]) -> Array:
    """Return a gradient as one vector, per unit of the cube where the scale is known."""
    parts = [
        scale.get(name, 1.0) * gradient[name].detach().cpu().double().reshape(-1)
        for name in sorted(gradient)
    ]
    return np.asarray(torch.cat(parts).numpy())

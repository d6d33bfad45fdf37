"""Fit a differential equation whose solver's steps become finer: a training without a network.

    python studies/telescoping_ode.py              3 seeds: some minutes of CPU time
    python studies/telescoping_ode.py              again: goes on where it was, shows the table
    python studies/telescoping_ode.py --smoke      a tiny run that leaves no file

The experiment of Beatson and Adams 2019 on the Lotka-Volterra equations, in small. Prey u and
predators v follow ``u' = a u - b u v``, ``v' = c u v - d v``; the logarithms of both are observed
at five times with noise. A Gaussian with a diagonal covariance is fitted to the posterior of
``log (a, b, c, d)``: the outer loss is the negative evidence lower bound, estimated from 8 samples,
and its hyperparameters are the mean and the logarithm of the standard deviation, two ``Array``.

The equation is solved by Runge-Kutta of order 4. Level n solves it once more from the start, with
steps half as long as level n - 1: ``Telescoping(separate=True)`` and ``with_steps``. Coarse steps
alone are cheap and fit another equation. Compute is counted in Runge-Kutta steps, forward and back.
"""

import argparse
import statistics
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import optuna
import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from torch import Tensor

import hyperopt_dl as hd
from studies.shared.curves import over_seeds, picture, save
from studies.shared.record import Record

parser = argparse.ArgumentParser(description="Telescoping over the steps of an ODE solver.")
parser.add_argument("--seeds", type=int, default=3, help="how many")
parser.add_argument("--budget", type=int, default=32, help="finest solutions with gradients")
parser.add_argument("--smoke", action="store_true", help="see that it works: tiny, leaves no file")
parser.add_argument("--record", type=Path, default=Path("runs/telescoping_ode.jsonl"))
parser.add_argument("--figures", type=Path, help="folder for the picture")
arguments = parser.parse_args()

COARSE, FINE = 5, 20 if arguments.smoke else 160
LEVELS = tuple(COARSE * 2**k for k in range((FINE // COARSE).bit_length() - 1))
BUDGET: int = 2 if arguments.smoke else arguments.budget
SEEDS = range(1, 2 if arguments.smoke else 1 + arguments.seeds)
MARKS = tuple(BUDGET * k / 8 for k in range(9))
TIMES, SPAN, SAMPLES, NOISE = 5, 10.0, 8, 0.05
TRUE = torch.tensor([0.9, 0.7, 0.6, 0.8], dtype=torch.double)
BEGIN = torch.tensor([1.5, 0.7], dtype=torch.double)
PRIOR_STD, OUTER_LR, JUDGE = 1.0, 0.05, 10_000
torch.set_num_threads(1)
optuna.logging.set_verbosity(optuna.logging.WARNING)
console = Console(highlight=False, soft_wrap=True, width=110)
record = Record(None if arguments.smoke else arguments.record)


def slope(log_y: Tensor, theta: Tensor) -> Tensor:
    """Return d/dt of ``log (u, v)``, both ``[samples, 2]``; theta is ``[samples, 4]``."""
    u, v = log_y.exp().unbind(1)
    a, b, c, d = theta.unbind(1)
    return torch.stack([a - b * v, c * u - d], dim=1)


def runge_kutta(y: Tensor, theta: Tensor, h: float) -> Tensor:
    """Return y after a step of length h."""
    k1 = slope(y, theta)
    k2 = slope(y + h / 2 * k1, theta)
    k3 = slope(y + h / 2 * k2, theta)
    k4 = slope(y + h * k3, theta)
    return y + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)


def observe() -> Tensor:
    """Return what was seen ``[times, 2]``: 64 small steps between two observations, and noise."""
    y, theta, rows = BEGIN.log()[None], TRUE[None], []
    for _ in range(TIMES):
        for _ in range(64):
            y = runge_kutta(y, theta, SPAN / TIMES / 64)
        rows.append(y[0])
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(TIMES, 2, generator=generator, dtype=torch.double)
    return torch.stack(rows) + NOISE * noise


SEEN = observe()


class LotkaVolterra:
    """The solution, step by step: where it is, and how far it has been from what was seen."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def with_steps(self, steps: int) -> "LotkaVolterra":
        """Return the same problem with steps of another length."""
        return LotkaVolterra(steps)

    def init(
        self, hparams: Mapping[str, Any], *, seed: int, device: torch.device | str
    ) -> dict[str, Tensor]:
        """Return the start, with samples of the parameters."""
        generator = torch.Generator().manual_seed(seed)
        epsilon = torch.randn(SAMPLES, 4, generator=generator, dtype=torch.double).to(device)
        mean, log_std = hparams["mean"], hparams["log_std"]
        return {
            "y": BEGIN.log().to(device).expand(SAMPLES, 2),
            "theta": (mean + log_std.exp() * epsilon).exp(),
            "misfit": torch.zeros(SAMPLES, dtype=torch.double, device=device),
        }

    def step(
        self,
        state: dict[str, Tensor],
        hparams: Mapping[str, Any],  # noqa: ARG002
        t: int,
    ) -> dict[str, Tensor]:
        """Make a step, and compare where something was seen."""
        y = runge_kutta(state["y"], state["theta"], SPAN / self.steps)
        misfit, every = state["misfit"], self.steps // TIMES
        if (t + 1) % every == 0:
            away = (y - SEEN[(t + 1) // every - 1].to(y)) / NOISE
            misfit = misfit + away.square().sum(1) / 2
        return {"y": y, "theta": state["theta"], "misfit": misfit}

    def loss(self, state: dict[str, Tensor], hparams: Mapping[str, Any]) -> Tensor:
        """Return the negative evidence lower bound, up to a constant."""
        mean, log_std = hparams["mean"] / PRIOR_STD, hparams["log_std"]
        divergence = (mean.square() + (2 * log_std).exp() / PRIOR_STD**2) / 2 - log_std
        bound: Tensor = state["misfit"].mean() + divergence.sum()
        return bound


class Method(NamedTuple):
    """An estimator, and how fine the solution is that it is given."""

    estimator: Any
    steps: int = FINE


METHODS = {
    "finest steps": Method(hd.hypergrad.Reverse(memory="activations")),
    "coarsest steps": Method(hd.hypergrad.Reverse(memory="activations"), COARSE),
    "twice as fine": Method(hd.hypergrad.Reverse(memory="activations"), 2 * COARSE),
    "single sample": Method(
        hd.hypergrad.Telescoping("single_sample", levels=LEVELS, separate=True)
    ),
    "Russian roulette": Method(
        hd.hypergrad.Telescoping("russian_roulette", levels=LEVELS, separate=True)
    ),
}
SPACE = hd.Space(mean=hd.Array(4, init=-0.2), log_std=hd.Array(4, init=-2.5))


def descend(name: str, seed: int) -> list[tuple[float, dict[str, list[float]]]]:
    """Return the points of a descent, each after the compute of what led to it."""
    method, spent = METHODS[name], 0
    points: list[tuple[float, dict[str, list[float]]]] = []
    tuner = hd.Hypergradient(estimator=method.estimator, lr=OUTER_LR, seed=seed)
    study = hd.Study(SPACE, tuner=tuner, seed=seed)

    def count(inner: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
        nonlocal spent
        params = {n: value.tolist() for n, value in study.params(trial.number).items()}
        points.append((spent / (2 * FINE), params))
        note = trial.user_attrs.get("estimator", {})
        spent += int(note.get("steps", 2 * method.steps))
        if spent > 2 * FINE * BUDGET or len(points) >= 6 * BUDGET:
            inner.stop()

    study.optimize(LotkaVolterra(method.steps), 10_000, callbacks=[count], progress=False)
    return points


def outer_loss(params: Mapping[str, list[float]]) -> float:
    """Return the loss with the finest steps, with samples that are the same for all."""
    training = LotkaVolterra(FINE)
    hparams = {name: torch.tensor(value, dtype=torch.double) for name, value in params.items()}
    with torch.no_grad():
        return float(training.loss(hd.rollout(training, hparams, seed=JUDGE), hparams))


def judged(name: str, seed: int) -> dict[str, Any]:
    """Return the outer loss of where a descent was at each mark."""
    points = descend(name, seed)
    places = [[p for spent, p in points if spent <= mark][-1] for mark in MARKS]
    return {
        "losses": [outer_loss(place) for place in places],
        "trials": len(points),
        "theta": torch.tensor(places[-1]["mean"]).exp().tolist(),
    }


results = {}
for seed in SEEDS:
    for name in METHODS:
        key = [name, seed, FINE, BUDGET, OUTER_LR]
        results[name, seed] = record.get(key, partial(judged, name, seed))
        console.print(name, seed, [round(loss, 2) for loss in results[name, seed]["losses"]])

table = Table(title="median over seeds (least to greatest)", box=SIMPLE_HEAD)
for column in ("estimator", "trials", "outer loss", "a, b, c, d"):
    table.add_column(column, justify="left" if column == "estimator" else "right")
for name in METHODS:
    runs = [results[name, seed] for seed in SEEDS]
    ends = [run["losses"][-1] for run in runs]
    theta = [
        statistics.median(values) for values in zip(*(run["theta"] for run in runs), strict=True)
    ]
    table.add_row(
        name,
        f"{statistics.median(run['trials'] for run in runs):.0f}",
        f"{statistics.median(ends):.2f} ({min(ends):.2f} to {max(ends):.2f})",
        ", ".join(f"{value:.3f}" for value in theta),
    )
console.print(table)
console.print(f"The data were made with {TRUE.tolist()}. torch {torch.__version__}.")
drawing = picture(
    {n: over_seeds(MARKS, [results[n, s]["losses"] for s in SEEDS]) for n in METHODS},
    x="compute, in finest solutions with their gradients",
    y="outer loss with the finest steps, logarithmic",
    log_y=True,
)
if arguments.figures:
    path = arguments.figures / "telescoping_ode.svg"
    save(drawing, path)
    console.print(f"Drawn: {path}")

"""Tune a learning rate and its decay through 512 steps: telescoping against whole runs.

    python studies/telescoping_lr.py               5 seeds: some minutes of CPU time
    python studies/telescoping_lr.py               again: goes on where it was, shows the table
    python studies/telescoping_lr.py --pixels 28   the network of the paper: about 3 times as long
    python studies/telescoping_lr.py --smoke       a tiny run that leaves no file

The experiment of Beatson and Adams 2019, section 6, on Fashion-MNIST. A network with two hidden
layers of 100 ReLUs, warm-started by 50 steps, is trained by 512 steps of SGD with momentum 0.9 and
the learning rate ``lr / (1 + t / 5000)**decay`` on batches of 100; the outer loss is the
cross-entropy of a running average of its weights on 1000 validation examples. From (0.01, 0.1),
(lr, decay) descend on a log scale, by plain SGD with the same step size for every estimator.

Compute is counted in steps of the network, forward and back, as the trials note it; the unit is a
whole run with its gradient. Every point is then judged by one more run of all steps, with one seed
for all, which does not count.

The data come from Debian's package ``dataset-fashion-mnist`` or from ``--data``.
"""

import argparse
import math
import statistics
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import optuna
import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn import functional

import hyperopt_dl as hd
from hyperopt_dl.seeds import derive
from studies.data import fashion_mnist
from studies.shared.curves import over_seeds, picture, save
from studies.shared.record import Record

parser = argparse.ArgumentParser(description="Telescoping of a learning rate study.")
parser.add_argument("--data", type=Path, help="folder with the four .gz files of Fashion-MNIST")
parser.add_argument("--pixels", type=int, choices=(14, 28), default=14, help="of an edge")
parser.add_argument("--seeds", type=int, default=5, help="how many")
parser.add_argument("--budget", type=int, default=12, help="whole runs with gradients, per method")
parser.add_argument("--outer-lr", type=float, default=0.03, help="in units of the cube")
parser.add_argument("--smoke", action="store_true", help="see that it works: tiny, leaves no file")
parser.add_argument("--record", type=Path, default=Path("runs/telescoping_lr.jsonl"))
parser.add_argument("--figures", type=Path, help="folder for the picture")
arguments = parser.parse_args()

HORIZON = 16 if arguments.smoke else 512
BUDGET: int = 2 if arguments.smoke else arguments.budget
SEEDS = range(1, 2 if arguments.smoke else 1 + arguments.seeds)
BATCH, TRAINING, VALIDATION = 100, 10_000, 1000
MOMENTUM, AVERAGE = 0.9, 0.95
START = {"lr": 0.01, "decay": 0.1}
SPACE = hd.Space(lr=hd.Float(1e-4, 1.0, log=True), decay=hd.Float(1e-2, 1e2, log=True))
OUTER_LR: float = arguments.outer_lr
JUDGE = 10_000
"""The seed of the runs that judge; no descent has it."""
torch.set_num_threads(1)
optuna.logging.set_verbosity(optuna.logging.WARNING)
console = Console(highlight=False, soft_wrap=True, width=110)
MARKS = tuple(BUDGET * part for part in (0, 1 / 6, 1 / 3, 1 / 2, 3 / 4, 1))
"""The compute at which a descent is looked at."""
record = Record(None if arguments.smoke else arguments.record)


class Method(NamedTuple):
    """An estimator, after how many steps its training ends, and whether its points scatter."""

    estimator: Any
    steps: int = HORIZON
    scatters: bool = False


METHODS = {
    "whole runs": Method(hd.hypergrad.Reverse(memory="activations")),
    "truncated, 1/64": Method(hd.hypergrad.Reverse(memory="activations"), HORIZON // 64 or 1),
    "truncated, 1/16": Method(hd.hypergrad.Reverse(memory="activations"), HORIZON // 16),
    "single sample": Method(
        hd.hypergrad.Telescoping("single_sample", mode=hd.hypergrad.Reverse("activations")),
        scatters=True,
    ),
    "Russian roulette": Method(
        hd.hypergrad.Telescoping("russian_roulette", mode=hd.hypergrad.Reverse("activations")),
        scatters=True,
    ),
    "PES": Method(hd.hypergrad.PES(truncation=HORIZON // 8, pairs=1, sigma=0.02), scatters=True),
}


def prepared(x: Tensor) -> Tensor:
    """Return pictures ``[n, pixels]`` of the chosen size, and a 1 that biases are weights of."""
    if arguments.pixels == 14:
        x = functional.avg_pool2d(x.reshape(-1, 1, 28, 28), 2).flatten(1)
    return with_one(x)


def with_one(x: Tensor) -> Tensor:
    return functional.pad(x, (0, 1), value=1.0)


pictures = fashion_mnist.read(arguments.data or fashion_mnist.DEBIAN).train
order = torch.randperm(len(pictures.y), generator=torch.Generator().manual_seed(0))
first, second = order[:TRAINING], order[TRAINING : TRAINING + VALIDATION]
x_train, y_train = prepared(pictures.x[first]), functional.one_hot(pictures.y[first], 10).float()
x_validation, y_validation = prepared(pictures.x[second]), pictures.y[second]


def forward(x: Tensor, weights: Sequence[Tensor]) -> tuple[list[Tensor], Tensor]:
    """Return what enters each layer, and the logits ``[n, 10]``."""
    entering = [x]
    for w in weights[:-1]:
        entering.append(with_one((entering[-1] @ w).relu()))
    return entering, entering[-1] @ weights[-1]


def gradients(x: Tensor, y: Tensor, weights: Sequence[Tensor]) -> list[Tensor]:
    """Return the gradient of the cross-entropy, layer by layer; ``y`` is one-hot ``[n, 10]``."""
    entering, logits = forward(x, weights)
    delta = (logits.softmax(1) - y) / len(x)
    found = [entering[-1].T @ delta]
    for h, w in zip(entering[:0:-1], weights[:0:-1], strict=True):
        delta = (delta @ w[:-1].T) * (h[:, :-1] > 0)
        found.append(entering[len(weights) - len(found) - 1].T @ delta)
    return found[::-1]


class Network:
    """The training: weights w, momentum v, and the running average of the weights, a."""

    def __init__(self, steps: int, initial: Sequence[Tensor]) -> None:
        self.steps = steps
        self._initial = initial

    def init(
        self,
        hparams: Mapping[str, Any],  # noqa: ARG002
        *,
        seed: int,
        device: torch.device | str,  # noqa: ARG002
    ) -> dict[str, Tensor]:
        """Return the warm weights."""
        state = {"seed": torch.tensor(seed)}
        for k, w in enumerate(self._initial):
            state |= {f"w{k}": w, f"v{k}": torch.zeros_like(w), f"a{k}": w}
        return state

    def step(
        self, state: dict[str, Tensor], hparams: Mapping[str, Any], t: int
    ) -> dict[str, Tensor]:
        """Make a step of SGD with momentum on a batch that the seed and t draw."""
        lr = hparams["lr"] / (1 + t / 5000) ** hparams["decay"]
        generator = torch.Generator().manual_seed(derive(int(state["seed"]), "batch", t))
        batch = torch.randint(TRAINING, (BATCH,), generator=generator)
        weights = [state[f"w{k}"] for k in range(len(self._initial))]
        after = {"seed": state["seed"]}
        for k, g in enumerate(gradients(x_train[batch], y_train[batch], weights)):
            v = MOMENTUM * state[f"v{k}"] + g
            w = weights[k] - lr * v
            after |= {f"v{k}": v, f"w{k}": w, f"a{k}": torch.lerp(w, state[f"a{k}"], AVERAGE)}
        return after

    def loss(self, state: dict[str, Tensor], hparams: Mapping[str, Any]) -> Tensor:  # noqa: ARG002
        """Return the validation loss of the average."""
        average = [state[f"a{k}"] for k in range(len(self._initial))]
        return functional.cross_entropy(forward(x_validation, average)[1], y_validation)


def warm(seed: int) -> list[Tensor]:
    """Return weights after 50 steps with lr 0.1."""
    generator = torch.Generator().manual_seed(seed)
    sizes = (x_train.shape[1], 101, 101)
    cold = [
        (2 * torch.rand(n, width, generator=generator) - 1) / math.sqrt(n)
        for n, width in zip(sizes, (100, 100, 10), strict=True)
    ]
    state = hd.rollout(Network(50, cold), {"lr": 0.1, "decay": 0.0}, seed=seed)
    return [state[f"w{k}"] for k in range(len(cold))]


def cost(method: Method, trial: optuna.trial.FrozenTrial) -> int:
    """Return the steps of a trial, forward and back."""
    note = trial.user_attrs.get("estimator", {})
    return int(note.get("steps", 2 * method.steps))


def descend(name: str, seed: int) -> list[tuple[float, dict[str, float]]]:
    """Return the points of a descent, each after the compute of what led to it."""
    method, spent = METHODS[name], 0
    points: list[tuple[float, dict[str, float]]] = []

    def count(study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
        nonlocal spent
        points.append((spent / (2 * HORIZON), dict(trial.params)))
        spent += cost(method, trial)
        # A third of the budget is long enough to see where a truncation ends.
        share = 1 / 3 if method.steps < HORIZON else 1.0
        if spent > 2 * HORIZON * BUDGET * share:
            study.stop()

    tuner = hd.Hypergradient(estimator=method.estimator, optimizer="sgd", lr=OUTER_LR, seed=seed)
    study = hd.Study(SPACE, tuner=tuner, seed=seed)
    study.enqueue(START)
    training = Network(method.steps, warm(seed))
    study.optimize(training, n_trials=10_000, callbacks=[count], progress=False)
    return points


def place(
    points: Sequence[tuple[float, dict[str, float]]], mark: float, name: str
) -> dict[str, float]:
    """Return where a descent was after so much compute.

    Points that scatter count by the average of their last half, with which a study closes too.
    """
    now = [params for spent, params in points if spent <= mark]
    last = now[-math.ceil(len(now) / 2) :] if METHODS[name].scatters else now[-1:]
    logs = {n: statistics.fmean(math.log(params[n]) for params in last) for n in START}
    return {n: round(math.exp(value), 9) for n, value in logs.items()}


def outer_loss(params: dict[str, float], seed: int) -> float:
    """Return the loss after a run of all steps."""
    network = Network(HORIZON, warm(seed))
    return float(network.loss(hd.rollout(network, params, seed=JUDGE), params))


def judged(name: str, seed: int) -> dict[str, Any]:
    """Return the outer loss of where a descent was at each mark."""
    setting = [HORIZON, arguments.pixels]
    points = record.get([name, seed, *setting, BUDGET, OUTER_LR], partial(descend, name, seed))
    places = [place(points, mark, name) for mark in MARKS]
    losses = [
        record.get(["loss", p["lr"], p["decay"], seed, *setting], partial(outer_loss, p, seed))
        for p in places
    ]
    return {"losses": losses, "trials": len(points), "last": places[-1]}


def reached(losses: Sequence[float], goal: float) -> float:
    """Return the first mark at which a descent is as low as the goal; infinite if there is none."""
    low = [mark for mark, loss in zip(MARKS, losses, strict=True) if loss <= goal]
    return low[0] if low else math.inf


results = {}
for seed in SEEDS:
    for name in METHODS:
        results[name, seed] = judged(name, seed)
        console.print(name, seed, [round(loss, 4) for loss in results[name, seed]["losses"]])

table = Table(title="median over seeds (least to greatest)", box=SIMPLE_HEAD)
for column in ("estimator", "trials", "outer loss", "lr", "decay", "compute to the loss"):
    table.add_column(column, justify="left" if column == "estimator" else "right")
for name in METHODS:
    runs = [results[name, seed] for seed in SEEDS]
    goals = [results["whole runs", seed]["losses"][-1] for seed in SEEDS]
    ends = [run["losses"][-1] for run in runs]
    table.add_row(
        name,
        f"{statistics.median(run['trials'] for run in runs):.0f}",
        f"{statistics.median(ends):.4f} ({min(ends):.4f} to {max(ends):.4f})",
        f"{statistics.median(run['last']['lr'] for run in runs):.3g}",
        f"{statistics.median(run['last']['decay'] for run in runs):.3g}",
        f"{statistics.median(map(reached, [run['losses'] for run in runs], goals)):g}",
    )
console.print(table)
console.print(
    f"The goal is what whole runs end with. {len(SEEDS)} seeds, torch {torch.__version__}."
)
drawing = picture(
    {n: over_seeds(MARKS, [results[n, s]["losses"] for s in SEEDS]) for n in METHODS},
    x="compute, in whole runs with their gradients",
    y="outer loss after all steps",
)
if arguments.figures:
    path = arguments.figures / "telescoping_lr.svg"
    save(drawing, path)
    console.print(f"Drawn: {path}")

"""Do hypergradients help Bayesian optimization? Ten and thirty hyperparameters of small networks.

    python studies/benchmarks/gradients_in_bo.py            about ten minutes on one core
    python studies/benchmarks/gradients_in_bo.py --smoke    a few trials, to see that it works

MLPs on Fashion-MNIST at 14x14, 1000 pictures for training and 2000 for validation, 60 steps of SGD
on batches of 64. With ten hyperparameters: three layers, each with a learning rate, a momentum and
a weight decay of its own, and the label smoothing of the training loss. With thirty: four layers,
each with these three once for the weight and once for the bias and with a scale of its initial
weight, the label smoothing, and the weight of a penalty on confident outputs.

Seeds are paired: trial k of two tuners trains from the same initial weights on the same batches. A
trial is a training; one with its hypergradient costs ``REVERSE`` trainings, so the table shows
losses after equal numbers of trials and after equal numbers of trainings.

Results go to a file of JSON lines, one a run; runs that it has are not made again.
"""

import argparse
import json
import math
import statistics
import time
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import optuna
import torch
from optuna.samplers import BaseSampler, RandomSampler
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, cross_entropy, log_softmax

import hyperopt_dl as hd
from studies.data import fashion_mnist

parser = argparse.ArgumentParser(description="Compare AdditiveBO with and without gradients.")
parser.add_argument("--smoke", action="store_true", help="see that it works: a few trials only")
parser.add_argument("--out", type=Path, default=Path("runs/gradients_in_bo.jsonl"))
options = parser.parse_args()

STEPS = 5 if options.smoke else 60
TRIALS = 12 if options.smoke else 40  # trials of every tuner
SEEDS = {10: range(1 if options.smoke else 5), 30: range(1 if options.smoke else 3)}
LOOKS = (6, 12) if options.smoke else (20, 30, 40)  # trials after which the table looks
REVERSE = 2.5  # trainings that a training with its hypergradient costs
TUNERS = ("random", "AdditiveBO", "AdditiveBO, gradients", "Hypergradient")
DIFFERENTIATED = ("AdditiveBO, gradients", "Hypergradient")
torch.set_num_threads(1)
optuna.logging.set_verbosity(optuna.logging.WARNING)


def pictures(start: int, stop: int) -> tuple[Tensor, Tensor]:
    (x, y), _ = fashion_mnist.read()
    small = avg_pool2d(x[start:stop].reshape(-1, 1, 28, 28), 2).flatten(1)
    return small, y[start:stop]


def mlp(layers: int) -> nn.Sequential:
    sizes = [196, *[32] * (layers - 1), 10]
    parts: list[nn.Module] = []
    for inputs, outputs in pairwise(sizes):
        parts += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*parts[:-1])


def smoothed(output: Tensor, target: Tensor, hp: Mapping[str, Any]) -> Tensor:
    """Cross-entropy with label smoothing, and a penalty on the confidence of outputs."""
    logs = log_softmax(output, -1)
    smoothing = hp["smoothing"]
    loss = (1 - smoothing) * cross_entropy(output, target) - smoothing * logs.mean()
    negative_entropy = (logs.exp() * logs).sum(-1).mean()
    penalised: Tensor = loss + hp.get("confidence", 0.0) * negative_entropy
    return penalised


def rates(name: str) -> dict[str, hd.Float]:
    return {
        f"lr_{name}": hd.Float(1e-3, 1.0, log=True),
        f"momentum_{name}": hd.Float(0.0, 0.98),
        f"decay_{name}": hd.Float(1e-6, 1e-1, log=True),
    }


def group(name: str) -> dict[str, str]:
    return {"lr": f"lr_{name}", "momentum": f"momentum_{name}", "weight_decay": f"decay_{name}"}


def problem(dimensions: int) -> tuple[hd.Space, hd.Supervised]:
    """Return the problem with ten or with thirty hyperparameters."""
    layers, parts = (3, ("*",)) if dimensions == 10 else (4, ("weight", "bias"))
    names = {
        f"{2 * i}.{part}": f"{part}{i}".replace("*", "") for i in range(layers) for part in parts
    }
    space = {k: d for name in names.values() for k, d in rates(name).items()}
    space["smoothing"] = hd.Float(0.0, 0.5)
    scales = {}
    if dimensions == 30:
        space["confidence"] = hd.Float(0.0, 0.5)
        space |= {f"scale{i}": hd.Float(0.3, 3.0, log=True) for i in range(layers)}
        scales = {f"{2 * i}.weight": f"scale{i}" for i in range(layers)}
    training = hd.Supervised(
        model=lambda _: mlp(layers),
        loss=smoothed,
        validation_loss=cross_entropy,
        optimizer=hd.optimizers.SGD(
            lr=0.1, groups={pattern: group(name) for pattern, name in names.items()}
        ),
        init_scale=scales or None,
        train=pictures(0, 1000),
        validation=pictures(5000, 7000),
        steps=STEPS,
        batch_size=64,
        report_every=STEPS,
    )
    return hd.Space(space), training


def tuner_of(name: str, seed: int) -> BaseSampler:
    if name.startswith("AdditiveBO"):
        tuner: BaseSampler = hd.AdditiveBO(use_gradients=name in DIFFERENTIATED)
        return tuner
    return hd.Hypergradient(seed=seed) if name in DIFFERENTIATED else RandomSampler(seed=seed)


def run(dimensions: int, name: str, seed: int) -> dict[str, Any]:
    """Return the best validation loss after each trial of a run, and the CPU seconds it took."""
    space, training = problem(dimensions)
    study = hd.Study(space, tuner=tuner_of(name, seed), seed=seed)
    started = time.process_time()
    study.optimize(training, n_trials=TRIALS, progress=False)
    seconds = time.process_time() - started
    best, values = math.inf, []
    for trial in study.trials:
        best = min(best, math.inf if trial.value is None else trial.value)
        values.append(best)
    return {"best": values, "seconds": seconds}


found: dict[tuple[int, str, int], dict[str, Any]] = {}
if options.out.is_file() and not options.smoke:
    for line in options.out.read_text().splitlines():
        record = json.loads(line)
        found[record["dimensions"], record["tuner"], record["seed"]] = record
for dimensions, seeds in SEEDS.items():
    for seed in seeds:
        for name in TUNERS:
            if (dimensions, name, seed) in found:
                continue
            record = {"dimensions": dimensions, "tuner": name, "seed": seed}
            record |= run(dimensions, name, seed)
            found[dimensions, name, seed] = record
            if not options.smoke:
                options.out.parent.mkdir(parents=True, exist_ok=True)
                with options.out.open("a") as file:
                    file.write(json.dumps(record) + "\n")


def losses(dimensions: int, name: str, trials: float) -> list[float]:
    """Return the best losses after so many trials, one for each seed."""
    runs = [found[dimensions, name, seed]["best"] for seed in SEEDS[dimensions]]
    return [best[max(1, int(trials)) - 1] for best in runs]


def cell(values: list[float]) -> str:
    return f"{statistics.median(values):.3f} ({min(values):.3f}-{max(values):.3f})"


for dimensions in SEEDS:
    table = Table(
        f"{dimensions} dimensions",
        *(f"{look} trials" for look in LOOKS),
        *(f"{look} trainings" for look in LOOKS),
        "CPU s a trial",
        box=SIMPLE_HEAD,
    )
    for name in TUNERS:
        cost = REVERSE if name in DIFFERENTIATED else 1
        seconds = [found[dimensions, name, seed]["seconds"] for seed in SEEDS[dimensions]]
        table.add_row(
            name,
            *(cell(losses(dimensions, name, look)) for look in LOOKS),
            *(cell(losses(dimensions, name, look / cost)) for look in LOOKS),
            f"{statistics.median(seconds) / TRIALS:.2f}",
        )
    Console(width=190).print(table)
print("Best validation loss so far, median (range) over the seeds.")
for dimensions in SEEDS:
    for name in ("AdditiveBO", "Hypergradient", "random"):
        told = []
        for trials, spent in ((LOOKS[-1], "trials"), (LOOKS[-1] / REVERSE, "trainings")):
            ours = losses(dimensions, "AdditiveBO, gradients", trials)
            other = trials if name in DIFFERENTIATED else LOOKS[-1]
            theirs = losses(dimensions, name, other)
            wins = sum(a < b for a, b in zip(ours, theirs, strict=True))
            told.append(f"{wins} of {len(ours)} at {LOOKS[-1]} {spent}")
        print(f"{dimensions}: AdditiveBO with gradients is below {name} in {', '.join(told)}.")

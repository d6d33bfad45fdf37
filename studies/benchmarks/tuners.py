"""Twelve hyperparameters of a small network: the hypergradient against samplers without it.

    python studies/benchmarks/tuners.py            about a quarter of an hour on one core
    python studies/benchmarks/tuners.py --smoke    a few trials, to see that it works

An MLP of four layers (784-64-64-64-10, ReLU) on Fashion-MNIST, 5000 pictures for training and 5000
for validation, 100 steps of SGD on batches of 128. Each layer has a learning rate, a momentum and a
weight decay of its own. All tuners get the same number of training steps. A step costs one; where
the hypergradient is computed it costs three: one forward, and two for the way back, a Hessian
product being about two gradients. (``studies/benchmarks/hypergradients.py`` measures 1.3 to 2.6 in
all.) So the hypergradient has a third of the trials that the others have.

Results go to a file of JSON lines, one a run; runs that it has are not made again.
"""

import argparse
import json
import math
import statistics
from pathlib import Path
from typing import Any

import optuna
import torch
from optuna.samplers import BaseSampler, GPSampler, RandomSampler, TPESampler
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.nn.functional import cross_entropy

import hyperopt_dl as hd
from studies.data import fashion_mnist

parser = argparse.ArgumentParser(description="Compare tuners at equal cost in training steps.")
parser.add_argument("--smoke", action="store_true", help="see that it works: a few trials only")
parser.add_argument("--out", type=Path, default=Path("runs/tuners.jsonl"), help="the results")
options = parser.parse_args()

STEPS = 5 if options.smoke else 100
TRIALS = 6 if options.smoke else 120  # of a tuner without hypergradients
SEEDS = range(10, 11 if options.smoke else 15)
EXAMPLES = 500 if options.smoke else 5000
SHARES = (0.25, 0.5, 1.0)  # of the budget, where the table looks
REVERSE = 3  # steps that a differentiated step costs
LAYERS = ("0", "2", "4", "6")  # where the linear layers stand in the network
torch.set_num_threads(1)
optuna.logging.set_verbosity(optuna.logging.WARNING)


def network(_: Any) -> nn.Module:
    return nn.Sequential(
        nn.Linear(784, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(),
        nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10),
    )  # fmt: skip


space = hd.Space(
    **{f"lr{i}": hd.Float(1e-3, 1.0, log=True) for i in LAYERS},
    **{f"momentum{i}": hd.Float(0.0, 0.99) for i in LAYERS},
    **{f"decay{i}": hd.Float(1e-6, 1e-1, log=True) for i in LAYERS},
)
groups = {
    f"{i}.*": {"lr": f"lr{i}", "momentum": f"momentum{i}", "weight_decay": f"decay{i}"}
    for i in LAYERS
}
(x, y), _ = fashion_mnist.read()
training = hd.Supervised(
    model=network,
    loss=cross_entropy,
    optimizer=hd.optimizers.SGD(lr=0.1, momentum=0.9, groups=groups),
    train=(x[:EXAMPLES], y[:EXAMPLES]),
    validation=(x[5000:10_000], y[5000:10_000]),
    steps=STEPS,
    batch_size=128,
    report_every=STEPS,
)


def tuner_of(name: str, seed: int) -> BaseSampler:
    match name:
        case "random":
            return RandomSampler(seed=seed)
        case "TPE":
            return TPESampler(seed=seed, multivariate=True)
        case "GPSampler":
            return GPSampler(seed=seed)
        case "Hypergradient, 2 chains":
            return hd.Hypergradient(chains=2, seed=seed)
    return hd.Hypergradient(seed=seed)


def curve(name: str, seed: int) -> list[float]:
    """Return the best validation loss after each trial of a run."""
    trials = TRIALS // REVERSE if name.startswith("Hyper") else TRIALS
    study = hd.Study(space, tuner=tuner_of(name, seed), seed=seed)
    study.optimize(training, n_trials=trials, progress=False)
    best, values = math.inf, []
    for trial in study.trials:
        best = min(best, trial.value if trial.value is not None else math.inf)
        values.append(best)
    return values


TUNERS = ("random", "TPE", "GPSampler", "Hypergradient", "Hypergradient, 2 chains")
found: dict[tuple[str, int], list[float]] = {}
if options.out.is_file() and not options.smoke:
    for line in options.out.read_text().splitlines():
        record = json.loads(line)
        found[record["tuner"], record["seed"]] = record["best"]
for seed in SEEDS:
    for name in TUNERS:
        if (name, seed) not in found:
            found[name, seed] = curve(name, seed)
            if not options.smoke:
                options.out.parent.mkdir(parents=True, exist_ok=True)
                with options.out.open("a") as file:
                    json.dump({"tuner": name, "seed": seed, "best": found[name, seed]}, file)
                    file.write("\n")

table = Table(
    "tuner", "trials", *(f"{share:.0%} of the steps" for share in SHARES), box=SIMPLE_HEAD
)
for name in TUNERS:
    cells = []
    for share in SHARES:
        losses = [
            found[name, seed][max(1, int(share * len(found[name, seed]))) - 1] for seed in SEEDS
        ]
        spread = f" ({min(losses):.3f}-{max(losses):.3f})"
        cells.append(f"{statistics.median(losses):.3f}" + spread)
    table.add_row(name, str(len(found[name, SEEDS[0]])), *cells)
Console(width=110).print(table)
print(f"Best validation loss, median (range) of {len(SEEDS)} seeds; {TRIALS * STEPS} steps in all.")

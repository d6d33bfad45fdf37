"""What eight suggestions cost, against the number of trials and of dimensions, and in memory.

    python studies/benchmarks/proposal_cost.py [--smoke] [--figure FILE] [--cells 200x50,1000x50]

A study of uniform points has n trials of D dimensions, and eight are asked for one by one. For
``AdditiveBO`` this is timed three times: where the study was just opened, so that every checkpoint
of the structure is gone through; at a checkpoint, where the chains move; and between two of them,
where hyperparameters alone are fitted. Most batches are of the last kind. For Optuna's GPSampler it
is timed after a first batch, which begins its fit afresh. CPU seconds, one thread, the median over
repeats that take turns. Each measurement is a process of its own; memory is the most that it had in
use, less what it had before the first suggestion.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import TypeAlias

import numpy as np
import optuna
import torch
from rich.console import Console
from rich.table import Table

import hyperopt_dl as hd
from hyperopt_dl.tuners.surrogate import checkpoints
from studies.shared.figures import Figure, save

CELLS = [(50, 20), (100, 20), (200, 20), (400, 20), (200, 10), (200, 50), (200, 100), (400, 50)]
BATCH = 8

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--smoke", action="store_true", help="a tiny version, to see that it runs")
parser.add_argument("--figure", type=Path, help="draw the growth, an SVG file")
parser.add_argument("--cells", help="trials x dimensions, such as 200x50,1000x50")
parser.add_argument("--repeats", type=int, default=3)
parser.add_argument("--measure", nargs=3, metavar=("METHOD", "N", "D"), help=argparse.SUPPRESS)
OPTIONS = parser.parse_args()
if OPTIONS.smoke:
    CELLS = [(16, 3)]
if OPTIONS.cells:
    CELLS = [(int(n), int(D)) for n, D in (cell.split("x") for cell in OPTIONS.cells.split(","))]
REPEATS = 1 if OPTIONS.smoke else OPTIONS.repeats

Cost: TypeAlias = dict[str, float]
"""CPU seconds by occasion, and "MB"."""


def value(x: np.ndarray) -> float:
    """Return a smooth function of all dimensions, of which neighbours interact."""
    return float(((x - 0.4) ** 2).sum() + np.sin(6 * x[:-1] * x[1:]).sum())


def measure(method: str, n: int, D: int) -> Cost:
    """Return what eight suggestions cost about n trials, in this process."""
    checkpoint = checkpoints(n)[-1]
    starts = checkpoint - BATCH if method == "AdditiveBO" else n - BATCH
    names = [f"x{d}" for d in range(D)]
    space: dict[str, optuna.distributions.BaseDistribution] = {
        name: optuna.distributions.FloatDistribution(0, 1) for name in names
    }
    points = np.random.default_rng(0).uniform(size=(max(starts, 1), D))
    sampler = (
        hd.AdditiveBO(seed=0, n_startup=1)
        if method == "AdditiveBO"
        else optuna.samplers.GPSampler(seed=0, n_startup_trials=1)
    )
    study = optuna.create_study(sampler=sampler)
    study.add_trials(
        [
            optuna.create_trial(
                params=dict(zip(names, point.tolist(), strict=True)),
                distributions=space,
                value=value(point),
            )
            for point in points
        ]
    )
    before, cost = peak(), Cost()
    occasions = ("opened", "checkpoint", "between")
    for occasion in occasions if method == "AdditiveBO" else ("opened", "between"):
        start = time.process_time()
        trials = [study.ask(space) for _ in range(BATCH)]
        cost[occasion] = time.process_time() - start
        for trial in trials:
            study.tell(trial, value(np.array([trial.params[name] for name in names])))
    return cost | {"MB": peak() - before}


def peak() -> float:
    """Return the most memory that this process has had in use, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def in_a_process(method: str, n: int, D: int) -> Cost:
    """Return the same from a fresh process."""
    command = [sys.executable, __file__, "--measure", method, str(n), str(D)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    cost: Cost = json.loads(done.stdout)
    return cost


def median(costs: list[Cost]) -> Cost:
    """Return the median of each entry."""
    return {key: statistics.median(cost[key] for cost in costs) for key in costs[0]}


def show(costs: dict[tuple[int, int], dict[str, Cost]]) -> None:
    """Print the table."""
    table = Table(
        "n", "D", "between", "at a checkpoint", "opened", "MB", "GPSampler", "ratio", "MB"
    )
    for (n, D), by_method in costs.items():
        ours, peer = by_method["AdditiveBO"], by_method["GPSampler"]
        table.add_row(
            str(n),
            str(D),
            *(f"{ours[occasion]:.2f}" for occasion in ("between", "checkpoint", "opened")),
            f"{ours['MB']:.0f}",
            f"{peer['between']:.2f}",
            f"{ours['between'] / peer['between']:.2f}",
            f"{peer['MB']:.0f}",
        )
    Console(width=110).print(table)


def draw(costs: dict[tuple[int, int], dict[str, Cost]], path: Path) -> None:
    """Draw CPU seconds against n at the most frequent D, and against D at the most frequent n."""
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    fixed = (statistics.mode(D for _, D in costs), statistics.mode(n for n, _ in costs))
    for panel, (which, label) in enumerate((("trials", "dimensions"), ("dimensions", "trials"))):
        axes = figure.add_subplot(1, 2, panel + 1)
        cells = sorted(cell for cell in costs if cell[1 - panel] == fixed[panel])
        along = [cell[panel] for cell in cells]
        for method, occasion in (
            ("AdditiveBO", "between"),
            ("AdditiveBO", "checkpoint"),
            ("GPSampler", "between"),
        ):
            name = method if occasion == "between" else f"{method}, at a checkpoint"
            axes.plot(along, [costs[c][method][occasion] for c in cells], marker="o", label=name)
        axes.set(xlabel=which, title=f"{fixed[panel]} {label}", xscale="log", yscale="log")
        axes.set_ylabel("CPU seconds for 8 suggestions")
        axes.set_xticks(along, [str(number) for number in along])
        axes.set_xticks([], minor=True)
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("{x:g}")
    figure.axes[0].legend()
    save(figure, path)


def main() -> None:
    """Measure all cells and show them."""
    costs = {}
    for n, D in CELLS:
        runs: dict[str, list[Cost]] = {"AdditiveBO": [], "GPSampler": []}
        for _ in range(REPEATS):
            for method, found in runs.items():
                found.append(in_a_process(method, n, D))
        costs[n, D] = {method: median(found) for method, found in runs.items()}
        show(costs)
    if OPTIONS.figure:
        draw(costs, OPTIONS.figure)


torch.set_num_threads(1)
optuna.logging.set_verbosity(optuna.logging.ERROR)
warnings.simplefilter("ignore")
if OPTIONS.measure:
    METHOD, N, DIMENSIONS = OPTIONS.measure
    print(json.dumps(measure(METHOD, int(N), int(DIMENSIONS))))
else:
    main()

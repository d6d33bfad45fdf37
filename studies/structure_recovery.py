"""Does the structure that is learned exist? The paper's experiment, with its method and with ours.

    python studies/structure_recovery.py [--smoke] [--out runs/structure_recovery.jsonl]

A function of D dimensions is the sum of Gaussian process draws, one for each group of a random
partition; n uniform points of it are given, without noise. What counts are pairs of dimensions:

    recall      of the pairs that share a group, the share that is found together
    precision   of the pairs that are found together, the share that does share a group

of the best chain by its own log posterior, the mean over seeds and the worst seed. The gap is that
log posterior minus the one of the true groups with fitted hyperparameters: above 0 the data prefer
other groups to the true ones, and no search can help; far below 0 the search has failed.

Methods, each with two chains, as many cycles of moves and fits, and hyperparameters of their own
per chain:

    ours            groups beside a full component, all moves, the multiplicity prior
    paper           Wang et al. (ICML 2017): groups alone, sweeps of Gibbs moves under the Dirichlet
                    prior from random labels. As in the authors' code, four sweeps in ten are free,
                    the others start from the best groups so far and cap a group at 3 dimensions;
                    the best groups that were visited count.
    paper, no cap   the same with no cap, where true groups are larger than that

One line of JSON per run is appended to the file; a run that is there is not made again. The figure
is put beside the file. A smoke run leaves neither.
"""

import argparse
import itertools
import json
import math
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from torch import Tensor

from hyperopt_dl import seeds
from hyperopt_dl.gp import chains, partition
from hyperopt_dl.gp.data import Data, observe
from hyperopt_dl.gp.evidence import Evidence
from hyperopt_dl.gp.likelihood import Fit, Structure, fit, initial
from hyperopt_dl.gp.moves import LogPosterior, gibbs
from hyperopt_dl.gp.partition import Partition
from studies.shared.figures import Figure, save

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--smoke", action="store_true", help="a tiny version, to see that it runs")
parser.add_argument("--out", type=Path, default=Path("runs/structure_recovery.jsonl"))
ARGUMENTS = parser.parse_args()

SETTINGS = [  # dimensions, sizes of the groups in turn, lengthscale, points, seeds
    (20, (2,), 0.3, (200,), 5),
    (20, (5,), 0.4, (400,), 5),
    (10, (2,), 0.3, (50, 100), 5),
    (50, (2, 3), 0.3, (200, 400), 2),
    (20, (2,), 0.3, (100,), 5),
    (20, (5,), 0.4, (200,), 5),
    (50, (2, 3), 0.3, (800,), 2),
]
CHAINS, CYCLES, FEATURES = 2, 16, 2000
FREE = 0.4
"""Of the paper's sweeps, the first, in which a group may have any size."""
CAP = 3
"""Of the paper's code: dimensions in a group in the other sweeps."""
if ARGUMENTS.smoke:
    SETTINGS, CYCLES = [(6, (2,), 0.3, (60,), 1), (8, (4,), 0.3, (40,), 1)], 2

Line: TypeAlias = dict[str, Any]
Key: TypeAlias = tuple[Any, ...]

torch.set_num_threads(1)
console = Console(highlight=False, width=120, soft_wrap=True)


def draw_partition(D: int, sizes: tuple[int, ...], rng: np.random.Generator) -> Partition:
    """Return a random partition into groups of these sizes, in turn."""
    order, groups = rng.permutation(D).tolist(), list[list[int]]()
    while order:
        size = sizes[len(groups) % len(sizes)]
        groups.append(order[:size])
        order = order[size:]
    return partition.from_groups(groups, D)


def draw_function(
    x: np.ndarray, truth: Partition, lengthscale: float, rng: np.random.Generator
) -> np.ndarray:
    """Return standardised values of a sum of draws, each from an RBF kernel by Fourier features."""
    y = np.zeros(len(x))
    for group in partition.groups(truth):
        frequencies = rng.normal(size=(len(group), FEATURES)) / lengthscale
        phases = rng.uniform(0, 2 * math.pi, FEATURES)
        y += np.cos(x[:, group] @ frequencies + phases) @ rng.normal(size=FEATURES)
    return np.asarray((y - y.mean()) / y.std())


def ours(x: Tensor, y: Tensor, seed: int) -> tuple[Partition, float]:
    """Return the partition of the best chain, and its log posterior."""
    D = x.shape[1]
    flags = torch.zeros(D, dtype=torch.bool)
    best = chains.fit(x, y, flags, chains=CHAINS, seed=seed, rounds=D, cycles=CYCLES).best
    assert best.partition is not None
    return best.partition, best.log_posterior


def paper(x: Tensor, y: Tensor, seed: int, cap: int = CAP) -> tuple[Partition, float]:
    """Return the same by the method of the paper: a cycle is a sweep of Gibbs moves and a fit."""
    D = x.shape[1]
    data = observe(x, y, torch.zeros(D, dtype=torch.bool))
    ends = []
    for c in range(CHAINS):
        rng = np.random.default_rng(seeds.derive(seed, c))
        z = partition.canonical(rng.integers(D, size=D).tolist())
        ends.append(_gibbs_chain(data, z, rng, cap))
    return max(ends, key=lambda end: end[1])


def _gibbs_chain(
    data: Data, z: Partition, rng: np.random.Generator, cap: int
) -> tuple[Partition, float]:
    prior, D, free = partition.Dirichlet(alpha=1.0), len(z), int(FREE * CYCLES)
    structure = groups_alone(z)
    found = fit(data, structure, initial(structure), iterations=100)
    visited: list[tuple[float, Partition, Fit]] = []
    for cycle in range(CYCLES):
        if cycle == free and visited:
            _, z, found = max(visited, key=lambda visit: visit[0])
            visited = []
        weights, scales = found.parameters.weights[0], found.parameters.scales
        noise = found.parameters.noise
        total = weights.exp().sum()
        evidence = Evidence(
            data,
            scales=scales[0, 0].exp(),
            variances=(total / D).expand(D),
            noise=noise.exp().item(),
            prior=prior,
        )
        for d in rng.permutation(D).tolist():
            z = gibbs(z, d, _capped(evidence, d, D if cycle < free else cap), rng)
        structure = groups_alone(z)
        start = initial(structure)
        equal = start.weights + total.log()
        found = fit(data, structure, type(start)(scales, equal, noise), iterations=30)
        visited.append((prior.log(partition.sizes(z)) - found.value, z, found))
    log_posterior, z, _ = max(visited, key=lambda visit: visit[0])
    return z, log_posterior


def _capped(evidence: Evidence, d: int, cap: int) -> LogPosterior:
    """Return the log posterior of partitions in which the group of a dimension is small enough."""

    def log_posterior(partitions: Sequence[Partition]) -> list[float]:
        allowed = [z for z in partitions if z.count(z[d]) <= cap]
        known = dict(zip(allowed, evidence(allowed), strict=True))
        return [known.get(z, -math.inf) for z in partitions]

    return log_posterior


def groups_alone(z: Partition) -> Structure:
    """Return the structure of a partition with no full component beside it."""
    groups = partition.groups(z)
    masks = torch.zeros(1, len(groups), len(z), dtype=torch.double)
    for g, group in enumerate(groups):
        masks[0, g, group] = 1
    vector = torch.zeros(len(groups), dtype=torch.long)
    return Structure(masks, vector, torch.zeros(len(z), dtype=torch.bool))


def score(found: Partition, truth: Partition) -> tuple[float, float]:
    """Return recall and precision of pairs; with no pair found, precision is 1."""
    upper = np.triu_indices(len(truth), 1)
    together = np.equal.outer(found, found)[upper]
    true = np.equal.outer(truth, truth)[upper]
    both = float((together & true).sum())
    return both / float(true.sum()), both / float(together.sum()) if together.any() else 1.0


METHODS: dict[str, Callable[[Tensor, Tensor, int], tuple[Partition, float]]] = {
    "ours": ours,
    "paper": paper,
    "paper, no cap": lambda x, y, seed: paper(x, y, seed, cap=x.shape[1]),
}

MEASURES = ("recall", "precision")
COLOURS = ("tab:blue", "tab:orange", "tab:green", "tab:purple")
LOOKS: dict[str, dict[str, Any]] = {
    "ours": {"marker": "o"},
    "paper": {"marker": "o", "markerfacecolor": "white", "linestyle": "dashed"},
    "paper, no cap": {"marker": ".", "linestyle": "dotted"},
}


def run(D: int, sizes: tuple[int, ...], lengthscale: float, n: int, seed: int, name: str) -> Line:
    """Return one line of the file."""
    rng = np.random.default_rng(seeds.derive(seed, D, *sizes))
    truth = draw_partition(D, sizes, rng)
    points = rng.random((n, D))
    x = torch.from_numpy(points)
    y = torch.from_numpy(draw_function(points, truth, lengthscale, rng))
    start = time.process_time()
    found, log_posterior = METHODS[name](x, y, seed)
    seconds = time.process_time() - start
    recall, precision = score(found, truth)
    gap = log_posterior - true_log_posterior(x, y, truth, name)
    return {"recall": recall, "precision": precision, "gap": gap, "cpu": seconds}


def true_log_posterior(x: Tensor, y: Tensor, truth: Partition, name: str) -> float:
    """Return what the method would have found at the true groups."""
    flags = torch.zeros(len(truth), dtype=torch.bool)
    if name == "ours":
        known = chains.fit(x, y, flags, structure=partition.groups(truth), seed=0)
        return known.best.log_posterior
    structure = groups_alone(truth)
    found = fit(observe(x, y, flags), structure, initial(structure), iterations=100)
    return partition.Dirichlet(alpha=1.0).log(partition.sizes(truth)) - found.value


def key_of(line: Line) -> Key:
    return line["D"], tuple(line["sizes"]), line["n"], line["method"], line["seed"]


def is_due(sizes: tuple[int, ...], name: str) -> bool:
    """Return whether a method has something to show on groups of these sizes."""
    return name != "paper, no cap" or max(sizes) > CAP


def measure(out: Path | None) -> list[Line]:
    """Return all lines of the file; those that are not there yet are measured."""
    kept = out.read_text().splitlines() if out is not None and out.is_file() else []
    lines: list[Line] = [json.loads(line) for line in kept]
    done = {key_of(line) for line in lines}
    for D, sizes, lengthscale, points, number in SETTINGS:
        for n, seed, name in itertools.product(points, range(number), METHODS):
            line: Line = {"D": D, "sizes": sizes, "n": n, "method": name, "seed": seed}
            if key_of(line) in done or not is_due(sizes, name):
                continue
            line |= run(D, sizes, lengthscale, n, seed, name)
            lines.append(line)
            console.print(json.dumps(line))
            if out is not None:
                out.parent.mkdir(parents=True, exist_ok=True)
                with out.open("a") as file:
                    file.write(json.dumps(line) + "\n")
    return lines


def cells_of(lines: Sequence[Line]) -> dict[Key, list[Line]]:
    """Return the lines by dimensions, sizes of groups, points and method, in this order."""
    order = list(METHODS)
    cells: dict[Key, list[Line]] = {}
    for line in sorted(lines, key=lambda line: (*key_of(line)[:3], order.index(line["method"]))):
        cells.setdefault(key_of(line)[:4], []).append(line)
    return cells


def tabulate(lines: Sequence[Line]) -> Table:
    """Return a row for each cell, over its seeds."""
    table = Table(title="pairs of dimensions: mean over seeds (worst seed)", box=SIMPLE_HEAD)
    for column in ("D", "groups of", "n", "method", "seeds", "recall", "precision", "gap", "CPU s"):
        table.add_column(column, justify="left" if column == "method" else "right")
    for (D, sizes, n, name), runs in cells_of(lines).items():
        recalls, precisions = ([line[k] for line in runs] for k in ("recall", "precision"))
        table.add_row(
            str(D),
            "–".join(map(str, sizes)),
            str(n),
            name,
            str(len(runs)),
            f"{statistics.mean(recalls):.2f} ({min(recalls):.2f})",
            f"{statistics.mean(precisions):.2f} ({min(precisions):.2f})",
            f"{statistics.median(line['gap'] for line in runs):+.1f}",
            f"{statistics.mean(line['cpu'] for line in runs):.0f}",
        )
    return table


def picture(lines: Sequence[Line]) -> Figure:
    """Return recall and precision against n: means over the seeds, bars from the worst to the best.

    A colour is a kind of function, a look a method; curves are a little apart along n.
    """
    cells = cells_of(lines)
    kinds = list(dict.fromkeys(key[:2] for key in cells))
    figure = Figure(figsize=(7.2, 4), layout="constrained")
    for axes, measure in zip(figure.subplots(1, 2), MEASURES, strict=True):
        for (k, kind), (m, name) in itertools.product(enumerate(kinds), enumerate(METHODS)):
            chosen = {
                key[2]: runs for key, runs in cells.items() if key[:2] + key[3:] == (*kind, name)
            }
            values = [[line[measure] for line in runs] for runs in chosen.values()]
            means = [statistics.mean(each) for each in values]
            below = [mean - min(each) for mean, each in zip(means, values, strict=True)]
            above = [max(each) - mean for mean, each in zip(means, values, strict=True)]
            n = [n * 1.03 ** (m - 1 + 0.3 * k) for n in chosen]
            axes.errorbar(n, means, (below, above), color=COLOURS[k], elinewidth=1, **LOOKS[name])
        ticks = sorted({key[2] for key in cells})
        axes.set(title=f"{measure} of pairs", xlabel="points, n", xscale="log", ylim=(-0.05, 1.05))
        axes.set_xticks(ticks, [str(n) for n in ticks])
        axes.set_xticks([], minor=True)
        axes.grid(axis="y")
    for k, (D, sizes) in enumerate(kinds):
        label = f"D = {D}, groups of {'–'.join(map(str, sizes))}"
        axes.plot([], color=COLOURS[k], label=label)
    for name in METHODS:
        axes.plot([], color="black", label=name, **LOOKS[name])
    figure.legend(loc="outside lower center", ncols=2)
    return figure


lines = measure(None if ARGUMENTS.smoke else ARGUMENTS.out)
console.print(tabulate(lines))
drawn = picture(lines)
if not ARGUMENTS.smoke:
    figure = ARGUMENTS.out.with_suffix(".svg")
    save(drawn, figure)
    console.print(f"The lines are in {ARGUMENTS.out}, the figure in {figure}.")

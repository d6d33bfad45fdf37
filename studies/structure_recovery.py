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
per chain: `ours`, beside a full component, with all moves and the multiplicity prior; `paper`
(Wang et al., ICML 2017), groups alone, Gibbs moves under the Dirichlet prior from random labels.

One line of JSON per run is appended to the file; a run that is there is not made again. A smoke run
leaves no file.
"""

import argparse
import itertools
import json
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from hyperopt_dl import seeds
from hyperopt_dl.gp import chains, partition
from hyperopt_dl.gp.data import Data, observe
from hyperopt_dl.gp.evidence import Evidence
from hyperopt_dl.gp.likelihood import Structure, fit, initial
from hyperopt_dl.gp.moves import gibbs
from hyperopt_dl.gp.partition import Partition

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--smoke", action="store_true", help="a tiny version, to see that it runs")
parser.add_argument("--out", type=Path, default=Path("runs/structure_recovery.jsonl"))
ARGUMENTS = parser.parse_args()

SETTINGS = [  # dimensions, sizes of the groups in turn, lengthscale, points, seeds
    (20, (2,), 0.3, (200, 100), 5),
    (20, (5,), 0.4, (400, 200), 5),
    (10, (2,), 0.3, (50, 100), 5),
    (50, (2, 3), 0.3, (200, 400, 800), 3),
]
CHAINS, CYCLES, FEATURES = 2, 16, 2000
if ARGUMENTS.smoke:
    SETTINGS, CYCLES = [(6, (2,), 0.3, (60,), 1)], 2

Line: TypeAlias = dict[str, Any]
Key: TypeAlias = tuple[Any, ...]

torch.set_num_threads(1)


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


def paper(x: Tensor, y: Tensor, seed: int) -> tuple[Partition, float]:
    """Return the same by the method of the paper: a cycle is a fit and a sweep of Gibbs moves."""
    D = x.shape[1]
    data = observe(x, y, torch.zeros(D, dtype=torch.bool))
    ends = []
    for c in range(CHAINS):
        rng = np.random.default_rng(seeds.derive(seed, c))
        z = partition.canonical(rng.integers(D, size=D).tolist())
        ends.append(_gibbs_chain(data, z, rng))
    return max(ends, key=lambda end: end[1])


def _gibbs_chain(data: Data, z: Partition, rng: np.random.Generator) -> tuple[Partition, float]:
    prior, D = partition.Dirichlet(alpha=1.0), len(z)
    structure = groups_alone(z)
    found = fit(data, structure, initial(structure, vectors=1), iterations=100)
    for _ in range(CYCLES):
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
            z = gibbs(z, d, evidence, rng)
        structure = groups_alone(z)
        start = initial(structure, vectors=1)
        equal = start.weights + total.log()
        found = fit(data, structure, type(start)(scales, equal, noise), iterations=30)
    return z, prior.log(partition.sizes(z)) - found.value


def groups_alone(z: Partition) -> Structure:
    """Return the structure of a partition with no full component beside it."""
    groups = partition.groups(z)
    masks = torch.zeros(1, len(groups), len(z), dtype=torch.double)
    for g, group in enumerate(groups):
        masks[0, g, group] = 1
    return Structure(masks, torch.zeros(len(groups), dtype=torch.long))


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
    found = fit(observe(x, y, flags), structure, initial(structure, vectors=1), iterations=100)
    return partition.Dirichlet(alpha=1.0).log(partition.sizes(truth)) - found.value


def key_of(line: Line) -> Key:
    return line["D"], tuple(line["sizes"]), line["n"], line["method"], line["seed"]


lines: list[Line] = []
if ARGUMENTS.out.exists() and not ARGUMENTS.smoke:
    lines = [json.loads(line) for line in ARGUMENTS.out.read_text().splitlines()]
done = {key_of(line) for line in lines}
for D, sizes, lengthscale, points, number in SETTINGS:
    for n, seed, name in itertools.product(points, range(number), METHODS):
        line: Line = {"D": D, "sizes": sizes, "n": n, "method": name, "seed": seed}
        if key_of(line) not in done:
            line |= run(D, sizes, lengthscale, n, seed, name)
            lines.append(line)
            if not ARGUMENTS.smoke:
                ARGUMENTS.out.parent.mkdir(parents=True, exist_ok=True)
                with ARGUMENTS.out.open("a") as file:
                    file.write(json.dumps(line) + "\n")

table = Table(title="pairs of dimensions: mean over seeds (worst seed)")
for column in ("D", "groups of", "n", "method", "seeds", "recall", "precision", "gap", "CPU s"):
    table.add_column(column, justify="right")
cells: dict[Key, list[Line]] = {}
for line in lines:
    cells.setdefault(key_of(line)[:4], []).append(line)
for (D, sizes, n, name), runs in cells.items():
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
Console().print(table)

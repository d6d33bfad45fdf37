"""The race of black-box tuners: regret against evaluations and CPU seconds, on paired seeds.

    python studies/benchmarks/black_box.py [--smoke] [--results FILE] [--only-table]

Every method gets the same 24 quasi-random starts, then proposes batches of 8 by asking eight times
before it is told. A seed decides the starts, and the shift or the draw of the function. Each run is
one line of JSON in the results file; a run that is there already is not run again, so the script
can be interrupted and continued, and two can share a file. The table shows the geometric mean of
regret over seeds, its ratio to GPSampler's on the same seeds, and the CPU seconds of a run in
asking and telling. GPSampler is several times faster where the package greenlet is installed.
"""

import argparse
import fcntl
import json
import math
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import optuna
import torch
from rich.console import Console
from rich.table import Table
from scipy.optimize import minimize
from scipy.stats import qmc

import hyperopt_dl as hd

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--smoke", action="store_true", help="a tiny version, to see that it runs")
parser.add_argument("--results", type=Path, default=Path("black_box.jsonl"))
parser.add_argument("--methods", help="comma-separated names; all of them without this")
parser.add_argument("--problems", help="comma-separated names; all of them without this")
parser.add_argument("--seeds", type=int, default=3)
parser.add_argument("--trials", type=int, default=144)
parser.add_argument("--only-table", action="store_true", help="show the results that are there")
OPTIONS = parser.parse_args()

Point: TypeAlias = npt.NDArray[np.float64]
Function: TypeAlias = Callable[[Point], float]
"""From the unit cube to a regret: 0 is the optimum."""

D = 6 if OPTIONS.smoke else 20
STARTS, BATCH = (8, 4) if OPTIONS.smoke else (24, 8)
TRIALS = 16 if OPTIONS.smoke else OPTIONS.trials
SEEDS = 1 if OPTIONS.smoke else OPTIONS.seeds
SCRATCH = tempfile.TemporaryDirectory()  # a smoke run leaves nothing behind
RESULTS = Path(SCRATCH.name) / "smoke.jsonl" if OPTIONS.smoke else OPTIONS.results


def ackley(z: Point) -> float:
    """Return Ackley's function, 0 at 0."""
    wave = np.exp(np.cos(2 * np.pi * z).mean())
    return float(20 + np.e - 20 * np.exp(-0.2 * np.sqrt((z**2).mean())) - wave)


def shifted_ackley(seed: int) -> Function:
    """Ackley on [-5, 5] with its centre within 3 of the middle."""
    centre = np.random.default_rng(seed).uniform(-3, 3, D)
    return lambda u: ackley(10 * u - 5 - centre)


def add_ackley(seed: int) -> Function:
    """The sum of Ackley functions of five dimensions each, on [-5, 5], shifted."""
    rng = np.random.default_rng(seed)
    centre, order = rng.uniform(-3, 3, D), rng.permutation(D)
    groups = [order[i : i + 5] for i in range(0, D, 5)]
    return lambda u: sum(ackley((10 * u - 5 - centre)[group]) for group in groups)


def levy(seed: int) -> Function:
    """Levy's function on [-10, 10], its dimensions reflected at random."""
    flip = np.random.default_rng(seed).integers(0, 2, D).astype(bool)

    def regret(u: Point) -> float:
        w = 1 + (20 * np.where(flip, 1 - u, u) - 11) / 4
        middle = (w[:-1] - 1) ** 2 * (1 + 10 * np.sin(np.pi * w[:-1] + 1) ** 2)
        last = (w[-1] - 1) ** 2 * (1 + np.sin(2 * np.pi * w[-1]) ** 2)
        return float(np.sin(np.pi * w[0]) ** 2 + middle.sum() + last)

    return regret


def rosenbrock(seed: int) -> Function:
    """Rosenbrock's function on [-5, 10], its dimensions in random order."""
    order = np.random.default_rng(seed).permutation(D)

    def regret(u: Point) -> float:
        x = (15 * u - 5)[order]
        return float((100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2).sum())

    return regret


def add_gp(size: int, lengthscale: float) -> Callable[[int], Function]:
    """Return a maker of sums of draws from Gaussian processes over groups of one size."""

    def make(seed: int) -> Function:
        rng = np.random.default_rng(seed)
        order = rng.permutation(D)
        members = [order[i : i + size] for i in range(0, D, size)]
        parts = [_gp_draw(len(group), lengthscale, rng) for group in members]
        least = sum(_least(part, len(group)) for part, group in zip(parts, members, strict=True))
        return lambda u: float(
            sum(part(u[None, g])[0] for part, g in zip(parts, members, strict=True)) - least
        )

    return make


def _gp_draw(d: int, lengthscale: float, rng: np.random.Generator) -> Callable[[Point], Point]:
    """Return a draw from an RBF process, as 500 random cosines, for ``n x d`` points."""
    omega, b = rng.standard_normal((500, d)) / lengthscale, rng.uniform(0, 2 * np.pi, 500)
    xi = rng.standard_normal(500) * math.sqrt(2 / 500)
    return lambda u: np.asarray(np.cos(u @ omega.T + b) @ xi)


def _least(part: Callable[[Point], Point], d: int) -> float:
    """Return the minimum over the cube, by descent from the best of many points."""
    u = qmc.Sobol(d, seed=0).random(2**13)
    starts = u[np.argsort(part(u))[:20]]
    ends = [minimize(lambda x: part(x[None])[0], s, bounds=[(0, 1)] * d).fun for s in starts]
    return float(min(ends))


def gp_sampler(seed: int) -> optuna.samplers.BaseSampler:
    """Return Optuna's Gaussian process, without the random starts that it would add."""
    return optuna.samplers.GPSampler(seed=seed, n_startup_trials=1)


PROBLEMS: dict[str, Callable[[int], Function]] = {
    "AddGP groups of 2": add_gp(2, 0.3),
    "AddGP groups of 5": add_gp(5, 0.4),
    "AddAckley": add_ackley,
    "Ackley": shifted_ackley,
    "Levy": levy,
    "Rosenbrock": rosenbrock,
}
METHODS: dict[str, Callable[[int], optuna.samplers.BaseSampler]] = {
    "GPSampler": gp_sampler,
    "AdditiveBO": lambda seed: hd.AdditiveBO(seed=seed, n_startup=1),
    "AdditiveBO full": lambda seed: hd.AdditiveBO(seed=seed, n_startup=1, structure="full"),
    "AdditiveBO additive": lambda seed: hd.AdditiveBO(seed=seed, n_startup=1, structure="additive"),
    "TPE": lambda seed: optuna.samplers.TPESampler(seed=seed, n_startup_trials=1),
    "random": lambda seed: optuna.samplers.RandomSampler(seed=seed),
}


def run(method: str, problem: str, seed: int) -> dict[str, object]:
    """Return the record of one run."""
    function = PROBLEMS[problem](seed)
    names = [f"x{d:02d}" for d in range(D)]
    space: dict[str, optuna.distributions.BaseDistribution] = {
        name: optuna.distributions.FloatDistribution(0.0, 1.0) for name in names
    }
    study = optuna.create_study(sampler=METHODS[method](seed))
    regrets = []
    for u in qmc.Sobol(D, seed=seed).random(STARTS):
        regrets.append(function(u))
        params = dict(zip(names, u.tolist(), strict=True))
        study.add_trial(optuna.create_trial(params=params, distributions=space, value=regrets[-1]))
    cpu, wall = 0.0, time.perf_counter()
    while len(regrets) < TRIALS:
        start = time.process_time()
        trials = [study.ask(space) for _ in range(BATCH)]
        cpu += time.process_time() - start
        for trial in trials:
            regrets.append(function(np.array([trial.params[name] for name in names])))
            start = time.process_time()
            study.tell(trial, regrets[-1])
            cpu += time.process_time() - start
    return {
        "problem": problem,
        "method": method,
        "seed": seed,
        "D": D,
        "batch": BATCH,
        "regrets": [float(f"{r:.6g}") for r in regrets],
        "cpu": round(cpu, 2),
        "wall": round(time.perf_counter() - wall, 2),
    }


def recorded() -> list[dict[str, object]]:
    """Return the runs in the results file."""
    if not RESULTS.exists():
        return []
    return [json.loads(line) for line in RESULTS.read_text().splitlines()]


def chosen(given: str | None, names: list[str]) -> list[str]:
    """Return the names that were asked for, in the order of the table."""
    return names if given is None else [name for name in names if name in given.split(",")]


def show() -> None:
    """Print the table of all runs in the results file."""
    regret: dict[tuple[str, str, int], float] = {}
    cpu: dict[tuple[str, str], list[float]] = {}
    for record in recorded():
        problem, method = str(record["problem"]), str(record["method"])
        regrets = record["regrets"]
        assert isinstance(regrets, list)
        regret[problem, method, int(str(record["seed"]))] = max(min(regrets), 1e-9)
        cpu.setdefault((problem, method), []).append(float(str(record["cpu"])))
    table = Table("problem", "method", "seeds", "regret", "per seed", "ratio", "wins", "CPU s")
    for problem in PROBLEMS:
        for method in METHODS:
            own = {s: r for (p, m, s), r in regret.items() if (p, m) == (problem, method)}
            if not own:
                continue
            pairs = [
                (r, regret[problem, "GPSampler", s])
                for s, r in own.items()
                if (problem, "GPSampler", s) in regret
            ]
            ratios = [ours / theirs for ours, theirs in pairs]
            table.add_row(
                problem,
                method,
                str(len(own)),
                f"{_geometric_mean(list(own.values())):.3g}",
                " ".join(f"{own[s]:.3g}" for s in sorted(own)),
                f"{_geometric_mean(ratios):.2f}" if ratios else "",
                f"{sum(r < 1 for r in ratios)}/{len(ratios)}",
                f"{np.mean(cpu[problem, method]):.1f}",
            )
    Console(width=120).print(table)


def _geometric_mean(values: list[float]) -> float:
    return math.exp(sum(math.log(value) for value in values) / len(values))


torch.set_num_threads(1)
optuna.logging.set_verbosity(optuna.logging.WARNING)
if not OPTIONS.only_table:
    for seed in range(SEEDS):
        for problem in chosen(OPTIONS.problems, list(PROBLEMS)):
            for method in chosen(OPTIONS.methods, list(METHODS)):
                done = {(r["problem"], r["method"], r["seed"]) for r in recorded()}
                if (problem, method, seed) in done:
                    continue
                line = json.dumps(run(method, problem, seed))
                with RESULTS.open("a") as file:
                    fcntl.flock(file, fcntl.LOCK_EX)
                    file.write(line + "\n")
show()

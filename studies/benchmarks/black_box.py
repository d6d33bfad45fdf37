"""The race of black-box tuners: regret against evaluations and CPU seconds, on paired seeds.

    python studies/benchmarks/black_box.py [--smoke] [--results FILE] [--only-table] [--figure FILE]

Every method gets the same 24 quasi-random starts, then proposes batches of 8 before it is told; the
sequential one proposes one by one. A seed decides the starts, and the shift or the draw of the
function. Seeds are the outer loop, so a race that is cut short is paired. Each run is one line of
JSON in the results file; a run that is there already is not run again, so the script can be
interrupted and continued, and several processes can share a file. A run that raises is recorded
with its error. GPSampler is several times faster where the package greenlet is installed.

Regret is that of the incumbent, the point with the least loss that was observed: with noise, the
noise-free value of the point that looks best. On SVM-66 and Rover-60, whose least value is not
known, it is the error rate and the cost. CPU seconds are those of asking and telling, with one
thread. The ratio is the geometric mean over seeds of the regret over GPSampler's on the same seed,
beside the factor of its standard error.
"""

import argparse
import fcntl
import json
import subprocess
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import torch
from rich.console import Console
from scipy.stats import qmc
from threadpoolctl import threadpool_limits

import hyperopt_dl as hd
from studies.benchmarks.race import functions, real, report
from studies.benchmarks.race.problem import Cube, Problem
from studies.benchmarks.race.rover import rover
from studies.benchmarks.race.tuners import METHODS

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--smoke", action="store_true", help="a tiny version, to see that it runs")
parser.add_argument("--results", type=Path, default=Path("runs/black_box.jsonl"))
parser.add_argument("--methods", help="comma-separated names; all of them without this")
parser.add_argument("--problems", help="comma-separated names; all of them without this")
parser.add_argument("--seeds", type=int, help="for every method; without this, each has its own")
parser.add_argument("--trials", type=int, default=200)
parser.add_argument("--only-table", action="store_true", help="show the results that are there")
parser.add_argument("--figure", type=Path, help="draw regret against evaluations, an SVG file")
OPTIONS = parser.parse_args()

STARTS, BATCH, TRIALS = (8, 4, 12) if OPTIONS.smoke else (24, 8, OPTIONS.trials)
SCRATCH = tempfile.TemporaryDirectory()  # a smoke run leaves nothing behind
RESULTS = Path(SCRATCH.name) / "smoke.jsonl" if OPTIONS.smoke else OPTIONS.results

PROBLEMS: dict[str, Callable[[int], Problem]] = {
    "AddGP2-20": functions.add_gp(20, (2, 3), 0.3),
    "AddGP2-50": functions.add_gp(50, (2, 3), 0.3),
    "AddGP5-20": functions.add_gp(20, (5,), 0.4),
    "AddAckley-20": functions.add_ackley(20, 5),
    "AddAckley-20-noisy": functions.add_ackley(20, 5, noise=0.05),
    "StyblinskiTang-40": functions.styblinski_tang(40),
    "Levy-20": functions.levy(20),
    "Rosenbrock-20": functions.rosenbrock(20),
    "Ackley-20": functions.shifted_ackley(20),
    "Hartmann6-50": functions.hartmann6(50),
    "Rover-60": rover,
    "Ackley-53": functions.ackley_53,
    "SVM-66": real.svm,
    "HPOLib-naval": real.hpolib("naval_propulsion"),
    "HPOLib-parkinsons": real.hpolib("parkinsons_telemonitoring"),
    "HPOLib-protein": real.hpolib("protein_structure"),
    "HPOLib-slice": real.hpolib("slice_localization"),
}
if not real.TABLES_ARE_HERE:
    PROBLEMS = {name: make for name, make in PROBLEMS.items() if not name.startswith("HPOLib")}
if OPTIONS.smoke:
    PROBLEMS = {"AddGP2-4": functions.add_gp(4, (2,), 0.3)}


def race(method: str, problem: Problem, seed: int) -> dict[str, Any]:
    """Return the regrets of the incumbents of one run, and its seconds."""
    noise = np.random.default_rng([seed, 1]).normal(0, problem.noise, TRIALS)
    cube, batch = Cube(problem.space), METHODS[method].batch or BATCH
    u = qmc.Sobol(len(problem.space), seed=seed).random_base2(STARTS.bit_length())[:STARTS]
    points = [cube.spread(start) for start in u]
    regrets, cpu, wall = list[float](), 0.0, time.perf_counter()
    seen = list[float]()
    tuner = None
    while True:
        regrets += [problem.regret(point) for point in points]
        losses = [r + e for r, e in zip(regrets[len(seen) :], noise[len(seen) :], strict=False)]
        seen += losses
        start = time.process_time()
        if tuner is None:
            tuner = METHODS[method].make(problem, seed, points[int(np.argmin(losses))])
        tuner.tell(points, losses)
        if len(seen) < TRIALS:
            points = tuner.ask(min(batch, TRIALS - len(seen)))
        cpu += time.process_time() - start
        if len(seen) == TRIALS:
            break
    incumbents = [int(np.argmin(seen[: i + 1])) for i in range(TRIALS)]
    return {
        "regrets": [float(f"{max(regrets[i], problem.floor):.4g}") for i in incumbents],
        "cpu": round(cpu, 2),
        "wall": round(time.perf_counter() - wall, 2),
    }


def record(problem: str, method: str, seed: int) -> dict[str, Any] | None:
    """Return the record of one run; ``None`` where the method is not for the problem."""
    made = PROBLEMS[problem](seed)
    known = made.groups is not None and any(len(group) > 1 for group in made.groups)
    if METHODS[method].known_groups and not known:
        return None
    line = {
        "problem": problem,
        "method": method,
        "seed": seed,
        "D": len(made.space),
        "additive": made.groups is not None,
        "batch": METHODS[method].batch or BATCH,
        "starts": STARTS,
        "trials": TRIALS,
        "versions": VERSIONS,
    }
    try:
        return line | race(method, made, seed)
    except Exception as error:
        return line | {"error": repr(error)}


def commit() -> str | None:
    """Return the commit that runs, marked if files were changed since; ``None`` outside of git."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def recorded() -> list[dict[str, Any]]:
    """Return the runs in the results file."""
    if not RESULTS.exists():
        return []
    return [json.loads(line) for line in RESULTS.read_text().splitlines()]


def append(line: dict[str, Any]) -> None:
    with RESULTS.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write(json.dumps(line) + "\n")


def chosen(given: str | None, names: list[str]) -> list[str]:
    """Return the names that were asked for, in the order of the table."""
    asked = names if given is None else given.split(",")
    unknown = set(asked) - set(names)
    if unknown:
        parser.error(f"There is no {', '.join(sorted(unknown))}. There are {', '.join(names)}.")
    return [name for name in names if name in asked]


def run_all() -> None:
    """Run what was asked for and is not recorded yet, nor being run by another process.

    Whoever runs the k-th run holds a lock on byte k of a file beside the results. A process that
    dies loses its locks, so nothing is left claimed.
    """
    problems = chosen(OPTIONS.problems, list(PROBLEMS))
    methods = chosen(OPTIONS.methods, list(METHODS))
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    most = max(METHODS[method].seeds for method in methods)
    seeds = 1 if OPTIONS.smoke else most if OPTIONS.seeds is None else OPTIONS.seeds
    with RESULTS.with_suffix(".lock").open("a") as claims:
        for seed in range(seeds):
            for problem in problems:
                for method in methods:
                    if OPTIONS.seeds is None and seed >= METHODS[method].seeds:
                        continue
                    place = list(PROBLEMS).index(problem), list(METHODS).index(method)
                    k = (seed * len(PROBLEMS) + place[0]) * len(METHODS) + place[1]
                    try:
                        fcntl.lockf(claims, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, k)
                    except OSError:
                        continue
                    done = {(r["problem"], r["method"], r["seed"]) for r in recorded()}
                    if (problem, method, seed) not in done:
                        line = record(problem, method, seed)
                        if line is not None:
                            append(line)
                    fcntl.lockf(claims, fcntl.LOCK_UN, 1, k)


VERSIONS = {
    "hyperopt_dl": hd.__version__,
    "commit": commit(),
    "optuna": optuna.__version__,
    "torch": torch.__version__,
}
torch.set_num_threads(1)
optuna.logging.set_verbosity(optuna.logging.WARNING)
warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
# CMA-ES has no other way to begin at the best start.
warnings.filterwarnings("ignore", "`x0` has been deprecated", FutureWarning)
if not OPTIONS.only_table:
    with threadpool_limits(1):
        run_all()
lines = recorded()
console = Console(width=130)
console.print(report.table(lines, list(PROBLEMS), list(METHODS)))
console.print(report.summary(lines, list(PROBLEMS), list(METHODS)))
if OPTIONS.figure is not None:
    OPTIONS.figure.write_text(report.figure(lines, list(PROBLEMS), list(METHODS)))

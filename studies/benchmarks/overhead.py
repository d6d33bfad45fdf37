"""What a study costs beside the trials themselves, next to plain Optuna in the same run.

    python studies/benchmarks/overhead.py [--smoke]

Rows: milliseconds a trial on an empty objective with 20 parameters, for Optuna's own `optimize`
and for `Study` with `Serial`, both in memory, with random and TPE sampling; milliseconds a trial
beyond the trial itself with `Processes`; seconds of `import hyperopt_dl` beyond `import torch`.
Repeats of the contestants take turns, medians are shown, and ratios are what to compare: a machine
has moods.
"""

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import optuna
import torch
from rich.console import Console
from rich.table import Table

import hyperopt_dl as hd

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--smoke", action="store_true", help="a tiny version, to see that it runs")
SMOKE = parser.parse_args().smoke

TRIALS = 20 if SMOKE else 200
REPEATS = 2 if SMOKE else 9
PARAMETERS = 20
NAP = 0.05  # seconds that a trial on `Processes` takes by itself
SAMPLERS: dict[str, Callable[[], optuna.samplers.BaseSampler]] = {
    "random": lambda: optuna.samplers.RandomSampler(seed=0),
    "TPE": lambda: optuna.samplers.TPESampler(seed=0),
}

torch.set_num_threads(1)
optuna.logging.set_verbosity(optuna.logging.WARNING)
space = hd.Space({f"x{i}": hd.Float(0.0, 1.0) for i in range(PARAMETERS)})


def plain_optuna(sampler: optuna.samplers.BaseSampler) -> float:
    """Return CPU milliseconds a trial of Optuna's own loop."""

    def objective(trial: optuna.Trial) -> float:
        return sum(trial.suggest_float(f"x{i}", 0.0, 1.0) for i in range(PARAMETERS))

    study = optuna.create_study(sampler=sampler)
    start = time.process_time()
    study.optimize(objective, n_trials=TRIALS)
    return 1e3 * (time.process_time() - start) / TRIALS


def serial_study(sampler: optuna.samplers.BaseSampler, seed: int | None = None) -> float:
    """Return CPU milliseconds a trial of ours, in this process."""
    study = hd.Study(space, tuner=sampler, seed=seed)
    start = time.process_time()
    study.optimize(lambda trial: sum(trial.params.values()), TRIALS, progress=False)
    return 1e3 * (time.process_time() - start) / TRIALS


def nap(trial: hd.Trial) -> float:
    """Take a known time."""
    time.sleep(NAP)
    return float(trial.number)


def processes() -> float:
    """Return wall milliseconds a trial beyond its nap, on one worker that is up."""
    ends: list[float] = []
    study = hd.Study(space, tuner=optuna.samplers.RandomSampler(seed=0))
    study.optimize(
        nap,
        TRIALS,
        executor=hd.executors.Processes(devices="cpu", threads_per_worker=1),
        callbacks=[lambda _study, _trial: ends.append(time.perf_counter())],
        progress=False,
    )
    return 1e3 * ((ends[-1] - ends[0]) / (len(ends) - 1) - NAP)


def import_seconds(statement: str) -> float:
    """Return the wall seconds of a statement in a fresh interpreter."""
    code = f"import time; t = time.perf_counter(); {statement}; print(time.perf_counter() - t)"
    command = [sys.executable, "-c", code]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


table = Table("what", "unit", "plain", "hyperopt_dl", "difference", "ratio")
table.columns[0].no_wrap = table.columns[1].no_wrap = True
for name, sampler in SAMPLERS.items():
    plain, ours, seeded = [], [], []
    for _ in range(REPEATS):
        plain.append(plain_optuna(sampler()))
        ours.append(serial_study(sampler()))
        seeded.append(serial_study(sampler(), seed=0))
    base = statistics.median(plain)
    for label, times in (("Serial", ours), ("Serial, seeded", seeded)):
        median = statistics.median(times)
        table.add_row(
            f"{label}, {name}",
            "CPU ms a trial",
            f"{base:.2f}",
            f"{median:.2f}",
            f"{median - base:+.2f}",
            f"{median / base:.2f}",
        )
beyond = statistics.median(processes() for _ in range(1 if SMOKE else 3))
table.add_row("Processes, random", "wall ms a trial", "", "", f"{beyond:+.2f}", "")
pairs = [
    (import_seconds("import torch"), import_seconds("import torch, hyperopt_dl"))
    for _ in range(REPEATS)
]
torch_s, ours_s = (statistics.median(column) for column in zip(*pairs, strict=True))
table.add_row(
    "import beside torch",
    "wall s",
    f"{torch_s:.2f}",
    f"{ours_s:.2f}",
    f"{ours_s - torch_s:+.2f}",
    f"{ours_s / torch_s:.2f}",
)
Console(width=100).print(table)
Console().print(f"{PARAMETERS} parameters, {TRIALS} trials, medians of {REPEATS} repeats")

"""The tables of the race."""

import math
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
from rich.table import Table

from studies.benchmarks.race.figure import figure

__all__ = ["figure", "summary", "table"]

REFERENCE = "GPSampler"
Line: TypeAlias = dict[str, Any]


def table(lines: Sequence[Line], problems: Sequence[str], methods: Sequence[str]) -> Table:
    """Return a row for each problem and method: regret, its ratio to the reference, CPU seconds."""
    shown = Table(title=f"Regret after all evaluations; ratios to {REFERENCE} on the same seeds")
    for column in ("problem", "method"):
        shown.add_column(column)
    for column in ("seeds", "regret", "ratio", "×/÷", "wins", "CPU s", "CPU ratio", "failed"):
        shown.add_column(column, justify="right")
    for problem in problems:
        reference = _runs(lines, problem, REFERENCE)
        for method in methods:
            own = _runs(lines, problem, method)
            failed = sum(
                line["problem"] == problem and line["method"] == method and "error" in line
                for line in lines
            )
            if not own and not failed:
                continue
            regrets = [line["regrets"][-1] for line in own.values()]
            ratios, cpu = _ratios(own, reference)
            shown.add_row(
                problem,
                method,
                str(len(own)),
                f"{_mean(regrets):.3g}" if own else "",
                f"{_mean(ratios):.2f}" if ratios else "",
                f"{_spread(ratios):.2f}" if len(ratios) > 1 else "",
                f"{sum(ratio < 1 for ratio in ratios)}/{len(ratios)}",
                f"{np.mean([line['cpu'] for line in own.values()]):.1f}" if own else "",
                f"{_mean(cpu):.2f}" if cpu else "",
                str(failed) if failed else "",
            )
        shown.add_section()
    return shown


def summary(lines: Sequence[Line], problems: Sequence[str], methods: Sequence[str]) -> Table:
    """Return a row for each method: the geometric mean over problems of its ratios.

    A problem counts once, however many seeds it was run on.
    """
    additive = {line["problem"] for line in lines if line["additive"]}
    shown = Table(title=f"Geometric mean over problems of the ratios to {REFERENCE}")
    shown.add_column("method")
    for column in ("problems", "runs", "all", "additive", "others", "CPU ratio", "wins"):
        shown.add_column(column, justify="right")
    shown.add_column("worst problem")
    for method in methods:
        regret, cpu, wins, runs = dict[str, float](), dict[str, float](), 0, 0
        for problem in problems:
            reference = _runs(lines, problem, REFERENCE)
            ratios, seconds = _ratios(_runs(lines, problem, method), reference)
            if ratios:
                regret[problem], cpu[problem] = _mean(ratios), _mean(seconds)
                wins, runs = wins + sum(ratio < 1 for ratio in ratios), runs + len(ratios)
        if not regret or method == REFERENCE:
            continue
        worst = max(regret, key=lambda problem: regret[problem])
        parts = [
            [ratio for problem, ratio in regret.items() if (problem in additive) is inside]
            for inside in (True, False)
        ]
        shown.add_row(
            method,
            str(len(regret)),
            str(runs),
            f"{_mean(list(regret.values())):.3f}",
            *(f"{_mean(part):.3f}" if part else "" for part in parts),
            f"{_mean(list(cpu.values())):.2f}",
            f"{wins}/{runs}",
            f"{worst} {regret[worst]:.2f}",
        )
    return shown


def _runs(lines: Sequence[Line], problem: str, method: str) -> dict[int, Line]:
    """Return the runs that did not fail, by seed."""
    return {
        line["seed"]: line
        for line in lines
        if line["problem"] == problem and line["method"] == method and "error" not in line
    }


def _ratios(own: dict[int, Line], reference: dict[int, Line]) -> tuple[list[float], list[float]]:
    """Return the ratios of regrets, and of CPU seconds, over the seeds that both have run."""
    pairs = [(own[seed], reference[seed]) for seed in sorted(own) if seed in reference]
    return (
        [ours["regrets"][-1] / theirs["regrets"][-1] for ours, theirs in pairs],
        [max(ours["cpu"], 0.01) / max(theirs["cpu"], 0.01) for ours, theirs in pairs],
    )


def _mean(values: Sequence[float]) -> float:
    return math.exp(sum(math.log(value) for value in values) / len(values))


def _spread(values: Sequence[float]) -> float:
    """Return the factor of the standard error of a geometric mean."""
    return math.exp(float(np.std(np.log(values), ddof=1)) / math.sqrt(len(values)))

"""Regret against evaluations: a panel for each problem, a line for each method, as SVG."""

import math
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Line: TypeAlias = dict[str, Any]
Curve: TypeAlias = npt.NDArray[np.float64]

COLOURS = [
    "#777777",
    "#d62728",
    "#ff9896",
    "#f7b267",
    "#8c1c13",
    "#c0c0c0",
    "#1f77b4",
    "#2ca02c",
    "#9467bd",
    "#8c564b",
    "#e0c341",
]
COLUMNS, WIDTH, HEIGHT = 4, 210, 150
_LEFT, _TOP = 38, 22


def figure(lines: Sequence[Line], problems: Sequence[str], methods: Sequence[str]) -> str:
    """Return the picture of the geometric mean over seeds of the incumbents' regrets."""
    curves = {problem: _curves(lines, problem, methods) for problem in problems}
    curves = {problem: drawn for problem, drawn in curves.items() if drawn}
    present = [method for method in methods if any(method in drawn for drawn in curves.values())]
    rows = math.ceil(len(curves) / COLUMNS)
    wide, high = COLUMNS * WIDTH, rows * HEIGHT + 18 * math.ceil(len(present) / COLUMNS) + 12
    content = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {wide} {high}" width="{wide}">',
        "<style>text{font:10px sans-serif;fill:#444}path{fill:none;stroke-width:1.4}</style>",
        f'<rect width="{wide}" height="{high}" fill="white"/>',
    ]
    for i, (problem, drawn) in enumerate(curves.items()):
        content += _panel(i % COLUMNS * WIDTH, i // COLUMNS * HEIGHT, problem, drawn, methods)
    for i, method in enumerate(present):
        x, y = i % COLUMNS * WIDTH + 10, rows * HEIGHT + 14 + 18 * (i // COLUMNS)
        colour = COLOURS[methods.index(method)]
        content.append(f'<path d="M{x} {y - 3}h22" stroke="{colour}"/>')
        content.append(f'<text x="{x + 28}" y="{y}">{method}</text>')
    return "\n".join([*content, "</svg>\n"])


def _curves(lines: Sequence[Line], problem: str, methods: Sequence[str]) -> dict[str, Curve]:
    curves = {}
    for method in methods:
        runs = [
            line["regrets"]
            for line in lines
            if (line["problem"], line["method"]) == (problem, method) and "error" not in line
        ]
        if runs:
            shortest = min(map(len, runs))
            curves[method] = np.log10([run[:shortest] for run in runs]).mean(0)
    return curves


def _panel(
    x: int, y: int, title: str, curves: dict[str, Curve], methods: Sequence[str]
) -> list[str]:
    """Return one set of axes: evaluations along, the logarithm of regret up."""
    longest = max(map(len, curves.values()))
    low = float(min(curve.min() for curve in curves.values()))
    high = float(max(curve.max() for curve in curves.values()))
    high = max(high, low + 0.1)
    width, height = WIDTH - _LEFT - 12, HEIGHT - _TOP - 22

    def across(n: float) -> float:
        return x + _LEFT + width * n / longest

    def up(value: float) -> float:
        return float(y + _TOP + height * (high - value) / (high - low))

    content = [
        f'<text x="{x + _LEFT}" y="{y + 14}" font-weight="bold">{title}</text>',
        f'<path d="M{x + _LEFT} {y + _TOP}v{height}h{width}" stroke="#999"/>',
    ]
    for n in (0, longest // 2, longest):
        anchor = f'<text x="{across(n):.0f}" y="{y + _TOP + height + 12}" text-anchor="middle">'
        content.append(f"{anchor}{n}</text>")
    for value in (low, (low + high) / 2, high):
        anchor = f'<text x="{x + _LEFT - 4}" y="{up(value) + 3:.0f}" text-anchor="end">'
        content.append(f"{anchor}{10**value:.2g}</text>")
    for method, curve in curves.items():
        points = " ".join(f"{across(n + 1):.1f},{up(v):.1f}" for n, v in enumerate(curve))
        colour = COLOURS[methods.index(method)]
        content.append(f'<path d="M{points}" stroke="{colour}"/>')
    return content

"""Curves with bands as one SVG: medians over seeds, and how far the seeds lie apart."""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple

COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#777777")
WIDTH, HEIGHT, LEFT, TOP = 420, 280, 60, 30


class Point(NamedTuple):
    """Where a curve is at x: the median over seeds, between the least and the greatest."""

    x: float
    low: float
    middle: float
    high: float


def over_seeds(x: Sequence[float], curves: Sequence[Sequence[float]]) -> list[Point]:
    """Return one curve from those of all seeds, which have their values at the same x."""
    columns = zip(*curves, strict=True)
    return [
        Point(at, min(values), statistics.median(values), max(values))
        for at, values in zip(x, columns, strict=True)
    ]


def picture(curves: Mapping[str, Sequence[Point]], *, x: str, y: str, log_y: bool = False) -> str:
    """Return the SVG of curves by name, with the names of both axes."""
    points = [point for curve in curves.values() for point in curve]
    along = _axis([point.x for point in points], LEFT, LEFT + WIDTH)
    scale = math.log10 if log_y else float
    values = [scale(v) for point in points for v in (point.low, point.high)]
    place = _axis(values, TOP + HEIGHT, TOP)

    def up(value: float) -> float:
        return place(scale(value))

    parts = _frame(along, place, points, values, log_y)
    for k, (name, curve) in enumerate(curves.items()):
        parts += _curve(curve, along, up, COLOURS[k % len(COLOURS)])
        at = TOP + 12 + 20 * k
        colour = COLOURS[k % len(COLOURS)]
        parts.append(
            f'<line x1="{LEFT + WIDTH + 14}" x2="{LEFT + WIDTH + 38}" y1="{at}" y2="{at}" '
            f'stroke="{colour}" stroke-width="2"/>'
            f'<text x="{LEFT + WIDTH + 44}" y="{at + 4}">{escape(name)}</text>'
        )
    parts.append(
        f'<text x="{LEFT + WIDTH / 2}" y="{TOP + HEIGHT + 36}" text-anchor="middle">{escape(x)}'
        f'</text><text x="{LEFT}" y="18">{escape(y)}</text>'
    )
    width, height = LEFT + WIDTH + 190, TOP + HEIGHT + 46
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
            f'width="{width}" font-family="sans-serif" font-size="12">',
            '<rect width="100%" height="100%" fill="white"/>',
            *parts,
            "</svg>\n",
        ]
    )


def save(drawing: str, path: Path) -> None:
    """Write a picture to a file, and make its folder if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(drawing)


def _axis(values: Sequence[float], start: float, stop: float) -> Callable[[float], float]:
    """Return where a value lies, in points."""
    low, extent = min(values), (max(values) - min(values)) or 1.0
    return lambda value: start + (stop - start) * (value - low) / extent


def _frame(
    along: Callable[[float], float],
    place: Callable[[float], float],
    points: Sequence[Point],
    values: Sequence[float],
    log_y: bool,
) -> list[str]:
    """Return the lines and numbers behind the curves, five along each axis."""
    parts = []
    for fraction in (0.0, 0.25, 0.5, 0.75, 1.0):
        value = min(values) + fraction * (max(values) - min(values))
        at = place(value)
        shown = 10**value if log_y else value
        parts.append(
            f'<line x1="{LEFT}" x2="{LEFT + WIDTH}" y1="{at:.1f}" y2="{at:.1f}" '
            f'stroke="lightgray"/><text x="{LEFT - 6}" y="{at + 4:.1f}" '
            f'text-anchor="end">{shown:.3g}</text>'
        )
        value = min(p.x for p in points) + fraction * (
            max(p.x for p in points) - min(p.x for p in points)
        )
        parts.append(
            f'<text x="{along(value):.1f}" y="{TOP + HEIGHT + 18}" '
            f'text-anchor="middle">{value:.4g}</text>'
        )
    return parts


def _curve(
    curve: Sequence[Point],
    along: Callable[[float], float],
    up: Callable[[float], float],
    colour: str,
) -> list[str]:
    """Return the band and the line of one curve."""
    upper = [f"{along(p.x):.1f},{up(p.high):.1f}" for p in curve]
    lower = [f"{along(p.x):.1f},{up(p.low):.1f}" for p in reversed(curve)]
    middle = [f"{along(p.x):.1f},{up(p.middle):.1f}" for p in curve]
    return [
        f'<polygon points="{" ".join(upper + lower)}" fill="{colour}" fill-opacity="0.15"/>',
        f'<polyline points="{" ".join(middle)}" fill="none" stroke="{colour}" stroke-width="2"/>',
    ]

"""Plotly figures of what a model has learned: pairs of dimensions, and effects with bands."""

import importlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from hyperopt_dl.tuners.effects import Component, Effect, Kind

WIDTH = 2.0
"""Standard deviations from the mean of an effect to the edge of its band."""
_COLUMNS = 3
_LINE, _BAND = "rgb(31, 90, 160)", "rgba(31, 90, 160, 0.2)"
_LOOKS: dict[Kind, tuple[str, str, str]] = {
    "full": ("full component", "dash", "diamond-open"),
    "radius": ("radius", "dashdot", "square-open"),
    "group": ("group", "dot", "circle-open"),
}
"""The label of a part, its line, and its marker."""


def pairs_figure(
    names: Sequence[str],
    pairs: npt.NDArray[np.float64],
    error: npt.NDArray[np.float64],
    order: Sequence[str],
) -> Any:
    """Return a heat map of the probabilities that two dimensions share a group.

    Args:
        names: The D dimensions.
        pairs: ``[D, D]``, the probabilities.
        error: ``[D, D]``, their standard errors, for the text at each cell; NaN where unknown.
        order: The names in the order of rows and columns.
    """
    graph_objects = importlib.import_module("plotly.graph_objects")
    index = [names.index(name) for name in order]
    pairs, error = pairs[np.ix_(index, index)], error[np.ix_(index, index)]
    text = [
        [_cell(order[i], order[j], pairs[i, j], error[i, j]) for j in range(len(order))]
        for i in range(len(order))
    ]
    heat_map = graph_objects.Heatmap(
        x=list(order),
        y=list(order),
        z=pairs,
        zmin=0,
        zmax=1,
        text=text,
        hovertemplate="%{text}<extra></extra>",
        colorscale="Blues",
        colorbar={"title": {"text": "P(same group)"}},
    )
    figure = graph_objects.Figure(heat_map)
    figure.update_xaxes(type="category", constrain="domain")
    figure.update_yaxes(type="category", autorange="reversed", scaleanchor="x", constrain="domain")
    return figure


def effects_figure(
    effects: Mapping[str, Effect],
    components: Sequence[Component],
    names: Sequence[str],
    unit: str,
) -> Any:
    """Return a panel for each dimension: the effect of the sum with its band, and of its parts.

    Args:
        effects: The main effects of the sum, by dimension.
        components: The terms of the sum.
        names: The dimensions to show, in order.
        unit: The title of the vertical axes, which are the same.
    """
    graph_objects = importlib.import_module("plotly.graph_objects")
    subplots = importlib.import_module("plotly.subplots")
    columns = max(1, min(_COLUMNS, len(names)))
    rows = max(1, -(-len(names) // columns))
    figure = subplots.make_subplots(
        rows=rows,
        cols=columns,
        shared_yaxes="all",
        subplot_titles=list(names),
        vertical_spacing=0.3 / rows,
    )
    in_legend: set[str] = set()
    for k, name in enumerate(names):
        place = {"row": k // columns + 1, "col": k % columns + 1}
        parts = [
            (component.kind, component.effects[name])
            for component in components
            if name in component.effects
        ]
        for trace in _traces(effects[name], parts):
            first = trace["name"] not in in_legend
            in_legend.add(trace["name"])
            look = {"legendgroup": trace["name"], "showlegend": first}
            figure.add_trace(graph_objects.Scatter({**trace, **look}), **place)
        figure.update_xaxes(type=effects[name].scale, exponentformat="power", **place)
    figure.update_yaxes(title_text=unit, col=1)
    figure.update_layout(height=100 + 260 * rows)
    return figure


def _cell(one: str, other: str, probability: float, error: float) -> str:
    known = f" ± {error:.2f}" if np.isfinite(error) else ", one chain"
    return f"{one}, {other}: {probability:.2f}{known}"


def _traces(effect: Effect, parts: Sequence[tuple[Kind, Effect]]) -> list[dict[str, Any]]:
    """Return the scatter traces of a panel: a band, the line in it, and the lines of the parts."""
    choices = effect.scale == "category"
    x = [str(value) for value in effect.values] if choices else list(effect.values)
    half = WIDTH * effect.sd
    band = {
        "x": x + x[::-1],
        "y": [*(effect.mean + half), *(effect.mean - half)[::-1]],
        "fill": "toself",
        "fillcolor": _BAND,
        "line": {"width": 0},
        "mode": "lines",
        "hoverinfo": "skip",
        "name": f"± {WIDTH:g} sd",
    }
    bar = {"error_y": {"type": "data", "array": half}} if choices else {}
    mode = "markers" if choices else "lines"
    mean = {"x": x, "y": effect.mean, "mode": mode, "line": {"color": _LINE}, "name": "sum", **bar}
    traces: list[dict[str, Any]] = [mean] if choices else [band, mean]
    for kind, part in parts:
        label, dash, symbol = _LOOKS[kind]
        look = {"line": {"dash": dash, "color": "gray"}, "marker": {"symbol": symbol}}
        traces.append({"x": x, "y": part.mean, "mode": mode, "name": label, **look})
    return traces

"""What an online tuner did: one record a move, and a figure of them."""

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Move:
    """One move of the hyperparameters.

    Attributes:
        step: The optimizer steps that had been made.
        gradient: By name, the derivative that decided the move: of `ForwardTuner` in loss per unit
            of the coordinate (per unit of log λ where the dimension is logarithmic), of the others
            as their docstrings say. Empty where the weights were put back.
        values: By name, the value after the move; of several groups, that of the first.
        restored: Whether this was no move along a derivative but a return to the last good weights.
    """

    step: int
    gradient: Mapping[str, float]
    values: Mapping[str, float]
    restored: bool = False


def packed(history: Sequence[Move]) -> list[dict[str, Any]]:
    """Return plain containers for a ``state_dict``, which ``torch.load`` takes as safe."""
    return [asdict(move) for move in history]


def unpacked(records: Sequence[Mapping[str, Any]]) -> list[Move]:
    """Invert `packed`."""
    return [Move(**record) for record in records]


def figure(history: Sequence[Move], *, log: Mapping[str, bool]) -> Any:
    """Return a plotly figure: a row a hyperparameter, its values over the steps.

    Args:
        history: The moves.
        log: By name, whether the axis of the values is logarithmic.
    """
    # Loaded here: plotly takes longer to import than the whole package.
    graph_objects = importlib.import_module("plotly.graph_objects")
    subplots = importlib.import_module("plotly.subplots")
    made = subplots.make_subplots(rows=len(log), cols=1, shared_xaxes=True)
    back = [move for move in history if move.restored]
    for row, (name, is_log) in enumerate(log.items(), start=1):
        for label, moves, style in (
            (name, history, {"mode": "lines"}),
            ("weights put back", back, {"mode": "markers", "marker": {"symbol": "x"}}),
        ):
            trace = graph_objects.Scatter(
                x=[move.step for move in moves],
                y=[move.values[name] for move in moves],
                name=label,
                showlegend=False,
                **style,
            )
            if moves:
                made.add_trace(trace, row=row, col=1)
        made.update_yaxes(
            title_text=name, type="log" if is_log else "linear", exponentformat="power", row=row
        )
    made.update_xaxes(title_text="optimizer steps", row=len(log))
    return made

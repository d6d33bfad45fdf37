"""What an online tuner did: one record a move, as plain containers, as lines, as a figure."""

import importlib
import json
import math
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
        loss: The validation loss that `ForwardTuner.step` was given; ``None`` where there was none.
    """

    step: int
    gradient: Mapping[str, float]
    values: Mapping[str, float]
    restored: bool = False
    loss: float | None = None


@dataclass(frozen=True)
class OnlineRecord:
    """What is kept of an online tuner when its run has ended.

    Attributes:
        tuner: The name of its class.
        steps: The optimizer steps of the run.
        history: The moves; none where the run ended before the first.
    """

    tuner: str
    steps: int
    history: Sequence[Move]


def packed(history: Sequence[Move]) -> list[dict[str, Any]]:
    """Return plain containers for a ``state_dict``, which ``torch.load`` takes as safe."""
    return [asdict(move) for move in history]


def unpacked(records: Sequence[Mapping[str, Any]]) -> list[Move]:
    """Invert `packed`."""
    return [Move(**record) for record in records]


def to_lines(history: Sequence[Move]) -> str:
    """Return a table in JSON Lines: a line a move, ``null`` for a number that is not finite."""
    return "".join(json.dumps(_row(move)) + "\n" for move in history)


def from_lines(text: str) -> list[Move]:
    """Invert `to_lines`; a derivative that was not finite comes back as nan."""
    return [_move(json.loads(line)) for line in text.splitlines()]


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
            moves = [move for move in moves if name in move.values]  # a group may come later
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


_GRADIENT, _VALUE = "gradient.", "value."
"""How the columns of a table begin that hold a number by name."""


def _row(move: Move) -> dict[str, Any]:
    numbers = {
        **{_VALUE + name: value for name, value in move.values.items()},
        **{_GRADIENT + name: value for name, value in move.gradient.items()},
        "loss": math.nan if move.loss is None else move.loss,
    }
    finite = {name: value if math.isfinite(value) else None for name, value in numbers.items()}
    return {"step": move.step, "restored": move.restored, **finite}


def _move(row: Mapping[str, Any]) -> Move:
    return Move(
        row["step"], _numbers(row, _GRADIENT), _numbers(row, _VALUE), row["restored"], row["loss"]
    )


def _numbers(row: Mapping[str, Any], prefix: str) -> dict[str, float]:
    named = {n.removeprefix(prefix): v for n, v in row.items() if n.startswith(prefix)}
    return {name: math.nan if value is None else value for name, value in named.items()}

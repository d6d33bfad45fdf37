"""From an online tuner, at the end of a run in the user's own loop, to what its trial holds."""

from dataclasses import replace
from typing import Any, TypeAlias

from hyperopt_dl.errors import StudyError
from hyperopt_dl.online import DeltaBarDelta, ForwardTuner, HypergradientDescent, TunedRun
from hyperopt_dl.online.history import OnlineRecord
from hyperopt_dl.space import Float, Space
from hyperopt_dl.trial import Outcome, read_values

OnlineTuner: TypeAlias = ForwardTuner | TunedRun | HypergradientDescent | DeltaBarDelta


def outcome_of(tuner: OnlineTuner, value: Any, objectives: int) -> Outcome:
    """Return how a run ended; ``value`` is as for ``Study.log_online``.

    Raises:
        StudyError: This is no online tuner, it has not moved, or there is no value.
    """
    if not isinstance(tuner, OnlineTuner):
        raise StudyError(
            f"log_online needs a tuner of hyperopt_dl.online, such as ForwardTuner, got {tuner!r}."
        )
    kind = type(tuner).__name__
    if not tuner.history:
        raise StudyError(f"A run to be logged must have ended, but its {kind} has not moved yet.")
    if value is None:
        losses = reported(tuner)
        if not losses or objectives > 1:
            what = "sees no validation loss" if objectives == 1 else f"has not {objectives} values"
            raise StudyError(
                f"A trial needs a value, and {kind} {what}. Give log_online(tuner, value=...)."
            )
        value = losses[max(losses)]
    record = OnlineRecord(kind, tuner.steps, list(tuner.history))
    return replace(read_values(value, objectives), online=record)


def rates_in(space: Space, tuner: OnlineTuner) -> dict[str, float]:
    """Return the last values of a tuner's rates that are values of a space, by its names."""
    alone = not isinstance(tuner, TunedRun) and len(tuner.optimizer.param_groups) == 1
    found = {}
    for name, value in tuner.history[-1].values.items():
        if alone and name not in space:
            name = name.removesuffix("@0")
        dimension = space.get(name)
        if isinstance(dimension, Float) and dimension.contains(value):
            found[name] = value
    return found


def reported(tuner: OnlineTuner) -> dict[int, float]:
    """Return the validation losses that a tuner was given, by step; the last one of each step."""
    return {move.step: move.loss for move in tuner.history if move.loss is not None}

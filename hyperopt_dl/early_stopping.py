"""When a run may end before its last step."""

import math
from dataclasses import dataclass
from typing import Literal

from hyperopt_dl.errors import TrainingError


@dataclass(frozen=True)
class EarlyStopping:
    """Stop a trial when a metric has not improved for a number of reports (Prechelt 1998).

    The trial's value and metrics are then those of the *best* report, as if the run had been
    stopped there; the step of that report is the trial's ``best_step`` attribute. A loss that is no
    longer finite ends the run too. Only trials stop early: a run that is differentiated always has
    its full length.

    Args:
        metric: ``"loss"``, or one of the names that the training's ``metrics`` returns.
        patience: The number of reports without an improvement after which the run ends.
        mode: Whether a smaller (``"min"``) or a larger (``"max"``) metric is better; needed for
            every metric but the loss.
        min_delta: The smallest change that counts as an improvement, in the metric's own unit.

    Raises:
        TrainingError: A patience below 1, a negative ``min_delta``, or another mode.
    """

    metric: str = "loss"
    patience: int = 3
    mode: Literal["min", "max"] | None = None
    min_delta: float = 0.0

    def __post_init__(self) -> None:
        if self.patience < 1:
            raise TrainingError(
                f"EarlyStopping needs patience >= 1 (reports), got {self.patience}."
            )
        if not self.min_delta >= 0:
            raise TrainingError(f"EarlyStopping needs min_delta >= 0, got {self.min_delta}.")
        if self.mode is None and self.metric == "loss":
            object.__setattr__(self, "mode", "min")
        if self.mode not in ("min", "max"):
            raise TrainingError(
                f"EarlyStopping needs mode 'min' or 'max', got {self.mode!r}: say whether a "
                f"smaller or a larger {self.metric!r} is better."
            )

    def improves(self, new: float, best: float | None) -> bool:
        """Return whether ``new`` is better than ``best``, the best so far or ``None``."""
        if best is None or math.isnan(best):
            return not math.isnan(new)
        gain = best - new if self.mode == "min" else new - best
        return gain > self.min_delta

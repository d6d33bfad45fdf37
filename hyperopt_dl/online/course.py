"""What an online tuner makes of the losses and hypergradients that it sees: to move, or to go back.

Letters: E validation loss, e its gradient; h hypergradient in the coordinates, m of them.
"""

import math
import numbers
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from hyperopt_dl.errors import TrainingError
from hyperopt_dl.online.discount import Discount, check_discount
from hyperopt_dl.online.divergence import DEAD, alive, chaotic, exploded
from hyperopt_dl.online.moves import Moments, at_rest, next_move
from hyperopt_dl.optimizers.options import NON_NEGATIVE


class Course:
    """The decisions of a forward tuner during one run.

    Args:
        m: The number of coordinates.
        hyper_lr: As for `ForwardTuner`; with 0 nothing is lost and nothing moves.
        clip: As for `ForwardTuner`.
        trust: As for `ForwardTuner`.
        explosion: As for `ForwardTuner`.

    Attributes:
        steps: Steps since the tangents began at zero.
        fell: Whether the last decision was to go back.
    """

    def __init__(
        self, m: int, *, hyper_lr: float, clip: float, trust: float, explosion: float
    ) -> None:
        self._m = m
        self._hyper_lr, self._clip, self._trust = hyper_lr, clip, trust
        self._explosion = explosion
        self._moments = at_rest(m)
        self._first_loss: float | None = None
        self._first_alive = 0.0
        self.steps = 0
        self.fell = False

    @property
    def begun(self) -> bool:
        """Whether a first training loss has been seen."""
        return self._first_loss is not None

    def explodes(self, loss: float) -> bool:
        """Return whether a training loss says that the run is lost; the first one is kept."""
        if not self.begun and math.isfinite(loss):
            self._first_loss = abs(loss)
        return bool(self._hyper_lr) and exploded(loss, self._first_loss, self._explosion)

    def begin(self, gradients: Sequence[Tensor | None]) -> None:
        """Take the gradient of the first training loss for that of a network that is alive."""
        self._first_alive = alive(gradients)

    def lost(self, value: float, h: Sequence[float], e: Sequence[Tensor | None]) -> bool:
        """Return whether E, h and e say that the run is lost."""
        if not self._hyper_lr:
            return False
        wild = exploded(value, self._first_loss, self._explosion)
        wild = wild or chaotic(value, h, self._explosion)
        return wild or alive(e) < DEAD * self._first_alive

    def move(self, h: Sequence[float]) -> tuple[float, ...]:
        """Return how far each coordinate moves for h."""
        by, self._moments = next_move(
            self._moments, h, hyper_lr=self._hyper_lr, clip=self._clip, trust=self._trust
        )
        self.fell = False
        return by

    def fall(self) -> None:
        """Begin anew: the run goes back."""
        self.fell, self._moments, self.steps = True, at_rest(self._m), 0

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs."""
        return {
            "since_reset": self.steps,
            "moments": tuple(self._moments),
            "first": (self._first_loss, self._first_alive),
            "fell": self.fell,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up the decisions where ``state_dict`` left them."""
        self.steps, self.fell = state["since_reset"], state["fell"]
        self._moments = Moments(*state["moments"])
        self._first_loss, self._first_alive = state["first"]


def check_numbers(
    hyper_lr: float, discount: Discount, clip: float, trust: float, explosion: float
) -> None:
    """Raise a TrainingError unless these can be arguments of `ForwardTuner`."""
    if hyper_lr not in NON_NEGATIVE:
        raise TrainingError(f"hyper_lr must be a number >= 0, got {hyper_lr!r}. Try 0.1.")
    check_discount(discount)
    positive: dict[str, object] = {"clip": clip, "trust": trust, "explosion": explosion}
    for name, value in positive.items():
        if not (isinstance(value, numbers.Real) and float(value) > 0):
            raise TrainingError(f"{name} must be a positive number, got {value!r}.")


def check_constant(discount: object) -> None:
    """Raise a TrainingError where a discount is to adapt."""
    if discount == "adaptive":
        raise TrainingError(
            "from_training needs a number as discount, got 'adaptive'. Give one from 0 to 1, or "
            "use ForwardTuner(optimizer, tune, discount='adaptive') in a loop of your own."
        )


def check_every(every: int) -> None:
    """Raise a TrainingError unless this can be a number of steps."""
    if isinstance(every, bool) or not isinstance(every, int) or every < 1:
        raise TrainingError(f"every must be a whole number of at least 1, got {every!r}.")


def check_processes() -> None:
    """Raise a TrainingError in a run of several processes, whose gradients are averaged."""
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    if distributed and (processes := torch.distributed.get_world_size()) > 1:
        raise TrainingError(
            f"ForwardTuner is for a run in one process, got a group of {processes}: it does not "
            f"average tangents over them. Use HypergradientDescent."
        )

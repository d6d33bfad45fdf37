"""A watch on all that must move by nothing but the steps that tangents know of, and the tuner."""

import torch

from hyperopt_dl.errors import TrainingError
from hyperopt_dl.online.in_loss import InLoss
from hyperopt_dl.online.layout import Layout
from hyperopt_dl.online.scaler import by_scaler
from hyperopt_dl.online.values import Values
from hyperopt_dl.online.weights import Weights


class Watch:
    """Looks at parameters, weights, state and tuned options where a `ForwardTuner` is called.

    Args:
        optimizer: The optimizer.
        values: The options that are tuned.
        in_loss: The tensors that are.
        any_writes: Whether the tangents begin anew at each step, so that writes before it may be.

    Attributes:
        made: Steps in this process.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        values: Values,
        in_loss: InLoss,
        *,
        any_writes: bool,
    ) -> None:
        self._optimizer, self._values, self._in_loss = optimizer, values, in_loss
        self._any_writes = any_writes
        self._layout, self._weights = Layout(optimizer), Weights(optimizer)
        self.made = 0

    def before_backward(self) -> None:
        """Raise a TrainingError where parameters are not those that there were."""
        self._layout.check()

    def before_step(self) -> None:
        """Raise a TrainingError where something moved since the last step, or a scaler steps."""
        if by_scaler(self._optimizer):
            raise TrainingError(
                "ForwardTuner needs steps with the very gradients of tuner.backward(), got one "
                "made by a GradScaler. Leave the scaler out: torch.autocast with torch.bfloat16 "
                "needs none. HypergradientDescent works beside one."
            )
        self._layout.check_members()
        self._values.check()
        self._in_loss.check()
        if not self._any_writes:
            self._check_weights(_TO_WRITE)

    def after_step(self) -> None:
        """Remember what a step has left."""
        self.made += 1
        self._weights.mark(self.made)

    def before_move(self) -> None:
        """Raise a TrainingError where the weights are not those that the last step left."""
        self._layout.check()
        self._check_weights(_TO_VALIDATE)

    def after_writes(self) -> None:
        """Take weights that were put back for right."""
        self._weights.accept()

    def after_a_look(self) -> None:
        """Take the weights, which were put back to the same bits, for those of the last step."""
        self._weights.mark_again()

    def resume(self) -> None:
        """Take whatever there is at the next step for right, as where a run is taken up."""
        self.made = 0
        self._weights.accept()
        self._values.accept()

    def _check_weights(self, way_out: str) -> None:
        try:
            self._weights.check(way_out)
        except TrainingError:
            self._layout.check_kinds()  # of a parameter that was converted, this says more
            raise


_TO_WRITE = (
    "Do it by an option of the optimizer, as weight_decay, or in the loss; keep averages in a copy "
    "of the model; and after weights were loaded, make a new tuner, whose tangents begin at zero. "
    "With discount=0 writes after tuner.step() do no harm."
)
_TO_VALIDATE = (
    "Give tuner.step() the loss at the weights that the step has left, before they are clipped or "
    "swapped for an average, and after other weights were loaded make a new tuner."
)

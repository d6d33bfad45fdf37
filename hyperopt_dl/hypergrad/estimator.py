"""What an estimator of the hypergradient is."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeAlias, runtime_checkable

import torch
from torch import Tensor

from hyperopt_dl.training import State, Training

Observer: TypeAlias = Callable[[State], None]


@runtime_checkable
class Estimator(Protocol):
    """Computes the outer loss at the end of a run, and its derivative in the hyperparameters."""

    def __call__(
        self,
        training: Training,
        hparams: Mapping[str, Any],
        *,
        seed: int,
        device: torch.device | str,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the outer loss (0-dim) and dE/dλ by name.

        The derivative is in the loss's unit per unit of the hyperparameter, float64, of the
        hyperparameter's shape; integers, flags and names have none.

        An estimator may take one more keyword, ``observe: Observer | None = None``, and call it
        once with the state that the outer loss was read from, cut from any graph: a study measures
        its metrics there.
        """

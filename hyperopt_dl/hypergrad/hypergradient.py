"""The hypergradient of a training, by the estimator of one's choice."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from hyperopt_dl.errors import TrainingError
from hyperopt_dl.hypergrad.estimator import Estimator
from hyperopt_dl.hypergrad.reverse import Reverse
from hyperopt_dl.training import Training


def hypergradient(
    training: Training,
    hparams: Mapping[str, Any],
    *,
    estimator: Estimator | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the outer loss after a run and its derivative in every floating hyperparameter.

    Args:
        training: The dynamical system.
        hparams: Hyperparameters by name: floats and floating tensors are differentiated.
        estimator: How; ``None`` is ``hypergrad.Reverse()``.
        seed: Seed of the run.
        device: Device of the run.

    Raises:
        TrainingError: The training, an estimator or a hyperparameter that cannot be differentiated.
    """
    estimate = Reverse() if estimator is None else estimator
    if isinstance(training, type) or isinstance(estimator, type) or not callable(estimate):
        raise TrainingError(
            f"A hypergradient needs objects, such as Supervised(...) and Reverse(memory='sqrt'), "
            f"got {training!r} and estimator={estimator!r}."
        )
    missing = [name for name in ("steps", "init", "step", "loss") if not hasattr(training, name)]
    if missing:
        raise TrainingError(
            f"A hypergradient needs a Training, got a {type(training).__name__}, which has no "
            f"{', '.join(missing)}."
        )
    return estimate(training, hparams, seed=seed, device=device)

"""Forward or reverse mode, whichever is expected to take less time.

The cost model counts gradients of the training loss: a step that is run, a step that is linearised
and a product with its second derivative count one each. With T steps and m entries of the
hyperparameters, forward mode takes ``T (1 + m)``, or ``T (2 + m)`` where a step is differentiated
as a whole and its adjoint has to be recorded first. Reverse mode takes 2 T with the records of all
steps, 3 T with all states, and one more for each step that memory makes it run again.
"""

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hyperopt_dl.hypergrad.estimator import Observer
from hyperopt_dl.hypergrad.forward import Forward, needed_bytes
from hyperopt_dl.hypergrad.memory import available_bytes
from hyperopt_dl.hypergrad.pushes.directions import Directions
from hyperopt_dl.hypergrad.reverse import AUTO_SHARE, Reverse, steps_of
from hyperopt_dl.hypergrad.steps.split_step import SplitStep
from hyperopt_dl.hypergrad.steps.whole_step import WholeStep
from hyperopt_dl.training import Training

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Auto:
    """``Forward()`` or ``Reverse()``, by the number of hyperparameters, the steps and the memory.

    Both give the same number. Forward mode is chosen where a cost model says that it takes no more
    time, and its tangents fit into a quarter of the free memory: for one number always, for two or
    three where a run is too long for reverse mode to keep what it needs. The choice, the predicted
    and the measured cost are logged (logger ``hyperopt_dl.hypergrad.auto``, level INFO).

    Example:
        >>> import hyperopt_dl as hd
        >>> hd.hypergrad.Auto()
        Auto()
    """

    def __call__(
        self,
        training: Training,
        hparams: Mapping[str, Any],
        *,
        seed: int,
        device: torch.device | str,
        observe: Observer | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the outer loss (0-dim) and its derivative by name, as ``Estimator`` says."""
        run = steps_of(training, hparams, seed=seed, device=torch.device(device))
        m, steps = Directions(run.gathered.leaves).m, training.steps
        costs = {"Forward": forward_cost(run, m, steps), "Reverse": Reverse().cost(run, steps)}
        fits = needed_bytes(m, run.initial()) <= AUTO_SHARE * available_bytes(run.device)
        name = "Forward" if fits and costs["Forward"] <= costs["Reverse"] else "Reverse"
        unit = _seconds_of_a_step(run)
        del run
        start = time.perf_counter()
        estimate = Forward() if name == "Forward" else Reverse()
        answer = estimate(training, hparams, seed=seed, device=device, observe=observe)
        _logger.info(
            "%s for %d hyperparameters and %d steps: predicted %d gradients (forward) and %d "
            "(reverse), %.3g s; measured %.3g s.",
            *(name, m, steps, costs["Forward"], costs["Reverse"]),
            *(costs[name] * unit, time.perf_counter() - start),
        )
        return answer


def forward_cost(run: WholeStep, m: int, steps: int) -> int:
    """Return what forward mode takes, in gradients."""
    return steps * (m + (1 if isinstance(run, SplitStep) else 2))


def _seconds_of_a_step(run: WholeStep) -> float:
    """Return the wall-clock time of a step that is not differentiated; the first one warms up."""
    state = run.advance(run.initial(), 0)
    _wait(run.device)
    start = time.perf_counter()
    run.advance(state, min(1, run.steps - 1))
    _wait(run.device)
    return time.perf_counter() - start


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)

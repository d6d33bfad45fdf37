"""A training run as a dynamical system: ``state[t + 1] = step(state[t], hparams, t)``.

Letters: t the step, from 0; T = ``steps`` the horizon.
"""

from collections.abc import Mapping
from typing import Any, Protocol, TypeAlias, runtime_checkable

import torch
from torch import Tensor

from hyperopt_dl.space import Dimension

State: TypeAlias = dict[str, Tensor]
"""What a run carries from one step to the next: parameters, optimizer slots, buffers, its seed."""

HParams: TypeAlias = Mapping[str, Any]
"""Hyperparameters by name: numbers and choices, or tensors where a derivative is wanted."""

NOT_REPLAYED = (
    "A training with an online tuner cannot be replayed or differentiated: its steps follow from "
    "what the tuner has seen, and not from the state and the hyperparameters alone. Run it in a "
    "Study with a tuner that wants no derivatives, or leave online out."
)


@runtime_checkable
class Training(Protocol):
    """What can be run, resumed and differentiated: a neural network's training, an ODE, a solver.

    ``step`` must be pure: it writes into nothing that it is given, and draws every random number
    from the run's seed (keep it in the state) and ``t``. Then computing a step again is the same as
    having kept it.

    A training may also have, and trials then use:

    * ``metrics(state, hparams) -> dict[str, float]``: reported beside the value, never
      differentiated;
    * ``test_metrics(state, hparams) -> dict[str, float]``: computed once, when a trial ends;
    * ``report_every: int``: after how many steps the loss is reported (for pruners);
    * ``early_stopping: EarlyStopping``: when to end before ``steps``;
    * ``online: Online``: what moves the optimizer's options while a trial runs;
    * ``hparams: frozenset[str]``: the hyperparameters that it names, which a space must have;
    * ``reads_more: bool``: whether it may read others; if not, a study warns of those;
    * ``check_space(space)``: raise a ``TrainingError`` unless the dimensions of a space, which has
      all of ``hparams``, can be what they are named for. A study calls it before the first trial.
    """

    @property
    def steps(self) -> int:
        """The number of steps T of a whole run."""

    def init(self, hparams: HParams, *, seed: int, device: torch.device | str) -> State:
        """Return the state before step 0, on ``device`` but for what the host reads."""

    def step(self, state: State, hparams: HParams, t: int) -> State:
        """Return the state after step ``t``."""

    def loss(self, state: State, hparams: HParams) -> Tensor:
        """Return the outer objective, a differentiable 0-dim tensor: mostly the validation loss."""


@runtime_checkable
class Online(Protocol):
    """An online tuner as a part of a training; ``start`` returns the run that it takes part in."""

    def names(self) -> frozenset[str]:
        """The hyperparameters that it names."""

    def check(self, training: Any) -> None:
        """Raise a ``TrainingError`` unless it can be a part of this training."""

    def check_space(self, space: Mapping[str, Dimension]) -> None:
        """Raise a ``TrainingError`` unless the dimensions that it names can be its settings."""

    def start(
        self, training: Any, hparams: HParams, *, seed: int, device: torch.device | str
    ) -> Any:
        """Return a run before step 0, with ``advance(stop) -> State`` and its ``record``."""


def rollout(
    training: Training,
    hparams: HParams,
    *,
    seed: int = 0,
    device: torch.device | str = "cpu",
    state: State | None = None,
    start: int = 0,
    stop: int | None = None,
) -> State:
    """Run steps ``start, ..., stop - 1`` and return the state after them.

    Args:
        training: The dynamical system.
        hparams: Its hyperparameters. Where one of them requires a gradient and gradients are
            enabled, the returned state carries the graph of the whole run.
        seed: Seed of the run; read only where the run starts from ``init``.
        device: Device of the run; read only where the run starts from ``init``.
        state: The state before step ``start``; ``None`` calls ``training.init``.
        start: The first step.
        stop: The step to stop before; ``None`` is ``training.steps``.

    Returns:
        The state. A run in one piece and a run in segments give the same bits.
    """
    if state is None:
        state = training.init(hparams, seed=seed, device=device)
    for t in range(start, training.steps if stop is None else stop):
        state = training.step(state, hparams, t)
    return state

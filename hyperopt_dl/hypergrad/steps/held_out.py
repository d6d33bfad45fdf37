"""The validation loss of a ``Supervised`` along a run, on batches, as a tuner looks at it.

It has what ``StepLoss`` asks of a training, so that its gradient is traced and replayed like that
of the training loss.
"""

from contextlib import AbstractContextManager
from functools import lru_cache

from torch import Tensor

from hyperopt_dl.batches import Batch
from hyperopt_dl.network import Network
from hyperopt_dl.recorded_inputs import value_with_graph
from hyperopt_dl.seeds import BesideTorch, derive, seeded
from hyperopt_dl.supervised import Supervised
from hyperopt_dl.training import HParams, State

_below = lru_cache(maxsize=8)(derive)


class HeldOut:
    """The validation data of a training, ``batch_size`` at a time, in evaluation mode.

    Args:
        training: The training.
        batch_size: Examples a look, shuffled by the run's seed; ``None`` is all of them.

    Raises:
        TrainingError: The batch size does not fit.
    """

    evaluates = True

    def __init__(self, training: Supervised, batch_size: int | None) -> None:
        self._training = training
        self._batches = training.held_out(batch_size)
        self.steps = training.steps
        self.in_memory = self._batches.in_memory
        self.beside = BesideTorch()

    def looked_at(self) -> frozenset[str]:
        """Return the hyperparameters that the model factory has looked at."""
        return self._training.looked_at()

    def network(self, state: State, hparams: HParams) -> Network:
        """Return the structure that a state belongs to."""
        return self._training.network(state, hparams)

    def draws(self, state: State, t: int) -> AbstractContextManager[None]:  # noqa: ARG002
        """Return the context in which everything random of a look is drawn, always the same."""
        return seeded(_below(int(state["seed"]), "evaluate"), state["params"].device)

    def batch(self, state: State, t: int, *, shared: bool = False) -> Batch:
        """Return the examples of the look after step ``t``."""
        seed = _below(int(state["seed"]), "validation")
        return self._batches.at(seed, t, state["params"].device, shared=shared)

    def inner_loss(self, network: Network, batch: Batch, hparams: HParams) -> Tensor:
        """Return the validation loss on a batch, by the weights that the module holds."""
        return self._training.outer_loss(network, batch, hparams)

    def loss(self, state: State, hparams: HParams, t: int) -> Tensor:
        """Return the validation loss of the look after step ``t``, 0-dim, with its graph."""
        network, training = self.network(state, hparams), self._training
        with self.draws(state, t):
            batch = self.batch(state, t)
            return value_with_graph(
                network, state, hparams, lambda given: training.outer_loss(network, batch, given)
            )

"""One run of a ``Supervised`` in which an online tuner moves the optimizer's options.

The network, the losses, the batches and everything random are the training's own; the optimizer is
torch's, and writes in place into the leaves, one for each parameter.
"""

from collections.abc import Callable
from typing import Generic, TypeVar

import torch
from torch import Tensor

from hyperopt_dl.hypergrad.steps.held_out import HeldOut
from hyperopt_dl.online.first_look import must_have_second_derivatives
from hyperopt_dl.online.forward_tuner import ForwardTuner
from hyperopt_dl.online.history import OnlineRecord
from hyperopt_dl.online.hypergradient_descent import HypergradientDescent
from hyperopt_dl.optimizers.torch_twin import max_norm, torch_optimizer
from hyperopt_dl.second_derivatives.first_pass import FirstPass
from hyperopt_dl.state_entries import SLOT, packed, unpack
from hyperopt_dl.supervised import Supervised
from hyperopt_dl.training import HParams, State

Tuner = TypeVar("Tuner", ForwardTuner, HypergradientDescent)


class OnlineRun(Generic[Tuner]):
    """A run that can be looked at between its steps, but neither replayed nor differentiated.

    Args:
        training: The training.
        hparams: Its hyperparameters.
        tuner_of: Makes the tuner for an optimizer.
        step: Makes one step: it is given the tuner, the training loss with its graph, the norm to
            clip gradients to, and a function that returns a validation loss with its graph.
        seed: Seed of the run.
        device: Device of the run.
        batch_size: Validation examples that the tuner looks at each time, ``None`` for all.

    Attributes:
        tuner: The tuner.
    """

    def __init__(
        self,
        training: Supervised,
        hparams: HParams,
        tuner_of: Callable[[torch.optim.Optimizer], Tuner],
        step: Callable[[Tuner, Tensor, float | None, Callable[[], Tensor]], None],
        *,
        seed: int,
        device: torch.device | str,
        batch_size: int | None = None,
    ) -> None:
        state = training.init(hparams, seed=seed, device=device)
        self._training, self._hparams = training, hparams
        self._held_out = HeldOut(training, batch_size)
        self._step: Callable[[Tuner, Tensor, float | None, Callable[[], Tensor]], None] = step
        self._rest = {n: v for n, v in state.items() if n != "params" and not n.startswith(SLOT)}
        network = training.network(state, hparams)
        named = network.unflatten(state["params"])
        leaves = {name: piece.clone().requires_grad_() for name, piece in named.items()}
        self._leaves = list(leaves.values())
        self._max_norm = max_norm(training.optimizer, hparams)
        self._t = 0
        self.tuner: Tuner = tuner_of(torch_optimizer(training.optimizer, leaves, hparams))

    def advance(self, stop: int) -> State:
        """Run the steps before ``stop`` that have not been run, and return the state after them.

        The state is a copy, without the optimizer's slots.
        """
        with torch.enable_grad():
            if self._t == 0 and isinstance(self.tuner, ForwardTuner) and self.tuner.discount != 0:
                must_have_second_derivatives(self._training, self._hparams, self._state())
            for t in range(self._t, stop):
                self._make(t)
        self._t = max(self._t, stop)
        return {name: value.detach().clone() for name, value in self._state().items()}

    @property
    def record(self) -> OnlineRecord:
        """What the tuner has done."""
        tuner = self.tuner
        return OnlineRecord(type(tuner).__name__, tuner.steps, list(tuner.history))

    def _make(self, t: int) -> None:
        training, hparams, state = self._training, self._hparams, self._state()
        network = training.network(state, hparams)
        self.tuner.optimizer.zero_grad()
        with training.draws(state, t):
            batch = training.batch(state, t)

            first = FirstPass()

            def make() -> None:
                loss = training.inner_loss(network, batch, hparams)
                self._rest |= packed(network.after())
                with first:  # hooks act as in a loop: the tuner knows those of parameters
                    self._step(self.tuner, loss, self._max_norm, lambda: self._validation_loss(t))

            network.standing_in(unpack(state), make, first, training=True, pieces=self._leaves)
            for leaf in self._leaves:
                if leaf._backward_hooks:
                    leaf._backward_hooks.clear()  # of this step; the next one brings its own

    def _validation_loss(self, t: int) -> Tensor:
        return self._held_out.loss(self._state(), self._hparams, t)

    def _state(self) -> State:
        """Return the present state; the parameters are a function of the optimizer's leaves."""
        return {"params": torch.cat([leaf.reshape(-1) for leaf in self._leaves]), **self._rest}

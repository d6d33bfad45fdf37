"""A look at the training loss of a ``Supervised``, before an online tuner follows it in trials.

A loop of one's own asks ``tuner.check(closure)``. A training in trials is a function of its state,
so it can be asked by itself: once for each structure, on the first batch, in float64.
"""

from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor

from hyperopt_dl.errors import TrainingError
from hyperopt_dl.hypergrad.traces.eager import functions_of
from hyperopt_dl.network import Network
from hyperopt_dl.online.probes import has_half, must_be_the_derivative
from hyperopt_dl.second_derivatives.first_pass import FirstPass
from hyperopt_dl.state_entries import unpack
from hyperopt_dl.supervised import Supervised
from hyperopt_dl.training import HParams, State

_KINKED = ("relu", "threshold", "max", "min", "clamp", "abs", "sort", "topk", "where", "sign")
"""Parts of names of operations whose derivative jumps, where float32 says too little."""


def must_have_second_derivatives(training: Supervised, hparams: HParams, state: State) -> None:
    """Raise unless products with second derivatives are difference quotients of the gradient.

    The verdict is kept with the training, also a bad one. There is none where nothing can be told:
    of a loss that is not finite, not the same twice, in half precision, or with kinks that only
    takes float32. Costs up to fifteen gradients.

    Args:
        training: The training.
        hparams: Its hyperparameters.
        state: Its state before step 0.

    Raises:
        TrainingError: They are not.
    """
    network, known = training.network(state, hparams), training.checked
    choices = ((n, v) for n, v in sorted(hparams.items()) if not isinstance(v, float | Tensor))
    key: Hashable = (network.layout, "online", *choices)
    if key not in known:
        try:
            _look(training, network, hparams, state)
            known[key] = True
        except TrainingError as error:
            known[key] = error
    if isinstance(known[key], TrainingError):
        raise TrainingError(*known[key].args)


def _look(training: Supervised, network: Network, hparams: HParams, state: State) -> None:
    wide = {name: _widened(value) for name, value in state.items()}
    try:
        closure, params = _loss_of(training, network, hparams, wide)
        loss = closure()
        torch.autograd.grad(loss, params, allow_unused=True)
    except Exception:  # a dtype that is written into the model; else it fails below or in the run
        wide = state
        closure, params = _loss_of(training, network, hparams, wide)
        loss = closure()
        if any(part in f.name().lower() for f in functions_of(loss) for part in _KINKED):
            return
    if not bool(loss.isfinite()) or has_half(loss):
        return
    if not torch.isclose(closure(), loss, rtol=1e-6, atol=0.0):  # a generator of its own
        return

    def look() -> None:
        must_be_the_derivative(closure, params)

    # What a checkpoint runs again in the backward pass finds the weights of the step, too.
    network.standing_in(unpack(wide), look, FirstPass(), training=True, pieces=params)


def _loss_of(
    training: Supervised, network: Network, hparams: HParams, state: State
) -> tuple[Callable[[], Tensor], list[Tensor]]:
    """Return what computes the loss of step 0 from a state, and the parameters that it is at."""
    weights = unpack(state)
    pieces = network.unflatten(weights.params).values()
    params = [piece.detach().clone().requires_grad_() for piece in pieces]
    dtype = weights.params.dtype

    def loss() -> Tensor:
        batch = training.batch(state, 0)
        batch = batch._replace(
            inputs=tuple(_as(dtype, each) for each in batch.inputs),
            target=_as(dtype, batch.target),
        )
        found: Tensor = training.inner_loss(network, batch, hparams)
        return found

    def closure() -> Tensor:
        with torch.enable_grad(), training.draws(state, 0), network.as_it_came():
            return network.standing_in(weights, loss, FirstPass(), training=True, pieces=params)

    return closure, params


def _widened(value: Tensor) -> Tensor:
    return value.double() if value.dtype == torch.float32 else value


def _as(dtype: torch.dtype, value: Any) -> Any:
    narrow = isinstance(value, Tensor) and value.dtype == torch.float32
    return value.to(dtype) if narrow else value

"""The first step of a run, made as a plain loop makes it: ``backward()`` and ``torch.optim``.

The module's parameters are overwritten as by ``load_state_dict``, get their ``.grad``, and are
stepped in place: nothing of what makes a step a function of its state is in between.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Protocol

import torch
from torch import Tensor

from hyperopt_dl.batches import Batch
from hyperopt_dl.errors import TrainingError
from hyperopt_dl.module_modes import has_generator
from hyperopt_dl.network import Network
from hyperopt_dl.optimizers import Optimizer
from hyperopt_dl.optimizers.torch_twin import has_twin, max_norm, torch_optimizer
from hyperopt_dl.state_entries import unpack
from hyperopt_dl.training import HParams, State
from hyperopt_dl.weights import Weights, flat


class Steps(Protocol):
    """What a training says of its steps."""

    optimizer: Optimizer

    def draws(self, state: State, t: int) -> AbstractContextManager[None]:
        """Return the context in which everything random of a step is drawn."""

    def batch(self, state: State, t: int) -> Batch:
        """Return the batch of a step."""

    def inner_loss(self, network: Network, batch: Batch, hparams: HParams) -> Tensor:
        """Return the loss on a batch, by the weights that the module holds."""


def must_be_plain(
    training: Steps, network: Network, state: State, then: State, hparams: HParams
) -> None:
    """Raise unless the parameters after step 0 are those of a plain loop.

    Optimizers that torch does not have are left out, and modules on another device than the run.

    Args:
        training: Says what the step is.
        network: The module.
        state: The state before the step.
        then: The state after it.
        hparams: The hyperparameters.

    Raises:
        TrainingError: They are not.
    """
    weights, after = unpack(state), then["params"]
    elsewhere = after.is_meta or any(p.device != after.device for p in network.params)
    alone = has_generator(network.module.modules())  # another step would move it on
    if elsewhere or alone or not has_twin(training.optimizer):
        return

    def stepped() -> Tensor:
        with training.draws(state, 0), network.as_it_came():
            batch = training.batch(state, 0)
            return _stepped(
                network,
                weights,
                lambda: training.inner_loss(network, batch, hparams),
                training.optimizer,
                hparams,
            )

    expected = stepped()
    moved = float((expected - weights.params).abs().max())
    error = float((after - expected).abs().max())
    rounding = 100 * torch.finfo(after.dtype).eps * float(expected.abs().max())
    if error <= 1e-3 * moved + rounding or not torch.isfinite(expected).all():
        return
    if not torch.equal(stepped(), expected):  # no step can be repeated
        return
    worst = [float(part.abs().max()) for part in torch.split(after - expected, network.sizes)]
    name, _ = network.layout[worst.index(max(worst))]
    raise TrainingError(
        f"The first step must be that of a plain loop with torch.optim, but {name!r} differs by "
        f"{error:.1e} where the step is {moved:.1e} long. Likely source: memory of weights that is "
        f"not the module's, such as a tensor that was made of one. Keep all weights in parameters "
        f"and buffers."
    )


def _stepped(
    network: Network,
    weights: Weights,
    loss: Callable[[], Tensor],
    optimizer: Optimizer,
    hparams: HParams,
) -> Tensor:
    """Return the parameters after a step of ``torch.optim``; the module is left as it was."""
    module, params = network.module, network.params
    own = network.weights()
    grads = [each.grad for each in params]
    flags = [(each, each.training) for each in module.modules()]
    named = {name: p for (name, _), p in zip(network.layout, params, strict=True)}
    try:
        _write(network, weights)
        for (part, _), flag in zip(flags, network.flags, strict=True):
            part.training = flag
        for p in params:
            p.grad = None
        with torch.enable_grad():
            loss().backward()  # type: ignore[no-untyped-call]
        limit = max_norm(optimizer, hparams)
        if limit is not None:
            torch.nn.utils.clip_grad_norm_(params, limit)
        torch_optimizer(optimizer, named, hparams).step()
        return flat([each.detach() for each in params])
    finally:
        _write(network, own)
        for each, grad in zip(params, grads, strict=True):
            each.grad = grad
        for part, was in flags:
            part.training = was


def _write(network: Network, weights: Weights) -> None:
    held = {**network.unflatten(weights.params), **weights.frozen, **weights.buffers}
    module = network.module
    own: dict[str, Tensor] = dict(module.named_parameters())
    own |= dict(module.named_buffers())
    with torch.no_grad():
        for name, tensor in held.items():
            own[name].copy_(tensor)

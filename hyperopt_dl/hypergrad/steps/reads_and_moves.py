"""What a step reads and what it moves, found by one forward pass before a run."""

import torch
from torch import Tensor

from hyperopt_dl.hypergrad.steps.held_out import HeldOut
from hyperopt_dl.hypergrad.steps.leaves import Gathered
from hyperopt_dl.hypergrad.traces.eager import explaining
from hyperopt_dl.network import Held, Network
from hyperopt_dl.second_derivatives.first_pass import FirstPass
from hyperopt_dl.second_derivatives.substitutes import Substitutes
from hyperopt_dl.state_entries import unpack
from hyperopt_dl.supervised import Supervised
from hyperopt_dl.training import State
from hyperopt_dl.weights import Weights, has_derivative


def reads_and_moves(
    training: Supervised | HeldOut, network: Network, gathered: Gathered, state: State
) -> tuple[tuple[str, ...], list[str]]:
    """Return the hyperparameters that the loss depends on, and what moves beside the parameters.

    The latter are names of frozen parameters and buffers that a step makes anew with a derivative;
    none in evaluation, and where a training takes its buffers for constants.
    """
    leaves, weights = gathered.leaves, unpack(state)
    given = {
        name: value.detach().requires_grad_(has_derivative(value))
        for name, value in {**weights.frozen, **weights.buffers}.items()
    }
    first, held = FirstPass(), Held(network, network.unflatten(weights.params.clone()).values())
    frozen, buffers = ({name: given[name] for name in part} for part in weights[1:])
    place, mode = Weights(weights.params, frozen, buffers), not training.evaluates
    with torch.enable_grad(), training.draws(state, 0):
        batch = training.batch(state, 0)
        with (
            network.recording(place, first, held, training=mode),
            Substitutes(first, written=network.now().values()),
            training.beside.watching(0),
        ):
            value = training.inner_loss(network, batch, gathered.hparams)
            after = network.after()
    found = {**after.frozen, **after.buffers}
    carried = isinstance(training, Supervised) and training.buffers == "state"
    moving = [
        name
        for name, tensor in found.items()
        if tensor.requires_grad and carried and not _is_copy(tensor, given[name])
    ]
    outputs = [each for each in (value, *(found[n] for n in moving)) if each.requires_grad]
    if not outputs:
        return (), moving  # the first gradient says what is wrong
    bars = [torch.ones_like(each) for each in outputs]
    with explaining():
        reached = torch.autograd.grad(outputs, [*leaves.values()], bars, allow_unused=True)
    return tuple(n for n, part in zip(leaves, reached, strict=True) if part is not None), moving


def _is_copy(tensor: Tensor, of: Tensor) -> bool:
    """Return whether a tensor is what a step was given, or the copy that was made of it."""
    function = tensor.grad_fn
    if function is None:
        return tensor is of
    if function.name() != "CloneBackward0":
        return False
    return getattr(function.next_functions[0][0], "variable", None) is of

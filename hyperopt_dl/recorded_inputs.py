"""A step and a loss as functions of a state and hyperparameters, for a graph that goes on.

Whoever differentiates through a whole run by autograd, as the oracle of the tests does, gets the
graph of each step as one node, which reads the graph of the step inside (``recorded_step``).
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from hyperopt_dl.network import Network
from hyperopt_dl.recorded_step import record_step, record_value
from hyperopt_dl.second_derivatives.gradient_graph import GradientGraph, differentiable
from hyperopt_dl.state_entries import entry_of, packed, unpack
from hyperopt_dl.training import HParams, State
from hyperopt_dl.weights import Weights, flat, has_derivative


def records(state: State, hparams: HParams) -> bool:
    """Return whether what is computed of these has a graph."""
    return torch.is_grad_enabled() and any(
        isinstance(value, Tensor) and value.requires_grad
        for value in (*state.values(), *hparams.values())
    )


def gradient_with_graph(
    network: Network,
    state: State,
    hparams: HParams,
    loss: Callable[[HParams], Tensor],
    draws: Callable[[], AbstractContextManager[None]],
    *,
    constant: bool = False,
) -> tuple[Tensor, State, list[bool]]:
    """Return the gradient ``[p]`` of a training loss, and the entries that its step has made.

    And for each parameter whether the loss does not depend on it.

    Args:
        network: The structure that the state belongs to.
        state: The state before the step.
        hparams: The hyperparameters.
        loss: Computes the loss from them, by the weights that the module holds.
        draws: The context in which everything random of the step is drawn.
        constant: Whether what moves beside the parameters has no derivative.
    """
    inputs, after = RecordedInputs(state, hparams, constant=constant), dict[str, Tensor]()
    missed: list[bool] = []

    def record(given: tuple[Tensor, ...], pushed: bool) -> GradientGraph:
        pieces, weights, own, leaves = inputs.cut(given)
        with draws():
            step = record_step(
                network,
                weights,
                pieces,
                lambda: loss(own),
                moved=inputs.names,
                c=leaves,
                pushed=pushed,
            )
        after.update(packed(step.after))
        missed[:] = step.graph.missed
        return step.graph

    found = differentiable(record, inputs.all(network))
    count = len(network.params)
    made = {**after, **dict(zip(inputs.entries, found[count:], strict=True))}
    return flat(found[:count]), made, missed


def value_with_graph(
    network: Network, state: State, hparams: HParams, loss: Callable[[HParams], Tensor]
) -> Tensor:
    """Return a loss in evaluation mode; args as for ``gradient_with_graph``.

    Raises:
        TrainingError: It depends on nothing that a graph leads to.
    """
    inputs = RecordedInputs(state, hparams)

    def record(given: tuple[Tensor, ...], pushed: bool) -> GradientGraph:  # noqa: ARG001
        pieces, weights, own, leaves = inputs.cut(given)
        return record_value(network, weights, pieces, lambda: loss(own), leaves)

    return differentiable(record, inputs.all(network))[0]


class RecordedInputs:
    """What a step, or a loss, is a function of: parameters, other weights, hyperparameters.

    Args:
        state: A state of a ``Supervised``.
        hparams: Its hyperparameters.
        constant: Whether only parameters and hyperparameters are inputs.

    Attributes:
        names: The floating frozen parameters and buffers.
        entries: Their names in the state.
    """

    def __init__(self, state: State, hparams: HParams, *, constant: bool = False) -> None:
        self._weights, self._hparams = unpack(state), hparams
        others = {**self._weights.frozen, **self._weights.buffers}
        floating = [n for n, v in others.items() if has_derivative(v)]
        self.names = [] if constant else floating
        self.entries = [entry_of(self._weights, name) for name in self.names]
        self._others = [others[name] for name in self.names]
        self._leaves = [n for n, v in hparams.items() if isinstance(v, Tensor) and v.requires_grad]

    def all(self, network: Network) -> list[Tensor]:
        """Return them all: parameters by pieces, others, hyperparameters."""
        pieces = network.unflatten(self._weights.params).values()
        return [*pieces, *self._others, *(self._hparams[name] for name in self._leaves)]

    def cut(
        self, inputs: Sequence[Tensor]
    ) -> tuple[Sequence[Tensor], Weights, dict[str, Any], list[Tensor]]:
        """Return pieces, other weights and hyperparameters, and the leaves among the latter two.

        Args:
            inputs: Those of ``all``, without a graph.
        """
        count = len(inputs) - len(self._others) - len(self._leaves)
        leaves = [each.detach().requires_grad_() for each in inputs[count:]]
        others = dict(zip(self.names, leaves, strict=False))
        frozen, buffers = (
            {n: others.get(n, v) for n, v in part.items()}
            for part in (self._weights.frozen, self._weights.buffers)
        )
        own = dict(zip(self._leaves, leaves[len(self._others) :], strict=True))
        weights = Weights(self._weights.params.detach(), frozen, buffers)
        return inputs[:count], weights, {**self._hparams, **own}, leaves

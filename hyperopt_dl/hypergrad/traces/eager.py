"""The derivatives of a training loss: by autograd, or by graphs traced from it once.

The loss is a pure function ``loss(x, tensors) -> (value, aux)``: x the parameters, ``tensors`` all
else that the value depends on, aux what else a step makes (BatchNorm's new statistics), which
carries no derivative. A sweep needs four things of it, d the derivative and · the dot product:

    gradient    x, tensors    -> g, aux          g = d value / dx
    linearize   x, tensors    -> g, aux, saved
    pull        saved, u      -> Hu, mixed       Hu = d(g·u)/dx, mixed[k] = d(g·u)/dtensors[wrt[k]]
    product     x, tensors, u -> Hu, mixed       the same from the state alone

``Eager`` and ``Traced`` give the same numbers. Random numbers come from the default generators: the
caller starts these (``seeds.seeded``) before each call except ``pull``, which draws nothing. A loss
may write into ``tensors``, as a first layer that works in place does.

Letters: p parameters; x parameters [p]; g gradient [p]; u adjoint of the gradient [p]; H Hessian.
"""

import re
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor

from hyperopt_dl.errors import TrainingError
from hyperopt_dl.hypergrad.traces.kernels import kernels_with_second_derivatives

Tensors: TypeAlias = tuple[Tensor, ...]
Loss: TypeAlias = Callable[[Tensor, Tensors], tuple[Tensor, Tensors]]

_INSTEAD = {
    "rnn": "Say that the model is recurrent, so that the fused kernel is not used.",
    "attention": "Take away the sdpa_kernel() around it, so that the MATH kernel is used.",
    "embedding_bag": "Use nn.Embedding and take the sum or mean of its output.",
    "cdist": "Write the distance out: (a[:, None] - b[None]).square().sum(-1).sqrt().",
    "once_differentiable": "Write its backward() with differentiable operations, undecorated.",
}


class Saved(Protocol):
    """What one step keeps for ``pull``; it may be pulled more than once."""

    def pull(self, u: Tensor) -> tuple[Tensor, Tensors]:
        """Return Hu ``[p]`` and the mixed products, each in the shape of its tensor."""

    def pull_rows(self, rows: Tensor) -> Tensor:
        """Return Hu for each of m rows, `m x p`."""

    def tensors(self) -> Iterable[Tensor]:
        """Return the tensors that are held."""


def saved_bytes(saved: Saved, beside: Iterable[Tensor] = ()) -> int:
    """Return the bytes that ``saved`` holds, without the memory of the tensors ``beside`` it."""
    kept = {tensor.untyped_storage().data_ptr() for tensor in beside}
    held = {tensor.untyped_storage() for tensor in saved.tensors()}
    sizes = {storage.data_ptr(): storage.nbytes() for storage in held}
    return sum(size for pointer, size in sizes.items() if pointer not in kept)


class Eager:
    """The derivatives by autograd, recorded anew at each call.

    Args:
        loss: The loss as a pure function of ``(x, tensors)``.
        wrt: Which of ``tensors`` the mixed products are taken with respect to.
        recurrent: Whether an ``nn.LSTM``, ``nn.GRU`` or ``nn.RNN`` is inside: the fused kernels of
            oneDNN and cuDNN for these have no second derivative and must be switched off.
    """

    draws = True
    """Whether a step draws random numbers; here that is not known."""
    writes = True
    """Whether a step writes into what it is given; here that is not known."""

    def __init__(self, loss: Loss, *, wrt: Sequence[int] = (), recurrent: bool = False) -> None:
        self._loss = loss
        self._wrt = tuple(wrt)
        self._recurrent = recurrent

    def at(
        self,
        x: Tensor,  # noqa: ARG002
        tensors: Tensors,  # noqa: ARG002
        *,
        key: Hashable = (),  # noqa: ARG002
    ) -> "Eager":
        """Return itself, the answer to every input."""
        return self

    def gradient(
        self,
        x: Tensor,
        tensors: Tensors,
        *,
        key: Hashable = (),  # noqa: ARG002
    ) -> tuple[Tensor, Tensors]:
        """Return g and aux; no graph is kept. ``key`` is for ``Traced``."""
        with kernels_with_second_derivatives(self._recurrent):
            leaf, value, aux = self.record(x, tuple(t.detach() for t in tensors))
            (g,) = torch.autograd.grad(value, leaf, materialize_grads=True)
        return g, aux

    def linearize(
        self,
        x: Tensor,
        tensors: Tensors,
        *,
        key: Hashable = (),  # noqa: ARG002
    ) -> tuple[Tensor, Tensors, Saved]:
        """Return g, aux, and the graph of g as what ``pull`` needs."""
        with kernels_with_second_derivatives(self._recurrent):
            given = tuple(t.detach().requires_grad_(i in self._wrt) for i, t in enumerate(tensors))
            leaf, value, aux = self.record(x, given)
            (g,) = torch.autograd.grad(value, leaf, create_graph=True, materialize_grads=True)
        leaves = (leaf, *(given[i] for i in self._wrt))
        return g.detach(), aux, _GraphOfGradient(g, leaves, self._recurrent)

    def pull(self, saved: Saved, u: Tensor) -> tuple[Tensor, Tensors]:
        """Return Hu and the mixed products from what ``linearize`` kept."""
        return saved.pull(u)

    def product(
        self, x: Tensor, tensors: Tensors, u: Tensor, *, key: Hashable = ()
    ) -> tuple[Tensor, Tensors]:
        """Return Hu and the mixed products; costs about three gradients."""
        return self.linearize(x, tensors, key=key)[2].pull(u)

    def record(self, x: Tensor, tensors: Tensors) -> tuple[Tensor, Tensor, Tensors]:
        """Return x as the leaf of a graph, the value at its end, and aux."""
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            value, aux = self._loss(leaf, tensors)
        if not value.requires_grad:
            raise TrainingError(
                "The training loss must depend on the model's parameters, got a value without a "
                "graph. Take away the detach(), .item() or no_grad() between the model and it."
            )
        return leaf, value, tuple(tensor.detach() for tensor in aux)


def functions_of(value: Tensor) -> Iterable[Any]:
    """Return the nodes of autograd's graph of the value."""
    found = dict.fromkeys([value.grad_fn] if value.grad_fn else [])
    waiting: list[Any] = list(found)
    while waiting:
        new = [f for f, _ in waiting.pop().next_functions if f is not None and f not in found]
        found.update(dict.fromkeys(new))
        waiting += dict.fromkeys(new)
    return found


def no_second_derivative(name: str) -> TrainingError:
    """Return the error for an operator that can be differentiated only once."""
    remedies = [remedy for part, remedy in _INSTEAD.items() if part in name.lower()]
    return TrainingError(
        f"Hypergradients differentiate the training step twice, and {name} has no second "
        f"derivative. "
        + " ".join(remedies or ["Replace it by elementary operations."])
        + " Or leave the gradient out: every sampler of Optuna tunes this training too."
    )


@dataclass(frozen=True)
class _GraphOfGradient:
    g: Tensor
    leaves: Tensors
    recurrent: bool

    def pull(self, u: Tensor) -> tuple[Tensor, Tensors]:
        if not self.g.requires_grad:  # the loss is linear
            Hu, *mixed = (torch.zeros_like(leaf, requires_grad=False) for leaf in self.leaves)
            return Hu, tuple(mixed)
        try:
            with kernels_with_second_derivatives(self.recurrent):
                Hu, *mixed = torch.autograd.grad(
                    self.g,
                    self.leaves,
                    u,
                    retain_graph=True,
                    materialize_grads=True,
                )
        except RuntimeError as error:
            if reason := explained(error):
                raise reason from error
            raise
        return Hu, tuple(mixed)

    def pull_rows(self, rows: Tensor) -> Tensor:
        return torch.stack([self.pull(row)[0] for row in rows])

    def tensors(self) -> Iterator[Tensor]:
        for function in functions_of(self.g):
            for name in dir(function):
                if name.startswith("_saved_") or name == "saved_tensors":
                    value = getattr(function, name)
                    values = value if isinstance(value, (list, tuple)) else (value,)
                    yield from (each for each in values if isinstance(each, Tensor))


def explained(error: RuntimeError) -> TrainingError | None:
    """Return the error for an operator without a second derivative, if that is what it is."""
    operator = lacking_operator(error)
    return None if operator is None else no_second_derivative(operator)


def lacking_operator(error: RuntimeError) -> str | None:
    """Return the operator that autograd could not differentiate twice; None for another error."""
    operator = re.search(
        r"derivative for '?([\w:]+)'? is not implemented|(once_differentiable)|(CuDNN RNN)",
        str(error),
    )
    return next(name for name in operator.groups() if name) if operator else None

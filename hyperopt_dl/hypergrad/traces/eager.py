"""The derivatives of a training loss: by autograd, or by graphs traced from it once.

The loss depends on x, the parameters, and on ``tensors``, all else. A step makes its gradient g,
and aux: what else it leaves behind, such as BatchNorm's statistics, of which b, a part of aux, has
a derivative too. A sweep needs four things, with ``ũ = (u, b̄)`` end to end, · the dot product:

    gradient    x, tensors    -> g, aux          g = d value / dx
    linearize   x, tensors    -> g, aux, saved
    pull        saved, ũ      -> Hu, mixed       d(g·u + b·b̄)/dx, and in the tensors of ``wrt``
    product     x, tensors, ũ -> Hu, mixed       the same from the state alone

``Eager`` and ``Traced`` give the same numbers. Random numbers come from the default generators: the
caller starts these (``seeds.seeded``) before each call except ``pull``, which draws nothing. A loss
may write into ``tensors``, as a first layer that works in place does.

Letters: p parameters; x parameters [p]; g gradient [p]; u adjoint of the gradient [p]; H Hessian.
"""

import re
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeAlias, TypeVar

import torch
from torch import Tensor

from hyperopt_dl.errors import TrainingError
from hyperopt_dl.hypergrad.memory import storages_of
from hyperopt_dl.hypergrad.traces.kernels import kernels_with_second_derivatives
from hyperopt_dl.recorded_step import is_reentrant
from hyperopt_dl.second_derivatives.first_pass import FirstPass
from hyperopt_dl.second_derivatives.gradient_graph import GradientGraph
from hyperopt_dl.weights import flat

Tensors: TypeAlias = tuple[Tensor, ...]
R = TypeVar("R")


class Made(NamedTuple):
    """A step with its graph: from x and the tensors of ``wrt`` to g and b; aux; and its value."""

    graph: GradientGraph
    aux: Tensors
    value: Tensor


class Loss(Protocol):
    """The loss of a step.

    Attributes:
        moved: Where b stands in aux, and what it was before the step in ``tensors``.
    """

    moved: Sequence[int]

    def gradient(self, x: Tensor, tensors: Tensors) -> tuple[Tensor, Tensors]:
        """Return g and aux as a plain loop makes them."""

    def record(self, x: Tensor, tensors: Tensors, wrt: Sequence[int]) -> Made:
        """Make the step with its graph, in which the tensors of ``wrt`` are leaves."""

    def stand_in(
        self,
        x: Tensor,
        tensors: Tensors,
        body: Callable[[Tensor, Tensors, Tensors], R],
        first: FirstPass,
    ) -> R:
        """Call ``body`` with the value, aux and b as functions of x and tensors, to be traced."""


_INSTEAD = {
    "rnn": "Say that the model is recurrent, so that the fused kernel is not used.",
    "attention": "Take away the sdpa_kernel() around it, so that the MATH kernel is used.",
    "embedding_bag": "Use nn.Embedding and take the sum or mean of its output.",
    "cdist": "Write the distance out: (a[:, None] - b[None]).square().sum(-1).sqrt().",
    "use_reentrant": "Write use_reentrant=False.",
    "once_differentiable": "Write its backward() with differentiable operations, undecorated.",
}


class Saved(Protocol):
    """What one step keeps for ``pull``; it may be pulled more than once."""

    def pull(self, u: Tensor) -> tuple[Tensor, Tensors]:
        """Return Hu ``[p]`` and the mixed products, each in the shape of its tensor, for ũ."""

    def pull_rows(self, rows: Tensor) -> Tensor:
        """Return Hu for each of m rows, `m x p`."""

    def tensors(self) -> Iterable[Tensor]:
        """Return the tensors that are held."""


def saved_bytes(saved: Saved, beside: Iterable[Tensor] = ()) -> int:
    """Return the bytes that ``saved`` holds, without the memory of the tensors ``beside`` it."""
    kept = storages_of(dict(enumerate(beside)))
    sizes = storages_of(dict(enumerate(saved.tensors())))
    return sum(size for pointer, size in sizes.items() if pointer not in kept)


class Eager:
    """The derivatives by autograd, recorded anew at each call.

    Args:
        loss: The loss.
        wrt: Which of ``tensors`` the mixed products are taken with respect to, an attribute too.
        recurrent: Whether an ``nn.LSTM``, ``nn.GRU`` or ``nn.RNN`` is inside: cuDNN's kernels for
            these have no second derivative, and oneDNN's, which have one, cannot be traced; so both
            are switched off.
    """

    draws = True
    """Whether a step draws random numbers; here that is not known."""
    writes = True
    """Whether a step writes into what it is given; here that is not known."""

    def __init__(self, loss: Loss, *, wrt: Sequence[int] = (), recurrent: bool = False) -> None:
        self._loss = loss
        self.wrt = tuple(wrt)
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
            return self._loss.gradient(x, tensors)

    def linearize(
        self,
        x: Tensor,
        tensors: Tensors,
        *,
        key: Hashable = (),  # noqa: ARG002
    ) -> tuple[Tensor, Tensors, "Recorded"]:
        """Return g, aux, and the graph of g as what ``pull`` needs."""
        made = self.record(x, tensors)
        return flat(made.graph.g), made.aux, self.saved(made)

    def saved(self, made: Made) -> "Recorded":
        """Return what ``pull`` needs of a step."""
        return Recorded(made.graph, self._recurrent)

    def pull(self, saved: Saved, u: Tensor) -> tuple[Tensor, Tensors]:
        """Return Hu and the mixed products from what ``linearize`` kept."""
        return saved.pull(u)

    def product(
        self, x: Tensor, tensors: Tensors, u: Tensor, *, key: Hashable = ()
    ) -> tuple[Tensor, Tensors]:
        """Return Hu and the mixed products; costs about three gradients."""
        return self.linearize(x, tensors, key=key)[2].pull(u)

    def record(self, x: Tensor, tensors: Tensors) -> Made:
        """Make the step with its graph."""
        with explaining(), kernels_with_second_derivatives(self._recurrent):
            return self._loss.record(x, tensors, self.wrt)

    def entries(self, x: Tensor, tensors: Tensors) -> int:
        """Return the number of entries of ũ."""
        return len(x) + sum(flat([tensors[i]]).numel() for i in self._loss.moved)

    def made(self, x: Tensor, tensors: Tensors) -> list[Tensor]:
        """Return g and b as vectors, without a graph."""
        g, aux = self.gradient(x, tensors)
        return [g, *(flat([aux[i]]) for i in self._loss.moved)]

    def joint(self, u: Tensor, x: Tensor, *tensors: Tensor) -> tuple[Tensors, Tensors]:
        """Return ``(g, *aux), (Hu, *mixed)``: the whole of a step, as a function to be traced."""
        first = FirstPass()
        leaf = x.detach().requires_grad_()
        given = tuple(t.detach().requires_grad_(i in self.wrt) for i, t in enumerate(tensors))

        def body(value: Tensor, aux: Tensors, b: Tensors) -> tuple[Tensors, Tensors]:
            wrt = [given[i] for i in self.wrt]
            graph = GradientGraph(value, [leaf], b, wrt, first, nullcontext)
            Hu, *mixed = graph.pull(split_like(u, [leaf, *b]))
            return (*graph.g, *(each.detach() for each in aux)), (Hu, *mixed)

        with kernels_with_second_derivatives(self._recurrent), torch.enable_grad():
            return self._loss.stand_in(leaf, given, body, first)


def split_like(vector: Tensor, pieces: Sequence[Tensor]) -> list[Tensor]:
    """Return the parts of a vector in the shapes of the pieces, of which complex ones take two."""
    sizes = [piece.numel() * (1 + piece.is_complex()) for piece in pieces]
    # A view as complex numbers must not begin between two of them.
    parts = (
        part.clone() if part.storage_offset() % 2 else part for part in torch.split(vector, sizes)
    )
    return [
        torch.view_as_complex(part.reshape(*piece.shape, 2))
        if piece.is_complex()
        else part.reshape(piece.shape).to(piece.dtype)
        for part, piece in zip(parts, pieces, strict=True)
    ]


def functions_of(*values: Tensor) -> Iterable[Any]:
    """Return the nodes of autograd's graph of some values."""
    found = dict.fromkeys(value.grad_fn for value in values if value.grad_fn)
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
class Recorded:
    """The graph of a step by autograd."""

    graph: GradientGraph
    recurrent: bool

    def pull(self, u: Tensor) -> tuple[Tensor, Tensors]:
        """Return Hu and the mixed products."""
        bars = split_like(u, self.graph.outputs())
        with explaining(), kernels_with_second_derivatives(self.recurrent):
            found = self.graph.pull(bars)
        count = len(self.graph.g)
        return flat(found[:count]), found[count:]

    def pull_rows(self, rows: Tensor) -> Tensor:
        """Return Hu for each of m rows."""
        return torch.stack([self.pull(row)[0] for row in rows])

    def tensors(self) -> Iterator[Tensor]:
        """Return the tensors that are held."""
        for function in functions_of(*self.graph.outputs()):
            for name in dir(function):
                if name.startswith("_saved_") or name == "saved_tensors":
                    value = getattr(function, name)
                    values = value if isinstance(value, (list, tuple)) else (value,)
                    yield from (each for each in values if isinstance(each, Tensor))


@contextmanager
def explaining() -> Iterator[None]:
    """Say what can be done about an operator without a second derivative."""
    try:
        yield
    except RuntimeError as error:
        if reason := explained(error):
            raise reason from error
        raise


def explained(error: RuntimeError) -> TrainingError | None:
    """Return the error for an operator without a second derivative, if that is what it is."""
    if is_reentrant(error):
        return no_second_derivative("checkpoint(use_reentrant=True)")
    operator = lacking_operator(error)
    return None if operator is None else no_second_derivative(operator)


def lacking_operator(error: RuntimeError) -> str | None:
    """Return the operator that autograd could not differentiate twice; None for another error."""
    operator = re.search(
        r"derivative for '?([\w:]+)'? is not implemented|(once_differentiable)|(CuDNN RNN)",
        str(error),
    )
    return next(name for name in operator.groups() if name) if operator else None

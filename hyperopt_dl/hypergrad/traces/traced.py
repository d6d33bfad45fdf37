"""The derivatives of a training loss by graphs that are traced from it once, then replayed.

They are those of ``hypergrad.eager``, in fewer and cheaper operations. Letters as there.
"""

import warnings
from collections.abc import Hashable, Sequence

import torch
from torch import Tensor

from hyperopt_dl.errors import TrainingError
from hyperopt_dl.hypergrad.traces.agreement import (
    Example,
    copied,
    disagreement,
    is_symmetric,
    must_be_derivative,
    must_have_second_derivatives,
    must_replay,
)
from hyperopt_dl.hypergrad.traces.eager import Eager, Saved
from hyperopt_dl.hypergrad.traces.graphs import Graphs, Tensors, trace
from hyperopt_dl.seeds import seeded

MAX_TRACES = 4
"""Kinds of input that are traced; those beyond are computed eagerly."""


class Traced:
    """The derivatives by graphs, traced where a kind of input is first met, then replayed.

    A kind is the shapes, strides, dtypes and devices of all tensors, the state of autocast, and the
    caller's ``key``: whatever else the loss looks at, such as training flags. In a graph stands
    what Python saw of a tensor once; so the loss takes no step number and no schedule. A kind that
    does not trace, or comes after ``MAX_TRACES`` others, is computed eagerly.

    Args:
        eager: The loss, and the answer where there is no trace.
        compile: Whether the graphs are compiled by TorchInductor, each at its first replay.
        kinds: The graphs that are known by kind, ``None`` where a kind does not trace: those of
            another run of the same structure.
    """

    def __init__(
        self,
        eager: Eager,
        *,
        compile: bool = False,  # noqa: A002
        kinds: dict[Hashable, Graphs | None] | None = None,
    ) -> None:
        self._eager = eager
        self._compile = compile
        self.kinds = {} if kinds is None else kinds

    def gradient(
        self, x: Tensor, tensors: Tensors, *, key: Hashable = ()
    ) -> tuple[Tensor, Tensors]:
        """Return g and aux; no graph is kept."""
        return self.at(x, tensors, key=key).gradient(x, tensors)

    def linearize(
        self, x: Tensor, tensors: Tensors, *, key: Hashable = ()
    ) -> tuple[Tensor, Tensors, Saved]:
        """Return g, aux, and the activations that ``pull`` reads."""
        return self.at(x, tensors, key=key).linearize(x, tensors)

    def pull(self, saved: Saved, u: Tensor) -> tuple[Tensor, Tensors]:
        """Return Hu and the mixed products from what ``linearize`` kept."""
        return saved.pull(u)

    def product(
        self, x: Tensor, tensors: Tensors, u: Tensor, *, key: Hashable = ()
    ) -> tuple[Tensor, Tensors]:
        """Return Hu and the mixed products; costs about two gradients."""
        return self.at(x, tensors, key=key).product(x, tensors, u)

    def trace(self, x: Tensor, tensors: Tensors, *, key: Hashable = ()) -> None:
        """Trace this kind of input unless that was done; raises what tracing raises."""
        kind = _kind(x, tensors, key)
        if self.kinds.get(kind) is None:
            self.kinds[kind] = self._trace(x, tensors)

    def at(self, x: Tensor, tensors: Tensors, *, key: Hashable = ()) -> Graphs | Eager:
        """Return the graphs for this kind of input, or the eager answer where there are none."""
        kind = _kind(x, tensors, key)
        if kind not in self.kinds and len(self.kinds) < MAX_TRACES:
            ramp = torch.arange(x.numel(), device=x.device)
            moved = x.detach() * (1 + 0.01 * ramp.sin()).to(x.dtype)
            u = torch.arange(self._eager.entries(x, tensors), device=x.device).cos().to(x.dtype)
            nearby = (moved, tensors, u)
            try:
                self.kinds[kind] = self._trace(x, tensors)
                reason = disagreement(self._eager, self, nearby, 0, key=key)
            except TrainingError:
                raise
            except Exception as error:
                reason = _quote(error)
            if reason is not None:
                self.kinds[kind] = None
                _warn(reason)
        return self.kinds.get(kind) or self._eager

    def _trace(self, x: Tensor, tensors: Tensors) -> Graphs:
        u = x.new_ones(self._eager.entries(x, tensors))
        with seeded(0, x.device):  # the caller's generators stay where they are
            graphs = trace(self._eager.joint, u, copied(x), tuple(map(copied, tensors)))
        return graphs.compiled() if self._compile else graphs


def checked(eager: Eager, example: Example, seed: int) -> bool:
    """See that a step can be computed again and is differentiated rightly.

    Costs about ten eager steps.

    Returns:
        Whether its derivative is a symmetric matrix.

    Raises:
        TrainingError: It cannot, or is not; or an operator in it has no second derivative.
    """
    must_replay(eager, example, seed)
    must_have_second_derivatives(eager, example)
    must_be_derivative(eager, example, seed)
    return is_symmetric(eager, example, seed)


def choose(
    eager: Eager,
    examples: Sequence[Example],
    seeds: Sequence[int],
    *,
    compile: bool = False,  # noqa: A002
    kinds: dict[Hashable, Graphs | None] | None = None,
    key: Hashable = (),
) -> Eager | Traced:
    """Return the traced derivatives, or the eager ones and a warning where tracing fails.

    Costs one trace, and about two eager steps more than there are examples.

    Args:
        eager: The derivatives by autograd.
        examples: ``(x, tensors, ũ)`` to compare on, about three, in which everything differs.
        seeds: Where the generators start, a number for each example.
        compile: Whether the graphs are compiled.
        kinds: As for ``Traced``.
        key: As in the calls of ``Traced``.

    Raises:
        TrainingError: The graphs do not compile.
    """
    traced = Traced(eager, compile=compile, kinds=kinds)
    try:
        reason = probe(eager, traced, examples, seeds, key=key)
    except TrainingError:
        raise
    except Exception as error:
        reason = _quote(error)
    if reason is None:
        return traced
    traced.kinds.clear()
    _warn(reason)
    return eager


def probe(
    eager: Eager,
    traced: Traced,
    examples: Sequence[Example],
    seeds: Sequence[int],
    *,
    key: Hashable = (),
) -> str | None:
    """Return how the two differ on the examples, or ``None``; raises what tracing raises.

    The tolerance is 1e-9 of a tensor's largest entry in float64, and 1e-4 in float32.
    """
    for (x, tensors, u), seed in zip(examples, seeds, strict=True):
        traced.trace(x, tensors, key=key)
        if reason := disagreement(eager, traced, (x, tensors, u), seed, key=key):
            return reason
    return None


def _kind(x: Tensor, tensors: Tensors, key: Hashable) -> Hashable:
    device = x.device.type
    autocast = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
    return key, autocast, tuple(map(_form, (x, *tensors)))


def _form(tensor: Tensor) -> Hashable:
    strides = tensor.stride() if tensor.layout == torch.strided else tensor.layout
    return tensor.shape, strides, tensor.dtype, tensor.device


def _quote(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:200]}"


def _warn(reason: str) -> None:
    warnings.warn(
        f"Hypergradients of this training are computed without tracing, which is right but slower: "
        f"{reason}",
        UserWarning,
        stacklevel=3,
    )

"""Whether a step gives the same numbers again, and the same numbers another way."""

import math
from collections.abc import Callable, Hashable
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from hyperopt_dl.errors import TrainingError
from hyperopt_dl.hypergrad.traces.eager import (
    Eager,
    Saved,
    Tensors,
    functions_of,
    no_second_derivative,
)
from hyperopt_dl.seeds import seeded

Example: TypeAlias = tuple[Tensor, Tensors, Tensor]
"""One ``(x, tensors, u)`` to compare two implementations on."""

TRACING = {torch.float64: 1e-9, torch.float32: 1e-4}
"""How far a trace may be from the step that it was made of, as a part of the largest entry."""
_ROUNDING = {torch.float64: 1e-12, torch.float32: 1e-5}
_ONCE = once_differentiable(lambda _, *grads: grads).__code__


class Derivatives(Protocol):
    """What ``Eager`` and ``Traced`` have in common."""

    def gradient(
        self, x: Tensor, tensors: Tensors, *, key: Hashable = ()
    ) -> tuple[Tensor, Tensors]:
        """Return g and aux."""

    def linearize(
        self, x: Tensor, tensors: Tensors, *, key: Hashable = ()
    ) -> tuple[Tensor, Tensors, Saved]:
        """Return g, aux and what ``pull`` needs."""

    def product(
        self, x: Tensor, tensors: Tensors, u: Tensor, *, key: Hashable = ()
    ) -> tuple[Tensor, Tensors]:
        """Return Hu and the mixed products."""


def disagreement(
    eager: Eager, traced: Derivatives, example: Example, seed: int, key: Hashable
) -> str | None:
    """Return how the two differ on an example, in words; ``None`` where they do not."""
    x, tensors, u = example

    def run(call: Callable[..., Any], *more: Tensor) -> Any:
        with seeded(seed, x.device):
            return call(x, tuple(map(copied, tensors)), *more, key=key)

    tolerance = TRACING.get(x.dtype, 1e-2)
    g, aux, saved = run(eager.linearize)
    Hu, mixed = saved.pull(u)
    expected = _named(g, aux, Hu, mixed)
    product = run(traced.product, u)
    for g, aux, saved in (run(traced.linearize), (*run(traced.gradient), None)):
        Hu, mixed = product if saved is None else saved.pull(u)
        if difference := _difference(_named(g, aux, Hu, mixed), expected, tolerance):
            return f"the traced step does not give the numbers of the eager one, {difference}"
    return None


def must_replay(eager: Eager, example: Example, seed: int) -> None:
    """Raise unless two eager steps on the same inputs agree, up to the order of summation."""
    x, tensors, u = example
    runs = []
    for _ in range(2):
        with seeded(seed, x.device):
            g, aux, saved = eager.linearize(x, tuple(map(copied, tensors)))
        Hu, mixed = saved.pull(u)
        runs.append(_named(g, aux, Hu, mixed))
    if difference := _difference(runs[1], runs[0], _ROUNDING.get(x.dtype, 1e-2)):
        raise TrainingError(
            f"A training step must give the same numbers when it is computed again from the same "
            f"parameters, batch and seed; it did not, {difference}. Likely sources: numpy.random, "
            f"Python's random, a torch.Generator of your own, a counter or another state that a "
            f"forward pass changes. Draw from torch's default generator, and keep state in "
            f"registered buffers."
        )


def must_be_symmetric(eager: Eager, example: Example, seed: int) -> None:
    """Raise unless ``v·(Hu) = u·(Hv)``: a Hessian is its own transpose.

    A second backward pass that does not belong to the first shows here, without another derivation
    of the same numbers to hold it against. What is only put in the place of a derivative, such as a
    straight-through estimator, is symmetric like one.
    """
    x, tensors, u = example
    v = u.flip(0) + u.abs()
    with seeded(seed, x.device):
        saved = eager.linearize(x, tuple(map(copied, tensors)))[2]
    Hu, Hv = (saved.pull(each)[0] for each in (u, v))
    size = float(u.norm() * Hv.norm() + v.norm() * Hu.norm())
    if not math.isfinite(size):  # a loss that is not finite has no derivative to be wrong
        return
    error = abs(float(v.double() @ Hu.double() - u.double() @ Hv.double()))
    if not error <= 10 * TRACING.get(x.dtype, 1e-2) * size:
        raise TrainingError(
            f"The second derivative of the training loss must be symmetric, but v·(Hu) and u·(Hv) "
            f"differ by {error:.1e}, at a size of {size:.1e}. Likely source: the backward() of a "
            f"torch.autograd.Function that calls another one whose backward() is wrong. Write it "
            f"with differentiable operations."
        )


def must_have_second_derivatives(eager: Eager, example: Example) -> None:
    """Raise for a function that autograd would take for a constant the second time, silently."""
    x, tensors, _ = example
    with seeded(0, x.device):
        _, value, _ = eager.record(x, tuple(map(copied, tensors)))
    for function in functions_of(value):
        user = getattr(function, "_forward_cls", None)
        if user is not None and getattr(user.backward, "__code__", None) is _ONCE:
            raise no_second_derivative(f"{user.__name__}, once_differentiable,")


def close(a: Tensor, b: Tensor) -> bool:
    """Return whether two tensors differ by no more than two ways to compute the same do."""
    if not b.numel():
        return True
    finite = torch.where(b.isfinite(), b, torch.zeros_like(b))
    tolerance = TRACING.get(b.dtype, 1e-2) * float(finite.abs().max())
    return torch.allclose(a, b, rtol=0, atol=tolerance, equal_nan=True)


def _named(g: Tensor, aux: Tensors, Hu: Tensor, mixed: Tensors) -> dict[str, Tensor]:
    return {
        "the gradient": g,
        **{f"auxiliary output {i}": tensor for i, tensor in enumerate(aux)},
        "the Hessian-vector product": Hu,
        **{f"mixed product {i}": tensor for i, tensor in enumerate(mixed)},
    }


def _difference(
    found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float
) -> str | None:
    """Return where the largest entries of the difference exceed the tolerance, in words.

    NaN is the same as NaN: a loss that is not finite may well be so each time.
    """
    sizes = {
        name: float(tensor.nan_to_num(0.0, 0.0, 0.0).abs().max())
        for name, tensor in expected.items()
        if tensor.numel()
    }
    noise = 100 * torch.finfo(expected["the gradient"].dtype).eps * max(sizes.values())
    for name, size in sizes.items():
        a, b = found[name].double(), expected[name].double()
        error = float(torch.where((a == b) | (a.isnan() & b.isnan()), 0.0, (a - b).abs()).max())
        if not error <= tolerance * size + noise:
            return f"{name} by {error:.1e} where its largest entry is {size:.1e}"
    return None


def copied(tensor: Tensor) -> Tensor:
    """Return another tensor with the same values and strides: a view where a copy would not."""
    copy = tensor.detach().clone()
    return copy if copy.stride() == tensor.stride() else tensor.detach()

"""Whether a step gives the same numbers again, and the same numbers another way."""

import math
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from hyperopt_dl.errors import TrainingError
from hyperopt_dl.hypergrad.traces.eager import (
    Eager,
    Made,
    Saved,
    Tensors,
    functions_of,
    no_second_derivative,
)
from hyperopt_dl.seeds import seeded
from hyperopt_dl.weights import flat

Example: TypeAlias = tuple[Tensor, Tensors, Tensor]
"""One ``(x, tensors, u)`` to compare two implementations on."""

TRACING = {torch.float64: 1e-9, torch.float32: 1e-4}
"""How far a trace may be from the step that it was made of, as a part of the largest entry."""
_ROUNDING = {torch.float64: 1e-12, torch.float32: 1e-5}
_ONCE = once_differentiable(lambda _, *grads: grads).__code__


class Derivatives(Protocol):
    """What ``Eager``, ``Traced`` and ``Graphs`` have in common."""

    @property
    def gradient(self) -> Callable[..., tuple[Tensor, Tensors]]:
        """From x and tensors to g and aux."""

    @property
    def linearize(self) -> Callable[..., tuple[Tensor, Tensors, Saved]]:
        """From x and tensors to g, aux and what ``pull`` needs."""

    @property
    def product(self) -> Callable[..., tuple[Tensor, Tensors]]:
        """From x, tensors and ũ to Hu and the mixed products."""


def disagreement(
    eager: Eager, traced: Derivatives, example: Example, seed: int, **more_of_traced: Hashable
) -> str | None:
    """Return how the two differ on an example, in words; ``None`` where they do not."""
    x, tensors, u = example

    def run(call: Callable[..., Any], *more: Tensor) -> Any:
        with seeded(seed, x.device):
            return call(x, tuple(map(copied, tensors)), *more, **more_of_traced)

    tolerance = TRACING.get(x.dtype, 1e-2)
    with seeded(seed, x.device):
        g, aux, saved = eager.linearize(x, tuple(map(copied, tensors)))
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


def is_symmetric(eager: Eager, example: Example, seed: int) -> bool:
    """Return whether ``v·(Hu) = u·(Hv)``, as where g is the gradient of a function.

    It is not where a gradient is stopped, scaled or reversed on its way. Where something acts in
    the first backward pass alone it is taken for not symmetric: it may stand between a step's
    buffers and the parameters.
    """
    x, tensors, u = example
    with seeded(seed, x.device):
        made = eager.record(x, tuple(map(copied, tensors)))
    if made.graph.acts_once:
        return False
    saved = eager.saved(made)
    rest = torch.zeros_like(u[len(x) :])
    u = u[: len(x)]
    v = u.flip(0) + u.abs()
    Hu, Hv = (saved.pull(torch.cat([each, rest]))[0] for each in (u, v))
    size = float(u.norm() * Hv.norm() + v.norm() * Hu.norm())
    if not math.isfinite(size):  # a loss that is not finite has no derivative to be wrong
        return True
    error = abs(float(v.double() @ Hu.double() - u.double() @ Hv.double()))
    return error <= 10 * TRACING.get(x.dtype, 1e-2) * size


def must_be_derivative(eager: Eager, example: Example, seed: int) -> None:
    """Raise unless the products are those of the derivative of (g, b), by difference quotients.

    They are taken in float64: between two points in float32, as far apart as rounding makes
    necessary, thousands of units of a network may switch. Where the loss does not take float64, a
    quotient beside a kink says nothing, and only one of a smooth loss counts.

    Raises:
        TrainingError: They are not.
    """
    try:
        wide = _widened(example)
        made, functions = _made(eager, wide, seed)
    except TrainingError:
        raise
    except Exception:  # a dtype that is written into the model
        wide = example
        made, functions = _made(eager, wide, seed)
    narrowest = _narrowest(functions)
    kinked = any(name in f.name().lower() for f in functions for name in _KINKED)
    if narrowest != torch.float64 and kinked:
        return
    error = _furthest_off(eager, made, wide, seed, narrowest)
    if error is not None:
        raise _no_derivative(functions, error)
    if wide is not example:
        _must_agree_with(eager.saved(made), wide, eager, example, seed)


def _widened(example: Example) -> Example:
    x, tensors, u = example
    return (
        x.double(),
        tuple(t.double() if t.dtype in _NARROW else t for t in tensors),
        u.double(),
    )


def _made(eager: Eager, example: Example, seed: int) -> tuple[Made, list[Any]]:
    """Return a step, and the functions of its graph."""
    x, tensors, _ = example
    with seeded(seed, x.device):
        made = eager.record(x, tuple(map(copied, tensors)))
    return made, list(functions_of(made.value, *made.graph.outputs()))


def _must_agree_with(
    saved: Saved, wide: Example, eager: Eager, example: Example, seed: int
) -> None:
    """Raise unless a product is the same in the dtype of the run and in float64."""
    x, tensors, u = example
    expected = saved.pull(wide[2])[0]
    with seeded(seed, x.device):
        narrow = eager.linearize(x, tuple(map(copied, tensors)))[2].pull(u)[0]
    size = float(expected.norm())
    error = float((narrow.double() - expected).norm())
    if math.isfinite(size) and not error <= 0.1 * size + 1e3 * torch.finfo(x.dtype).eps:
        raise TrainingError(
            f"A product with the second derivative of the training loss must be the same in "
            f"{x.dtype} and in float64, but differs by {error:.1e} at a size of {size:.1e}. Train "
            f"in float64, or leave the gradient out: every sampler of Optuna tunes this training."
        )


def _furthest_off(
    eager: Eager, made: Made, example: Example, seed: int, narrowest: torch.dtype
) -> float | None:
    """Return by what part a product is off; ``None`` where none is.

    For a direction z of x, and one of the other tensors that are differentiated, the quotient
    ``q = (f(x + hz) - f(x - hz)) / 2h`` of ``f = (g, b)`` is compared along itself:
    ``q·Jz = (qJ)·z`` is what one pull gives. A kink between the two points, or rounding, spoils the
    quotient for one h: the best of several counts, and where rounding says too much, none.
    """
    x, tensors, u = example
    dtype, saved = x.dtype, eager.saved(made)
    lengths, tolerance = _QUOTIENTS[narrowest]
    f_sizes = [len(flat([piece])) for piece in made.graph.outputs()]

    def f(x: Tensor, moved: Tensors) -> Tensor:
        with seeded(seed, x.device):
            return torch.cat(eager.made(x, tuple(map(copied, moved))))

    for z, dots in _directions(eager, x, tensors, u):
        errors = []
        for h in lengths:
            ahead, behind = (
                f(x + s * h * z, _moved(tensors, dots, s * h)).double() for s in (1.0, -1.0)
            )
            q = (ahead - behind) / (2 * h)
            size = 0.5 * float((ahead + behind).norm())
            if not math.isfinite(size):
                return None
            v = _even(q, f_sizes)
            x_bar, bars = saved.pull(v.to(dtype))
            pulled = float(x_bar.double() @ z.double())
            pulled += sum(
                float((bar * dots[i].conj()).real.double().sum())
                for i, bar in zip(eager.wrt, bars, strict=True)
                if i in dots
            )
            expected = float(v @ q)
            noise = 4 * torch.finfo(narrowest).eps * size / h * float(v.norm())
            largest = max(abs(expected), abs(pulled))
            if largest <= noise:
                errors = [0.0]
                break
            errors.append((abs(expected - pulled) - noise) / largest)
            if errors[-1] <= tolerance:
                break
        if min(errors) > tolerance:
            return min(errors)
    return None


def _moved(tensors: Tensors, dots: dict[int, Tensor], h: float) -> Tensors:
    return tuple(t + h * dots[i] if i in dots else t for i, t in enumerate(tensors))


def _narrowest(functions: Iterable[Any]) -> torch.dtype:
    """Return the dtype of a graph with the fewest digits: under autocast half of those of x."""
    results = (each for f in functions for each in getattr(f, "_input_metadata", ()))
    found = {each.dtype for each in results}
    return next((dtype for dtype in _QUOTIENTS if dtype in found), torch.float64)


def _directions(
    eager: Eager, x: Tensor, tensors: Tensors, u: Tensor
) -> Iterator[tuple[Tensor, dict[int, Tensor]]]:
    """Yield directions (z, dots) as long as what they move: of x alone, then of the tensors."""
    z = u[: len(x)].flip(0)
    yield z * _length(x) / _length(z), {}
    if eager.wrt:
        generator = torch.Generator().manual_seed(len(x))
        noise = {
            i: torch.randn(tensors[i].shape, generator=generator, dtype=torch.double)
            for i in eager.wrt
        }
        dots = {i: (n * _length(tensors[i])).to(tensors[i]) for i, n in noise.items()}
        yield torch.zeros_like(x), dots


def _length(tensor: Tensor) -> float:
    """Return the root of the mean square of the entries, or 1 where all are zero."""
    size = float(tensor.detach().double().abs().square().mean().sqrt()) if tensor.numel() else 0.0
    return size if size > 0 and math.isfinite(size) else 1.0


def _even(q: Tensor, sizes: Sequence[int]) -> Tensor:
    """Return q with the parts made about as long as each other, so that none hides behind one."""
    parts = torch.split(q, list(sizes))
    norms = [float(part.norm()) for part in parts]
    least = 0.03 * max(norms) or 1.0
    pairs = zip(parts, norms, strict=True)
    return torch.cat([part / (norm or 1.0) / max(norm, least) for part, norm in pairs])


def _no_derivative(functions: Iterable[Any], error: float) -> TrainingError:
    """Return the error for a step whose second derivative is not that of its gradient."""
    own = [f._forward_cls.__name__ for f in functions if hasattr(f, "_forward_cls")]
    own = [name for name in dict.fromkeys(own) if not name.startswith("_")]
    known = {f.name() for f in functions}
    named = [remedy for name, remedy in _WRONG.items() if any(name in each for each in known)]
    reasons = [
        *named,
        *(
            [
                f"the backward() of the torch.autograd.Function {', '.join(own)}, which is no "
                f"differentiable function of what it is given or stands for another one (a "
                f"straight-through estimator): write it with differentiable operations on its "
                f"inputs"
            ]
            if own
            else []
        ),
    ]
    likely = "; ".join(reasons) or (
        "values that leave torch and come back, such as x.numpy() or .item(), or a buffer that is "
        "computed from such: Supervised(buffers='constant') leaves buffers out"
    )
    return TrainingError(
        f"The derivative of a training step must be that of its gradient, but beside difference "
        f"quotients it is off by {error:.1%}. Likely source: {likely}. Or leave the gradient out: "
        f"every sampler of Optuna tunes this training too."
    )


_QUOTIENTS = {
    torch.float16: ((0.1, 0.3, 0.03), 0.3),
    torch.bfloat16: ((0.1, 0.3, 0.03), 0.3),
    torch.float32: ((1e-3, 3e-3, 3e-4, 1e-2), 0.05),
    torch.float64: ((1e-7, 1e-6, 1e-8, 1e-9, 1e-5), 1e-3),
}
"""Lengths of a difference, in the order that they are tried, and how far a product may be off.

By the dtype with the fewest digits in the graph; narrow ones first.
"""
_NARROW = (torch.float32, torch.float16, torch.bfloat16)
_KINKED = ("relu", "threshold", "max", "min", "clamp", "abs", "sort", "topk", "where", "sign")
_WRONG = {
    "WeightNorm": "torch's weight norm, whose second derivative is wrong on a CPU: compute "
    "g * v / v.norm() yourself",
}


def must_have_second_derivatives(eager: Eager, example: Example) -> None:
    """Raise for a function that autograd would take for a constant the second time, silently."""
    x, tensors, _ = example
    with seeded(0, x.device):
        made = eager.record(x, tuple(map(copied, tensors)))
    for function in functions_of(made.value, *made.graph.outputs()):
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
    eps = torch.finfo(expected["the gradient"].dtype).eps
    found, expected = ({n: _real(t) for n, t in part.items()} for part in (found, expected))
    sizes = {
        name: float(tensor.nan_to_num(0.0, 0.0, 0.0).abs().max())
        for name, tensor in expected.items()
        if tensor.numel()
    }
    noise = 100 * eps * max(sizes.values())
    for name, size in sizes.items():
        a, b = found[name], expected[name]
        error = float(torch.where((a == b) | (a.isnan() & b.isnan()), 0.0, (a - b).abs()).max())
        if not error <= tolerance * size + noise:
            return f"{name} by {error:.1e} where its largest entry is {size:.1e}"
    return None


def _real(tensor: Tensor) -> Tensor:
    """Return the entries as double numbers: flags, counts, and the parts of complex ones too."""
    tensor = tensor if tensor.layout == torch.strided else tensor.to_dense()
    return (torch.view_as_real(tensor) if tensor.is_complex() else tensor).double()


def copied(tensor: Tensor) -> Tensor:
    """Return another tensor with the same values and strides: a view where a copy would not."""
    copy = tensor.detach().clone()
    if tensor.layout != torch.strided:
        return copy
    return copy if copy.stride() == tensor.stride() else tensor.detach()

"""Whether the second derivative that autograd has is one, by what can be seen of a loss.

At a loss in a loop there is its graph and nothing else. A Hessian is its own transpose, which the
graph alone can show to be so: ``z·(H Hz) = Hz·Hz``. That finds an operation whose second
derivative does not belong to its first. What the loss takes for a constant, as a ``detach()``
does, leaves a Hessian that is symmetric and yet not the derivative of the gradient: only the
gradients at other weights show it, for which the loss has to be computed again.

Letters: g gradient, H Hessian of the loss, z a random direction in the weights, ε how far along.
"""

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from hyperopt_dl.errors import TrainingError
from hyperopt_dl.hypergrad.traces.eager import functions_of
from hyperopt_dl.online.products import Parts, checked, gradient, product
from hyperopt_dl.second_derivatives.first_pass import FirstPass
from hyperopt_dl.seeds import derive, seeded

SYMMETRY = {torch.float64: 1e-9, torch.float32: 1e-4}
"""How far z·(H Hz) may be from Hz·Hz, as a part of it; with parts in half precision 2e-2."""
QUOTIENT = {torch.float64: 1e-4, torch.float32: 5e-3}
"""How far a difference quotient of g may be from Hz, as a part of it.

Of 14 honest networks, the worst was at 3e-8 and 6e-4; of 9 with a part that is stopped, none was
below 0.07 and 0.026.
"""
_EPS = {
    torch.float64: (1e-4, 1e-5, 1e-6, 1e-7),
    torch.float32: (1e-2, 1e-3, 3e-4, 1e-4, 3e-5),
}
"""The ε that quotients are taken with, in the size of a parameter's entries."""
_ONCE = once_differentiable(lambda _, *grads: grads).__code__
_WRAPPED = FirstPass().once(print).__code__
_ENGINE = torch.autograd.graph._engine_run_backward.__code__
_KNOWN = {
    "WeightNormInterface": (
        "torch's fused weight_norm, whose second derivative is wrong on the CPU. Write the weight "
        "out, g * v / v.norm(dim=1, keepdim=True), in place of weight_norm"
    ),
    "Embedding": ("nn.Embedding with scale_grad_by_freq. Leave that option out"),
}
_STOPPED = (
    "a detach(), .data, .item() or no_grad() on what depends on the weights: targets of the model "
    "itself, focal weights, straight-through estimators, power iterations. Such stop-gradients "
    "make the training loss no potential: what .grad follows is no gradient of a function, and "
    "second derivatives miss how the stopped part moves. Let the gradient flow there too, use "
    "ForwardTuner.from_training, which follows detach() and no_grad(), or set discount=0, which "
    "needs no second derivative"
)


def must_be_symmetric(loss: Tensor, g: Parts, params: Sequence[Tensor], step: int) -> None:
    """Raise a TrainingError unless z·(H Hz) = Hz·Hz on the graph of g, which is kept.

    Costs two Hessian–vector products.
    """
    z = _directions(params, derive(0, "symmetry", step))
    Hz = product(g, params, z, last=False)
    square = _inner(Hz, Hz)
    if not 0 < square < math.inf:  # linear, or not finite: no second derivative to be wrong
        return
    norm = math.sqrt(square)
    u = [None if part is None else part / norm for part in Hz]
    Hu = product(g, params, u, last=False)
    transposed = _inner(Hu, z)
    if not math.isfinite(transposed):
        return
    noise = 100 * torch.finfo(params[0].dtype).eps * math.sqrt(_inner(z, z) * _inner(Hu, Hu))
    tolerance = 2e-2 if has_half(loss) else SYMMETRY.get(params[0].dtype, 2e-2)
    if abs(transposed - norm) > tolerance * norm + noise:
        raise TrainingError(
            f"The second derivative of the training loss must be symmetric, but z·(Hu) and u·(Hz) "
            f"are {transposed:.4g} and {norm:.4g} for a random z. Likely source: "
            f"{'; or '.join(_sources(loss))}. Or set discount=0, which needs no second derivative."
        )


def must_be_twice_differentiable(loss: Tensor) -> None:
    """Raise a TrainingError for a function that autograd may hold for constant the second time."""
    for function in functions_of(loss):
        user = getattr(function, "_forward_cls", None)
        if user is not None and getattr(user.backward, "__code__", None) is _ONCE:
            raise TrainingError(
                f"Tangents need second derivatives of the training loss, and {user.__name__} is "
                f"marked as once_differentiable. Write its backward() with differentiable "
                f"operations, undecorated, set discount=0, or use HypergradientDescent."
            )


def must_not_read_a_padding_row(loss: Tensor) -> None:
    """Raise a TrainingError where an embedding's padding row, kept from gradients, is used too."""
    functions = list(functions_of(loss))
    padded = [f for f in functions if "Embedding" in f.name() and _padding(f) >= 0]
    weights = [f.next_functions[0][0] for f in padded]
    for function in functions if padded else ():
        if function not in padded and any(f in weights for f, _ in function.next_functions):
            raise TrainingError(
                "The gradient of the training loss must be that of a function, but an nn.Embedding "
                "with padding_idx keeps its part from a row of a weight that something else uses "
                "too, as a tied output layer. Leave padding_idx out, or set discount=0."
            )


@contextmanager
def no_edits() -> Iterator[None]:
    """Raise a TrainingError where a hook on an activation or a module edits the gradient inside.

    Seen by the calls that autograd makes from this thread: on the CPU, and not under a profiler. A
    hook on a parameter is none of these where it is silenced.
    """
    if sys.getprofile() is not None:
        yield
        return
    edits: list[str] = []

    def watch(frame: Any, event: str, returned: Any) -> None:
        caller = frame.f_back
        if event != "return" or caller is None or not isinstance(returned, Tensor | tuple):
            return
        code = frame.f_code
        if code is _WRAPPED:
            code = getattr(frame.f_locals["hook"], "__code__", code)
        by_torch = code.co_filename.startswith(_TORCH)
        if not by_torch and (caller.f_code is _ENGINE or caller.f_code.co_filename == _HOOKS):
            edits.append(f"{code.co_name} ({code.co_filename}:{code.co_firstlineno})")

    sys.setprofile(watch)
    try:
        yield
    finally:
        sys.setprofile(None)
    if edits:
        raise TrainingError(
            f"The gradient of the training loss must be that of its graph, but hooks on "
            f"activations or modules return another one, got {sorted(set(edits))}: autograd would "
            f"call them again in the second derivative. Edit the gradients of parameters "
            f"(param.register_hook), write it into the loss, or set discount=0."
        )


def must_be_the_derivative(
    closure: Callable[[], Tensor], params: Sequence[Tensor], seed: int = 0
) -> None:
    """Raise a TrainingError unless Hz is the difference quotient of g along a random z.

    The weights are put back to the same bits. Costs up to twelve gradients and a product.

    Args:
        closure: Returns the training loss on one batch, anew at each call, and does nothing else.
        params: The parameters that are trained.
        seed: What torch's generators start from at each call of ``closure``.
    """
    dtype, device = params[0].dtype, params[0].device

    def at(graph: bool = False) -> tuple[Tensor, Parts]:
        with torch.enable_grad(), seeded(derive(seed, "check"), device):
            loss = closure()
            checked(loss)
            return loss, gradient(loss, params, graph=graph)

    loss, g = at(graph=True)
    # Along weights without a gradient, as a padding row, training does not go.
    z = [
        torch.zeros_like(param)
        if part is None
        else direction * (param.detach().square().mean().sqrt() + 1e-2) * (part != 0)
        for direction, param, part in zip(
            _directions(params, derive(seed, "z")), params, g, strict=True
        )
    ]
    must_be_twice_differentiable(loss)
    if dtype not in QUOTIENT or has_half(loss):
        raise TrainingError(
            f"check() takes difference quotients, which half precision has too few digits for, got "
            f"a loss with parts in it and parameters in {dtype}. Compute the loss without "
            f"torch.autocast, by a model in float32 or better in float64."
        )
    tolerance = QUOTIENT[dtype]
    size = math.sqrt(_inner(g, g))
    Hz = product(g, params, z, last=True)
    again = at()[1]
    if not _distance(g, again) <= 1e-2 * tolerance * size:
        raise TrainingError(
            "check() needs the same loss from each call, but its gradient was another one the "
            "second time. Draw from torch's default generators alone, take the same batch, and "
            "change nothing that the loss depends on, such as a buffer with a moving average or a "
            "power iteration (spectral_norm): tangents know nothing of what moves there. Use "
            "ForwardTuner.from_training, which follows it, or set discount=0."
        )
    start = [param.detach().clone() for param in params]
    best, quotient_norm = math.inf, 0.0
    try:
        for eps in _EPS[dtype]:
            ahead, behind = (_gradient_at(at, params, start, z, sign * eps) for sign in (1.0, -1.0))
            quotient = [
                None if a is None or b is None else (a - b) / (2 * eps)
                for a, b in zip(ahead, behind, strict=True)
            ]
            norm = math.sqrt(_inner(quotient, quotient))
            larger = max(norm, math.sqrt(_inner(Hz, Hz)))
            # A thousand roundings: where g does not change, they are all of the quotient.
            floor = 1e3 * torch.finfo(dtype).eps * size / eps
            error = _distance(quotient, Hz) / (larger + floor or 1.0)
            if not error >= best:
                best, quotient_norm = error, norm
    finally:
        _write(params, start)
    if not best <= tolerance:
        norm = math.sqrt(_inner(Hz, Hz))
        kinks = (
            ""
            if dtype == torch.float64
            else " If there is none of these: the kinks of ReLU and max-pooling can lie too close "
            "for float32; check a model and a batch in float64, or few examples."
        )
        raise TrainingError(
            f"The second derivative of the training loss must be the derivative of its gradient, "
            f"but along a random direction they differ by {best:.1e} of the larger one, of norms "
            f"{norm:.4g} and {quotient_norm:.4g} (a difference quotient). Likely source: "
            f"{'; or '.join([*_sources(loss, others=False), _STOPPED])}.{kinks}"
        )


def _gradient_at(
    at: Callable[[], tuple[Tensor, Parts]],
    params: Sequence[Tensor],
    start: Sequence[Tensor],
    z: Sequence[Tensor],
    eps: float,
) -> Parts:
    _write(params, [s.add(d, alpha=eps) for s, d in zip(start, z, strict=True)])
    return at()[1]


def _write(params: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    with torch.no_grad():
        for param, value in zip(params, values, strict=True):
            param.copy_(value)


def _directions(params: Sequence[Tensor], seed: int) -> list[Tensor]:
    generators: dict[torch.device, torch.Generator] = {}
    for param in params:
        if param.device not in generators:
            generators[param.device] = torch.Generator(param.device).manual_seed(seed)
    return [
        torch.randn(p.shape, generator=generators[p.device], dtype=p.dtype, device=p.device)
        for p in params
    ]


def _inner(a: Sequence[Tensor | None], b: Sequence[Tensor | None]) -> float:
    pairs = [(x, y) for x, y in zip(a, b, strict=True) if x is not None and y is not None]
    return math.fsum(float((x.detach().double() * y.detach().double()).sum()) for x, y in pairs)


def _distance(a: Sequence[Tensor | None], b: Sequence[Tensor | None]) -> float:
    """The norm of a - b, where None is 0."""
    parts: list[Tensor | None] = []
    for x, y in zip(a, b, strict=True):
        if x is None or y is None:
            parts.append(x if y is None else y)
        else:
            parts.append(x.detach() - y.detach())
    return math.sqrt(_inner(parts, parts))


def has_half(loss: Tensor) -> bool:
    """Return whether a part of the graph is computed in half precision, as under autocast."""
    for function in functions_of(loss):
        for entry in getattr(function, "_input_metadata", ()):
            if entry.dtype in (torch.bfloat16, torch.float16):
                return True
    return False


def _padding(function: Any) -> int:
    """Return the row that an embedding keeps from gradients, below 0 for none."""
    row = int(getattr(function, "_saved_padding_idx", -1))
    return row if row < 2**62 else -1


def _sources(loss: Tensor, *, others: bool = True) -> list[str]:
    """Return what in the graph of a loss is known to have wrong second derivatives, in words."""
    functions = list(functions_of(loss))
    names = [function.name() for function in functions]
    found = [text for part, text in _KNOWN.items() if any(part in name for name in names)]
    own = {f._forward_cls.__name__ for f in functions if hasattr(f, "_forward_cls")}
    if own:
        found.append(
            f"the backward() of the torch.autograd.Function {', '.join(sorted(own))}. Write it "
            f"with differentiable operations of what it is given, and of nothing detached"
        )
    return found or (["a hook or an operation that edits the gradient"] if others else [])


_TORCH = torch.__path__[0]
_HOOKS = torch.utils.hooks.__file__

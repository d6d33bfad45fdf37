"""Operations of torch as a step that is differentiated twice needs them.

Inside the block of ``Substitutes`` the operations of a forward pass give the numbers that they give
outside, and first derivatives too. What differs is the second pass:

* what is detached, or computed under ``no_grad``, is a constant in the first pass alone
  (``first_pass``); so are hooks that a module hangs on its activations;
* batch normalization has a closed form, and its running statistics a derivative;
* weight normalization is written out: the second derivative of torch's kernel is wrong on a CPU
  (2.13), and so is that of an embedding that scales its gradients or leaves out its padding;
* a label smoothing may be a hyperparameter.

What takes a value out of the graph, such as ``tolist()``, is refused where a trace is made.
"""

from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from torch.overrides import TorchFunctionMode

from hyperopt_dl.errors import TrainingError
from hyperopt_dl.second_derivatives.batch_norm import batch_norm
from hyperopt_dl.second_derivatives.first_pass import FirstPass

Statistics: TypeAlias = Callable[
    [Tensor, Tensor | None, Tensor | None, float], tuple[Tensor, Tensor, Tensor]
]
"""From ``x, weight, bias, eps`` to the normalized x, its mean and its variance."""


class LookedAtValueError(RuntimeError):
    """A forward pass that looks at the value of a tensor, so that no trace can stand for it."""


class Substitutes(TorchFunctionMode):
    """A block in which torch's operations have right second derivatives.

    Args:
        first: Says when the first backward pass of the step runs.
        tracing: Whether a trace is made, in which no value may be looked at.
        pushed: Whether what is recorded is differentiated a third time, in the adjoints that are
            pulled back; the closed form of batch normalization then makes room for torch's own.
        written: Tensors that the step may write into while it computes without a graph, such as
            buffers: what is computed from one of them has to outlast that.
    """

    def __init__(
        self,
        first: FirstPass,
        *,
        tracing: bool = False,
        pushed: bool = False,
        written: Iterable[Tensor] = (),
    ) -> None:
        super().__init__()
        self.first = first
        self._tracing = tracing
        self._statistics = written_out if pushed else batch_norm
        self._without_graph = False
        self._written = {id(tensor): tensor for tensor in written}

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Carry out an operation, or what takes its place."""
        kwargs = kwargs or {}
        if func is torch._C._set_grad_enabled:
            self._without_graph = not args[0]
        if func in _LOOKS:
            if self._tracing:
                raise LookedAtValueError(
                    f"the forward pass looks at values of tensors ({func.__name__}), which a trace "
                    f"would keep"
                )
            return func(args[0].detach(), *args[1:], **kwargs)
        if func is F.batch_norm:
            return _batch_norm(self._statistics, *args, **kwargs)
        if func is F.instance_norm:
            return _instance_norm(self._statistics, *args, **kwargs)
        substitute = _SUBSTITUTES.get(func)
        if substitute is not None:
            return substitute(self.first, func, *args, **kwargs)
        # Inside of a torch.autograd.Function gradients are off without anybody having said so.
        if self._without_graph and not torch.is_grad_enabled() and _any_grad(args, kwargs):
            return self._without_grad(func, args, kwargs)
        try:
            return func(*args, **kwargs)
        except TypeError as error:
            if "not Tensor" in str(error) and _any_grad([], kwargs, numbers=True):
                raise _plain_number(error) from error
            raise

    def _without_grad(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Carry out an operation under ``no_grad`` so that later passes know it."""
        out = kwargs.get("out")
        if out is not None:
            kwargs = {name: value for name, value in kwargs.items() if name != "out"}
        in_place = _is_in_place(getattr(func, "__name__", ""))
        with torch.enable_grad():
            args = (*args[:in_place], *map(self._kept, args[in_place:]))
            found = func(*args, **kwargs)
            if isinstance(out, Tensor) and isinstance(found, Tensor):
                out.copy_(found)
                self.first.stopped_in_place(out)
                return out
            if in_place:
                self.first.stopped_in_place(args[0])
                return found
            return self._stopped(found)

    def _kept(self, value: Any) -> Any:
        """Return a copy of what may be written into later."""
        return value.clone() if id(value) in self._written else value

    def _stopped(self, found: Any) -> Any:
        if isinstance(found, Tensor):
            return self.first.stopped(found) if found.requires_grad else found
        if isinstance(found, tuple) and hasattr(found, "_fields"):
            return type(found)(*map(self._stopped, found))
        if isinstance(found, (tuple, list)):
            return type(found)(map(self._stopped, found))
        return found


def _is_in_place(name: str) -> bool:
    """Return whether an operation of this name writes into its first argument."""
    if name.startswith("__"):
        return name in _IN_PLACE
    return name.endswith("_")


def _plain_number(error: TypeError) -> TrainingError:
    """Return the error for a hyperparameter where an operation of torch takes a number."""
    return TrainingError(
        f"torch takes no tensor there, and so no derivative goes through it: {error}. Write the "
        f"operation out, or give it float(hp[...]) and hold that hyperparameter where it is with "
        f"Hypergradient(fixed=[...]) or hypergrad.Constant."
    )


def _any_grad(args: Any, kwargs: dict[str, Any], *, numbers: bool = False) -> bool:
    """Return whether a tensor among the arguments, or a number among them, has a graph."""
    values = [*args, *kwargs.values()]
    while values:
        value = values.pop()
        if isinstance(value, Tensor):
            if value.requires_grad and not (numbers and value.ndim):
                return True
        elif isinstance(value, (tuple, list)):
            values += value
    return False


def _detach(first: FirstPass, func: Any, x: Tensor) -> Tensor:  # noqa: ARG001
    return first.stopped(x)


def _register_hook(first: FirstPass, func: Any, x: Tensor, hook: Any) -> Any:
    return func(x, first.once(hook))


def written_out(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return what ``batch_norm`` does, by plain operations."""
    var, mean = torch.var_mean(x, [i for i in range(x.ndim) if i != 1], correction=0)
    return _by_channel(x, mean, var, weight, bias, eps), mean, var


def _by_channel(
    x: Tensor, mean: Tensor, var: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> Tensor:
    """Return x normalized by a mean and a variance for each channel."""
    shape = [1, -1, *[1] * (x.ndim - 2)]
    scale = (var + eps).rsqrt()
    scale = scale if weight is None else scale * weight
    y = (x - mean.view(shape)) * scale.view(shape)
    return (y if bias is None else y + bias.view(shape)).to(x.dtype)


def _batch_norm(
    statistics: Statistics,
    input: Tensor,  # noqa: A002
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    stats = [each for each in (running_mean, running_var) if each is not None]
    n = input.numel() // input.shape[1] if input.ndim > 1 and input.shape[1] else 0
    if not training and len(stats) == 2 and any(each.requires_grad for each in stats):
        return _by_channel(input, stats[0], stats[1], weight, bias, eps)
    if not training or n < 2 or not torch.is_grad_enabled():
        own_mean, own_var = (
            None if each is None else each.detach() for each in (running_mean, running_var)
        )
        return F.batch_norm(input, own_mean, own_var, weight, bias, training, momentum, eps)
    # Under autocast the kernel computes in the dtype of the weight, and rounds in the end.
    wide = input if weight is None else input.to(weight.dtype)
    y, mean, var = statistics(wide, weight, bias, eps)
    if running_mean is not None and running_var is not None:
        unbiased = var * (n / (n - 1))
        running_mean.copy_((1 - momentum) * running_mean + momentum * mean.to(running_mean.dtype))
        running_var.copy_((1 - momentum) * running_var + momentum * unbiased.to(running_var.dtype))
    return y.to(input.dtype)


def _instance_norm(
    statistics: Statistics,
    input: Tensor,  # noqa: A002
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """An instance norm is a batch norm of one example with a channel for each instance."""
    if running_mean is None or running_var is None or not use_input_stats:
        if running_mean is not None and running_var is not None and running_mean.requires_grad:
            return _by_channel(input, running_mean, running_var, weight, bias, eps)
        return F.instance_norm(
            input, running_mean, running_var, weight, bias, use_input_stats, momentum, eps
        )
    b, c = input.shape[:2]
    weights, biases = (None if each is None else each.repeat(b) for each in (weight, bias))
    mean, var = running_mean.repeat(b), running_var.repeat(b)
    joined = input.reshape(1, b * c, *input.shape[2:])
    y = _batch_norm(statistics, joined, mean, var, weights, biases, True, momentum, eps)
    running_mean.copy_(mean.view(b, c).mean(0))
    running_var.copy_(var.view(b, c).mean(0))
    return y.view(input.shape)


def _weight_norm(
    first: FirstPass,  # noqa: ARG001
    func: Any,  # noqa: ARG001
    v: Tensor,
    g: Tensor,
    dim: int = 0,
) -> Tensor:
    return v * (g / torch.norm_except_dim(v, 2, dim))


def _embedding(
    first: FirstPass,
    func: Any,
    input: Tensor,  # noqa: A002
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,  # noqa: ARG001 (a sparse gradient cannot be differentiated)
) -> Tensor:
    if max_norm is not None and weight.requires_grad:
        raise TrainingError(
            f"A step that is differentiated must not write into its parameters, which "
            f"nn.Embedding(max_norm={max_norm}) does in its forward pass. Leave max_norm out, or "
            f"normalize with a parametrization; samplers without derivatives tune it as it is."
        )
    out: Tensor = func(input, weight, None, max_norm, norm_type, False, False)
    if padding_idx is None and not scale_grad_by_freq:
        return out
    scale = torch.ones_like(input, dtype=out.dtype)
    if scale_grad_by_freq:
        counts = torch.zeros(len(weight), dtype=out.dtype, device=input.device)
        scale = scale / counts.index_add(0, input.reshape(-1), scale.reshape(-1))[input]
    if padding_idx is not None:
        padding = padding_idx if padding_idx >= 0 else len(weight) + padding_idx
        scale = scale * (input != padding)
    return first.scaled(out, scale.unsqueeze(-1))


def _cross_entropy(
    first: FirstPass,
    func: Any,
    *args: Any,
    label_smoothing: Any = 0.0,
    **kwargs: Any,
) -> Tensor:
    """Cross entropy is linear in its label smoothing, and torch's has no derivative in weights."""
    if isinstance(label_smoothing, Tensor):
        sharp, smooth = (
            _cross_entropy(first, func, *args, label_smoothing=s, **kwargs) for s in (0.0, 1.0)
        )
        return torch.lerp(sharp, smooth, label_smoothing.to(sharp))
    weight = args[2] if len(args) > 2 else kwargs.get("weight")
    if isinstance(weight, Tensor) and weight.requires_grad:
        return _weighted(*args, **{**kwargs, "label_smoothing": label_smoothing})
    plain: Tensor = func(*args, label_smoothing=label_smoothing, **kwargs)
    return plain


def _weighted(
    input: Tensor,  # noqa: A002
    target: Tensor,
    weight: Tensor,
    size_average: Any = None,  # noqa: ARG001 (torch's order)
    ignore_index: int = -100,
    reduce: Any = None,  # noqa: ARG001
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    """Cross entropy with a weight w for each of K classes that has a derivative.

    ``-Σ_k w_k q_k log p_k`` with q the target, mixed with 1 / K; the mean over classes is divided
    by the sum of the targets' weights, that over probabilities by their number.
    """
    dim = 1 if input.ndim > 1 else 0
    logp, K = input.log_softmax(dim), input.shape[dim]
    shape = [K if i == dim else 1 for i in range(input.ndim)]
    w = weight.to(input.dtype).view(shape)
    if target.is_floating_point():
        q = target * (1 - label_smoothing) + label_smoothing / K
        each = -(w * q * logp).sum(dim)
        count = input.numel() / K
        return each if reduction == "none" else each.sum() / (count if reduction == "mean" else 1)
    kept = target != ignore_index
    index = torch.where(kept, target, 0).unsqueeze(dim)
    own = w.expand_as(logp).gather(dim, index).squeeze(dim) * kept
    hit = -own * logp.gather(dim, index).squeeze(dim)
    smooth = -(w * logp).sum(dim) * kept / K
    each = (1 - label_smoothing) * hit + label_smoothing * smooth
    if reduction == "none":
        return each
    return each.sum() / own.sum() if reduction == "mean" else each.sum()


def _gumbel_softmax(
    first: FirstPass,
    func: Any,
    logits: Tensor,
    tau: float = 1,
    hard: bool = False,
    eps: float = 1e-10,
    dim: int = -1,
) -> Tensor:
    soft: Tensor = func(logits, tau, False, eps, dim)
    if not hard:
        return soft
    index = soft.max(dim, keepdim=True)[1]
    chosen = torch.zeros_like(logits).scatter_(dim, index, 1.0)
    return chosen - first.stopped(soft) + soft


_SUBSTITUTES: dict[Any, Callable[..., Any]] = {
    Tensor.detach: _detach,
    torch.detach: _detach,
    Tensor.data.__get__: _detach,  # type: ignore[attr-defined]
    Tensor.register_hook: _register_hook,
    torch._weight_norm: _weight_norm,
    F.embedding: _embedding,
    F.cross_entropy: _cross_entropy,
    F.gumbel_softmax: _gumbel_softmax,
}
_IN_PLACE = {f"__i{name}__" for name in ("add", "sub", "mul", "div", "truediv", "pow", "matmul")}
_IN_PLACE.add("__setitem__")
_LOOKS = frozenset({Tensor.tolist, Tensor.numpy, Tensor.__array__, Tensor.__dlpack__})

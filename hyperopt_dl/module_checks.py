"""What the parameters of a module must be, so that one flat vector can hold them."""

import itertools
from collections.abc import Mapping

from torch import Tensor, nn

from hyperopt_dl.errors import TrainingError


def check_parameters(kind: str, named: Mapping[str, Tensor]) -> None:
    """Check the parameters of a module.

    Args:
        kind: The name of the module's class.
        named: All parameters by name.

    Raises:
        TrainingError: A lazy module that has not seen data, no trainable parameter, trainable
            parameters of several dtypes, two that share memory, or a hook that waits for ``.grad``.
    """
    lazy = [n for n, q in named.items() if nn.parameter.is_lazy(q)]
    if lazy:
        raise TrainingError(
            f"The model's parameters must have shapes, {lazy} have none yet. Call the lazy "
            "module on one batch first."
        )
    trainable = {n: q for n, q in named.items() if q.requires_grad}
    if not trainable:
        raise TrainingError(
            f"The model must have a parameter that requires a gradient, {kind} has none."
        )
    real = {q.real.dtype if q.is_complex() else q.dtype for q in trainable.values()}
    if len(real) > 1 or not next(iter(real)).is_floating_point:
        raise TrainingError(
            "The trainable parameters must share one floating dtype, got "
            f"{sorted({str(q.dtype) for q in trainable.values()})}. Convert the model with "
            ".to(dtype), or freeze the others."
        )
    _check_apart(named)
    _check_hooks(trainable)


def _check_hooks(params: Mapping[str, Tensor]) -> None:
    for name, param in params.items():
        if getattr(param, "_post_accumulate_grad_hooks", None):
            raise TrainingError(
                f"Supervised steps by its own optimizer and fills no .grad, got {name!r} with a "
                f"hook of register_post_accumulate_grad_hook. Take it away; a change of the "
                f"gradient itself is a hook of register_hook."
            )


def _check_apart(named: Mapping[str, Tensor]) -> None:
    """Raise where two parameters share memory: a step of one would move the other."""
    spans = []
    for name, param in named.items():
        if param.numel() and param.device.type != "meta" and not param.is_sparse:
            last = sum((n - 1) * s for n, s in zip(param.shape, param.stride(), strict=True))
            first = param.data_ptr()
            spans.append((first, first + (last + 1) * param.element_size(), name))
    spans.sort()
    for (_, end, one), (begin, _, other) in itertools.pairwise(spans):
        if begin < end:
            raise TrainingError(
                f"Every parameter must have memory of its own, but {one!r} and {other!r} share "
                f"some, as after a.data = b.data. To tie them, make them one parameter: "
                f"a.weight = b.weight."
            )

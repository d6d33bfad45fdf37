"""Coupled weight decay: an L2 penalty inside the gradient."""

from torch import Tensor

from hyperopt_dl.optimizers.combinations import add_scaled
from hyperopt_dl.optimizers.options import Value, is_zero


def penalised(params: Tensor, grad: Tensor, weight_decay: Value, *, maximize: bool) -> Tensor:
    """The gradient that is descended: ``±grad + weight_decay * params``, in torch's order.

    Args:
        params: A `p` tensor.
        grad: A `p` tensor.
        weight_decay: A number, a 0-dim tensor or a `p` tensor.
        maximize: Ascend ``grad``; the penalty is descended in either case.

    Returns:
        A `p` tensor, ``grad`` itself if there is nothing to do.
    """
    g = -grad if maximize else grad
    return g if is_zero(weight_decay) else add_scaled(g, weight_decay, params)

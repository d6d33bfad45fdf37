"""How the parameters move with the learning rate: the direction n of a step ``x' = x - η n``.

Read off the optimizer's slots after the step, so that nothing but plain gradients is kept.

Letters: x parameters, d gradient with maximization and coupled weight decay, b momentum buffer, m
and v moments, t steps made, η lr, μ momentum, ω weight decay, c bias corrections.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from hyperopt_dl.errors import TrainingError


def penalised(param: Tensor, group: Mapping[str, Any]) -> Tensor:
    """Return d, the gradient that the optimizer descends, in the parameter's shape."""
    assert param.grad is not None
    d = -param.grad if group["maximize"] else param.grad
    if group["weight_decay"] and not group.get("decoupled_weight_decay", False):
        d = d.add(param.detach(), alpha=group["weight_decay"])
    return d


def keeps_gradient(group: Mapping[str, Any]) -> bool:
    """Say whether `last_direction` needs the d of the last step: with SGD, unless b is all."""
    return "betas" not in group and (group["momentum"] == 0 or group["nesterov"])


def last_direction(
    param: Tensor, state: Mapping[str, Any], group: Mapping[str, Any], lr: float, d: Tensor | None
) -> Tensor:
    """Return n of the step that was made last, in the parameter's shape.

    Args:
        param: The parameter, after the step.
        state: Its slots, after the step.
        group: Its options.
        lr: The learning rate of the step.
        d: The d of that step, where `keeps_gradient`.
    """
    if "betas" in group:
        return _adam(param, state, group, lr)
    if group["momentum"] == 0:
        assert d is not None
        return d
    b: Tensor = state["momentum_buffer"]
    return b if d is None else d.add(b, alpha=group["momentum"])


def check_family(kind: type[torch.optim.Optimizer]) -> None:
    """Raise a TrainingError unless the class of an optimizer is SGD, Adam or AdamW."""
    if kind not in (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW):
        raise TrainingError(
            f"HypergradientDescent knows the directions of torch.optim.SGD, Adam and AdamW, got "
            f"{kind.__name__}. Use one of these, or ForwardTuner(discount=0)."
        )


def _adam(param: Tensor, state: Mapping[str, Any], group: Mapping[str, Any], lr: float) -> Tensor:
    """``n = (m / c1) / (sqrt(v / c2) + ε)``, and ``+ ω x`` of the x before where decoupled."""
    (beta1, beta2), t = group["betas"], float(state["step"])
    v = state["max_exp_avg_sq" if group["amsgrad"] else "exp_avg_sq"]
    rho = (v / (1 - beta2**t)).sqrt_().add_(group["eps"])
    n: Tensor = (state["exp_avg"] / (1 - beta1**t)).div_(rho)
    omega = group["weight_decay"]
    if omega and group["decoupled_weight_decay"]:
        before = (param.detach() + lr * n) / (1 - lr * omega)
        n = n.add(before, alpha=omega)
    return n

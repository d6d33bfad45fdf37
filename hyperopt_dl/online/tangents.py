"""The closed-form tangents of torch's optimizers: Z' = A Z + B, without automatic differentiation.

One function a rule. A tangent is the derivative of a vector in each of the ``m`` coordinates that
are tuned, an `m x p` tensor whose row k belongs to coordinate k (Franceschi et al. 2017, section
3.2). The derivative of the gradient along a tangent, H ẋ, comes in from outside; everything else is
arithmetic of the rule. A square root that is 0 has derivative 0 (`flat_sqrt` says why).

Letters: x parameters, g gradient, d gradient with maximization and weight decay, n normalized
direction, b momentum buffer, m and v first and second moment, a mean of the gradient, s sum of
squares, t the number of this step (1 at the first); η lr, μ momentum, τ dampening, ω weight decay,
β1, β2, α averaging, ε eps. A dot is a derivative, a prime the value after the step.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

Vectors: TypeAlias = Mapping[str, Tensor]
"""Tensors by name: ``"x"`` for the parameters, torch's names for the optimizer's slots."""

Seeds: TypeAlias = Mapping[str, Sequence[tuple[int, float]]]
"""By option, the rows whose coordinate moves it, and the derivative of the option there."""


@dataclass(frozen=True)
class Step:
    """What one step of an optimizer sees, before it is made.

    Attributes:
        x: The parameters, `p`.
        g: The gradient that the optimizer is about to use, `p`.
        g_dot: Its tangent, `m x p`.
        slots: The optimizer's slots by torch's names, each `p`; empty before the first step.
        t: The number of this step, 1 at the first.
        options: The options and flags of the parameter group, ``betas`` as beta1 and beta2.
        seeds: Which coordinate moves which option.
    """

    x: Tensor
    g: Tensor
    g_dot: Tensor
    slots: Vectors
    t: int
    options: Mapping[str, Any]
    seeds: Seeds


Advance: TypeAlias = Callable[[Vectors, Step], dict[str, Tensor]]
"""From the tangents before a step to those after it; ``"x"`` and the slots that the step leaves."""


def sgd(dot: Vectors, step: Step) -> dict[str, Tensor]:
    """``b' = μ b + (1 - τ) d``, d at the first step; ``x' = x - η b'``, nesterov ``d + μ b'``."""
    o, seeds = step.options, step.seeds
    mu, tau = o["momentum"], o["dampening"]
    d, d_dot = _penalised(dot, step, o["weight_decay"])
    if mu == 0:
        return {"x": _moved(dot["x"], step, o["lr"], d, d_dot)}
    b_after, b_dot = d, d_dot
    if "momentum_buffer" in step.slots:
        b = step.slots["momentum_buffer"]
        b_after = torch.add(mu * b, d, alpha=1 - tau)
        b_dot = torch.add(mu * dot["momentum_buffer"], d_dot, alpha=1 - tau)
        _seed(b_dot, seeds, "momentum", b)
        _seed(b_dot, seeds, "dampening", d, -1.0)
    q, q_dot = b_after, b_dot
    if o["nesterov"]:
        q, q_dot = torch.add(d, b_after, alpha=mu), torch.add(d_dot, b_dot, alpha=mu)
        _seed(q_dot, seeds, "momentum", b_after)
    return {"x": _moved(dot["x"], step, o["lr"], q, q_dot), "momentum_buffer": b_dot}


def adam(dot: Vectors, step: Step) -> dict[str, Tensor]:
    """``x' = y - η (m' / c1) / (sqrt(v' / c2) + ε)``; y = x, or ``(1 - η ω) x`` where decoupled.

    ``m' = β1 m + (1 - β1) d``, ``v' = β2 v + (1 - β2) d²``, ``c = 1 - β^t``; with amsgrad the
    largest v' so far takes the place of v'.
    """
    o, seeds, t = step.options, step.seeds, step.t
    eta, omega, beta1, beta2 = o["lr"], o["weight_decay"], o["beta1"], o["beta2"]
    decoupled = o["decoupled_weight_decay"]
    d, d_dot = _penalised(dot, step, 0.0 if decoupled else omega)
    m, m_dot = _average(dot, step, "exp_avg", "beta1", d, d_dot)
    v, v_dot = _average(dot, step, "exp_avg_sq", "beta2", d * d, 2 * d * d_dot)
    after = {"exp_avg": m_dot, "exp_avg_sq": v_dot}
    if o["amsgrad"]:
        largest = step.slots.get("max_exp_avg_sq", torch.zeros_like(v))
        v_dot = torch.where(v > largest, v_dot, dot["max_exp_avg_sq"])
        v = torch.maximum(v, largest)
        after["max_exp_avg_sq"] = v_dot
    c1, c2 = 1 - beta1**t, 1 - beta2**t
    root, root_dot = _root(v / c2, v_dot / c2)
    _seed(root_dot, seeds, "beta2", root, t * beta2 ** (t - 1) / (2 * c2))
    rho = root + o["eps"]
    _seed(root_dot, seeds, "eps", torch.ones_like(rho))
    n = m / (c1 * rho)
    n_dot = (m_dot / c1).addcmul_(root_dot, n, value=-1).div_(rho)
    _seed(n_dot, seeds, "beta1", n, t * beta1 ** (t - 1) / c1)
    y_dot = dot["x"]
    if decoupled:
        y_dot = (1 - eta * omega) * y_dot
        _seed(y_dot, seeds, "lr", step.x, -omega)
        _seed(y_dot, seeds, "weight_decay", step.x, -eta)
    return {"x": _moved(y_dot, step, eta, n, n_dot), **after}


def rmsprop(dot: Vectors, step: Step) -> dict[str, Tensor]:
    """``n = d / (sqrt(v') + ε)``, ``b' = μ b + n``, ``x' = x - η b'``; centered ``v' - a'²``."""
    o, seeds = step.options, step.seeds
    d, d_dot = _penalised(dot, step, o["weight_decay"])
    v, v_dot = _average(dot, step, "square_avg", "alpha", d * d, 2 * d * d_dot)
    after = {"square_avg": v_dot}
    if o["centered"]:
        a, a_dot = _average(dot, step, "grad_avg", "alpha", d, d_dot)
        after["grad_avg"] = a_dot
        v, v_dot = v - a * a, v_dot - 2 * a * a_dot
    root, root_dot = _root(v, v_dot)
    rho = root + o["eps"]
    _seed(root_dot, seeds, "eps", torch.ones_like(rho))
    n = d / rho
    n_dot = (d_dot - n * root_dot) / rho
    if o["momentum"] > 0:
        b = step.slots.get("momentum_buffer", torch.zeros_like(d))
        n = torch.add(n, b, alpha=o["momentum"])
        n_dot = torch.add(n_dot, dot["momentum_buffer"], alpha=o["momentum"])
        _seed(n_dot, seeds, "momentum", b)
        after["momentum_buffer"] = n_dot
    return {"x": _moved(dot["x"], step, o["lr"], n, n_dot), **after}


def adagrad(dot: Vectors, step: Step) -> dict[str, Tensor]:
    """``s' = s + d²``, ``x' = x - η / (1 + (t - 1) λ) * d / (sqrt(s') + ε)``, λ lr_decay."""
    o, seeds = step.options, step.seeds
    d, d_dot = _penalised(dot, step, o["weight_decay"])
    s = torch.addcmul(step.slots["sum"], d, d)
    s_dot = dot["sum"] + 2 * d * d_dot
    root, root_dot = _root(s, s_dot)
    rho = root + o["eps"]
    _seed(root_dot, seeds, "eps", torch.ones_like(rho))
    n = d / rho
    n_dot = (d_dot - n * root_dot) / rho
    slower = 1 + (step.t - 1) * o["lr_decay"]
    _seed(n_dot, seeds, "lr_decay", n, -(step.t - 1) / slower)
    return {"x": _moved(dot["x"], step, o["lr"], n / slower, n_dot / slower), "sum": s_dot}


def _penalised(dot: Vectors, step: Step, omega: float) -> tuple[Tensor, Tensor]:
    """``d = ±g + ω x`` and its tangent; a decoupled weight decay comes with ω = 0 and no seed."""
    sign = -1.0 if step.options["maximize"] else 1.0
    coupled = not step.options.get("decoupled_weight_decay", False)
    d, d_dot = sign * step.g, sign * step.g_dot
    if omega != 0:
        d, d_dot = d.add_(step.x, alpha=omega), d_dot.add_(dot["x"], alpha=omega)
    if coupled:
        _seed(d_dot, step.seeds, "weight_decay", step.x)
    return d, d_dot


def _average(
    dot: Vectors, step: Step, slot: str, option: str, new: Tensor, new_dot: Tensor
) -> tuple[Tensor, Tensor]:
    """``β s + (1 - β) new`` for a slot s, and its tangent."""
    beta = step.options[option]
    old = step.slots.get(slot, torch.zeros_like(new))
    after_dot = torch.lerp(new_dot, dot[slot], beta)
    _seed(after_dot, step.seeds, option, old - new)
    return torch.lerp(new, old, beta), after_dot


def _root(v: Tensor, v_dot: Tensor) -> tuple[Tensor, Tensor]:
    """The square root and its tangent, flat at 0; of a negative v, as rounding leaves it, too."""
    root = v.sqrt()
    return root, torch.where(v > 0, v_dot / (2 * root), 0.0)


def _moved(y_dot: Tensor, step: Step, eta: float, n: Tensor, n_dot: Tensor) -> Tensor:
    """The tangent of ``y - η n``."""
    x_dot = torch.add(y_dot, n_dot, alpha=-eta)
    _seed(x_dot, step.seeds, "lr", n, -1.0)
    return x_dot


def _seed(dot: Tensor, seeds: Seeds, option: str, effect: Tensor, factor: float = 1.0) -> None:
    """Add ``factor * effect * dλ`` to the rows of a fresh tangent whose coordinate moves λ."""
    for row, slope in seeds.get(option, ()):
        dot[row].add_(effect, alpha=factor * slope)

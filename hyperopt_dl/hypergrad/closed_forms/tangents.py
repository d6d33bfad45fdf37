"""The closed-form tangents of the optimizers: Z' = A Z + B, without automatic differentiation.

One function a rule, for torch's optimizers and for their twins. A tangent is the derivative of a
vector in each of the ``m`` coordinates that are tuned, an `m x p` tensor whose row k belongs to
coordinate k (Franceschi et al. 2017, section 3.2). The derivative of the gradient along a tangent,
H ẋ, comes in from outside; everything else is arithmetic of the rule. A square root that is 0 has
derivative 0 (`flat_sqrt` says why).

A tangent that is all zero may be a 0-dim 0, and stays one until a coordinate moves it: the tangents
of a single step cost no more than what they are made of.

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

from hyperopt_dl.hypergrad.closed_forms.adjoints import correction
from hyperopt_dl.optimizers.combinations import add_scaled, average
from hyperopt_dl.optimizers.options import Value, is_zero

Vectors: TypeAlias = Mapping[str, Tensor]
"""Tensors by name: ``"x"`` for the parameters, torch's names for the optimizer's slots."""

Seeds: TypeAlias = Mapping[str, Sequence[tuple[int, Value]]]
"""By option, the rows whose coordinate moves it, and the derivative there: a number, or `p`."""


@dataclass(frozen=True)
class Step:
    """What one step of an optimizer sees, before it is made.

    Attributes:
        m: The number of coordinates.
        x: The parameters, `p`; None if there is no weight decay.
        g: The gradient that the optimizer is about to use, `p`.
        g_dot: Its tangent, `m x p`.
        slots: The optimizer's slots by torch's names, each `p`; SGD's are empty before the first
            step.
        t: The number of this step, 1 at the first.
        options: The options, numbers or `p` tensors, and the flags; ``betas`` as beta1 and beta2.
        seeds: Which coordinate moves which option.
    """

    m: int
    x: Tensor | None
    g: Tensor
    g_dot: Tensor
    slots: Vectors
    t: int
    options: Mapping[str, Any]
    seeds: Seeds


Advance: TypeAlias = Callable[[Vectors, Step], dict[str, Tensor]]
"""From the tangents before a step to those after it: of ``"x"`` and of the slots that there are."""


def sgd(dot: Vectors, step: Step) -> dict[str, Tensor]:
    """``b' = μ b + (1 - τ) d``, d at the first step; ``x' = x - η b'``, nesterov ``d + μ b'``."""
    o = step.options
    mu, tau = o["momentum"], o["dampening"]
    d, d_dot = _penalised(dot, step, o["weight_decay"])
    if "momentum_buffer" not in dot:
        return {"x": _moved(dot["x"], step, o["lr"], d, d_dot)}
    b_after, b_dot = d, d_dot.clone()  # the caller goes on writing to its g_dot
    if "momentum_buffer" in step.slots:
        b = step.slots["momentum_buffer"]
        b_after = add_scaled(d if is_zero(tau) else (1 - tau) * d, mu, b)
        damped_dot = d_dot if is_zero(tau) else (1 - tau) * d_dot
        b_dot = add_scaled(damped_dot, mu, dot["momentum_buffer"])
        b_dot = _seeded(b_dot, step, "momentum", b)
        b_dot = _seeded(b_dot, step, "dampening", d, -1.0)
    q, q_dot = b_after, b_dot
    if o["nesterov"]:
        q, q_dot = add_scaled(d, mu, b_after), add_scaled(d_dot, mu, b_dot)
        q_dot = _seeded(q_dot, step, "momentum", b_after)
    return {"x": _moved(dot["x"], step, o["lr"], q, q_dot), "momentum_buffer": b_dot}


def adam(dot: Vectors, step: Step) -> dict[str, Tensor]:
    """``x' = y - η (m' / c1) / (sqrt(v' / c2) + ε)``; y = x, or ``(1 - η ω) x`` where decoupled.

    ``m' = β1 m + (1 - β1) d``, ``v' = β2 v + (1 - β2) d²``, ``c = 1 - β^t``; with amsgrad the
    largest v' so far takes the place of v'.
    """
    o, t = step.options, step.t
    eta, omega, beta1, beta2 = o["lr"], o["weight_decay"], o["beta1"], o["beta2"]
    decoupled = o["decoupled_weight_decay"]
    d, d_dot = _penalised(dot, step, 0.0 if decoupled else omega)
    m, m_dot = _average(dot, step, "exp_avg", "beta1", d, d_dot)
    v, v_dot = _average(dot, step, "exp_avg_sq", "beta2", d * d, _times(d_dot, 2 * d))
    after = {"exp_avg": m_dot, "exp_avg_sq": v_dot}
    if o["amsgrad"]:
        largest = step.slots.get("max_exp_avg_sq", torch.zeros_like(v))
        v_dot = torch.where(v > largest, v_dot, dot["max_exp_avg_sq"])
        v = torch.maximum(v, largest)
        after["max_exp_avg_sq"] = v_dot
    c1, slope1 = correction(beta1, t - 1)
    c2, slope2 = correction(beta2, t - 1)
    root, root_dot = _root(v / c2, v_dot / c2)
    root_dot = _seeded(root_dot, step, "beta2", root, slope2 / (2 * c2))
    rho = root + o["eps"]
    root_dot = _seeded(root_dot, step, "eps", torch.ones_like(rho))
    n = m / (c1 * rho)
    n_dot = _quotient(m_dot / c1, root_dot, n, rho)
    n_dot = _seeded(n_dot, step, "beta1", n, slope1 / c1)
    y_dot = dot["x"]
    if decoupled and step.x is not None:
        y_dot = (1 - eta * omega) * y_dot
        y_dot = _seeded(y_dot, step, "lr", step.x, -omega)
        y_dot = _seeded(y_dot, step, "weight_decay", step.x, -eta)
    return {"x": _moved(y_dot, step, eta, n, n_dot), **after}


def rmsprop(dot: Vectors, step: Step) -> dict[str, Tensor]:
    """``n = d / (sqrt(v') + ε)``, ``b' = μ b + n``, ``x' = x - η b'``; centered ``v' - a'²``."""
    o = step.options
    d, d_dot = _penalised(dot, step, o["weight_decay"])
    v, v_dot = _average(dot, step, "square_avg", "alpha", d * d, _times(d_dot, 2 * d))
    after = {"square_avg": v_dot}
    if o["centered"]:
        a, a_dot = _average(dot, step, "grad_avg", "alpha", d, d_dot)
        after["grad_avg"] = a_dot
        v, v_dot = v - a * a, v_dot - _times(a_dot, 2 * a)
    root, root_dot = _root(v, v_dot)
    rho = root + o["eps"]
    root_dot = _seeded(root_dot, step, "eps", torch.ones_like(rho))
    n = d / rho
    n_dot = _quotient(d_dot, root_dot, n, rho)
    if "momentum_buffer" in dot:
        b = step.slots.get("momentum_buffer", torch.zeros_like(d))
        n = add_scaled(n, o["momentum"], b)
        n_dot = add_scaled(n_dot, o["momentum"], dot["momentum_buffer"])
        n_dot = _seeded(n_dot, step, "momentum", b)
        after["momentum_buffer"] = n_dot
    return {"x": _moved(dot["x"], step, o["lr"], n, n_dot), **after}


def adagrad(dot: Vectors, step: Step) -> dict[str, Tensor]:
    """``s' = s + d²``, ``x' = x - η / (1 + (t - 1) λ) * d / (sqrt(s') + ε)``, λ lr_decay."""
    o = step.options
    d, d_dot = _penalised(dot, step, o["weight_decay"])
    s = torch.addcmul(step.slots["sum"], d, d)
    s_dot = dot["sum"] + _times(d_dot, 2 * d)
    root, root_dot = _root(s, s_dot)
    rho = root + o["eps"]
    root_dot = _seeded(root_dot, step, "eps", torch.ones_like(rho))
    n = d / rho
    n_dot = _quotient(d_dot, root_dot, n, rho)
    slower = 1 + (step.t - 1) * o["lr_decay"]
    n_dot = _seeded(n_dot, step, "lr_decay", n, -(step.t - 1) / slower)
    return {"x": _moved(dot["x"], step, o["lr"], n / slower, n_dot / slower), "sum": s_dot}


def _penalised(dot: Vectors, step: Step, omega: Value) -> tuple[Tensor, Tensor]:
    """``d = ±g + ω x`` and its tangent; a decoupled weight decay comes with ω = 0 and no seed."""
    d, d_dot = (-step.g, -step.g_dot) if step.options["maximize"] else (step.g, step.g_dot)
    if step.x is None or step.options.get("decoupled_weight_decay", False):
        return d, d_dot
    if not is_zero(omega):
        d, d_dot = add_scaled(d, omega, step.x), add_scaled(d_dot, omega, dot["x"])
    elif d_dot is step.g_dot and step.seeds.get("weight_decay"):
        d_dot = d_dot.clone()
    return d, _seeded(d_dot, step, "weight_decay", step.x)


def _average(
    dot: Vectors, step: Step, slot: str, option: str, new: Tensor, new_dot: Tensor
) -> tuple[Tensor, Tensor]:
    """``β s + (1 - β) new`` for a slot s, and its tangent."""
    beta = step.options[option]
    old = step.slots.get(slot, torch.zeros_like(new))
    after = average(beta, old, new) if isinstance(beta, Tensor) else torch.lerp(new, old, beta)
    after_dot = add_scaled((1 - beta) * new_dot, beta, dot[slot])
    return after, _seeded(after_dot, step, option, old - new)


def _root(v: Tensor, v_dot: Tensor) -> tuple[Tensor, Tensor]:
    """The square root and its tangent, flat at 0; of a negative v, as rounding leaves it, too."""
    root = v.sqrt()
    return root, _times(v_dot, torch.where(v > 0, 0.5 / root, 0.0))


def _quotient(a_dot: Tensor, rho_dot: Tensor, n: Tensor, rho: Tensor) -> Tensor:
    """The tangent of ``n = a / ρ``."""
    return _times(a_dot - _times(rho_dot, n), 1 / rho)


def _times(dot: Tensor, factor: Tensor) -> Tensor:
    """``factor * dot``; a 0-dim 0 stays one, whatever it is multiplied with."""
    return dot * factor if dot.ndim else dot


def _moved(y_dot: Tensor, step: Step, eta: Value, n: Tensor, n_dot: Tensor) -> Tensor:
    """The tangent of ``y - η n``."""
    return _seeded(add_scaled(y_dot, -eta, n_dot), step, "lr", n, -1.0)


def _seeded(dot: Tensor, step: Step, option: str, effect: Tensor, factor: Value = 1.0) -> Tensor:
    """Add ``factor * effect * dλ`` to the rows whose coordinate moves the option λ.

    Into ``dot`` itself where that has all rows: it must not be a tensor of the caller's.
    """
    seeds = step.seeds.get(option, ())
    if not seeds:
        return dot
    full = (step.m, len(effect))
    rows = dot if dot.shape == full else dot.expand(full).clone()
    for row, slope in seeds:
        along = factor * slope
        if isinstance(along, Tensor):
            rows[row].addcmul_(along, effect)
        else:
            rows[row].add_(effect, alpha=along)
    return rows

"""The adjoints of the optimizers' rules in closed form.

A rule takes parameters x, slots z and the gradient g to ``x', z'``. Given the adjoints of these,
its adjoint returns those of x, z, g and of its options, in a dozen vector operations and without a
graph. A rule that has none here is differentiated by autograd, which is also what the tests hold
these against.

Letters, with a bar for the adjoint of a quantity: x parameters; g gradient, d the gradient with its
penalty and sign, u = ḡ; b momentum buffer; m, v first and second moment; μ momentum; τ dampening;
ω weight decay; η learning rate; c = 1 - β^(t+1) Adam's bias corrections; ρ = sqrt(v / c2).
"""

import functools
from collections.abc import Callable, Mapping
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from hyperopt_dl.optimizers import SGD, Adam, AdamW, Optimizer
from hyperopt_dl.optimizers.groups import everywhere
from hyperopt_dl.optimizers.options import Value, is_zero
from hyperopt_dl.optimizers.weight_decay import penalised

Vectors: TypeAlias = dict[str, Tensor]


class Step(NamedTuple):
    """One application of a rule: what went in, and the slots that came out."""

    x: Tensor
    slots: Vectors
    g: Tensor
    after: Vectors
    options: Mapping[str, Value]
    t: int


class Pulled(NamedTuple):
    """The adjoints of what went into a rule; those of options that are tensors, in their shape."""

    x: Tensor
    slots: Vectors
    u: Tensor
    options: Vectors


RuleAdjoint: TypeAlias = Callable[[Step, Tensor, Vectors], Pulled]
"""From a step, x̄' and z̄' to the adjoints of what went in; a slot that is missing in z̄' has none."""


def adjoint_of(rule: Optimizer) -> RuleAdjoint:
    """Return the adjoint of a rule: in closed form where there is one, else by autograd."""
    # Of these types exactly: a subclass may have an update of its own.
    if type(rule) is SGD:
        if all(map(is_zero, everywhere("dampening", rule.options(), rule.groups))):
            return functools.partial(_sgd, rule)
    elif (type(rule) is Adam or type(rule) is AdamW) and not rule.amsgrad:
        return functools.partial(_adam, rule)
    return functools.partial(by_autograd, rule)


def by_autograd(rule: Optimizer, step: Step, x_bar: Tensor, slots_bar: Vectors) -> Pulled:
    """Differentiate any rule: the oracle of the closed forms."""
    x, slots, g, _, options, t = step
    named = {"x": x, "g": g, **{f"slot/{n}": v for n, v in slots.items()}}
    named |= {f"option/{n}": v for n, v in options.items() if isinstance(v, Tensor)}
    leaves = {name: value.detach().requires_grad_() for name, value in named.items()}
    with torch.enable_grad():
        inner = {name: leaves[f"slot/{name}"] for name in slots}
        values = {name: leaves.get(f"option/{name}", value) for name, value in options.items()}
        x_after, after = rule.update(leaves["x"], leaves["g"], inner, values, t)
    pairs = [(x_after, x_bar), *((after[name], bar) for name, bar in slots_bar.items())]
    outputs, bars = zip(*((y, bar) for y, bar in pairs if y.requires_grad), strict=True)
    found = torch.autograd.grad(outputs, list(leaves.values()), bars, allow_unused=True)
    bar = {
        name: torch.zeros_like(leaf) if part is None else part
        for (name, leaf), part in zip(leaves.items(), found, strict=True)
    }
    return Pulled(
        bar["x"],
        {name: bar[f"slot/{name}"] for name in slots},
        bar["g"],
        {name: bar[f"option/{name}"] for name in options if f"option/{name}" in bar},
    )


def _sgd(rule: SGD, step: Step, x_bar: Tensor, slots_bar: Vectors) -> Pulled:
    """``d = ±g + ω x; b' = μ b + d``, or d at t = 0; ``x' = x - η b'``, nesterov ``d + μ b'``."""
    x, slots, g, after, options, t = step
    lr, mu, decay = options["lr"], options["momentum"], options["weight_decay"]
    d = penalised(x, g, decay, maximize=rule.maximize)
    moved_bar = x_bar * -lr
    if "momentum_buffer" not in slots:
        return _finish(rule, step, x_bar, moved_bar, {}, {"lr": (x_bar, -d)})
    b, b_after = slots["momentum_buffer"], after["momentum_buffer"]
    b_bar = moved_bar * mu if rule.nesterov else moved_bar
    b_bar = b_bar + slots_bar["momentum_buffer"] if slots_bar else b_bar
    d_bar = moved_bar + b_bar if rule.nesterov else b_bar
    terms = {"lr": (x_bar, -(d + mu * b_after) if rule.nesterov else -b_after)}
    momentum = _product(options, "momentum", b_bar, b) if t else {}
    if rule.nesterov:
        momentum = _sum(momentum, _product(options, "momentum", moved_bar, b_after))
    before = {"momentum_buffer": b_bar * mu} if t else {}
    return _finish(rule, step, x_bar, d_bar, before, terms, momentum)


def _adam(rule: Adam | AdamW, step: Step, x_bar: Tensor, slots_bar: Vectors) -> Pulled:
    """``m' = β1 m + (1 - β1) d; v' = β2 v + (1 - β2) d²; x' = y - η (m' / c1) / (ρ + ε)``.

    y = x and ``d = ±g + ω x`` for Adam; ``y = (1 - η ω) x`` and ``d = ±g`` for AdamW.
    """
    x, slots, g, after, options, t = step
    lr, beta1, beta2 = options["lr"], options["beta1"], options["beta2"]
    decay = options["weight_decay"]
    penalty = 0.0 if isinstance(rule, AdamW) else decay
    d = penalised(x, g, penalty, maximize=rule.maximize)
    c1, slope1 = _correction(beta1, t, x)
    c2, slope2 = _correction(beta2, t, x)
    v_after = after["exp_avg_sq"]
    positive = v_after > 0
    rho = (v_after / c2).sqrt()
    divisor = rho + options["eps"]
    moved = after["exp_avg"] / (divisor * c1)
    m_bar = x_bar * -lr / (divisor * c1)
    rho_bar = -(m_bar * after["exp_avg"]) / divisor
    v_bar = torch.where(positive, rho_bar / (2 * c2 * torch.where(positive, rho, 1)), 0)
    found = _product(options, "beta1", x_bar * moved, -lr * slope1 / c1)
    found |= _product(options, "beta2", rho_bar * rho, slope2 / (2 * c2))
    if slots_bar:
        m_bar, v_bar = m_bar + slots_bar["exp_avg"], v_bar + slots_bar["exp_avg_sq"]
    found = _sum(found, _product(options, "beta1", m_bar, slots["exp_avg"] - d))
    found = _sum(found, _product(options, "beta2", v_bar, slots["exp_avg_sq"] - d * d))
    found |= _product(options, "eps", rho_bar, 1.0)
    d_bar = (1 - beta1) * m_bar + 2 * (1 - beta2) * (d * v_bar)
    before = {"exp_avg": beta1 * m_bar, "exp_avg_sq": beta2 * v_bar}
    if isinstance(rule, Adam):
        return _finish(rule, step, x_bar, d_bar, before, {"lr": (x_bar, -moved)}, found)
    found |= _product(options, "lr", x_bar, -(moved + decay * x))
    found |= _product(options, "weight_decay", x_bar, -lr * x)
    return Pulled(x_bar * (1 - lr * decay), before, -d_bar if rule.maximize else d_bar, found)


def _finish(
    rule: SGD | Adam,
    step: Step,
    x_bar: Tensor,
    d_bar: Tensor,
    slots_bar: Vectors,
    terms: Mapping[str, tuple[Tensor, Tensor]],
    found: Vectors | None = None,
) -> Pulled:
    """Pull the adjoint of ``d = ±g + ω x`` back, and add the options' terms."""
    options, decay = step.options, step.options["weight_decay"]
    found = dict(found or {})
    for name, (a, b) in terms.items():
        found |= _product(options, name, a, b)
    found |= _product(options, "weight_decay", d_bar, step.x)
    before = x_bar if is_zero(decay) else x_bar + decay * d_bar
    return Pulled(before, slots_bar, -d_bar if rule.maximize else d_bar, found)


def _correction(beta: Value, t: int, like: Tensor) -> tuple[Value, Value]:
    """Return ``c = 1 - β^(t+1)`` and -dc/dβ, counted in double."""
    if not isinstance(beta, Tensor):
        return 1 - beta ** (t + 1), (t + 1) * beta**t
    exact = beta.detach().double()
    dtype = like.dtype if beta.ndim else torch.double
    return (1 - exact ** (t + 1)).to(dtype), ((t + 1) * exact**t).to(dtype)


def _product(options: Mapping[str, Value], name: str, a: Tensor, b: Value) -> Vectors:
    """Return the adjoint of an option whose effect is ``a · (b dλ)``; nothing for a constant."""
    option = options[name]
    if not isinstance(option, Tensor):
        return {}
    if option.ndim:
        return {name: a * b}
    if isinstance(b, Tensor) and b.ndim:
        return {name: torch.dot(a, b.to(a.dtype)).double()}
    return {name: a.sum().double() * b}


def _sum(a: Vectors, b: Vectors) -> Vectors:
    """Return the sums by name; a name that one of the two lacks counts as zero there."""
    return {**a, **{name: a[name] + term if name in a else term for name, term in b.items()}}

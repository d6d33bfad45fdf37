"""The adjoints of the optimizers' rules in closed form.

A rule takes parameters x, slots z and the gradient g to ``x', z'``. Given the adjoints of these,
its adjoint returns those of x, z, g and of its options, in a dozen vector operations and without a
graph. A rule that has none here is differentiated by autograd, which is also what the tests hold
these against.

Letters, with a bar for the adjoint of a quantity: x parameters; g gradient, d the gradient with its
penalty and sign, u = ḡ; b momentum buffer; m, v first and second moment; μ momentum; τ dampening;
ω weight decay; η learning rate; c = 1 - β^(t+1) Adam's bias corrections; ρ = sqrt(v / c2).
In clipping: n the norm of g, c its limit, s the factor, ĝ = s g.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from hyperopt_dl.optimizers import SGD, Adam, AdamW, ClipNorm, Optimizer
from hyperopt_dl.optimizers.clip_norm import ROOM, clipped
from hyperopt_dl.optimizers.combinations import add_scaled
from hyperopt_dl.optimizers.groups import everywhere
from hyperopt_dl.optimizers.options import Value, is_zero
from hyperopt_dl.optimizers.turns import Turn
from hyperopt_dl.optimizers.weight_decay import penalised

Vectors: TypeAlias = dict[str, Tensor]


class Step(NamedTuple):
    """One application of a rule: what went in, and the slots that came out.

    ``options`` are numbers or ``[p]`` tensors, of which ``wanted`` names those to differentiate. g
    is empty where the rule's adjoint does not read it.
    """

    x: Tensor
    slots: Vectors
    g: Tensor
    after: Vectors
    options: Mapping[str, Value]
    wanted: frozenset[str]
    t: int


class Pulled(NamedTuple):
    """The adjoints of what went into a rule.

    Those of the options that are wanted: 0-dim for a number, ``[p]`` for a vector.
    """

    x: Tensor
    slots: Vectors
    u: Tensor
    options: Vectors


@dataclass(frozen=True)
class RuleAdjoint:
    """The adjoint of a rule.

    Attributes:
        rule: The rule.
        form: ``form(rule, step, x̄', z̄')`` gives the adjoints of what went in; a slot that is
            missing in z̄' has none.
        reads_g: Whether the form reads the step's gradient.
    """

    rule: Any
    form: Callable[[Any, Step, Tensor, Vectors], Pulled]
    reads_g: bool = True

    def __call__(self, step: Step, x_bar: Tensor, slots_bar: Vectors) -> Pulled:
        """Pull the adjoints of x' and z' back through a step."""
        return self.form(self.rule, step, x_bar, slots_bar)


def adjoint_of(rule: Optimizer) -> RuleAdjoint:
    """Return the adjoint of a rule: in closed form where there is one, else by autograd."""
    # Of these types exactly: a subclass may have an update of its own.
    if type(rule) is SGD:
        if all(map(is_zero, everywhere("dampening", rule.options(), rule.groups))):
            heavy = bool(rule.slots(torch.empty(0)))
            return RuleAdjoint(rule, _sgd, reads_g=rule.nesterov or not heavy)
    elif (type(rule) is Adam or type(rule) is AdamW) and not rule.amsgrad:
        return RuleAdjoint(rule, _adam)
    elif type(rule) is ClipNorm:
        return RuleAdjoint(rule, _clip_norm)
    return RuleAdjoint(rule, by_autograd)


def pulled_in_turns(
    rule: RuleAdjoint,
    step: Step,
    turns: Sequence[Turn] | None,
    x_bar: Tensor,
    slots_bar: Vectors,
) -> Pulled:
    """Pull adjoints back through a step in which parameters take turns.

    An adjoint is linear in what it pulls back: so that of a turn is that of the rule at its count,
    with zeros for the other parameters, and the sum of all is that of the step.
    """
    if turns is None:
        return rule(step, x_bar, slots_bar)
    x, u = torch.zeros_like(step.x), torch.zeros_like(step.x)
    slots, options = dict[str, Tensor](), dict[str, Tensor]()
    for mask, done in turns:
        own = {name: torch.where(mask, bar, 0) for name, bar in slots_bar.items()}
        pulled = Pulled(torch.where(mask, x_bar, 0), own, torch.zeros_like(u), {})
        if done is not None:
            pulled = rule(step._replace(t=done), pulled.x, own)
        x, u = x + pulled.x, u + pulled.u
        for total, part in ((slots, pulled.slots), (options, pulled.options)):
            total |= {n: total[n] + v if n in total else v for n, v in part.items()}
    return Pulled(x, slots, u, options)


def by_autograd(rule: Optimizer, step: Step, x_bar: Tensor, slots_bar: Vectors) -> Pulled:
    """Differentiate any rule: the oracle of the closed forms."""
    x, slots, g, _, options, wanted, t = step
    named = {"x": x, "g": g, **{f"slot/{n}": v for n, v in slots.items()}}
    named |= {f"option/{n}": torch.as_tensor(options[n], dtype=torch.double) for n in wanted}
    leaves = {name: value.detach().clone().requires_grad_() for name, value in named.items()}
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
        {name: bar[f"option/{name}"] for name in wanted},
    )


def _sgd(rule: SGD, step: Step, x_bar: Tensor, slots_bar: Vectors) -> Pulled:
    """``d = ±g + ω x; b' = μ b + d``, or d at t = 0; ``x' = x - η b'``, nesterov ``d + μ b'``."""
    x, slots, g, after, options, wanted, t = step
    lr, mu, decay = options["lr"], options["momentum"], options["weight_decay"]
    found, before = {}, {}
    if "momentum_buffer" not in slots:
        d_bar = _scaled(x_bar, -lr)
        if "lr" in wanted:
            found["lr"] = -_inner(lr, x_bar, penalised(x, g, decay, maximize=rule.maximize))
    else:
        b, b_after = slots["momentum_buffer"], after["momentum_buffer"]
        b_bar = slots_bar.get("momentum_buffer")
        ahead = lr * mu if rule.nesterov else lr  # how b' enters x'
        b_bar = _scaled_sum(b_bar, x_bar, -ahead)
        d_bar = add_scaled(b_bar, -lr, x_bar) if rule.nesterov else b_bar
        if "lr" in wanted:
            moved = b_after
            if rule.nesterov:
                moved = add_scaled(penalised(x, g, decay, maximize=rule.maximize), mu, b_after)
            found["lr"] = -_inner(lr, x_bar, moved)
        if "momentum" in wanted:
            found["momentum"] = _inner(mu, b_bar, b if t else torch.zeros_like(b))
            if rule.nesterov:
                found["momentum"] -= _inner(mu, x_bar, lr * b_after)
        if t:
            before = {"momentum_buffer": _scaled(b_bar, mu)}
    return _through_penalty(rule, step, x_bar, d_bar, before, found)


def _adam(rule: Adam | AdamW, step: Step, x_bar: Tensor, slots_bar: Vectors) -> Pulled:
    """``m' = β1 m + (1 - β1) d; v' = β2 v + (1 - β2) d²; x' = y - η (m' / c1) / (ρ + ε)``.

    y = x and ``d = ±g + ω x`` for Adam; ``y = (1 - η ω) x`` and ``d = ±g`` for AdamW. Beside them
    ``δ = ρ + ε``, ``q = x̄' / δ``, ``r = q m'``, so that ``m̄' = -η q / c1``, ``ρ̄ = η r / (c1 δ)``.
    """
    x, slots, g, after, options, wanted, t = step
    lr, beta1, beta2 = options["lr"], options["beta1"], options["beta2"]
    decay = options["weight_decay"]
    decoupled = isinstance(rule, AdamW)
    d = penalised(x, g, 0.0 if decoupled else decay, maximize=rule.maximize)
    m, v = slots["exp_avg"], slots["exp_avg_sq"]
    c1, slope1 = correction(beta1, t)
    c2, slope2 = correction(beta2, t)
    rho = after["exp_avg_sq"].sqrt() / c2**0.5
    delta = rho + options["eps"]
    q = x_bar / delta
    r = q * after["exp_avg"]
    rho_bar = r / delta * (lr / c1)
    v_bar = (rho_bar / rho).masked_fill_(rho == 0, 0)
    m_bar = _scaled_sum(slots_bar.get("exp_avg"), q, -lr / c1)
    v_bar = _scaled_sum(slots_bar.get("exp_avg_sq"), v_bar, 0.5 / c2)
    found = {}
    if "lr" in wanted:
        found["lr"] = _total(lr, r, -1 / c1)
    if "beta1" in wanted:
        through_c1 = _total(beta1, r, lr * slope1 / (c1 * c1))
        found["beta1"] = _inner(beta1, m_bar, m - d) - through_c1
    if "beta2" in wanted:
        through_c2 = _inner(beta2, rho_bar, rho * (slope2 / (2 * c2)))
        found["beta2"] = _inner(beta2, v_bar, torch.addcmul(v, d, d, value=-1)) + through_c2
    if "eps" in wanted:
        found["eps"] = _total(options["eps"], rho_bar)
    d_bar = add_scaled(m_bar * (1 - beta1), 2 * (1 - beta2), d * v_bar)
    before = {"exp_avg": _scaled(m_bar, beta1), "exp_avg_sq": _scaled(v_bar, beta2)}
    if not decoupled:
        return _through_penalty(rule, step, x_bar, d_bar, before, found)
    if "lr" in wanted:
        found["lr"] -= _inner(lr, x_bar, decay * x)
    if "weight_decay" in wanted:
        found["weight_decay"] = -_inner(decay, x_bar, lr * x)
    u = -d_bar if rule.maximize else d_bar
    return Pulled(x_bar if is_zero(decay) else x_bar * (1 - lr * decay), before, u, found)


def _clip_norm(rule: ClipNorm, step: Step, x_bar: Tensor, slots_bar: Vectors) -> Pulled:
    """``ĝ = s g`` with ``s = c / (n + ε)`` where that is below 1; then another rule on ĝ."""
    g, c = step.g, step.options["max_norm"]
    inner = step._replace(g=clipped(g, c), wanted=step.wanted - {"max_norm"})
    pulled = adjoint_of(rule.rule)(inner, x_bar, slots_bar)
    n = g.square().sum().sqrt()
    s = c / (n + ROOM)
    along = torch.dot(pulled.u, g)
    cut = s < 1  # a tensor: a device is not asked
    turned = torch.where(cut & (n > 0), s * along / (n * (n + ROOM)), torch.zeros_like(n))
    u = (torch.where(cut, s, torch.ones_like(s)) * pulled.u - turned * g).to(g.dtype)
    found = dict(pulled.options)
    if "max_norm" in step.wanted:
        found["max_norm"] = torch.where(cut, along / (n + ROOM), torch.zeros_like(n)).double()
    return pulled._replace(u=u, options=found)


def _through_penalty(
    rule: SGD | Adam | AdamW,
    step: Step,
    x_bar: Tensor,
    d_bar: Tensor,
    slots_bar: Vectors,
    found: Vectors,
) -> Pulled:
    """Pull the adjoint of ``d = ±g + ω x`` back too."""
    decay = step.options["weight_decay"]
    if "weight_decay" in step.wanted:
        found["weight_decay"] = _inner(decay, d_bar, step.x)
    before = x_bar if is_zero(decay) else add_scaled(x_bar, decay, d_bar)
    return Pulled(before, slots_bar, -d_bar if rule.maximize else d_bar, found)


def correction(beta: Value, t: int) -> tuple[Any, Any]:
    """Return ``c = 1 - β^(t+1)`` and -dc/dβ, counted in double."""
    if not isinstance(beta, Tensor):
        return 1 - beta ** (t + 1), (t + 1) * beta**t
    exact = beta.double()
    return (1 - exact ** (t + 1)).to(beta.dtype), ((t + 1) * exact**t).to(beta.dtype)


def _scaled(x: Tensor, a: Value) -> Tensor:
    """``a x`` in the dtype of x."""
    return (x * a).to(x.dtype)


def _scaled_sum(x: Tensor | None, y: Tensor, a: Value) -> Tensor:
    """``x + a y``, where x may be missing."""
    return _scaled(y, a) if x is None else add_scaled(x, a, y)


def _inner(option: Value, a: Tensor, b: Tensor) -> Tensor:
    """The adjoint of an option whose effect is ``a · (b dλ)``, in the option's shape."""
    return a * b if isinstance(option, Tensor) else torch.dot(a, b).double()


def _total(option: Value, a: Tensor, factor: Value = 1.0) -> Tensor:
    """The adjoint of an option whose effect is ``factor a · dλ``, in the option's shape."""
    vector = isinstance(option, Tensor) or isinstance(factor, Tensor)
    total = a * factor if vector else a.sum().double() * factor
    return total if isinstance(option, Tensor) or not vector else total.sum().double()

"""The tangents of the optimizers' twins: how x and the slots move with the hyperparameters.

A rule takes parameters x, slots z and the gradient g to ``x', z'``. Given the tangents of x, z and
g, and how the options move, its tangent returns those of ``x', z'``: in closed form
(``hypergrad.closed_forms.tangents``), or, where a rule has none, by autograd.

Letters, with a dot for a tangent: x parameters; z slots; g gradient; m coordinates; in clipping n
the norm of g, c its limit, s the factor, ĝ = s g.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import torch
from torch import Tensor

from hyperopt_dl.hypergrad.closed_forms import tangents
from hyperopt_dl.hypergrad.closed_forms.tangents import Step, Vectors
from hyperopt_dl.hypergrad.traces.pushforward import Pushforward
from hyperopt_dl.optimizers import SGD, Adagrad, Adam, AdamW, ClipNorm, Optimizer, RMSprop
from hyperopt_dl.optimizers.clip_norm import ROOM, clipped
from hyperopt_dl.optimizers.options import is_zero
from hyperopt_dl.optimizers.turns import Turn

RuleTangent: TypeAlias = Callable[[Any, Vectors, Step], dict[str, Tensor]]
"""From a rule, the tangents before a step, and the step, to the tangents after it."""


def push_rule(rule: Optimizer, dot: Vectors, step: Step) -> dict[str, Tensor]:
    """Carry tangents through a step of a rule.

    Args:
        rule: The rule.
        dot: Tangents `m x p` of ``"x"`` and of all slots, by name.
        step: The step, with every slot of the rule, and with x.

    Returns:
        The tangents after the step, in the dtypes of those before.
    """
    # Of these types exactly: a subclass may have an update of its own.
    after = _FORMS.get(type(rule), by_autograd)(rule, dot, step)
    return {name: value.to(dot[name].dtype) for name, value in after.items()}


def push_in_turns(
    rule: Optimizer, turns: Sequence[Turn] | None, dot: Vectors, step: Step
) -> dict[str, Tensor]:
    """Carry tangents through a step in which parameters take turns; args as for `push_rule`."""
    if turns is None:
        return push_rule(rule, dot, step)
    total = dict(dot)
    for mask, done in turns:
        if done is not None:
            after = push_rule(rule, dot, replace(step, t=done + 1))
            total = {name: torch.where(mask, after[name], value) for name, value in total.items()}
    return total


def by_autograd(rule: Optimizer, dot: Vectors, step: Step) -> dict[str, Tensor]:
    """Differentiate any rule: the oracle of the closed forms."""
    named = {"x": step.x, "g": step.g, **{f"slot/{n}": v for n, v in step.slots.items()}}
    options = {
        n: torch.as_tensor(step.options[n], dtype=torch.double, device=_place(step.options[n]))
        for n in step.seeds
    }
    named |= {f"option/{n}": value for n, value in options.items()}
    leaves = {n: v.detach().clone().requires_grad_() for n, v in named.items() if v is not None}
    with torch.enable_grad():
        slots = {name: leaves[f"slot/{name}"] for name in step.slots}
        values = {n: leaves.get(f"option/{n}", value) for n, value in step.options.items()}
        x_after, after = rule.update(leaves["x"], leaves["g"], slots, values, step.t - 1)
    push = Pushforward({"x": x_after, **after}, leaves)
    rows = []
    for k in range(step.m):
        along = {"x": dot["x"][k], "g": step.g_dot[k]}
        along |= {f"slot/{name}": dot[name][k] for name in step.slots}
        for name, seeds in step.seeds.items():
            slopes = [slope for row, slope in seeds if row == k]
            if slopes:
                like = options[name]
                slope = torch.as_tensor(slopes[0], dtype=like.dtype, device=like.device)
                along[f"option/{name}"] = slope.expand_as(like)
        rows.append(push(along))
    return {
        name: torch.stack([row[name] for row in rows]) if name in rows[0] else torch.zeros_like(old)
        for name, old in dot.items()
    }


def _sgd(rule: SGD, dot: Vectors, step: Step) -> dict[str, Tensor]:
    """As torch, but that the buffer stays one at momentum 0, where nothing is dampened."""
    mu, tau = step.options["momentum"], step.options["dampening"]
    slots, seeds = step.slots if step.t > 1 else {}, dict(step.seeds)
    if isinstance(mu, Tensor):
        moving = (mu != 0).to(mu.dtype)
        tau = tau if is_zero(tau) else tau * moving
        seeds["dampening"] = [(row, slope * moving) for row, slope in seeds.get("dampening", ())]
    elif mu == 0:
        tau = 0.0
        seeds.pop("dampening", None)
    flags = {"nesterov": rule.nesterov, "maximize": rule.maximize}
    options = {**step.options, **flags, "dampening": tau}
    return tangents.sgd(dot, replace(step, slots=slots, options=options, seeds=seeds))


def _adam(rule: Adam | AdamW, dot: Vectors, step: Step) -> dict[str, Tensor]:
    flags = {
        "amsgrad": rule.amsgrad,
        "maximize": rule.maximize,
        "decoupled_weight_decay": isinstance(rule, AdamW),
    }
    decays = not is_zero(step.options["weight_decay"]) or "weight_decay" in step.seeds
    x = step.x if decays else None
    return tangents.adam(dot, replace(step, x=x, options={**step.options, **flags}))


def _rmsprop(rule: RMSprop, dot: Vectors, step: Step) -> dict[str, Tensor]:
    flags = {"centered": rule.centered, "maximize": rule.maximize}
    return tangents.rmsprop(dot, replace(step, options={**step.options, **flags}))


def _adagrad(rule: Adagrad, dot: Vectors, step: Step) -> dict[str, Tensor]:
    options = {**step.options, "maximize": rule.maximize}
    return tangents.adagrad(dot, replace(step, options=options))


def _clip_norm(rule: ClipNorm, dot: Vectors, step: Step) -> dict[str, Tensor]:
    """``ĝ = s g`` with ``s = c / (n + ε)`` where that is below 1; then another rule on ĝ."""
    g, g_dot, c = step.g, step.g_dot, step.options["max_norm"]
    n = g.square().sum().sqrt()
    s = c / (n + ROOM)
    cut = s < 1  # a tensor: a device is not asked
    n_dot = torch.where(n > 0, g_dot @ g / n, torch.zeros_like(n))
    s_dot = -s / (n + ROOM) * n_dot
    for row, slope in step.seeds.get("max_norm", ()):
        s_dot[row] += slope / (n + ROOM)
    turned = torch.where(cut, s_dot, torch.zeros_like(s_dot))
    kept = torch.where(cut, s, torch.ones_like(s))
    return push_rule(
        rule.rule,
        dot,
        replace(
            step,
            g=clipped(g, c),
            g_dot=(kept * g_dot + torch.outer(turned, g)).to(g_dot.dtype),
            seeds={name: seeds for name, seeds in step.seeds.items() if name != "max_norm"},
        ),
    )


def _place(value: object) -> torch.device | None:
    return value.device if isinstance(value, Tensor) else None


_FORMS: dict[type, RuleTangent] = {
    SGD: _sgd,
    Adam: _adam,
    AdamW: _adam,
    RMSprop: _rmsprop,
    Adagrad: _adagrad,
    ClipNorm: _clip_norm,
}

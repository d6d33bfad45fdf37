"""Closed-form tangents of the optimizers' rules, against autograd, and autograd against others."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from hyperopt_dl.hypergrad.closed_forms.rule_tangents import by_autograd, push_rule
from hyperopt_dl.hypergrad.closed_forms.tangents import Step
from hyperopt_dl.hypergrad.traces.pushforward import Pushforward
from hyperopt_dl.optimizers import SGD, Adagrad, Adam, Optimizer, RMSprop
from tests.hypergrad.closed_forms.test_adjoints import BETAS, CASES, P, Slower, as_given

RMS = {"lr": 0.1, "alpha": 0.9, "eps": 1e-3, "weight_decay": 0.1, "momentum": 0.5}
MORE: dict[str, tuple[Optimizer, dict[str, float]]] = {
    "dampening": (
        SGD("lr", "mu", "tau", "wd"),
        {"lr": 0.1, "momentum": 0.8, "dampening": 0.3, "weight_decay": 0.01},
    ),
    "amsgrad": (
        Adam("lr", BETAS, "eps", "wd", amsgrad=True),
        {"lr": 0.1, "beta1": 0.8, "beta2": 0.95, "eps": 1e-3, "weight_decay": 0.02},
    ),
    "rmsprop": (RMSprop("lr", "alpha", "eps", "wd"), {**RMS, "momentum": 0.0}),
    "centered": (RMSprop("lr", "alpha", "eps", "wd", "mu", centered=True), RMS),
    "adagrad": (
        Adagrad("lr", "decay", "wd", eps="eps"),
        {"lr": 0.1, "lr_decay": 0.2, "weight_decay": 0.1, "eps": 1e-3},
    ),
}
ALL_CASES = {**CASES, **MORE}


def made(rule: Optimizer, values: dict[str, Any], t: int, *, zero: bool = False) -> Any:
    """Return tangents and a step in which coordinate k moves option k, and the last one two."""
    generator = torch.Generator().manual_seed(t)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, P, generator=generator, dtype=torch.double)

    x, g, m = draw(), draw(), len(values) + 1
    slots = {name: draw().abs() for name in rule.slots(x)}
    if "grad_avg" in slots:
        slots["grad_avg"] *= 0.1
    dot = {"x": draw(m), **{name: draw(m) for name in slots}}
    g_dot = draw(m)
    if zero:  # an entry that never had a gradient
        alive = torch.arange(P) != 2
        g, g_dot = g * alive, g_dot * alive
        slots = {name: slot * alive for name, slot in slots.items()}
        dot = {name: v if name == "x" else v * alive for name, v in dot.items()}
    seeds = {
        name: [(k, 0.7 if not isinstance(v, Tensor) else draw())]
        for k, (name, v) in enumerate(values.items())
    }
    for name in ("lr", "weight_decay"):
        if name in seeds:
            seeds[name].append((m - 1, seeds[name][0][1]))
    return dot, Step(m, x, g, g_dot, slots, t + 1, values, seeds)


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("t", [0, 1, 5])
@pytest.mark.parametrize("kind", ["scalar", "grouped"])
@pytest.mark.parametrize("name", ALL_CASES)
def test_a_closed_form_equals_autograd(name: str, kind: str, t: int) -> None:
    rule, values = ALL_CASES[name]
    dot, step = made(rule, as_given(values, kind), t)
    assert_equal(push_rule(rule, dot, step), by_autograd(rule, dot, step))


def test_at_momentum_0_the_buffer_moves_with_the_momentum_and_nothing_is_dampened() -> None:
    rule, values = MORE["dampening"]
    dot, step = made(rule, {**values, "momentum": 0.0}, 3)
    d_dot = step.g_dot + 0.01 * dot["x"]
    d_dot[1] += 0.7 * step.slots["momentum_buffer"]
    d_dot[3:] += 0.7 * step.x
    after = push_rule(rule, dot, step)
    torch.testing.assert_close(after["momentum_buffer"], d_dot, rtol=1e-12, atol=1e-12)
    one = torch.ones(P, dtype=torch.double)
    options = {"momentum": 0.0 * one, "dampening": 0.3 * one, "lr": 0.1, "weight_decay": 0.01}
    assert_equal(push_rule(rule, dot, replace(step, options=options)), after)


@pytest.mark.parametrize("name", ["adam", "adamw", "amsgrad", "rmsprop", "adagrad"])
def test_an_entry_that_never_had_a_gradient_has_finite_tangents(name: str) -> None:
    rule, values = ALL_CASES[name]
    dot, step = made(rule, as_given(values, "scalar"), 4, zero=True)
    after = push_rule(rule, dot, step)
    assert all(torch.isfinite(value).all() for value in after.values())
    assert_equal(after, by_autograd(rule, dot, step))


def test_a_rule_of_ones_own_is_differentiated_by_autograd() -> None:
    dot, step = made(Slower("lr"), CASES["sgd"][1], 2)
    plain = push_rule(SGD("lr"), dot, step)
    torch.testing.assert_close(push_rule(Slower("lr"), dot, step)["x"], (dot["x"] + plain["x"]) / 2)


def test_autograd_agrees_with_forward_mode_of_torch() -> None:
    rule, values = MORE["centered"]
    dot, step = made(rule, values, 3)
    found = by_autograd(rule, dot, step)

    def update(x: Tensor, g: Tensor, slots: Any, options: Any) -> Any:
        x_after, after = rule.update(x, g, slots, options, step.t - 1)
        return {"x": x_after, **after}

    given = {n: torch.tensor(v, dtype=torch.double) for n, v in values.items()}
    for k in range(step.m):
        moved = {n: sum(s for row, s in step.seeds[n] if row == k) for n in values}
        along = (
            dot["x"][k],
            step.g_dot[k],
            {n: dot[n][k] for n in step.slots},
            {n: torch.tensor(float(v), dtype=torch.double) for n, v in moved.items()},
        )
        at = (step.x, step.g, step.slots, given)
        expected = torch.func.jvp(update, at, along)[1]
        assert_equal({n: v[k] for n, v in found.items()}, expected)


def test_a_pushforward_is_the_jacobian_of_real_and_complex_outputs() -> None:
    x = torch.tensor([0.3, -0.5], dtype=torch.double, requires_grad=True)
    z = torch.tensor(0.4 + 0.2j, dtype=torch.complex128, requires_grad=True)
    idle = torch.tensor(1.0, requires_grad=True)
    outputs = {"a": x.sin().sum() * x, "b": z * z * torch.complex(x[0], x[1]), "c": x.detach()}
    push = Pushforward(outputs, {"x": x, "z": z, "idle": idle})
    assert push.reached == {"x", "z"}
    x_dot = torch.tensor([0.7, 0.1], dtype=torch.double)
    z_dot = torch.tensor(-0.3 + 0.9j, dtype=torch.complex128)
    found = push({"x": x_dot, "z": z_dot})
    assert found.keys() == {"a", "b"}
    a, b = x.detach(), z.detach()
    c, c_dot = torch.complex(a[0], a[1]), torch.complex(x_dot[0], x_dot[1])
    expected = (a.cos() @ x_dot) * a + a.sin().sum() * x_dot
    torch.testing.assert_close(found["a"], expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(found["b"], 2 * b * z_dot * c + b * b * c_dot, rtol=1e-12, atol=0)
    assert not push({})["a"].any()

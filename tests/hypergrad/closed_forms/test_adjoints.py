"""Closed-form adjoints of the optimizers' rules, against autograd."""

from typing import Any

import pytest
import torch
from torch import Tensor

from hyperopt_dl.hypergrad.closed_forms.adjoints import Pulled, Step, adjoint_of, by_autograd
from hyperopt_dl.optimizers import SGD, Adagrad, Adam, AdamW, ClipNorm, Optimizer, RMSprop

P = 7
SGD_VALUES = {"lr": 0.1, "momentum": 0.8, "dampening": 0.0, "weight_decay": 0.01}
ADAM_VALUES = {"lr": 0.1, "beta1": 0.8, "beta2": 0.95, "eps": 1e-3, "weight_decay": 0.02}
BETAS = ("beta1", "beta2")
CASES: dict[str, tuple[Optimizer, dict[str, float]]] = {
    "sgd": (SGD("lr", weight_decay="wd"), {**SGD_VALUES, "momentum": 0.0}),
    "momentum": (SGD("lr", "mu", weight_decay="wd"), SGD_VALUES),
    "nesterov": (SGD("lr", "mu", weight_decay="wd", nesterov=True), SGD_VALUES),
    "momentum, maximize": (SGD("lr", "mu", weight_decay="wd", maximize=True), SGD_VALUES),
    "nesterov, maximize": (SGD("lr", "mu", nesterov=True, maximize=True), SGD_VALUES),
    "adam": (Adam("lr", BETAS, "eps", "wd"), ADAM_VALUES),
    "adam, maximize": (Adam("lr", BETAS, "eps", "wd", maximize=True), ADAM_VALUES),
    "adamw": (AdamW("lr", BETAS, "eps", "wd"), ADAM_VALUES),
    "adamw, maximize": (AdamW("lr", BETAS, "eps", "wd", maximize=True), ADAM_VALUES),
    "clipped": (ClipNorm(SGD("lr", "mu"), "c"), {**SGD_VALUES, "max_norm": 0.4}),
    "not clipped": (ClipNorm(SGD("lr", "mu"), "c"), {**SGD_VALUES, "max_norm": 40.0}),
    "clipped adamw": (
        ClipNorm(AdamW("lr", BETAS, "eps", "wd"), "c"),
        {**ADAM_VALUES, "max_norm": 0.4},
    ),
}


class Slower(SGD):
    """A rule of the user's own, which goes half as far."""

    def update(
        self, params: Tensor, grad: Tensor, slots: Any, options: Any, t: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        after, moved = super().update(params, grad, slots, options, t)
        return (params + after) / 2, moved


def made(rule: Optimizer, values: dict[str, Any], t: int, *, zero: bool = False) -> Any:
    """Return a step of a rule and adjoints of its results."""
    generator = torch.Generator().manual_seed(t)

    def draw() -> Tensor:
        return torch.randn(P, generator=generator, dtype=torch.double)

    x, g = draw(), draw()
    slots = {name: draw().abs() for name in rule.slots(x)}
    if zero:  # an entry that never had a gradient
        g[2] = 0.0
        slots = {name: slot * (torch.arange(P) != 2) for name, slot in slots.items()}
    after = rule.update(x, g, slots, values, t)[1]
    wanted = frozenset(values) - {"dampening"}
    return Step(x, slots, g, after, values, wanted, t), draw(), {name: draw() for name in slots}


def as_given(values: dict[str, float], kind: str) -> dict[str, Any]:
    if kind == "scalar":
        return dict(values)
    vectors = {name: torch.full((P,), v, dtype=torch.double) for name, v in values.items()}
    plain = {n: v for n, v in values.items() if n in ("dampening", "max_norm")}
    return {**vectors, **plain}


def assert_equal(closed: Pulled, exact: Pulled) -> None:
    torch.testing.assert_close(closed.x, exact.x, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(closed.u, exact.u, rtol=1e-12, atol=1e-12)
    for ours, theirs in ((closed.slots, exact.slots), (closed.options, exact.options)):
        for name, value in theirs.items():
            found = ours.get(name, torch.zeros_like(value))
            torch.testing.assert_close(found, value, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("t", [0, 1, 5])
@pytest.mark.parametrize("kind", ["scalar", "grouped"])
@pytest.mark.parametrize("name", CASES)
def test_a_closed_form_equals_autograd(name: str, kind: str, t: int) -> None:
    rule, values = CASES[name]
    step, x_bar, slots_bar = made(rule, as_given(values, kind), t)
    closed = adjoint_of(rule)
    assert closed.form is not by_autograd
    assert_equal(closed(step, x_bar, slots_bar), by_autograd(rule, step, x_bar, slots_bar))


@pytest.mark.parametrize("name", CASES)
def test_the_last_step_has_no_adjoint_of_its_slots(name: str) -> None:
    rule, values = CASES[name]
    step, x_bar, _ = made(rule, as_given(values, "scalar"), 3)
    assert_equal(adjoint_of(rule)(step, x_bar, {}), by_autograd(rule, step, x_bar, {}))


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_an_entry_that_never_had_a_gradient_has_finite_adjoints(name: str) -> None:
    rule, values = CASES[name]
    step, x_bar, slots_bar = made(rule, as_given(values, "scalar"), 4, zero=True)
    closed = adjoint_of(rule)(step, x_bar, slots_bar)
    assert torch.isfinite(closed.u).all()
    assert_equal(closed, by_autograd(rule, step, x_bar, slots_bar))


@pytest.mark.parametrize("name", CASES)
def test_constants_have_no_adjoint(name: str) -> None:
    rule, values = CASES[name]
    step, x_bar, slots_bar = made(rule, values, 2)
    step = step._replace(wanted=frozenset())
    closed = adjoint_of(rule)(step, x_bar, slots_bar)
    assert closed.options == {}
    assert_equal(closed, by_autograd(rule, step, x_bar, slots_bar))


@pytest.mark.parametrize(
    "rule",
    [
        SGD("lr", 0.9, dampening="tau"),
        SGD("lr", 0.9, groups={"*": {"dampening": 0.1}}),
        Adam("lr", amsgrad=True),
        RMSprop("lr"),
        Adagrad("lr"),
        Slower("lr"),
    ],
    ids=lambda rule: type(rule).__name__,
)
def test_other_rules_are_left_to_autograd(rule: Optimizer) -> None:
    assert adjoint_of(rule).form is by_autograd


@pytest.mark.parametrize("name", CASES)
def test_a_form_that_does_not_read_the_gradient_says_so(name: str) -> None:
    rule, values = CASES[name]
    step, x_bar, slots_bar = made(rule, values, 2)
    closed = adjoint_of(rule)
    assert closed.reads_g == (name not in {"momentum", "momentum, maximize"})
    if not closed.reads_g:
        without = step._replace(g=torch.empty(0))
        assert_equal(closed(without, x_bar, slots_bar), closed(step, x_bar, slots_bar))


def test_autograd_agrees_with_central_differences() -> None:
    rule = RMSprop("lr", "alpha", momentum="mu")
    values = {"lr": 0.1, "alpha": 0.9, "eps": 1e-3, "weight_decay": 0.1, "momentum": 0.5}
    step, x_bar, slots_bar = made(rule, as_given(values, "scalar"), 3)

    def response(name: str, value: float) -> float:
        options = {**step.options, name: torch.tensor(value, dtype=torch.double)}
        x, slots = rule.update(step.x, step.g, step.slots, options, step.t)
        return float(x_bar @ x) + sum(float(slots_bar[n] @ slots[n]) for n in slots)

    pulled = by_autograd(rule, step, x_bar, slots_bar)
    for name, value in values.items():
        h = 1e-6 * max(value, 1e-2)
        difference = (response(name, value + h) - response(name, value - h)) / (2 * h)
        assert float(pulled.options[name]) == pytest.approx(difference, rel=1e-6)

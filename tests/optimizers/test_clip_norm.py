"""Clipping by norm, against ``torch.nn.utils.clip_grad_norm_`` and ``torch.optim``."""

import pickle
from typing import Any

import pytest
import torch

from hyperopt_dl.errors import TrainingError
from hyperopt_dl.optimizers import SGD, Adam, ClipNorm, Schedule
from hyperopt_dl.optimizers.clip_norm import clipped
from hyperopt_dl.optimizers.resolve import resolve

CURVATURE = torch.tensor([4.0, 1.0, 0.2], dtype=torch.double)
START = torch.tensor([1.0, -2.0, 3.0], dtype=torch.double)
LAYOUT = (("w", 2), ("b", 1))


def ours(rule: ClipNorm, hparams: dict[str, Any], steps: int) -> list[torch.Tensor]:
    params, slots, path = START, rule.slots(START), []
    for t in range(steps):
        options = resolve(rule, hparams, t, LAYOUT, params)
        params, slots = rule.update(params, CURVATURE * params, slots, options, t)
        path.append(params)
    return path


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("limit", [0.5, 3.0, 100.0])
@pytest.mark.parametrize("kind", ["sgd", "adam"])
def test_a_run_is_that_of_torch(kind: str, limit: float, named: bool) -> None:
    parameter = torch.nn.Parameter(START.clone())
    if kind == "sgd":
        theirs: torch.optim.Optimizer = torch.optim.SGD([parameter], 0.2, momentum=0.9)
        rule = ClipNorm(SGD(0.2, 0.9), "limit" if named else limit)
    else:
        theirs = torch.optim.Adam([parameter], 0.1)
        rule = ClipNorm(Adam(0.1), "limit" if named else limit)
    for params in ours(rule, {"limit": limit}, 25):
        parameter.grad = CURVATURE * parameter.detach()
        torch.nn.utils.clip_grad_norm_([parameter], limit)
        theirs.step()
        torch.testing.assert_close(params, parameter.detach(), rtol=1e-12, atol=1e-12)


def test_a_gradient_of_zeros_stays_and_has_a_finite_derivative() -> None:
    g = torch.zeros(3, dtype=torch.double, requires_grad=True)
    result = clipped(g, 0.5)
    (slope,) = torch.autograd.grad(result.sum(), g)
    assert torch.equal(result, torch.zeros(3, dtype=torch.double))
    assert torch.equal(slope, torch.ones(3, dtype=torch.double))


def test_it_shows_what_the_rule_shows() -> None:
    groups = {"b": {"lr": "other"}}
    rule = ClipNorm(SGD("lr", 0.9, groups=groups), Schedule("limit", lambda t: 0.9**t))
    assert rule.names() == {"lr", "other", "limit"}
    assert rule.groups is rule.rule.groups
    assert {**rule.groups} == groups
    assert rule.slots(START).keys() == {"momentum_buffer"}
    assert rule.options().keys() == {*SGD().options(), "max_norm"}
    options = resolve(
        ClipNorm(SGD("lr", groups=groups), "limit"),
        {"lr": 0.1, "other": 0.2, "limit": 2.0},
        0,
        LAYOUT,
        START,
    )
    assert options["max_norm"] == 2.0
    plain = ClipNorm(SGD("lr", groups=groups), "limit")
    assert pickle.loads(pickle.dumps(plain)) == plain
    assert hash(plain) == hash(ClipNorm(SGD("lr", groups=groups), "limit"))


@pytest.mark.parametrize(
    ("rule", "limit", "message"),
    [
        (SGD(0.1), 0.0, "max_norm > 0"),
        (SGD(0.1), -1.0, "max_norm >= 0, got max_norm=-1.0"),
        (SGD(0.1), None, "max_norm=None"),
        (SGD, 1.0, "needs an optimizer such as SGD"),
        (torch.optim.SGD([torch.nn.Parameter(START)]), 1.0, "needs an optimizer such as SGD"),
    ],
)
def test_what_cannot_clip_is_refused(rule: Any, limit: Any, message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        ClipNorm(rule, limit)

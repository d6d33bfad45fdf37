"""Every twin walks the path of its torch.optim original."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from hyperopt_dl.optimizers import SGD, Adam, AdamW, Optimizer, RMSprop, Schedule
from tests.optimizers.twins import LAYOUT, TWINS, Twin, inner_loss, public, start, train, wave

STEPS = 25
DTYPES = {torch.float32: 1e-6, torch.float64: 1e-12}
MODES = [(row, mode) for row in TWINS for mode in row.modes]
BY_NAME = {row.name: row for row in TWINS}


def mode_id(value: object) -> str | None:
    if isinstance(value, Twin):
        return value.name
    if isinstance(value, Mapping):
        return ",".join(f"{k}={v}" for k, v in value.items()) or "defaults"
    return None


def original(
    row: Twin,
    settings: Mapping[str, Any],
    groups: Mapping[str, Mapping[str, Any]],
    params: Tensor,
    factor: Any = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """torch.optim's path; groups by full parameter name, since torch has no patterns."""
    chunks = torch.split(params, [n for _, n in LAYOUT])
    pieces = [torch.nn.Parameter(chunk.clone()) for chunk in chunks]
    param_groups = [
        {"params": [piece], **groups.get(name, {})}
        for (name, _), piece in zip(LAYOUT, pieces, strict=True)
    ]
    optimizer = row.reference(param_groups, foreach=False, **settings)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor) if factor else None
    for t in range(STEPS):
        optimizer.zero_grad()
        inner_loss(torch.cat(list(pieces)), t).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if scheduler:
            scheduler.step()
    states = [optimizer.state[piece] for piece in pieces]
    slots = {
        name: torch.cat([state[name] for state in states])
        for name in states[0]
        if name != "step" and all(state.get(name) is not None for state in states)
    }
    return torch.cat([piece.detach() for piece in pieces]), slots


def assert_same_path(
    found: tuple[Tensor, dict[str, Tensor]],
    expected: tuple[Tensor, dict[str, Tensor]],
    rtol: float,
) -> None:
    torch.testing.assert_close(found[0].detach(), expected[0], rtol=rtol, atol=rtol)
    for name, slot in expected[1].items():
        scale = float(slot.abs().max())
        torch.testing.assert_close(found[1][name].detach(), slot, rtol=rtol, atol=2 * rtol * scale)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("row", "mode"), MODES, ids=mode_id)
def test_constants_follow_torch(row: Twin, mode: Mapping[str, Any], dtype: torch.dtype) -> None:
    found = train(row.twin(**mode), {}, STEPS, start(dtype))
    expected = original(row, mode, {}, start(dtype))
    assert_same_path(found, expected, DTYPES[dtype])
    assert found[1].keys() == expected[1].keys()
    assert not torch.allclose(found[0].detach(), start(dtype), rtol=1e-2)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("as_tensors", [True, False], ids=["tensors", "numbers"])
@pytest.mark.parametrize(
    ("row", "flags"), [(row, flags) for row in TWINS for flags in row.flags], ids=mode_id
)
def test_named_hyperparameters_follow_torch_and_keep_the_dtype(
    row: Twin, flags: Mapping[str, Any], as_tensors: bool, dtype: torch.dtype
) -> None:
    named = {name: f"the {name}" for name in row.interior}
    hparams: dict[str, float | Tensor] = {
        f"the {name}": torch.tensor(value, dtype=torch.double) if as_tensors else value
        for name, value in row.interior.items()
    }
    found = train(row.build(named, **flags), hparams, STEPS, start(dtype))
    expected = original(row, {**public(row.interior), **flags}, {}, start(dtype))
    assert_same_path(found, expected, DTYPES[dtype])
    assert {slot.dtype for slot in found[1].values()} == {found[0].dtype} == {dtype}


GROUPS: dict[str, Mapping[str, Mapping[str, Any]]] = {
    "SGD": {
        "body.weight": {"lr": 0.01, "momentum": 0.5, "dampening": 0.2},
        "*.bias": {"weight_decay": 0.0, "momentum": 0.0, "dampening": 0.6},
    },
    "Adam": {
        "body.weight": {"lr": 0.01, "betas": (0.5, 0.9999)},
        "*.bias": {"weight_decay": 0.0, "eps": 1e-3},
    },
    "RMSprop": {
        "body.weight": {"lr": 0.01, "momentum": 0.0},
        "*.bias": {"weight_decay": 0.0, "alpha": 0.95, "eps": 1e-3},
    },
    "Adagrad": {
        "body.weight": {"lr": 0.02, "lr_decay": 0.5},
        "*.bias": {"weight_decay": 0.0, "eps": 1e-3},
    },
}
GROUPS["AdamW"] = GROUPS["Adam"]


def by_parameter(groups: Mapping[str, Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    bias = groups["*.bias"]
    return {"body.weight": groups["body.weight"], "body.bias": bias, "head.bias": bias}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("row", TWINS, ids=mode_id)
def test_groups_follow_torchs_param_groups(row: Twin, dtype: torch.dtype) -> None:
    groups = GROUPS[row.name]
    found = train(row.build(row.interior, groups=groups), {}, STEPS, start(dtype))
    expected = original(row, public(row.interior), by_parameter(groups), start(dtype))
    assert_same_path(found, expected, DTYPES[dtype])
    ungrouped = train(row.build(row.interior), {}, STEPS, start(dtype))
    assert not torch.allclose(found[0], ungrouped[0], rtol=1e-3)


@pytest.mark.parametrize("row", TWINS, ids=mode_id)
def test_a_schedule_of_the_step_follows_lambda_lr(row: Twin) -> None:
    lr = row.interior["lr"]
    optimizer = row.build({**row.interior, "lr": Schedule("lr", wave)})
    found = train(optimizer, {"lr": lr}, STEPS, start())
    expected = original(row, public(row.interior), {}, start(), factor=wave)
    assert_same_path(found, expected, 1e-12)


@pytest.mark.parametrize("row", TWINS, ids=mode_id)
def test_a_schedule_in_a_group_follows_lambda_lr(row: Twin) -> None:
    groups = {
        "body.weight": {"lr": Schedule(0.01, wave)},
        "*": {"lr": Schedule(row.interior["lr"], wave)},
    }
    found = train(row.build(row.interior, groups=groups), {}, STEPS, start())
    lr_of_body = {"body.weight": {"lr": 0.01}}
    expected = original(row, public(row.interior), lr_of_body, start(), factor=wave)
    assert_same_path(found, expected, 1e-12)


@pytest.mark.parametrize("momentum", [0.0, torch.tensor(0.0)], ids=["number", "tensor"])
@pytest.mark.parametrize("dampening", ["dampening", 0.4])
def test_dampening_is_ignored_where_a_named_momentum_is_0(
    momentum: float | Tensor, dampening: str | float
) -> None:
    optimizer = SGD(lr=0.05, momentum="momentum", dampening=dampening)
    hparams = {"momentum": momentum, "dampening": torch.tensor(0.4)}
    found, _ = train(optimizer, hparams, STEPS, start())
    expected, _ = original(BY_NAME["SGD"], {"lr": 0.05, "dampening": 0.4}, {}, start())
    torch.testing.assert_close(found.detach(), expected, rtol=1e-12, atol=1e-12)


def test_a_number_as_dampening_keeps_its_double_precision_beside_a_tensor_momentum() -> None:
    hparams = {"momentum": torch.tensor(0.9, dtype=torch.double)}
    found, _ = train(SGD(lr=0.05, momentum="momentum", dampening=0.3), hparams, STEPS, start())
    settings = {"lr": 0.05, "momentum": 0.9, "dampening": 0.3}
    expected, _ = original(BY_NAME["SGD"], settings, {}, start())
    torch.testing.assert_close(found.detach(), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "optimizer",
    [SGD(lr=0.05, momentum=Schedule(0.9, wave)), RMSprop(lr=0.05, momentum=Schedule(0.9, wave))],
    ids=["SGD", "RMSprop"],
)
def test_a_resumed_run_is_the_run_in_one_go(optimizer: Optimizer) -> None:
    whole, _ = train(optimizer, {}, 4, start())
    params, slots = train(optimizer, {}, 2, start())
    for t in (2, 3):
        params = params.detach().requires_grad_()
        (grad,) = torch.autograd.grad(inner_loss(params, t), params)
        momentum = {"momentum": 0.9 * wave(t)}
        options = {**{k: v for k, v in optimizer.options().items() if k != "momentum"}, **momentum}
        params, slots = optimizer.update(params.detach(), grad, slots, options, t)  # type: ignore[arg-type]
    assert torch.equal(params, whole)


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("rule", [Adam, AdamW])
def test_under_a_constant_gradient_every_step_of_adam_is_lr(rule: Any, grouped: bool) -> None:
    """Bias correction is exact also in float32, where 1 - beta2^t has lost most of its digits."""
    groups = {"head.*": {"beta2": 0.99999}} if grouped else {}
    optimizer = rule(lr=0.1, betas=(0.9, 0.9999), eps=0.0, weight_decay=0.0, groups=groups)
    found, _ = train(optimizer, {}, 5, start(torch.float32), loss=lambda params, t: params.sum())
    expected = start(torch.float32) - 5 * 0.1
    torch.testing.assert_close(found.detach(), expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("row", TWINS, ids=mode_id)
def test_bfloat16_stays_bfloat16_and_close_to_float32(row: Twin) -> None:
    named = {name: name for name in row.interior}
    hparams = {name: torch.tensor(x, dtype=torch.double) for name, x in row.interior.items()}
    optimizer = row.build(named, groups=GROUPS[row.name])
    rough, slots = train(optimizer, hparams, 5, start(torch.bfloat16))
    fine, _ = train(optimizer, hparams, 5, start(torch.float32))
    assert {x.dtype for x in (rough, *slots.values())} == {torch.bfloat16}
    torch.testing.assert_close(rough.float(), fine, rtol=0.03, atol=0.03)
    assert not torch.allclose(rough.float(), start(torch.float32), atol=0.05)

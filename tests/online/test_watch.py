"""What is refused, so that no tangent is ever silently wrong."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import hyperopt_dl as hd
from hyperopt_dl.online import ForwardTuner
from tests.online.runs import loss_of, network, tangents, train

RATE = hd.Float(1e-5, 10, log=True)


def tuned() -> tuple[nn.Sequential, torch.optim.Optimizer, ForwardTuner]:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.5)
    return model, optimizer, ForwardTuner(optimizer, {"lr": RATE}, hyper_lr=0.0)


def replace(param: nn.Parameter) -> None:
    assert param.grad is not None
    param.grad = param.grad / 2


@pytest.mark.parametrize(
    "change",
    [
        lambda model: nn.utils.clip_grad_norm_(model.parameters(), 1e-3),
        lambda model: nn.utils.clip_grad_value_(model.parameters(), 1e-3),
        lambda model: next(model.parameters()).grad.mul_(2),
        lambda model: replace(next(model.parameters())),
        lambda model: setattr(next(model.parameters()), "grad", None),
        lambda model: loss_of(model, 1).backward(),  # type: ignore[no-untyped-call]
    ],
    ids=["clip norm", "clip value", "in place", "replaced", "taken away", "backward"],
)
def test_a_gradient_changed_by_others_does_not_reach_the_step(
    change: Callable[[nn.Module], Any],
) -> None:
    model, optimizer, tuner = tuned()
    tuner.backward(loss_of(model, 0))
    change(model)
    with pytest.raises(hd.TrainingError, match=r"Clip with tuner.clip_grad_norm_"):
        optimizer.step()


@pytest.mark.parametrize("max_norm", [float("inf"), 1e9])
def test_a_write_that_leaves_the_gradient_as_it_was_does_no_harm(max_norm: float) -> None:
    found = []
    for written in (False, True):
        model, optimizer, tuner = tuned()
        for t in range(20):
            optimizer.zero_grad()
            tuner.backward(loss_of(model, t))
            if written:
                nn.utils.clip_grad_norm_(model.parameters(), max_norm)
            optimizer.step()
        found.append(tangents(tuner))
    assert torch.equal(found[0], found[1])
    optimizer.zero_grad()
    tuner.backward(loss_of(model, 20))
    nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
    with pytest.raises(hd.TrainingError, match=r"Clip with tuner.clip_grad_norm_"):
        optimizer.step()


def test_a_gradient_changed_between_micro_batches_is_found_too() -> None:
    model, _, tuner = tuned()
    tuner.backward(loss_of(model, 0))
    replace(next(model.parameters()))
    with pytest.raises(hd.TrainingError, match=r"something changed .grad in between"):
        tuner.backward(loss_of(model, 1))


@pytest.mark.parametrize("again", [False, True])
def test_a_step_needs_a_backward_of_the_tuner(again: bool) -> None:
    model, optimizer, tuner = tuned()
    if again:
        train(tuner, model, [0])
    else:
        loss_of(model, 0).backward()  # type: ignore[no-untyped-call]
    with pytest.raises(hd.TrainingError, match=r"needs gradients of tuner.backward"):
        optimizer.step()


@pytest.mark.parametrize("to_none", [True, False])
def test_gradients_may_be_set_to_zero_or_none(to_none: bool) -> None:
    found = []
    for wasted in (False, True):
        model, optimizer, tuner = tuned()
        for t in range(4):
            if wasted:
                tuner.backward(loss_of(model, 50 + t))
            optimizer.zero_grad(set_to_none=to_none)
            tuner.backward(loss_of(model, t))
            optimizer.step()
        found.append(tangents(tuner))
    assert torch.equal(found[0], found[1])


def test_gradients_that_are_kept_over_a_step_keep_their_tangents() -> None:
    x = nn.Parameter(torch.tensor([2.0], dtype=torch.double))
    optimizer = torch.optim.SGD([x], lr=0.1)
    tuner = ForwardTuner(optimizer, {"lr": RATE}, hyper_lr=0.0)
    for _ in range(2):  # x1 = 0.8 x0, x2 = x1 - 0.1 (2 x0 + 2 x1): 0.44 x0
        tuner.backward((x**2).sum())
        optimizer.step()
    assert x.item() == pytest.approx(2 * (1 - 0.6 + 0.04))
    # x2 = x0 (1 - 6 lr + 4 lr²): its derivative in log lr is x0 (-6 lr + 8 lr²)
    assert tangents(tuner).item() == pytest.approx(2 * (-0.6 + 0.08), rel=1e-12)


def test_a_leaf_that_the_optimizer_does_not_have_is_named() -> None:
    model = network()
    optimizer = torch.optim.SGD(model[0].parameters(), lr=0.05)
    tuner = ForwardTuner(optimizer, {"lr": RATE})
    with pytest.raises(hd.TrainingError, match=r"2 more tensors .* shapes \[\(2,\), \(2, 4\)\]"):
        tuner.backward(loss_of(model, 0))
    model[2].requires_grad_(False)
    tuner = ForwardTuner(optimizer, {"lr": RATE})
    tuner.backward(loss_of(model, 0))


def test_a_group_that_comes_later_is_refused() -> None:
    model, optimizer, tuner = tuned()
    train(tuner, model, [0])
    optimizer.add_param_group({"params": [nn.Parameter(torch.ones(1))]})
    with pytest.raises(hd.TrainingError, match="keep the 1 parameter groups"):
        tuner.backward(loss_of(model, 1))
    with pytest.raises(hd.TrainingError, match="keep the 1 parameter groups"):
        optimizer.step()


@pytest.mark.parametrize(
    "loss_of_x",
    [lambda x: x.detach().sum(), lambda x: x * torch.ones(2), lambda x: x.item(), lambda _: None],
)
@pytest.mark.parametrize("name", ["backward", "step"])
def test_a_loss_is_one_number_with_a_graph(loss_of_x: Any, name: str) -> None:
    x = nn.Parameter(torch.ones(1))
    tuner = ForwardTuner(torch.optim.SGD([x], lr=0.1), {"lr": RATE})
    with pytest.raises(hd.TrainingError, match="one number, in a tensor, that depends"):
        getattr(tuner, name)(loss_of_x(x))


def test_attention_needs_its_plain_kernel_and_works_with_it() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    tuner = ForwardTuner(torch.optim.Adam(layer.parameters()), {"lr": RATE})
    x = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))
    with pytest.raises(hd.TrainingError, match=r"sdpa_kernel\(SDPBackend.MATH\)"):
        tuner.backward(layer(x).square().mean())
    tuner.optimizer.zero_grad()
    with sdpa_kernel(SDPBackend.MATH):
        tuner.backward(layer(x).square().mean())
    tuner.optimizer.step()


@pytest.mark.parametrize(
    ("tune", "error", "message"),
    [
        ({}, hd.TrainingError, "got none"),
        ({"rate": RATE}, hd.TrainingError, "got 'rate'"),
        ({"betas[0]": RATE}, hd.TrainingError, "tune may name lr, momentum"),
        ({"lr@1": RATE}, hd.TrainingError, "1 parameter groups"),
        ({"lr": RATE, "lr@0": RATE}, hd.TrainingError, "got 'lr' and 'lr@0' for group 0"),
        ({"lr": hd.Int(1, 2)}, hd.SpaceError, "Float without a step"),
        ({"lr": hd.Float(0, 1, step=0.5)}, hd.SpaceError, "Float without a step"),
        ({"lr": hd.Float(0.1, 1)}, hd.SpaceError, "must start inside"),
        ({"lr": hd.Float(0.05, 0.05)}, hd.SpaceError, "low < high"),
        ({"lr": hd.Float(-1, 1)}, hd.TrainingError, "lr >= 0"),
        ({"momentum": hd.Float(0, 0.9)}, hd.SpaceError, "needs low > 0"),
    ],
)
def test_names_and_dimensions_are_checked(tune: Any, error: type[Exception], message: str) -> None:
    optimizer = torch.optim.SGD(network().parameters(), lr=0.05, momentum=0.5)
    with pytest.raises(error, match=message):
        ForwardTuner(optimizer, tune)


def test_a_beta_stays_below_1() -> None:
    optimizer = torch.optim.Adam(network().parameters())
    with pytest.raises(hd.TrainingError, match="betas"):
        ForwardTuner(optimizer, {"betas[0]": hd.Float(0.5, 1.0)})
    ForwardTuner(optimizer, {"betas[0]": hd.Float(0.5, 0.99), "betas[1]@0": hd.Float(0.5, 0.9999)})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"hyper_lr": -1.0}, "hyper_lr must be a number >= 0, got -1.0"),
        ({"hyper_lr": "0.1"}, "hyper_lr must be a number >= 0, got '0.1'"),
        ({"trust": "0.1"}, "trust must be a positive number, got '0.1'"),
        ({"clip": None}, "clip must be a positive number, got None"),
        ({"discount": 1.1}, "discount"),
        ({"discount": "adapted"}, "discount must be a number"),
        ({"clip": 0.0}, "clip"),
        ({"trust": -1.0}, "trust"),
    ],
)
def test_settings_are_checked(settings: Any, message: str) -> None:
    optimizer = torch.optim.SGD(network().parameters(), lr=0.05)
    with pytest.raises(hd.TrainingError, match=message):
        ForwardTuner(optimizer, {"lr": RATE}, **settings)


def test_an_optimizer_of_another_kind_is_refused() -> None:
    class Mine(torch.optim.SGD):
        pass

    for kind in (Mine, torch.optim.Adadelta):
        with pytest.raises(hd.TrainingError, match=kind.__name__):
            ForwardTuner(kind(network().parameters(), lr=0.1), {"lr": RATE})


def test_groups_of_mixed_dtypes_are_refused() -> None:
    params = [nn.Parameter(torch.ones(1, dtype=dtype)) for dtype in (torch.float, torch.double)]
    with pytest.raises(hd.TrainingError, match="share dtype and device"):
        ForwardTuner(torch.optim.SGD(params, lr=0.1), {"lr": RATE})


def test_several_processes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    with pytest.raises(hd.TrainingError, match="a group of 2"):
        tuned()


def test_an_infinite_explosion_leaves_only_what_is_not_finite() -> None:
    x = nn.Parameter(torch.tensor([1.0], dtype=torch.double))
    for explosion, restored in ((4.0, True), (math.inf, False)):
        optimizer = torch.optim.SGD([x], lr=0.05)
        tuner = ForwardTuner(optimizer, {"lr": RATE}, explosion=explosion)
        for factor in (1.0, 99.0):
            optimizer.zero_grad()
            tuner.backward((factor * (x**2 + 1)).sum())
            optimizer.step()
            tuner.step((1e-3 * (x - x.detach() + 1e-9)).sum())
        assert [move.restored for move in tuner.history] == [restored] * len(tuner.history)

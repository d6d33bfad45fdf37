"""Options and gradients that something else moves beside a `ForwardTuner`: followed, exactly."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import CyclicLR, LambdaLR, OneCycleLR, ReduceLROnPlateau
from torch.utils.checkpoint import checkpoint

import hyperopt_dl as hd
from hyperopt_dl.online import DeltaBarDelta, ForwardTuner, HypergradientDescent
from tests.online.beside import RATE, difference, run
from tests.online.runs import loss_of, network, train

LR = 0.05
SGD = torch.optim.SGD
ADAM = torch.optim.Adam


def at(option: str, step: int, value: Any) -> Any:
    """Set an option of all groups before a step."""

    def change(_: Any, optimizer: torch.optim.Optimizer, t: int) -> None:
        if t == step:
            for group in optimizer.param_groups:
                group[option] = value

    return change


def momentum_off_and_on(_: Any, optimizer: torch.optim.Optimizer, t: int) -> None:
    optimizer.param_groups[0]["momentum"] = 0.0 if 3 <= t < 5 else 0.8


def decay(_: Any, optimizer: torch.optim.Optimizer, t: int) -> None:
    optimizer.param_groups[0]["weight_decay"] = 0.01 * t


@pytest.mark.parametrize(
    ("build", "before"),
    [
        (lambda p, lr: SGD(p, lr=lr, momentum=0.8), at("nesterov", 4, True)),
        (lambda p, lr: SGD(p, lr=lr, momentum=0.8), at("foreach", 4, True)),
        (lambda p, lr: SGD(p, lr=lr, momentum=0.8), at("maximize", 6, True)),
        (lambda p, lr: SGD(p, lr=lr, momentum=0.8), at("dampening", 4, 0.5)),
        (lambda p, lr: SGD(p, lr=lr, momentum=0.8), momentum_off_and_on),
        (lambda p, lr: SGD(p, lr=lr), at("momentum", 4, 0.8)),
        (lambda p, lr: SGD(p, lr=lr, momentum=0.8), decay),
        (lambda p, lr: ADAM(p, lr=lr, amsgrad=True), at("amsgrad", 4, False)),
        (lambda p, lr: ADAM(p, lr=lr), at("betas", 4, (0.5, 0.9))),
        (lambda p, lr: ADAM(p, lr=lr, weight_decay=0.1), at("decoupled_weight_decay", 4, True)),
        (lambda p, lr: ADAM(p, lr=lr, fused=True), at("fused", 4, False)),
    ],
    ids=[
        "nesterov",
        "foreach",
        "maximize",
        "dampening",
        "momentum off and on",
        "momentum on",
        "weight decay",
        "amsgrad",
        "betas",
        "decoupled",
        "fused",
    ],
)
def test_options_that_are_not_tuned_may_change_at_any_step(build: Any, before: Any) -> None:
    expected = difference(LR, build=build, before=before)
    assert run(LR, tuned=True, build=build, before=before) == pytest.approx(expected, rel=1e-6)


def test_a_momentum_that_a_scheduler_cycles_is_followed_where_it_is_not_tuned() -> None:
    schedulers: list[Any] = []

    def start(_: Any, optimizer: torch.optim.Optimizer, __: int) -> None:
        lr = optimizer.param_groups[0]["lr"]
        schedulers[:] = [OneCycleLR(optimizer, max_lr=25 * lr, total_steps=10)]

    def step(*_: Any) -> None:
        schedulers[0].step()

    beside: dict[str, Any] = {"start": start, "after": step}
    expected = difference(0.004, **beside)
    assert run(0.004, tuned=True, **beside) == pytest.approx(expected, rel=1e-6)


def one_cycle(optimizer: torch.optim.Optimizer) -> Any:
    scheduler = OneCycleLR(optimizer, max_lr=0.2, total_steps=26)
    return lambda _: scheduler.step()


def cyclic(optimizer: torch.optim.Optimizer) -> Any:
    scheduler = CyclicLR(optimizer, base_lr=0.01, max_lr=0.1)
    return lambda _: scheduler.step()


def plateau(optimizer: torch.optim.Optimizer) -> Any:
    scheduler = ReduceLROnPlateau(optimizer, patience=0)
    return lambda t: scheduler.step(t)


def by_hand(option: str, value: Any) -> Any:
    def make(optimizer: torch.optim.Optimizer) -> Any:
        return lambda t: optimizer.param_groups[0].update({option: value}) if t == 2 else None

    return make


FRACTION, SMALL = hd.Float(0.1, 0.99), hd.Float(1e-6, 0.5, log=True)


def go_on(tuner: ForwardTuner, model: nn.Module, step: Any) -> None:
    for t in range(6):
        train(tuner, model, [t], every=1)
        step(t)


@pytest.mark.parametrize("hyper_lr", [0.0, 0.1])
@pytest.mark.parametrize(
    ("tune", "mover", "message"),
    [
        ({"momentum": FRACTION}, one_cycle, "cycle_momentum=False"),
        ({"momentum": FRACTION}, cyclic, "cycle_momentum=False"),
        ({"lr": RATE}, plateau, "in place of ReduceLROnPlateau"),
        ({"lr": RATE}, by_hand("lr", 0.01), "got 'lr' at 0.01 in group 0"),
        ({"lr": RATE}, by_hand("lr", torch.tensor(0.01)), "got 'lr' at 0.01 in group 0"),
        ({"momentum": FRACTION}, by_hand("momentum", 0.0), "moved by the tuner alone"),
        ({"weight_decay": SMALL}, by_hand("weight_decay", 0.3), "got 'weight_decay' at 0.3"),
    ],
    ids=["one cycle", "cyclic", "plateau", "lr", "tensor", "momentum", "weight decay"],
)
def test_a_tuned_option_that_somebody_else_sets_is_an_error(
    tune: Any, mover: Any, message: str, hyper_lr: float
) -> None:
    model = network()
    optimizer = SGD(model.parameters(), lr=0.05, momentum=0.8, weight_decay=0.01)
    tuner = ForwardTuner(optimizer, tune, hyper_lr=hyper_lr)
    step = mover(optimizer)
    with pytest.raises(hd.TrainingError, match=message):
        go_on(tuner, model, step)
    with pytest.raises(hd.TrainingError, match=message):  # once refused, refused again
        optimizer.step()


def test_a_tensor_in_the_loss_that_somebody_else_sets_is_an_error() -> None:
    model, rho = network(), torch.tensor(0.1, requires_grad=True)
    optimizer = SGD(model.parameters(), lr=0.05)
    tuner = ForwardTuner(optimizer, {"rho": hd.Float(0.0, 1.0)}, in_loss={"rho": rho})
    for t in range(3):
        optimizer.zero_grad()
        tuner.backward(loss_of(model, t) + rho * loss_of(model, t + 50))
        optimizer.step()
        tuner.step(loss_of(model, -1))
    with torch.no_grad():
        rho.fill_(0.7)
    tuner.backward(loss_of(model, 3) + rho * loss_of(model, 53))
    with pytest.raises(hd.TrainingError, match="another write to the tensor 'rho'"):
        optimizer.step()


def test_a_scheduler_may_be_made_before_the_first_step_and_must_fit_the_dimension() -> None:
    optimizer = SGD(network().parameters(), lr=0.05)
    tuner = ForwardTuner(optimizer, {"lr": hd.Float(0.04, 0.06)})
    OneCycleLR(optimizer, max_lr=0.2, total_steps=26)  # begins at 0.008
    tuner.backward(torch.stack([p.sum() for p in optimizer.param_groups[0]["params"]]).sum())
    with pytest.raises(hd.SpaceError, match="must start inside"):
        optimizer.step()


@pytest.mark.parametrize(
    "mask",
    [
        lambda g: g * (torch.arange(g.numel()).view_as(g) % 2),
        lambda g: 2.0 * g,
        lambda g: torch.tanh(5 * g),
        lambda g: g.clamp(-0.1, 0.1),
        lambda g: g.mul_(0.5),
        lambda g: (g.mul_(0.5), None)[1],
        lambda g: None,
    ],
    ids=["mask", "scale", "tanh", "clamp", "in place", "in place without a result", "reader"],
)
@pytest.mark.parametrize("build", [lambda p, lr: SGD(p, lr=lr, momentum=0.8), None])
def test_hooks_on_parameters_act_once_and_are_differentiated(mask: Any, build: Any) -> None:
    calls: list[int] = []

    def hook(g: Tensor) -> Any:
        calls.append(1)
        return mask(g)

    def start(model: Any, *_: Any) -> None:
        calls.clear()
        model[0].weight.register_hook(hook)
        model[2].weight.register_hook(lambda g: 1.5 * g)
        model[2].weight.register_hook(lambda g: g - 0.1)

    build = build or (lambda p, lr: ADAM(p, lr=lr, eps=1e-2))
    beside: dict[str, Any] = {"start": start, "build": build}
    expected = difference(LR, **beside)
    assert run(LR, tuned=True, **beside) == pytest.approx(expected, rel=1e-5)
    assert len(calls) == 8


def test_a_hook_that_has_no_derivative_is_refused() -> None:
    model: Any = network()
    model[0].weight.register_hook(lambda g: 2 * g.detach())
    tuner = ForwardTuner(SGD(model.parameters(), lr=LR), {"lr": RATE})
    for _ in range(2):
        with pytest.raises(hd.TrainingError, match=r"hook on parameter 0 of group 0, of shape"):
            tuner.backward(loss_of(model, 0))
    assert all(param.grad is None for param in model.parameters())


def test_a_hook_that_waits_for_grad_to_be_filled_is_refused() -> None:
    model: Any = network()
    model[0].weight.register_post_accumulate_grad_hook(lambda p: p.grad.mul_(2))
    tuner = ForwardTuner(SGD(model.parameters(), lr=LR), {"lr": RATE})
    with pytest.raises(hd.TrainingError, match="register_post_accumulate_grad_hook on parameter 0"):
        tuner.backward(loss_of(model, 0))


def on_activation(model: Any, *_: Any) -> None:
    model[1].register_forward_hook(lambda _, __, out: (out.register_hook(lambda g: 2 * g), None)[1])


def on_module(model: Any, *_: Any) -> None:
    model[1].register_full_backward_hook(lambda *given: (2 * given[1][0],))


def before_module(model: Any, *_: Any) -> None:
    model[1].register_full_backward_pre_hook(lambda *given: (2 * given[1][0],))


@pytest.mark.parametrize("start", [on_activation, on_module, before_module])
def test_hooks_that_edit_gradients_inside_of_the_model_are_refused(start: Any) -> None:
    with pytest.raises(hd.TrainingError, match="hooks on activations or modules return another"):
        run(LR, tuned=True, start=start)


def test_hooks_that_only_read_gradients_inside_of_the_model_do_no_harm() -> None:
    def start(model: Any, *_: Any) -> None:
        model[1].register_full_backward_hook(lambda *_: None)

    assert run(LR, tuned=True, start=start) == pytest.approx(difference(LR), rel=1e-6)


@pytest.mark.parametrize("discount", [0.0, 1.0])
@pytest.mark.parametrize("at_start", [False, True])
def test_a_batch_without_targets_is_a_step_of_zero_gradients(
    discount: float, at_start: bool
) -> None:
    """Its loss is nan, a mean over nothing, and torch in a plain loop goes on."""
    nothing_at = 0 if at_start else 3

    def loss(model: Any, t: int) -> Tensor:
        scores = model(torch.linspace(-1, 1, 30, dtype=torch.double).view(10, 3))
        targets = torch.full((10,), -100) if t == nothing_at else torch.arange(10) % 2
        return nn.functional.cross_entropy(scores, targets)

    assert run(LR, tuned=True, loss=loss) == pytest.approx(difference(LR, loss=loss), rel=1e-6)
    model, plain = network(), network()
    optimizer, descent = (SGD(m.parameters(), lr=LR, momentum=0.8) for m in (model, plain))
    tuner = ForwardTuner(optimizer, {"lr": RATE}, discount=discount)
    for t in range(8):
        optimizer.zero_grad()
        tuner.backward(loss(model, t))
        optimizer.step()
        descent.zero_grad()
        loss(plain, t).backward()  # type: ignore[no-untyped-call]
        descent.step()
    tuner.step(loss(model, nothing_at))  # nor does a validation batch without targets say anything
    assert tuner.get_last_lr() == [LR]
    assert not tuner.history
    for a, b in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("part", [slice(0, 3), slice(0, 2), slice(1, 3)], ids=str)
def test_a_checkpoint_that_wants_another_backward_is_refused(part: slice) -> None:
    def loss(model: Any, value: float = 1.0) -> Tensor:
        x = torch.ones(4, 3, dtype=torch.double, requires_grad=part.start == 0)
        before = model[: part.start](x)
        inside = checkpoint(model[part], before, use_reentrant=True)
        found: Tensor = value * model[part.stop :](inside).square().mean()
        return found

    for act in (
        lambda model, tuner: tuner.check(lambda: loss(model)),
        lambda model, tuner: tuner.step(loss(model)),
        lambda model, tuner: tuner.step(loss(model, float("nan"))),
    ):
        model = network()
        tuner = ForwardTuner(SGD(model.parameters(), lr=LR), {"lr": RATE})
        with pytest.raises(hd.TrainingError, match=r"Write use_reentrant=False"):
            act(model, tuner)  # type: ignore[no-untyped-call]
    if part.start:  # else the data require a gradient, which is refused too
        with pytest.raises(hd.TrainingError, match=r"Write use_reentrant=False"):
            tuner.backward(loss(model))


def test_the_first_weights_that_are_gone_back_to_are_those_of_the_first_step() -> None:
    model = network(0)
    optimizer = SGD(model.parameters(), lr=LR)
    tuner = ForwardTuner(optimizer, {"lr": RATE})
    model.load_state_dict(network(1).state_dict())
    tuner.backward(float("nan") * loss_of(model, 0))
    for a, b in zip(model.parameters(), network(1).parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_validation_loss_that_is_not_finite_lowers_the_rate_before_the_first_step_too() -> None:
    model = network()
    tuner = ForwardTuner(SGD(model.parameters(), lr=LR), {"lr": RATE})
    tuner.step(float("nan") * loss_of(model, -1))
    assert tuner.get_last_lr() == pytest.approx([LR / 4])


@pytest.mark.parametrize("tuner_of", [HypergradientDescent, lambda o: DeltaBarDelta(o, 1e-3)])
def test_a_rate_in_a_tensor_stays_in_that_tensor(tuner_of: Any) -> None:
    rates = []
    for lr in (0.05, torch.tensor(0.05, dtype=torch.double)):
        model = network()
        optimizer = SGD(model.parameters(), lr=lr, foreach=False)
        scheduler = LambdaLR(optimizer, lambda t: 0.9**t)
        tuner = tuner_of(optimizer)
        for t in range(6):
            optimizer.zero_grad()
            loss_of(model, t).backward()  # type: ignore[no-untyped-call]
            tuner.step()
            optimizer.step()
            scheduler.step()
        rates.append(tuner.get_last_lr())
        assert (optimizer.param_groups[0]["lr"] is lr) == isinstance(lr, Tensor)
    assert rates[1] == pytest.approx(rates[0], rel=1e-12)
    assert rates[0] != [pytest.approx(0.05 * 0.9**6)]


def by_lbfgs(lr: float, tuned_to: float | None = None) -> tuple[list[Tensor], list[float]]:
    """Weights, and the rate in the group at each evaluation, with a schedule beside."""
    model = network()
    seen: list[float] = []
    optimizer = torch.optim.LBFGS(model.parameters(), lr=lr, max_iter=4)
    scheduler = LambdaLR(optimizer, lambda t: 0.5**t)
    if tuned_to is not None:
        DeltaBarDelta(optimizer, kappa=0.0)._rates.set_base(0, tuned_to)  # as a move would

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = loss_of(model, 0)
        loss.backward()  # type: ignore[no-untyped-call]
        seen.append(optimizer.param_groups[0]["lr"])
        return loss

    for _ in range(3):
        optimizer.step(closure)  # type: ignore[no-untyped-call]
        scheduler.step()
    return [param.detach() for param in model.parameters()], seen


def test_lbfgs_takes_the_scaled_rate_once_whatever_its_closure_is_called() -> None:
    (expected, _), (found, seen) = by_lbfgs(0.2), by_lbfgs(0.1, tuned_to=0.2)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=0)
    assert len(seen) > 6
    assert sorted(set(seen)) == pytest.approx([0.025, 0.05, 0.1])


def two_part_steps(model: nn.Module, backward: Any, optimizer: Any) -> None:
    """Two steps in one, as SAM makes them: up along the gradient, and from there down."""
    for t in range(3):
        optimizer.zero_grad()
        backward(loss_of(model, t))
        old = [param.detach().clone() for param in model.parameters()]
        with torch.no_grad():
            for param in model.parameters():
                param.add_(param.grad, alpha=0.05)  # type: ignore[arg-type]
        optimizer.zero_grad()
        backward(loss_of(model, t))
        for param, value in zip(model.parameters(), old, strict=True):
            param.data = value
        optimizer.step()


def test_steps_of_two_parts_are_refused() -> None:
    model = network()
    optimizer = SGD(model.parameters(), lr=LR)
    tuner = ForwardTuner(optimizer, {"lr": RATE})
    with pytest.raises(hd.TrainingError, match=r"must stay as optimizer\.step\(\) left them"):
        two_part_steps(model, tuner.backward, optimizer)

"""Networks in trials with an online tuner: hooks act as in a loop, stopped parts are refused."""

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils import parametrizations

import hyperopt_dl as hd
from hyperopt_dl.online import Descent, Forward, ForwardTuner
from hyperopt_dl.online.run import OnlineRun
from hyperopt_dl.optimizers import SGD
from tests.online.trials import LR, STEPS, TRAIN, VALIDATION, training

Start = Callable[[Any], object]


def network(start: Start, dtype: torch.dtype = torch.double) -> Callable[[Any], nn.Module]:
    def make(_: Mapping[str, Any]) -> nn.Module:
        model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2)).to(dtype)
        start(model)
        return model

    return make


def of(start: Start, online: Any, **settings: Any) -> hd.Supervised:
    return training(model=network(start), batch_size=None, online=online, **settings)


def run_of(made: hd.Supervised) -> OnlineRun[Any]:
    assert made.online is not None
    run: OnlineRun[Any] = made.online.start(made, {}, seed=3, device="cpu")
    return run


def squared(model: Any) -> object:
    return model[0].weight.register_hook(lambda g: g * g.abs() * 5)


def looking(model: Any) -> object:
    return model[2].register_full_backward_hook(lambda *_: None)


@pytest.mark.parametrize("start", [squared, looking])
@pytest.mark.parametrize("kind", ["Forward", "Descent"])
def test_hooks_act_in_trials_as_they_do_in_a_loop(kind: str, start: Start) -> None:
    online: Any = Forward({"lr": LR}, hyper_lr=0.0, every=STEPS)
    made = of(start, online if kind == "Forward" else Descent(hyper_lr=0.0))
    still = of(lambda _: None, None)
    model: Any = still.module(still.init({}, seed=3, device="cpu"), {}).train()
    start(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.5)
    tuner = ForwardTuner(optimizer, {"lr": LR}, hyper_lr=0.0)
    for _ in range(STEPS):
        optimizer.zero_grad()
        tuner.backward(cross_entropy(model(TRAIN[0]), TRAIN[1]))
        optimizer.step()
    tuner.step(cross_entropy(model(VALIDATION[0]), VALIDATION[1]))
    run = run_of(made)
    params = run.advance(STEPS)["params"]
    expected = torch.cat([param.detach().reshape(-1) for param in model.parameters()])
    torch.testing.assert_close(params, expected, rtol=1e-9, atol=1e-12)
    if kind == "Forward":
        got, right = run.record.history[-1].gradient, tuner.history[-1].gradient
        assert got == pytest.approx(right, rel=1e-8)
    assert not any(leaf._backward_hooks for leaf in run._leaves)


def test_a_hook_on_a_module_acts_once_or_is_refused() -> None:
    def last(model: Any) -> object:
        return model[2].register_full_backward_hook(lambda _, grads, __: (2 * grads[0],))

    run = run_of(of(last, Forward({"lr": LR}, every=3)))
    with pytest.raises(hd.TrainingError, match=r"modules return another one.*test_trial_networks"):
        run.advance(1)
    still = of(lambda _: None, None)
    state = still.init({}, seed=3, device="cpu")
    model: Any = still.module(state, {}).train()
    last(model)
    cross_entropy(model(TRAIN[0]), TRAIN[1]).backward()  # type: ignore[no-untyped-call]
    expected = torch.cat([(p - 0.05 * p.grad).detach().reshape(-1) for p in model.parameters()])
    params = run_of(of(last, Descent(hyper_lr=0.0), optimizer=SGD(lr=0.05))).advance(1)["params"]
    torch.testing.assert_close(params, expected, rtol=1e-9, atol=1e-12)


def focal(output: Tensor, target: Tensor) -> Tensor:
    losses = cross_entropy(output, target, reduction="none")
    value: Tensor = ((1 - (-losses).exp()).detach() ** 2 * losses).mean()
    return value


def spectral(model: Any) -> object:
    return parametrizations.spectral_norm(model[2])


CASES: Mapping[str, tuple[Start, Callable[..., Tensor]]] = {
    "stopped": (lambda _: None, focal),
    "spectral_norm": (spectral, cross_entropy),
}


@pytest.mark.parametrize("dtype", [torch.double, torch.float], ids=str)
@pytest.mark.parametrize("name", CASES)
def test_every_trial_of_a_stopped_loss_is_refused_alike(
    name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, loss = CASES[name]
    train, validation = ((x.to(dtype), y) for x, y in (TRAIN, VALIDATION))
    given: dict[str, Any] = {"train": train, "validation": validation, "test": None}
    given |= {"model": network(start, dtype), "loss": loss}
    made = training(online=Forward({"lr": LR}, every=3), **given)
    study = hd.Study({"x": hd.Float(0.0, 1.0)}, seed=0)
    study.optimize(made, n_trials=2, progress=False)
    errors = [trial.user_attrs["error"] for trial in study.trials]
    assert len({str(error) for error in errors}) == 1
    assert "must be the derivative of its gradient" in str(errors[0])
    assert len([each for each in made.checked.values() if isinstance(each, Exception)]) == 1
    first = training(online=Forward({"lr": LR}, every=3, discount=0.0), **given)
    run_of(first).advance(3)


class Sharp(nn.Module):
    """Many units that switch, with noise of its own if asked for."""

    def __init__(self, noisy: bool) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 512), nn.Linear(512, 2)
        self.draws = torch.Generator().manual_seed(0) if noisy else None

    def forward(self, x: Tensor) -> Tensor:
        if self.draws is not None:
            x = x + 0.1 * torch.randn(x.shape, generator=self.draws)
        scores: Tensor = self.b(torch.relu(self.a(x)))
        return scores


class Written(Sharp):
    """The same with a dtype that is written into it."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.to(torch.float32))


@pytest.mark.parametrize("kind", ["switching", "noisy", "written", "ignored", "half"])
def test_a_training_of_which_nothing_can_be_told_is_let_run(kind: str) -> None:
    made = Written(False) if kind == "written" else Sharp(kind == "noisy")
    x = torch.randn(400, 4, generator=torch.Generator().manual_seed(0))
    y = (x[:, 0] > 0).long() - (101 if kind == "ignored" else 0)
    y = torch.where(y < 0, -100, y)

    def loss(output: Tensor, target: Tensor) -> Tensor:
        if kind != "half":
            return cross_entropy(output, target)
        with torch.autocast("cpu", torch.bfloat16):
            return cross_entropy(output @ torch.eye(2, dtype=output.dtype), target)

    train, validation = (x, y), (x, y.clamp(min=0))
    given: dict[str, Any] = {"train": train, "validation": validation, "test": None}
    online = Forward({"lr": LR}, every=3)
    run = run_of(training(model=made, batch_size=None, loss=loss, online=online, **given))
    run.advance(3)
    assert len(run.record.history) == 1

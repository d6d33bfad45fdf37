"""Steps that work in place, do not replay, or have no derivative."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import hyperopt_dl as hd
from hyperopt_dl.errors import TrainingError
from hyperopt_dl.hypergrad import Forward, Reverse, hypergradient
from hyperopt_dl.hypergrad.reverse import Memory
from hyperopt_dl.hypergrad.steps import step_loss
from hyperopt_dl.training import HParams, State, rollout
from tests.hypergrad.runs import assert_close, fresh, mlp, supervised, unroll, vectors
from tests.problems import Quadratic


class NumpyNoise(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * float(np.random.rand())


class Counter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x * self.calls


class StraightThrough(torch.autograd.Function):
    """Rounds, and passes the gradient on as if it had not."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return (4 * x).round() / 4

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0]


class Gradient(torch.autograd.Function):
    """The backward pass of ``Doubled``; its own one gives each entry another factor."""

    @staticmethod
    def forward(ctx: Any, grad: Tensor) -> Tensor:
        return 2 * grad

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return torch.arange(grads[0].shape[-1], dtype=grads[0].dtype) * grads[0]


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return 2 * x

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return Gradient.apply(grads[0])  # type: ignore[no-untyped-call]


class Custom(nn.Module):
    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.function.apply(x) * x
        return out


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("memory", ["activations", "all"])
def test_a_layer_that_works_in_place_leaves_the_data_as_they_were(memory: Memory) -> None:
    x, y = vectors()
    model = fresh(lambda: nn.Sequential(nn.ReLU(inplace=True), mlp()))
    before = x.clone()
    training = supervised(model, (x, y), vectors(1), batch_size=None)
    found = hypergradient(training, {"lr": 0.1}, estimator=Reverse(memory), seed=2)
    assert torch.equal(x, before)
    assert_close(found, unroll(training, {"lr": 0.1}, seed=2), 1e-10)


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("function", [Doubled, StraightThrough])
def test_a_second_derivative_that_is_not_that_of_the_gradient_is_refused_each_time(
    function: Any,
) -> None:
    training = supervised(fresh(lambda: mlp(nn.Tanh(), Custom(function))), vectors(), vectors(1))
    for _ in range(2):
        with pytest.raises(TrainingError, match=r"must be that of its gradient, but beside"):
            hypergradient(training, {"lr": 0.1}, seed=2)


@pytest.mark.usefixtures("path")
def test_a_layer_that_draws_from_numpy_draws_the_same_when_it_is_computed_again() -> None:
    training = supervised(fresh(lambda: mlp(nn.Tanh(), NumpyNoise())), vectors(), vectors(1))
    numpys: Any = np.random.get_state
    before = numpys()[1].tolist()
    found = hypergradient(training, {"lr": 0.1}, seed=2)
    assert_close(found, hypergradient(training, {"lr": 0.1}, seed=2, estimator=Forward()), 1e-10)
    value, ahead, behind = (
        float(training.loss(rollout(training, {"lr": lr}, seed=2), {"lr": lr}))
        for lr in (0.1, 0.1 + 1e-5, 0.1 - 1e-5)
    )
    assert float(found[0]) == pytest.approx(value, rel=1e-12)
    assert float(found[1]["lr"]) == pytest.approx((ahead - behind) / 2e-5, rel=1e-6)
    assert numpys()[1].tolist() == before


@pytest.mark.usefixtures("path")
def test_a_step_that_does_not_replay_is_refused_each_time() -> None:
    training = supervised(fresh(lambda: mlp(nn.Tanh(), Counter())), vectors(), vectors(1))
    for _ in range(2):
        with pytest.raises(TrainingError, match=r"same numbers when it is computed again"):
            hypergradient(training, {"lr": 0.1})


def test_a_run_is_traced_from_the_length_on_that_is_worth_it(
    traces: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(step_loss, "TRACED_FROM", 5)
    for steps, expected in ((4, 0), (5, 1)):
        training = supervised(fresh(mlp), vectors(), vectors(1), batch_size=None, steps=steps)
        hypergradient(training, {"lr": 0.1})
        assert len(traces) == expected


@dataclass(frozen=True)
class Odd(Quadratic):
    """A training of one's own that breaks one promise."""

    fault: str = ""

    def init(self, hparams: HParams, *, seed: int, device: torch.device | str) -> Any:
        state = super().init(hparams, seed=seed, device=device)
        if self.fault == "no tensor":
            return {**state, "epoch": 0.5}
        return state["x"] if self.fault == "no dictionary" else state

    def step(self, state: State, hparams: HParams, t: int) -> Any:
        after = super().step(state, hparams, t)
        if self.fault == "global noise":
            return {**after, "x": after["x"] + torch.randn(())}
        if self.fault == "numpy noise":
            return {**after, "x": after["x"] + np.random.rand()}
        if self.fault == "another entry":
            return {**after, "more": after["x"]}
        return None if self.fault == "nothing" else after

    def loss(self, state: State, hparams: HParams) -> Any:
        value = super().loss(state, hparams)
        return value[None] if self.fault == "vector" else value


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("global noise", "same numbers when it is computed again .* 'x' differed"),
        ("numpy noise", "same numbers when it is computed again .* 'x' differed"),
        ("another entry", r"must return the entries of the state .* got \['more', 'seed', 'x'\]"),
        ("nothing", "step must return a state, a flat dict"),
        ("no dictionary", "init must return a state, a flat dict"),
        ("no tensor", "init must return a state, .* 'epoch': 'float'"),
        ("vector", r"outer loss must be a 0-dim tensor, got \(1,\)"),
    ],
)
def test_a_training_that_breaks_its_promise_is_refused(fault: str, message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        hypergradient(Odd(steps=4, fault=fault), {"lr": 0.1})


@pytest.mark.parametrize("arguments", [{"estimator": "sqrt"}, {"estimator": Reverse}])
def test_what_is_no_estimator_is_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(TrainingError, match="needs objects"):
        hypergradient(Odd(steps=4), {"lr": 0.1}, **arguments)


@pytest.mark.parametrize("steps", [2, 40])  # too short for a trace, and not
def test_a_training_loss_that_is_nan_each_time_replays_and_fails_its_trial_as_nan(
    steps: int,
) -> None:
    def undefined(output: Tensor, target: Tensor) -> Tensor:
        return nn.functional.cross_entropy(output, target) * torch.nan

    training = supervised(fresh(mlp), vectors(0), vectors(1), loss=undefined, steps=steps)
    value, gradient = hypergradient(training, {"lr": 0.1}, estimator=Reverse())
    assert value.isnan()
    assert gradient["lr"].isnan()
    study = hd.Study({"lr": hd.Float(0.1, 0.2)}, tuner=hd.Hypergradient(), seed=0)
    study.optimize(training, n_trials=1, progress=False)
    assert study.trials[0].user_attrs["failure"] == "nan"

"""What is checked before a run is differentiated, and what a check leaves behind."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import hyperopt_dl as hd
from hyperopt_dl.seeds import BesideTorch

X = torch.randn(30, 4, generator=torch.Generator().manual_seed(0), dtype=torch.double)
Y = torch.arange(30) % 3


def mlp() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()


def training(**changes: Any) -> hd.Supervised:
    given: dict[str, Any] = {
        "model": mlp(),
        "loss": cross_entropy,
        "optimizer": hd.optimizers.SGD(lr="lr"),
        "train": (X[:20], Y[:20]),
        "validation": (X[20:], Y[20:]),
        "steps": 5,
    }
    return hd.Supervised(**{**given, **changes})


def test_what_the_factory_and_the_loss_read_by_one_name_is_refused_each_time() -> None:
    def model(hp: Any) -> nn.Module:
        made = mlp()
        with torch.no_grad():
            made.get_parameter("0.weight").mul_(hp["s"])
        return made

    made = training(
        model=model,
        loss=lambda o, t, hp: cross_entropy(o, t) + hp["s"] * o.square().mean(),
        validation_loss=cross_entropy,
    )
    for _ in range(2):
        with pytest.raises(hd.TrainingError, match=r"the model depends on \['s'\]"):
            hd.hypergradient(made, {"lr": 0.1, "s": 1.3})


def test_what_the_factory_reads_and_does_not_use_is_no_fault() -> None:
    made = training(model=lambda hp: (dict(hp), mlp())[1])
    plain = hd.hypergradient(training(), {"lr": 0.1})[1]
    torch.testing.assert_close(hd.hypergradient(made, {"lr": 0.1})[1], plain)


def halved(output: Tensor, target: Tensor) -> Tensor:
    loss = cross_entropy(output, target)
    return loss * loss.detach()


def out_of_torch(output: Tensor, target: Tensor) -> Tensor:
    return cross_entropy(output, target) * float(output.detach().numpy().std())


def test_what_an_outer_loss_detaches_counts_like_the_rest_of_its_value() -> None:
    made = training(validation_loss=halved)
    ahead, behind = (
        float(made.loss(hd.rollout(made, {"lr": lr}), {"lr": lr}))
        for lr in (0.1 + 1e-6, 0.1 - 1e-6)
    )
    found = hd.hypergradient(made, {"lr": 0.1})[1]["lr"]
    assert float(found) == pytest.approx((ahead - behind) / 2e-6, rel=1e-6)


def test_an_outer_loss_whose_gradient_is_not_its_own_is_refused() -> None:
    made = training(validation_loss=out_of_torch)
    for _ in range(2):
        with pytest.raises(hd.TrainingError, match=r"gradient of the validation loss .* off by"):
            hd.hypergradient(made, {"lr": 0.1})


def test_a_step_that_is_not_that_of_torch_optim_is_refused() -> None:
    class Cached(nn.Module):
        """Uses memory of its weight that it took before it was trained."""

        def __init__(self) -> None:
            super().__init__()
            self.body = mlp()
            self.weight = self.body.get_parameter("2.weight").data

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.body(x) + 0.1 * (self.weight**2).sum() * self.body(x)
            return result

    made = training(model=Cached(), steps=3)
    state = made.init({"lr": 0.1}, seed=0, device="cpu")
    moved = {**state, "params": state["params"] + 0.1}
    with pytest.raises(hd.TrainingError, match=r"must be that of a plain loop with torch.optim"):
        made.step(moved, {"lr": 0.1}, 0)


def test_checks_are_made_once_for_a_structure() -> None:
    made = training()
    hd.hypergradient(made, {"lr": 0.1})
    known = dict(made.checked)
    hd.hypergradient(made, {"lr": 0.2})
    assert made.checked.keys() == known.keys()


def test_constant_buffers_leave_out_how_they_move() -> None:
    net = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 3)).double()
    exact, constant = (
        hd.hypergradient(training(model=net, buffers=buffers, steps=12), {"lr": 0.3})[1]["lr"]
        for buffers in ("state", "constant")
    )
    made = training(model=net, steps=12)
    end = hd.rollout(made, {"lr": 0.3})
    kept = {name: value for name, value in end.items() if name.startswith("buffer/")}
    ends, fixed = [], []
    for lr in (0.3 + 1e-6, 0.3 - 1e-6):
        state = hd.rollout(made, {"lr": lr})
        ends.append(float(made.loss(state, {"lr": lr})))
        fixed.append(float(made.loss({**state, **kept}, {"lr": lr})))
    assert float(exact) == pytest.approx((ends[0] - ends[1]) / 2e-6, rel=1e-5)
    assert float(constant) == pytest.approx((fixed[0] - fixed[1]) / 2e-6, rel=1e-5)
    assert float(exact) != pytest.approx(float(constant), rel=1e-2)


def test_draws_beside_torch_are_seen_in_the_first_step_and_in_every_hundredth() -> None:
    beside = BesideTorch()
    assert beside.looks(7)
    with beside.watching(0):
        pass
    assert beside.drawn == False  # noqa: E712 (it changes below)
    assert [t for t in range(1, 201) if beside.looks(t)] == [100, 200]
    with beside.watching(100):
        np.random.rand()
    assert beside.drawn is True
    assert beside.looks(101)

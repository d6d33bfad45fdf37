"""Derivatives of a ``Supervised``, and its data weights."""

import copy
import functools
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from hyperopt_dl.errors import TrainingError
from hyperopt_dl.optimizers import SGD, Adam, Schedule
from hyperopt_dl.training import rollout
from tests.contracts.training import (
    Case,
    assert_close_vector,
    central_difference,
)
from tests.supervised_runs import (
    CLASSES,
    DOUBLE,
    FEATURES,
    N,
    assert_same_weights,
    fresh,
    indices,
    mlp,
    named,
    supervised,
    vectors,
)

# ---------------------------------------------------------------------------------- derivatives


class StillMasked(nn.Module):
    """Dropout and BatchNorm in a smooth net; the statistics are the batch's in evaluation too."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(FEATURES, 5),
            nn.BatchNorm1d(5, track_running_stats=False),
            nn.Tanh(),
            nn.Dropout(0.3),
            nn.Linear(5, CLASSES),
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.body(x)
        return out


def penalised(output: Tensor, target: Tensor, hp: Mapping[str, Any]) -> Tensor:
    penalty: Tensor = hp["penalty"] * output.square().mean()
    return cross_entropy(output, target) + penalty


def decaying(t: int, hp: Mapping[str, Any]) -> Any:
    return 1 / (1 + hp["decay"] * t)


SMOOTH: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "sgd lr": ({"optimizer": SGD(lr="lr")}, {"lr": 0.3}),
    "momentum": (
        {"optimizer": SGD(lr="lr", momentum="momentum")},
        {"lr": 0.3, "momentum": 0.6},
    ),
    "weight decay": (
        {"optimizer": SGD(lr=0.3, momentum=0.5, weight_decay="decay")},
        {"decay": 0.1},
    ),
    "adam": (
        {"optimizer": Adam(lr="lr", betas=("beta1", "beta2"), eps=1e-3)},
        {"lr": 0.05, "beta1": 0.7, "beta2": 0.9},
    ),
    "loss coefficient": (
        {
            "loss": penalised,
            "validation_loss": cross_entropy,
            "optimizer": SGD(lr=0.3, momentum=0.5),
        },
        {"penalty": 0.3},
    ),
    "loss coefficient in the outer loss too": ({"loss": penalised}, {"penalty": 0.3}),
    "schedule": (
        {"optimizer": SGD(lr=Schedule("lr", decaying), momentum=0.5)},
        {"lr": 0.4, "decay": 0.2},
    ),
    "data weights": (
        {"weights": "w", "optimizer": SGD(lr=0.3, momentum=0.5)},
        {"w": [0.2 * i for i in range(1, N + 1)]},
    ),
}


@pytest.mark.parametrize("steps", [2, 6])
@pytest.mark.parametrize("name", SMOOTH, ids=lambda name: name.replace(" ", "_"))
def test_a_full_unroll_gives_the_central_difference(name: str, steps: int) -> None:
    settings, point = SMOOTH[name]
    training = supervised(
        fresh(StillMasked), vectors(), validation=vectors(1), **{**settings, "steps": steps}
    )
    hparams = {k: torch.tensor(v, dtype=DOUBLE) for k, v in point.items()}
    leaves = {k: v.clone().requires_grad_() for k, v in hparams.items()}
    case = Case(training, hparams, {}, seed=2)
    found = torch.autograd.grad(case.value(leaves), list(leaves.values()))
    for key, gradient in zip(leaves, found, strict=True):
        assert_close_vector(gradient, central_difference(case, key), rtol=1e-6)


def test_running_statistics_carry_a_derivative() -> None:
    model = fresh(lambda: nn.Sequential(nn.Linear(FEATURES, 5), nn.BatchNorm1d(5), mlp_head()))
    training = supervised(model, vectors(), optimizer=SGD(lr="lr"))
    lr = torch.tensor(0.3, dtype=DOUBLE, requires_grad=True)
    end = rollout(training, {"lr": lr})
    assert sum(name.startswith("buffer/") for name in end) == 3
    (found,) = torch.autograd.grad(training.loss(end, {"lr": lr}), lr)
    ahead, behind = (
        float(training.loss(rollout(training, {"lr": moved}), {"lr": moved}))
        for moved in (0.3 + 1e-5, 0.3 - 1e-5)
    )
    assert float(found) == pytest.approx((ahead - behind) / 2e-5, rel=1e-6)


def mlp_head() -> nn.Module:
    return nn.Sequential(nn.Tanh(), nn.Linear(5, CLASSES))


def test_a_derivative_keeps_the_dtype_of_its_hyperparameter() -> None:
    training = supervised(
        fresh(mlp, torch.float32), vectors(dtype=torch.float32), optimizer=SGD(lr="lr")
    )
    lr = torch.tensor(0.3, dtype=DOUBLE, requires_grad=True)
    state = rollout(training, {"lr": lr})
    (gradient,) = torch.autograd.grad(training.loss(state, {"lr": lr}), lr)
    assert state["params"].dtype == torch.float32
    assert gradient.dtype == DOUBLE


# --------------------------------------------------------------------------------- data weights


def own_vector_loss(output: Tensor, target: Tensor) -> Tensor:
    return -output.log_softmax(1).gather(1, target[:, None])[:, 0]


VECTOR_LOSSES: dict[str, tuple[Any, Any]] = {
    "function with a reduction": (cross_entropy, cross_entropy),
    "module": (nn.CrossEntropyLoss(), cross_entropy),
    "partial": (
        functools.partial(cross_entropy, label_smoothing=0.1),
        functools.partial(cross_entropy, label_smoothing=0.1),
    ),
    "vector": (own_vector_loss, cross_entropy),
    "matrix": (
        lambda output, target: output.square(),
        lambda output, target: output.square().mean(),
    ),
}


@pytest.mark.parametrize("batch_size", [4, None])
@pytest.mark.parametrize("name", VECTOR_LOSSES, ids=lambda name: name.replace(" ", "_"))
def test_weights_of_one_are_no_weights(name: str, batch_size: int | None) -> None:
    loss, mean = VECTOR_LOSSES[name]
    model = fresh(mlp)
    settings: dict[str, Any] = {"batch_size": batch_size, "validation_loss": cross_entropy}
    weighted = supervised(model, vectors(), loss=loss, weights="w", **settings)
    plain = supervised(model, vectors(), loss=mean, **settings)
    ones = torch.ones(N, dtype=DOUBLE)
    torch.testing.assert_close(
        rollout(weighted, {"w": ones})["params"], rollout(plain, {})["params"]
    )


def test_a_weight_belongs_to_its_example_in_every_batch() -> None:
    (x, y), model = vectors(), fresh(mlp)
    w = torch.linspace(0.1, 3.0, N, dtype=DOUBLE)
    training = supervised(model, (x, y), weights="w", steps=5)
    state = rollout(training, {"w": w}, seed=5)
    twin = copy.deepcopy(model)
    rule = torch.optim.SGD(twin.parameters(), lr=0.1)
    for _, index in zip(range(5), indices(5, 4, False), strict=False):
        rule.zero_grad()
        losses = cross_entropy(twin(x[index]), y[index], reduction="none")
        loss = (w[index] * losses).sum() / len(index)
        loss.backward()  # type: ignore[no-untyped-call]
        rule.step()
    assert_same_weights(named(training, state, twin), twin, 1e-11)


def test_a_weight_of_zero_leaves_the_example_out_up_to_the_batch_size() -> None:
    (x, y), model = vectors(), fresh(mlp)
    w = torch.ones(N, dtype=DOUBLE)
    w[-1] = 0.0
    weighted = supervised(model, (x, y), weights="w", batch_size=None)
    fewer = supervised(
        model, (x[:-1], y[:-1]), batch_size=None, optimizer=SGD(lr=0.1 * (N - 1) / N)
    )
    torch.testing.assert_close(rollout(weighted, {"w": w})["params"], rollout(fewer, {})["params"])


@pytest.mark.parametrize(
    ("loss", "weights", "fragment"),
    [
        (
            lambda output, target: cross_entropy(output, target),
            torch.ones(N),
            "one value for each of the 4 examples of a batch, got shape ()",
        ),
        (
            lambda output, target: output.square().mean(0),
            torch.ones(N),
            "one value for each of the 4 examples of a batch, got shape (3,)",
        ),
        (cross_entropy, torch.ones(N - 1), "each of the 10 training examples, got shape (9,)"),
        (cross_entropy, torch.tensor(1.0), "each of the 10 training examples, got shape ()"),
        (cross_entropy, 1.0, "each of the 10 training examples, got 1.0"),
    ],
)
def test_weights_that_do_not_fit_are_an_error(loss: Any, weights: Any, fragment: str) -> None:
    training = supervised(fresh(mlp), vectors(), loss=loss, weights="w")
    with pytest.raises(TrainingError) as caught:
        rollout(training, {"w": weights}, stop=1)
    assert fragment in str(caught.value)


def test_the_names_of_the_optimizer_and_the_weights_are_known() -> None:
    training = supervised(fresh(mlp), vectors(), weights="w", optimizer=SGD(lr="lr", momentum="m"))
    assert training.hparams == {"lr", "m", "w"}

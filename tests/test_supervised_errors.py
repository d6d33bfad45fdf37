"""What a ``Supervised`` refuses, and how it says so."""

import functools
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from hyperopt_dl.early_stopping import EarlyStopping
from hyperopt_dl.errors import TrainingError
from hyperopt_dl.optimizers import SGD
from hyperopt_dl.supervised import Supervised
from hyperopt_dl.training import rollout
from tests.supervised_runs import (
    CLASSES,
    FEATURES,
    N,
    fresh,
    mlp,
    supervised,
    vectors,
)


@pytest.mark.parametrize(
    ("settings", "fragment"),
    [
        ({"loss": nn.CrossEntropyLoss}, "loss a function; got"),
        ({"metrics": {"loss": cross_entropy}}, "names other than 'loss'"),
        ({"metrics": [cross_entropy]}, "metrics must map names"),
        ({"early_stopping": 5}, "must be EarlyStopping(patience=...), got 5"),
        (
            {"model": 3},
            "model must be an nn.Module or a factory, and loss a function; got int and ",
        ),
        ({"loss": "mse"}, "loss a function; got Sequential and 'mse'"),
        ({"optimizer": 0.1}, "optimizer must be a twin such as"),
        ({"steps": None}, "either steps or epochs, got steps=None and epochs=None"),
        ({"epochs": 2}, "either steps or epochs, got steps=6 and epochs=2"),
        ({"steps": 0}, "steps must be a whole number of at least 1, got 0"),
        ({"steps": 2.5}, "steps must be a whole number of at least 1, got 2.5"),
        ({"steps": True}, "steps must be a whole number of at least 1, got True"),
        ({"steps": None, "epochs": -1}, "epochs must be a whole number of at least 1, got -1"),
        ({"report_every": 0}, "report_every must be a whole number of at least 1, got 0"),
        ({"evaluation_batch_size": 0}, "evaluation_batch_size must be a whole number"),
        ({"weights": torch.ones(N)}, "weights must be the name of a hyperparameter, got Tensor"),
        ({"batch_size": N + 1}, "batch_size must lie between 1 and the 10 examples of train"),
        ({"validation": (torch.ones(3),)}, "validation must hold the inputs and, last, the target"),
        ({"test": (torch.ones(3, 1), torch.ones(4))}, "The tensors of test must have the same"),
        (
            {"early_stopping": EarlyStopping("accuracy", mode="max")},
            "EarlyStopping must watch one of ['loss'], got 'accuracy'",
        ),
    ],
    ids=lambda value: "" if isinstance(value, str) else ",".join(value),
)
def test_what_cannot_be_is_an_error_that_names_it(settings: dict[str, Any], fragment: str) -> None:
    arguments: dict[str, Any] = {
        "model": mlp(),
        "loss": cross_entropy,
        "optimizer": SGD(lr=0.1),
        "train": vectors(),
        "validation": vectors(),
        "steps": 6,
    }
    with pytest.raises(TrainingError) as caught:
        Supervised(**{**arguments, **settings})
    assert fragment in str(caught.value)


def test_an_optimizer_of_torch_is_an_error_that_tells_why() -> None:
    model = mlp()
    with pytest.raises(TrainingError, match=r"got SGD\. torch\.optim writes in place"):
        supervised(model, vectors(), optimizer=torch.optim.SGD(model.parameters(), lr=0.1))


def test_a_factory_that_returns_no_module_is_an_error() -> None:
    training = supervised(lambda hp: "net", vectors())
    with pytest.raises(TrainingError, match=r"must return an nn\.Module, got str"):
        training.init({}, seed=0, device="cpu")


def test_a_missing_hyperparameter_is_an_error_that_names_it() -> None:
    training = supervised(fresh(mlp), vectors(), optimizer=SGD(lr="lr"))
    with pytest.raises(TrainingError, match=r"lr needs the hyperparameter 'lr'"):
        rollout(training, {"momentum": 0.9}, stop=1)


@pytest.mark.parametrize("where", ["loss", "validation_loss"])
@pytest.mark.parametrize(
    ("loss", "fragment"),
    [
        (functools.partial(cross_entropy, reduction="none"), r"0-dim tensor, got shape \("),
        (lambda output, target: 1.0, r"0-dim tensor, got float"),
    ],
)
def test_a_loss_that_is_no_number_is_an_error(loss: Any, fragment: str, where: str) -> None:
    training = supervised(fresh(mlp), vectors(), **{where: loss})
    with pytest.raises(TrainingError, match=fragment):
        training.loss(rollout(training, {}, stop=1), {})


@pytest.mark.parametrize("steps", [0, 3])
def test_the_module_of_a_state_is_an_ordinary_network_with_its_weights(steps: int) -> None:
    first = nn.Linear(FEATURES, 5)
    first.bias.requires_grad_(False)
    model = nn.Sequential(first, nn.BatchNorm1d(5), nn.Linear(5, CLASSES)).double()
    data = vectors()
    training = supervised(model, data)
    state = rollout(training, {}, seed=4, stop=steps)
    module = training.module(state, {})
    assert type(module) is nn.Sequential
    assert not module.training
    torch.testing.assert_close(cross_entropy(module(data[0]), data[1]), training.loss(state, {}))
    before = state["params"].clone()
    with torch.no_grad():
        module.get_parameter("0.weight").zero_()
    assert torch.equal(state["params"], before)
    assert not torch.equal(first.weight, module.get_parameter("0.weight"))

"""Supervised, against an ordinary PyTorch loop, finite differences and runs of its own."""

import functools
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import cloudpickle
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, linear

from hyperopt_dl.errors import TrainingError
from hyperopt_dl.optimizers import SGD, Schedule
from hyperopt_dl.training import rollout
from tests.contracts.training import (
    assert_same_bits,
)
from tests.supervised_runs import (
    CLASSES,
    DOUBLE,
    FEATURES,
    NETS,
    RULES,
    TOLERANCE,
    N,
    assert_same_weights,
    by_width,
    fresh,
    indices,
    mlp,
    named,
    ordinary,
    supervised,
    vectors,
)

# ------------------------------------------------------------------ the same as an ordinary loop


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("net", NETS, ids=lambda name: name.replace(" ", "_"))
def test_a_run_ends_at_the_weights_of_an_ordinary_loop(
    net: str, rule: str, dtype: torch.dtype
) -> None:
    make, data_of = NETS[net]
    model, data = fresh(make, dtype), data_of(dtype=dtype)
    twin, original = RULES[rule]
    training = supervised(model, data, optimizer=twin, steps=7)
    state = rollout(training, {}, seed=5)
    expected = ordinary(model, original, data, seed=5, steps=7, batch_size=4)
    assert_same_weights(named(training, state, model), expected, TOLERANCE[dtype])


@pytest.mark.parametrize(
    ("settings", "steps"),
    [
        ({"batch_size": 4, "epochs": 2}, 6),
        ({"batch_size": 4, "epochs": 2, "drop_last": True}, 4),
        ({"batch_size": 5, "epochs": 2, "drop_last": True}, 4),
        ({"batch_size": N, "epochs": 3}, 3),
        ({"batch_size": None, "epochs": 3}, 3),
        ({"batch_size": None, "steps": 4}, 4),
        ({"batch_size": 1, "steps": 12}, 12),
    ],
    ids=str,
)
def test_epochs_and_last_batches_are_those_of_an_ordinary_loop(
    settings: dict[str, Any], steps: int
) -> None:
    model, data = fresh(functools.partial(mlp, dropout=0.4)), vectors()
    training = supervised(model, data, optimizer=RULES["sgd"][0], **settings)
    assert training.steps == steps
    state = rollout(training, {}, seed=5)
    expected = ordinary(
        model,
        RULES["sgd"][1],
        data,
        seed=5,
        steps=steps,
        batch_size=settings["batch_size"],
        drop_last=settings.get("drop_last", False),
    )
    assert_same_weights(named(training, state, model), expected, 1e-11)


@pytest.mark.parametrize("net", ["cnn with batch norm", "dropout", "transformer", "lstm"])
def test_the_loss_and_the_metrics_are_those_of_the_module_in_evaluation(net: str) -> None:
    make, data_of = NETS[net]
    model, data, held_out, unseen = fresh(make), data_of(), data_of(1), data_of(2)
    training = supervised(
        model, data, validation=held_out, test=unseen, metrics={"accuracy": accuracy}
    )
    state = rollout(training, {}, seed=5)
    plain = functools.partial(torch.optim.SGD, lr=0.1)
    expected = ordinary(model, plain, data, seed=5, steps=6, batch_size=4).eval()
    with torch.no_grad():
        output, other = expected(held_out[0]), expected(unseen[0])
        loss = training.loss(state, {})
    torch.testing.assert_close(loss, cross_entropy(output, held_out[1]))
    assert training.metrics(state, {}) == {"accuracy": float(accuracy(output, held_out[1]))}
    assert training.test_metrics(state, {}) == {
        "loss": pytest.approx(float(cross_entropy(other, unseen[1]))),
        "accuracy": float(accuracy(other, unseen[1])),
    }


def accuracy(output: Tensor, target: Tensor) -> Tensor:
    return (output.argmax(1) == target).double().mean()


def test_a_model_of_several_inputs_gets_them_in_order() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(FEATURES, CLASSES)

        def forward(self, x: Tensor, scale: Tensor) -> Tensor:
            out: Tensor = self.head(x) * scale
            return out

    x, y = vectors()
    scale = torch.linspace(0.5, 2.0, N, dtype=DOUBLE)[:, None]
    model = fresh(Two)
    both = supervised(model, (x, scale, y))
    state = rollout(both, {}, seed=5)
    weight = model.get_parameter("head.weight").detach().clone().requires_grad_()
    bias = model.get_parameter("head.bias").detach().clone().requires_grad_()
    for _, index in zip(range(6), indices(5, 4, False), strict=False):
        loss = cross_entropy(linear(x[index], weight, bias) * scale[index], y[index])
        for leaf, gradient in zip(
            (weight, bias), torch.autograd.grad(loss, (weight, bias)), strict=True
        ):
            leaf.data.sub_(0.1 * gradient)
    expected = torch.cat([weight.detach().reshape(-1), bias.detach()])
    torch.testing.assert_close(state["params"], expected)


# ------------------------------------------------------------------------------------ evaluation


@pytest.mark.parametrize("size", [1, 3, 5, N - 1])
@pytest.mark.parametrize("net", ["mlp", "cnn with batch norm"])
def test_an_evaluation_in_chunks_is_one_in_one_piece(net: str, size: int) -> None:
    make, data_of = NETS[net]
    metrics = {"largest": lambda output, target: output.max()}
    settings: dict[str, Any] = {"metrics": metrics, "test": data_of(1)}
    model, data = fresh(make), data_of()
    whole = supervised(model, data, **settings)
    parts = supervised(model, data, evaluation_batch_size=size, **settings)
    state = rollout(whole, {}, seed=5)
    torch.testing.assert_close(parts.loss(state, {}), whole.loss(state, {}))
    assert parts.metrics(state, {}) == pytest.approx(whole.metrics(state, {}))
    assert parts.test_metrics(state, {}) == pytest.approx(whole.test_metrics(state, {}))


class Named(nn.Module):
    """Returns a dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp()

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"logits": self.net(x)}


def loss_of_named(output: dict[str, Tensor], target: Tensor) -> Tensor:
    return cross_entropy(output["logits"], target)


def test_a_model_that_returns_a_dictionary_is_evaluated_in_one_piece() -> None:
    training = supervised(fresh(Named), vectors(), loss=loss_of_named)
    plain = supervised(fresh(lambda: nn.Sequential(mlp())), vectors())
    state, expected = rollout(training, {}), rollout(plain, {})
    torch.testing.assert_close(training.loss(state, {}), plain.loss(expected, {}))


def test_a_dictionary_of_outputs_is_joined_where_it_is_evaluated_in_chunks() -> None:
    whole, chunks = (
        supervised(fresh(Named), vectors(), loss=loss_of_named, evaluation_batch_size=size)
        for size in (10, 3)
    )
    state = whole.init({}, seed=0, device="cpu")
    torch.testing.assert_close(chunks.loss(state, {}), whole.loss(state, {}))


class Scored(Named):
    def forward(self, x: Tensor) -> dict[str, Any]:
        output = super().forward(x)
        return {**output, "norm": output["logits"].norm()}


def test_a_number_among_the_outputs_cannot_be_evaluated_in_chunks() -> None:
    training = supervised(fresh(Scored), vectors(), loss=loss_of_named, evaluation_batch_size=3)
    with pytest.raises(TrainingError, match=r"dict must .* one piece: .* to 10 or more"):
        training.loss(training.init({}, seed=0, device="cpu"), {})


def test_nothing_is_measured_where_no_metric_and_no_test_set_is_given() -> None:
    training = supervised(fresh(mlp), vectors())
    state = training.init({}, seed=0, device="cpu")
    assert training.metrics(state, {}) == {}
    assert training.test_metrics(state, {}) == {}


@pytest.mark.parametrize(("steps", "every"), [(6, 1), (10, 1), (25, 2), (500, 50)])
def test_a_run_reports_ten_times(steps: int, every: int) -> None:
    assert supervised(fresh(mlp), vectors(), steps=steps).report_every == every


# ----------------------------------------------------------------------------------- elsewhere

CONTINUE = """
import sys, pathlib, cloudpickle, hyperopt_dl
box = pathlib.Path(sys.argv[1])
training, hparams, state = cloudpickle.loads(box.read_bytes())
state = hyperopt_dl.rollout(training, hparams, state=state, start=3)
box.write_bytes(cloudpickle.dumps((state, training.loss(state, hparams))))
"""


def test_a_run_goes_on_in_another_process_with_the_same_bits(tmp_path: Path) -> None:
    training = supervised(
        lambda hp: mlp(int(hp["hidden"]), dropout=0.4).double(),
        vectors(),
        optimizer=SGD(lr=Schedule("lr", lambda t: 0.9**t), momentum=0.5),
    )
    hparams = {"hidden": 7, "lr": 0.2}
    half = rollout(training, hparams, seed=8, stop=3)
    box = tmp_path / "box"
    box.write_bytes(cloudpickle.dumps((training, hparams, half)))
    environment = {**os.environ, "PYTHONHASHSEED": "77"}
    subprocess.run([sys.executable, "-c", CONTINUE, str(box)], check=True, env=environment)
    state, loss = cloudpickle.loads(box.read_bytes())
    expected = rollout(training, hparams, seed=8)
    assert_same_bits(state, expected)
    assert torch.equal(loss, training.loss(expected, hparams))


def test_a_pickle_does_not_hold_the_networks_of_past_runs() -> None:
    training = supervised(by_width, vectors())
    before = len(cloudpickle.dumps(training))
    rollout(training, {"hidden": 300}, stop=1)
    assert len(cloudpickle.dumps(training)) == before

"""What fails in every trial of a Supervised is found before trial 0."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import hyperopt_dl as hd
from hyperopt_dl.study.abstract_step import check_step

X, Y = torch.zeros(6, 4), torch.zeros(6, dtype=torch.long)
SPACE = hd.Space(lr=hd.Float(0.01, 0.1))


def training(**changes: Any) -> hd.Supervised:
    given: dict[str, Any] = {
        "model": lambda hp: nn.Linear(4, 3),
        "loss": nn.functional.cross_entropy,
        "optimizer": hd.optimizers.SGD(lr="lr"),
        "train": (X, Y),
        "validation": (X, Y),
        "test": (X, Y),
        "metrics": {"accuracy": accuracy},
        "steps": 2,
    }
    return hd.Supervised(**{**given, **changes})


def accuracy(output: Tensor, target: Tensor) -> Tensor:
    return (output.argmax(1) == target).float().mean()


def each(output: Tensor, target: Tensor) -> Tensor:
    return (output.argmax(1) == target).float()


def each_loss(output: Tensor, target: Tensor) -> Tensor:
    return nn.functional.cross_entropy(output, target, reduction="none")


def of_the_training_alone(output: Tensor, target: Tensor) -> Tensor:
    return nn.functional.cross_entropy(output, target).reshape(2, 2).sum()


CASES: dict[str, tuple[dict[str, Any], str]] = {
    "a name that is not in the space": (
        {"model": lambda hp: nn.Linear(4, hp["width"])},
        r"The model must be .* \['lr'\], but fails in every trial, with KeyError: 'width'",
    ),
    "training inputs": ({"train": (X[:, :3], Y)}, "A training step must .* reduction dim"),
    "validation inputs": (
        {"validation": (X[:, :3], Y)},
        "The validation loss .* reduction dim",
    ),
    "test inputs": ({"test": (X[:, :3], Y)}, "of the test data must .* reduction dim"),
    "a loss for each example": ({"loss": each_loss}, "0-dim tensor, got shape"),
    "a training loss": (
        {"loss": of_the_training_alone, "validation_loss": nn.functional.cross_entropy},
        "A training step must .* invalid for input of size 1",
    ),
    "a metric for each example": ({"metrics": {"each": each}}, "A metric must .* only one element"),
    "a metric": ({"metrics": {"none": lambda output, target: 1 / 0}}, "ZeroDivisionError"),
}


@pytest.mark.parametrize("case", CASES)
def test_what_fails_in_every_trial_is_an_error_before_trial_0(case: str) -> None:
    changes, message = CASES[case]
    study = hd.Study(SPACE, seed=0)
    with pytest.raises(hd.TrainingError, match=message) as refusal:
        study.optimize(training(**changes), n_trials=1, progress=False)
    assert refusal.value.__cause__ is not None
    assert study.trials == []


def test_what_works_is_tried_and_left() -> None:
    check_step(training(), SPACE)


def of_values(output: Tensor, target: Tensor) -> float:
    return float(output.numpy().mean()) + (1.0 if target.sum() > 0 else 0.0)


def repacked(output: Tensor, target: Tensor) -> float:
    try:
        return float(output.mean())
    except RuntimeError as error:
        raise ValueError("no number") from error


@pytest.mark.parametrize("metric", [of_values, repacked])
def test_what_needs_values_is_left_to_the_trials(metric: Any) -> None:
    check_step(training(metrics={"m": metric}), SPACE)


def test_what_fails_for_some_numbers_only_is_left_to_the_trials() -> None:
    def model(hp: hd.HParams) -> nn.Module:
        return nn.Linear(hp["width"], 3)

    check_step(training(model=model), hd.Space(**SPACE, width=hd.Int(4, 9)))
    with pytest.raises(hd.TrainingError, match="reduction dim"):
        check_step(training(model=model), hd.Space(**SPACE, width=hd.Int(5, 5)))

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


def each_loss(output: Tensor, target: Tensor) -> Tensor:
    return nn.functional.cross_entropy(output, target, reduction="none")


def of_the_training_alone(output: Tensor, target: Tensor) -> Tensor:
    return nn.functional.cross_entropy(output, target).reshape(2, 2).sum()


CASES: dict[str, tuple[dict[str, Any], str]] = {
    "a name that is not in the space": (
        {"model": lambda hp: nn.Linear(4, hp["width"])},
        r"The model must be .* \['lr'\], but fails at each of 3 points .* KeyError: 'width'",
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


class Kept:
    """A metric that keeps what it is given, as those of torchmetrics do."""

    def __init__(self) -> None:
        self.seen: list[Tensor] = []

    def __call__(self, output: Tensor, target: Tensor) -> float:
        self.seen.append(target)
        return 0.0


def test_a_metric_is_not_called() -> None:
    metric = Kept()
    check_step(training(metrics={"kept": metric}), SPACE)
    assert metric.seen == []


def of_values(output: Tensor, target: Tensor) -> Tensor:
    return output.mean() * (2 if target.sum() > 0 else 1)


def of_numpy(output: Tensor, target: Tensor) -> Tensor:
    return output.mean() * float(target.numpy().mean())


def repacked(output: Tensor, target: Tensor) -> Tensor:
    try:
        return output.mean() * target.sum().item()
    except RuntimeError as error:
        raise ValueError("no number") from error


def of_a_kernel(output: Tensor, target: Tensor) -> Tensor:
    if not output.is_cuda:
        raise ValueError("Pointer argument cannot be accessed from Triton (cpu tensor?)")
    return output.mean()


def asserted(output: Tensor, target: Tensor) -> Tensor:
    assert output.is_cuda
    return output.mean()


@pytest.mark.parametrize("loss", [of_values, of_numpy, repacked, of_a_kernel, asserted])
def test_what_needs_values_or_a_device_is_left_to_the_trials(loss: Any) -> None:
    check_step(training(loss=loss), SPACE)


def test_what_fails_for_some_numbers_only_is_left_to_the_trials() -> None:
    def model(hp: hd.HParams) -> nn.Module:
        return nn.Linear(hp["width"], 3)

    check_step(training(model=model), hd.Space(**SPACE, width=hd.Int(4, 9)))
    with pytest.raises(hd.TrainingError, match="reduction dim"):
        check_step(training(model=model), hd.Space(**SPACE, width=hd.Int(5, 5)))

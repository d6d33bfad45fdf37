"""An Array whose shape does not fit is found before trial 0, where that costs nothing."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import hyperopt_dl as hd
from hyperopt_dl.optimizers import SGD, Schedule
from hyperopt_dl.study.abstract_step import check_step

N, FEATURES, CLASSES = 6, 4, 3
G = torch.Generator().manual_seed(0)
X = torch.randn(N, FEATURES, generator=G)
Y = torch.randint(0, CLASSES, (N,), generator=G)
LR = hd.Float(0.01, 0.1)


class DataSet:
    """The data as a map-style data set, whose examples cost something to load."""

    loaded = 0

    def __len__(self) -> int:
        return N

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        DataSet.loaded += 1
        return X[i], Y[i]


def training(loss: Callable[..., Tensor], **changes: Any) -> hd.Supervised:
    given: dict[str, Any] = {
        "model": nn.Linear(FEATURES, CLASSES),
        "loss": loss,
        "optimizer": SGD(lr=0.1),
        "train": (X, Y),
        "validation": (X, Y),
        "steps": 2,
    }
    return hd.Supervised(**{**given, **changes})


def class_weights(output: Tensor, target: Tensor, hp: hd.HParams) -> Any:
    return nn.functional.cross_entropy(output, target, weight=hp["a"].to(output))


def times(output: Tensor, target: Tensor, hp: hd.HParams) -> Any:
    return (output * hp["a"].exp()).square().mean()


def matrix(output: Tensor, target: Tensor, hp: hd.HParams) -> Any:
    return (output @ hp["a"].to(output) @ output.T).mean()


def entry(output: Tensor, target: Tensor, hp: hd.HParams) -> Any:
    return output.mean() * hp["a"][4]


def plain(output: Tensor, target: Tensor) -> Tensor:
    return nn.functional.cross_entropy(output, target)


def of_values(output: Tensor, target: Tensor, hp: hd.HParams) -> Any:
    return output.mean() * hp["a"].sum().item()


def of_two_devices(output: Tensor, target: Tensor, hp: hd.HParams) -> Any:
    return output.mean() * (hp["a"].cpu() * torch.ones(2)).sum()


def of_a_mask(output: Tensor, target: Tensor, hp: hd.HParams) -> Any:
    return output.mean() * hp["a"][hp["a"] > 0].sum()


def knots(t: int, hp: hd.HParams) -> Any:
    knot: Tensor = hp["a"][t + 3]
    return knot


CASES: dict[str, tuple[hd.Supervised, Any, Any]] = {
    "class weights": (training(class_weights), 3, 2),
    "a factor of the output": (training(times), (3,), (4,)),
    "a matrix": (training(matrix), (3, 3), (4, 4)),
    "an entry": (training(entry), 5, 4),
    "knots": (training(plain, optimizer=SGD(lr=Schedule(0.1, knots))), 4, 3),
    "of the validation": (
        training(lambda o, t, hp: plain(o, t), validation_loss=matrix),
        (3, 3),
        3,
    ),
    "in a factory": (
        training(plain, model=lambda hp: nn.Linear(len(hp["a"].expand(FEATURES)), 3)),
        1,
        2,
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_shape_that_fits_no_step_is_an_error_before_trial_0(case: str) -> None:
    workload, good, bad = CASES[case]
    study = hd.Study({"a": hd.Array(bad, init=0.5)}, tuner=hd.Hypergradient(), seed=0)
    with pytest.raises(hd.TrainingError, match="An Array must have the shape that the training"):
        study.optimize(workload, n_trials=1, progress=False)
    assert study.trials == []
    check_step(workload, hd.Space(a=hd.Array(good, init=0.5)))


def test_the_error_names_the_array_the_operation_and_the_shapes() -> None:
    with pytest.raises(hd.TrainingError) as refusal:
        check_step(training(times), hd.Space(a=hd.Array(4), b=hd.Array(2)))
    message = str(refusal.value)
    assert "got a=Array((4,)): mul was given the shapes (6, 3), (4,), and says:" in message


@pytest.mark.parametrize("loss", [of_values, of_two_devices, of_a_mask])
def test_what_may_have_another_reason_is_left_to_the_trials(loss: Any) -> None:
    check_step(training(loss), hd.Space(a=hd.Array(2)))


def test_a_shape_that_fits_for_some_numbers_is_left_to_the_trials() -> None:
    def model(hp: hd.HParams) -> nn.Module:
        return nn.Linear(FEATURES, hp["width"])

    space = hd.Space(a=hd.Array(3), width=hd.Int(3, 9))
    check_step(training(times, model=model), space)
    with pytest.raises(hd.TrainingError, match="An Array must"):
        check_step(training(times, model=model), hd.Space(a=hd.Array(3), width=hd.Int(4, 9)))


def test_trying_loads_no_example_of_a_data_set() -> None:
    DataSet.loaded = 0
    for changes in ({"train": DataSet()}, {"validation": DataSet()}):
        check_step(training(times, **changes), hd.Space(a=hd.Array(4)))
    assert DataSet.loaded == 0


def test_trying_leaves_the_training_as_it_was() -> None:
    model = nn.Sequential(nn.Linear(FEATURES, CLASSES), nn.BatchNorm1d(CLASSES), nn.Dropout(0.5))
    workload = training(times, model=model)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    generator = torch.random.get_rng_state()
    check_step(workload, hd.Space(a=hd.Array(CLASSES)))
    assert torch.equal(torch.random.get_rng_state(), generator)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_trial_that_fails_names_the_shapes_of_its_arrays() -> None:
    study = hd.Study({"a": hd.Array((1, 4))}, tuner=hd.Hypergradient(), seed=0)
    study.optimize(training(of_two_devices, train=DataSet()), n_trials=1, progress=False)
    last = study.trials[0].user_attrs["error"].splitlines()[-1]
    assert last.startswith("RuntimeError: The size of tensor a (4) must match")
    assert last.endswith("(Arrays of the trial: 'a' (1, 4))")

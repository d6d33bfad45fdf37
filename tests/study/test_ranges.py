"""A space whose values a training cannot use is refused before trial 0."""

import math
from typing import Any

import pytest
import torch
from torch import nn

import hyperopt_dl as hd
from hyperopt_dl.optimizers import SGD, Adagrad, Adam, AdamW, ClipNorm, RMSprop, Schedule
from hyperopt_dl.optimizers.options import MOMENTUM
from hyperopt_dl.space.bounds import bounds

X = torch.linspace(-1, 1, 6).unsqueeze(1)


def training(**changes: Any) -> hd.Supervised:
    given: dict[str, Any] = {
        "model": nn.Linear(1, 1),
        "loss": nn.functional.mse_loss,
        "optimizer": SGD(lr=0.1),
        "train": (X, X),
        "validation": (X, X),
        "steps": 5,
    }
    return hd.Supervised(**{**given, **changes})


def optimize(workload: hd.Supervised, space: dict[str, Any]) -> hd.Study:
    study = hd.Study(space, tuner=hd.Hypergradient(), seed=0)
    study.optimize(workload, n_trials=1, progress=False)
    return study


LR = hd.Float(0.01, 0.1)


@pytest.mark.parametrize(
    ("optimizer", "space", "message"),
    [
        (
            SGD(lr="lr", momentum="m"),
            {"lr": LR, "m": hd.Float(1.5, 2)},
            "SGD needs momentum >= 0 and momentum <= 1, got the hyperparameter 'm' in "
            "Float(1.5, 2.0). Narrow the dimension.",
        ),
        (SGD(lr="lr"), {"lr": hd.Float(-0.1, 0.1)}, "SGD needs lr >= 0, got the hyperparameter"),
        (Adam(betas=(0.9, "b")), {"b": hd.Float(0.9, 1)}, "Adam needs beta2 >= 0 and beta2 < 1"),
        (AdamW(weight_decay="w"), {"w": hd.Float(-1, 1)}, "AdamW needs weight_decay >= 0"),
        (RMSprop(alpha="a"), {"a": hd.Float(0.5, 1.5)}, "RMSprop needs alpha >= 0 and alpha < 1"),
        (Adagrad(lr_decay="d"), {"d": hd.Float(-0.1, 0)}, "Adagrad needs lr_decay >= 0"),
        (ClipNorm(SGD(), "c"), {"c": hd.Float(-1, 1)}, "ClipNorm needs max_norm >= 0"),
        (ClipNorm(SGD(lr="lr"), 1.0), {"lr": hd.Float(-1, 1)}, "ClipNorm needs lr >= 0"),
        (
            SGD(lr=0.1, groups={"*.bias": {"lr": "b"}}),
            {"b": hd.Float(-1, 1)},
            "SGD.groups['*.bias'] needs lr >= 0",
        ),
        (SGD(lr="lr"), {"lr": hd.Int(-1, 1), "x": LR}, "in Int(-1, 1)"),
        (SGD(lr="lr"), {"lr": hd.Categorical([0.1, -0.1]), "x": LR}, "in Categorical([0.1, -0.1])"),
        (
            SGD(lr="lr"),
            {"lr": hd.Categorical(["high", "low"]), "x": LR},
            "SGD needs one number as lr, got the hyperparameter 'lr' in Categorical",
        ),
        (SGD(lr="lr"), {"lr": hd.Array(3)}, "SGD needs one number as lr, got the hyperparameter"),
        (
            SGD(lr=Schedule("lr", lambda t: 1 - t)),
            {"lr": LR},
            "SGD needs lr >= 0, got -0.03 at step 4: the Schedule's value 0.01 times its factor -3",
        ),
        (SGD(lr=Schedule("lr", lambda t: 1.0)), {"lr": hd.Float(-1, 1)}, "got -1 at step 0"),
        (SGD(lr=Schedule("lr", lambda t, hp: hp["x"])), {"lr": hd.Array(2)}, "one number as lr"),
        (
            SGD(lr=Schedule("lr", lambda t: [1.0, 0.5][t])),
            {"lr": LR},
            "that of lr of SGD fails at step 4 of 5: IndexError",
        ),
        (SGD(lr=Schedule(0.1, lambda t: -1.0)), {"x": LR}, "got -0.1 at step 0"),
    ],
)
def test_an_option_that_is_given_values_it_cannot_have_is_refused(
    optimizer: Any, space: dict[str, Any], message: str
) -> None:
    with pytest.raises(hd.TrainingError) as refusal:
        optimize(training(optimizer=optimizer), space)
    assert message in str(refusal.value)


@pytest.mark.parametrize(
    ("changes", "space", "message"),
    [
        (
            {"weights": "w"},
            {"w": hd.Array(5)},
            "one entry for each of the 6 training examples, of shape (6,), got Array((5,))",
        ),
        ({"weights": "w"}, {"w": hd.Array((6, 1))}, "got Array((6, 1))"),
        ({"weights": "w"}, {"w": LR}, "of shape (6,), got Float(0.01, 0.1)"),
        ({"init_scale": "s"}, {"s": hd.Array(2)}, "one number, got 's' in Array((2,))"),
        (
            {"online": hd.online.Forward({"lr": LR}, hyper_lr="h", every=1)},
            {"h": hd.Float(-1, 1), "x": LR},
            "The space has h=Float(-1.0, 1.0): hyper_lr must be a number >= 0, got -1.0.",
        ),
        (
            {"online": hd.online.Forward({"lr": LR}, discount="d", every=1)},
            {"d": hd.Float(0.5, 1.5)},
            "d=Float(0.5, 1.5): discount must be a number from 0 (one step) to 1 (the whole run)",
        ),
        (
            {"online": hd.online.Descent(hyper_lr="h")},
            {"h": hd.Float(0.5, 1)},
            "with the multiplicative rule below 1, got 1.0",
        ),
        (
            {"online": hd.online.Descent(hyper_lr="h")},
            {"h": hd.Categorical(["a"])},
            "hyper_lr must be one number",
        ),
    ],
)
def test_a_named_part_that_is_given_what_it_cannot_use_is_refused(
    changes: dict[str, Any], space: dict[str, Any], message: str
) -> None:
    dimensions = hd.Space(space)
    with pytest.raises(hd.TrainingError) as refusal:
        training(**changes).check_space(dimensions)
    assert message in str(refusal.value)


def test_a_refused_space_leaves_no_trial() -> None:
    study = hd.Study({"m": hd.Float(1.5, 2)}, seed=0)
    with pytest.raises(hd.TrainingError):
        study.optimize(training(optimizer=SGD(momentum="m")), n_trials=1, progress=False)
    assert study.trials == []


@pytest.mark.parametrize(
    ("optimizer", "space"),
    [
        (SGD(lr="lr", momentum="m"), {"lr": hd.Float(0, 1), "m": hd.Float(0, 1)}),
        (SGD(momentum=0.5, dampening="d"), {"d": hd.Float(-1, 1)}),
        (Adam(betas=("b", 0.9)), {"b": hd.Float(0, 0.999)}),
        (SGD(lr="lr"), {"lr": hd.Categorical([0.01, 1]), "x": LR}),
        # 0.3 - 3 * 0.1 is -5.6e-17 in floating point, and no negative learning rate.
        (SGD(lr=Schedule("lr", lambda t: 0.3 - 0.1 * (t - 1))), {"lr": LR}),
        (SGD(lr=Schedule("lr", lambda t: 0.5 * (1 + math.cos(math.pi * t / 4)))), {"lr": LR}),
        (SGD(lr=Schedule("lr", lambda t, hp: -hp["x"])), {"lr": LR, "x": hd.Float(-2, -1)}),
    ],
)
def test_values_at_the_ends_of_what_may_be_are_accepted(
    optimizer: Any, space: dict[str, Any]
) -> None:
    training(optimizer=optimizer).check_space(hd.Space(space))


def test_an_online_tuner_that_names_numbers_within_range_is_accepted() -> None:
    online = hd.online.Forward({"lr": LR}, hyper_lr="h", discount="adaptive", every=1)
    training(online=online).check_space({"h": hd.Float(0, 1)})
    training(online=hd.online.Descent("h")).check_space({"h": hd.Float(0, 0.9)})


def test_of_an_optimizer_that_says_no_intervals_numbers_are_all_that_is_asked() -> None:
    class Own(SGD):
        intervals: Any = dict

    training(optimizer=Own(momentum="m")).check_space({"m": hd.Float(1.5, 2)})
    with pytest.raises(hd.TrainingError, match="Own needs one number as momentum"):
        training(optimizer=Own(momentum="m")).check_space({"m": hd.Array(2)})


def test_a_closed_interval_has_its_end_and_says_so() -> None:
    assert 1.0 in MOMENTUM
    assert math.nextafter(1.0, 2.0) not in MOMENTUM
    with pytest.raises(hd.TrainingError, match="and momentum <= 1, got momentum"):
        SGD(momentum=1.1)


@pytest.mark.parametrize(
    ("dimension", "expected"),
    [
        (hd.Float(-1, 2), (-1.0, 2.0)),
        (hd.Int(3, 9, step=3), (3.0, 9.0)),
        (hd.Categorical([4, 0.5, 2]), (0.5, 4.0)),
        (hd.Categorical([1, "a"]), None),
        (hd.Categorical([1.0, None]), None),
        (hd.Array(2, low=0.0, high=1.0), None),
    ],
)
def test_the_bounds_of_a_dimension_are_its_least_and_greatest_number(
    dimension: Any, expected: tuple[float, float] | None
) -> None:
    assert bounds(dimension) == expected

"""What the run of a training refuses before its first step."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch

import hyperopt_dl as hd
from hyperopt_dl.online import ForwardTuner
from hyperopt_dl.optimizers import SGD, Adam, Schedule
from tests.online.tuned import DIMENSIONS, training, tuned
from tests.problems import Quadratic

LR = {"lr": DIMENSIONS["lr"]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tune": {}}, "tune must name a hyperparameter"),
        ({"tune": {"lr": hd.Int(1, 2)}}, "needs a Float without a step"),
        ({"tune": {"rate": LR["lr"]}}, r"'rate' starts, but the training names \['lr'\]"),
        ({"training": Quadratic(), "tune": {"rate": LR["lr"]}}, r"but hparams \['lr'\]"),
        ({"hparams": {"lr": "0.1"}}, "'lr' must start at a number, got '0.1'"),
        ({"hparams": {"lr": True}}, "'lr' must start at a number, got True"),
        ({"training": training(SGD("lr", "m"))}, r"got \['lr'\] without \['m'\]"),
        ({"training": torch.optim.SGD([torch.ones(1)])}, "needs a Training, .* got SGD"),
        ({"training": hd.Supervised}, "needs a Training, .* got Supervised"),
        ({"tune": {"lr": hd.Float(0.2, 0.3)}}, "must start inside"),
        ({"hyper_lr": -1.0}, "hyper_lr must be a number >= 0"),
        ({"discount": 2.0}, "discount must be a number from 0"),
        ({"discount": "adaptive"}, "needs a number as discount"),
        ({"every": 0}, "every must be a whole number"),
        ({"batch_size": 25}, "batch_size must lie between 1 and the 24"),
        ({"hparams": {"lr": 0.1, "w": torch.ones(2)}}, r"got a tensor of shape \(2,\) for 'w'"),
        ({"training": Quadratic(), "batch_size": 2}, "batch_size is for a Supervised"),
        ({"training": Quadratic(), "compile": True}, "compile=True is for a Supervised"),
        ({"training": training(SGD(0.1), online=hd.online.Descent())}, "cannot be replayed"),
    ],
)
def test_what_cannot_be_is_refused(change: Mapping[str, Any], message: str) -> None:
    given = {"training": training(SGD("lr")), "hparams": {"lr": 0.1}, "tune": LR, **change}
    with pytest.raises(hd.HyperoptError, match=message):
        ForwardTuner.from_training(**given)


@pytest.mark.parametrize(
    ("rule", "hparams", "tune", "message"),
    [
        (SGD("lr", "m"), {"lr": 0.1, "m": 0.5}, {"m": hd.Float(0.0, 1.2)}, "SGD needs momentum"),
        (SGD("lr", "m"), {"lr": 0.1, "m": 0.5}, {"lr": hd.Float(-1.0, 1.0)}, "SGD needs lr >= 0"),
        (SGD("lr"), {"lr": -0.1}, {"lr": hd.Float(-1.0, 1.0)}, "SGD needs lr >= 0"),
        (SGD("lr", "m"), {"lr": 0.1, "m": 1.2}, LR, "'m' at 1.2. Change that value"),
        (SGD("lr", "m"), {"lr": 0.1, "m": "0.5"}, LR, "needs one number as momentum"),
        (Adam("lr", (0.9, "m")), {"lr": 0.1, "m": 1}, LR, "beta2 < 1.*'m' at 1"),
        (
            SGD("lr", groups={"2.*": {"weight_decay": "m"}}),
            {"lr": 0.1, "m": -0.5},
            LR,
            r"groups\['2.\*'\] needs weight_decay",
        ),
        (
            SGD(Schedule("lr", lambda t: 1 - t / 5)),
            {"lr": 0.1},
            LR,
            "at step 11: the Schedule's value",
        ),
    ],
)
def test_bounds_and_values_must_be_what_the_optimizer_takes(
    rule: Any, hparams: Mapping[str, Any], tune: Mapping[str, hd.Float], message: str
) -> None:
    with pytest.raises(hd.TrainingError, match=message):
        ForwardTuner.from_training(training(rule), hparams, tune)


def test_bounds_may_touch_the_ends_of_what_the_optimizer_takes() -> None:
    tune = {"m": hd.Float(0.0, 1.0), "lr": hd.Float(0.0, 1.0)}
    run = ForwardTuner.from_training(training(SGD("lr", "m")), {"lr": 0.0, "m": 1}, tune)
    assert run.values == {"lr": 0.0, "m": 1.0}


class Bounded(Quadratic):
    """A training of one's own that names what it reads, and says what it may be."""

    hparams = frozenset({"lr", "momentum"})

    def check_space(self, space: Mapping[str, Any]) -> None:
        if dict(space) != {"momentum": hd.Float(0.5, 0.5), **LR}:
            raise hd.TrainingError(f"not these: {dict(space)}")


def test_a_training_of_one_s_own_is_asked_too() -> None:
    ForwardTuner.from_training(Bounded(), {"lr": 0.1, "momentum": 0.5}, LR)
    with pytest.raises(hd.TrainingError, match="not these"):
        ForwardTuner.from_training(Bounded(), {"lr": 0.1, "momentum": 0.6}, LR)


def test_a_state_of_another_run_is_refused() -> None:
    state = tuned(training(SGD("lr", "m"))).state_dict()
    for other in (state, {}):
        with pytest.raises(hd.TrainingError, match="A state must be of a run that tunes"):
            tuned(training(SGD("lr"))).load_state_dict(other)

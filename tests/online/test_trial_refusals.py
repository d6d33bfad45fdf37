"""What `Supervised(online=...)` and its declarations refuse, and what they say then."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import hyperopt_dl as hd
from hyperopt_dl.online import Descent, Forward
from hyperopt_dl.optimizers import SGD, ClipNorm, RMSprop, Schedule
from tests.online.trials import LR, SPACE, training, tuned

ESTIMATORS = [
    *(hd.hypergrad.Reverse(), hd.hypergrad.Forward(), hd.hypergrad.Auto()),
    *(hd.hypergrad.Telescoping(), hd.hypergrad.PES(truncation=4), hd.hypergrad.ESSingle()),
]


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=lambda e: type(e).__name__)
def test_an_estimator_is_refused_and_told_why(estimator: Any) -> None:
    hparams = {"lr": 0.1, "hyper_lr": 0.1}
    with pytest.raises(hd.TrainingError, match="cannot be replayed or differentiated: its steps"):
        hd.hypergradient(tuned(), hparams, estimator=estimator)
    study = hd.Study(SPACE, tuner=hd.Hypergradient(estimator, fixed=["width"]))
    with pytest.raises(hd.StudyError, match="has an online tuner, whose moves follow from what"):
        study.optimize(tuned(), n_trials=1, progress=False)
    assert study.trials == []


def test_a_rollout_is_refused() -> None:
    with pytest.raises(hd.TrainingError, match="cannot be replayed"):
        hd.rollout(tuned(), {"lr": 0.1, "hyper_lr": 0.1})


def test_what_the_online_tuner_names_must_be_in_the_space() -> None:
    assert tuned().hparams == {"lr", "hyper_lr"}
    study = hd.Study({"lr": LR})
    with pytest.raises(hd.StudyError, match="hyper_lr"):
        study.optimize(tuned(), n_trials=1, progress=False)
    assert study.trials == []


def test_a_database_must_be_told_where_histories_are(tmp_path: Path) -> None:
    study = hd.Study(SPACE, storage=f"sqlite:///{tmp_path / 's.db'}")
    with pytest.raises(hd.StudyError, match=r"Histories of online tuners are files"):
        study.optimize(tuned(), n_trials=1, progress=False)
    assert study.trials == []


def test_a_start_outside_of_the_bounds_fails_its_trial() -> None:
    study = hd.Study({"lr": hd.Float(1e-3, 1e-2)}, seed=0)
    online = Forward({"lr": hd.Float(1.0, 2.0)})
    study.optimize(training(optimizer=SGD(lr="lr"), online=online), n_trials=1, progress=False)
    (trial,) = study.trials
    assert trial.state.name == "FAIL"
    assert "must start inside" in trial.user_attrs["error"]


FORWARD = Forward({"lr": LR})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"online": Forward}, r"online must be an object such as hyperopt_dl\.online\.Forward"),
        ({"online": hd.online.ForwardTuner}, "online must be an object"),
        ({"online": Forward({"lr": LR}, every=13)}, "every must be at most the 12 steps"),
        (
            {"online": Forward({"lr": LR}, batch_size=21)},
            "batch_size must lie between 1 and the 20",
        ),
        ({"online": Forward({"rate": LR})}, "tune may name lr, momentum"),
        ({"online": Forward({"betas[0]": hd.Float(0.1, 0.9)})}, "tune may name lr, momentum"),
        ({"online": Forward({"lr": hd.Int(1, 2)})}, "needs a Float without a step"),  # type: ignore[dict-item]
        ({"online": FORWARD, "optimizer": SGD(lr=Schedule(0.1, math.cos))}, "got lr=Schedule"),
        (
            {"online": FORWARD, "optimizer": SGD(groups={"0.*": {"lr": Schedule(0.1, math.cos)}})},
            "got lr=Schedule",
        ),
        (
            {"online": FORWARD, "optimizer": ClipNorm(SGD(), max_norm=Schedule(1.0, math.cos))},
            "got max_norm=Schedule",
        ),
        (
            {"online": FORWARD, "optimizer": ClipNorm(ClipNorm(SGD(), 1.0), 2.0)},
            "alone or in one ClipNorm, got ClipNorm",
        ),
        ({"online": Descent(), "optimizer": RMSprop()}, "SGD, Adam and AdamW, got RMSprop"),
    ],
)
def test_what_cannot_be_is_refused_before_a_trial(settings: Any, message: str) -> None:
    with pytest.raises(hd.HyperoptError, match=message):
        training(**settings)


@pytest.mark.parametrize(
    ("declare", "message"),
    [
        (lambda: Forward({"lr": LR}, hyper_lr=-1.0), "hyper_lr must be a number >= 0"),
        (lambda: Forward({"lr": LR}, discount=1.5), "discount must be a number from 0"),
        (lambda: Forward({"lr": LR}, every=0), "every must be a whole number"),
        (lambda: Forward({}), "tune must name a hyperparameter"),
        (lambda: Descent(hyper_lr=1.0), "below 1"),
        (lambda: Descent(rule="geometric"), "'multiplicative' or 'additive'"),  # type: ignore[arg-type]
    ],
)
def test_a_declaration_that_cannot_be_is_refused(
    declare: Callable[[], object], message: str
) -> None:
    with pytest.raises(hd.TrainingError, match=message):
        declare()

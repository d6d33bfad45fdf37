"""What `hd.Hypergradient` refuses, and what it says then."""

import math
from typing import Any

import optuna
import pytest

import hyperopt_dl as hd
from tests.tuners.descents import LR, PROBLEM


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"estimator": "reverse"}, "estimator must be .auto. or an estimator"),
        ({"optimizer": "lbfgs"}, "'adam', 'sgd' or a factory"),
        ({"lr": 0.0}, "lr must be a positive number"),
        ({"lr": math.nan}, "lr must be a positive number"),
        ({"lr": "0.1"}, r"lr must be a positive number .* got '0.1'"),
        ({"chains": 0}, "chains must be at least 1, a whole number, got 0"),
        ({"chains": "2"}, "chains must be at least 1, a whole number, got '2'"),
        ({"chain_length": 0}, "chain_length must be at least 1"),
        ({"chain_length": 2.5}, "chain_length must be at least 1, a whole number .* got 2.5"),
        ({"average_last": 0.0}, "average_last must be a part"),
        ({"average_last": "0.5"}, "average_last must be a part .* got '0.5'"),
        ({"starts": "sobol"}, "starts must be a sampler"),
    ],
)
def test_a_tuner_that_cannot_be_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(hd.StudyError, match=message):
        hd.Hypergradient(**options)


def test_a_black_box_is_refused_before_trial_0() -> None:
    study = hd.Study(LR, tuner=hd.Hypergradient())
    with pytest.raises(hd.StudyError, match="Hypergradient needs a Training"):
        study.optimize(lambda trial: 1.0, n_trials=1)
    assert study.trials == []


def test_a_space_in_which_nothing_moves_is_refused_before_trial_0() -> None:
    study = hd.Study(hd.Space(lr=hd.Float(0.1, 0.4, step=0.1)), tuner=hd.Hypergradient())
    with pytest.raises(hd.StudyError, match="needs a Float without a step"):
        study.optimize(PROBLEM, n_trials=1)
    assert study.trials == []


def test_a_pruner_that_hides_trials_is_refused() -> None:
    study = optuna.create_study(sampler=hd.Hypergradient(), pruner=optuna.pruners.HyperbandPruner())
    with pytest.raises(ValueError, match="HyperbandPruner"):
        study.ask().suggest_float("x", 0.0, 1.0)

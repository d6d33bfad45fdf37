"""Which hyperparameters of a study are differentiated."""

from collections.abc import Mapping
from typing import Any

import optuna
import pytest
import torch
from optuna.samplers import PartialFixedSampler, RandomSampler
from torch import Tensor, nn

import hyperopt_dl as hd
from tests.problems import Quadratic

PROBLEM = Quadratic()
SPACE = hd.Space(
    lr=hd.Float(0.01, 0.3, log=True),
    dropout=hd.Float(0.0, 0.5),
    momentum=hd.Float(0.0, 0.75, step=0.25),
    decay=hd.Categorical([0.0, 0.001, 0.01]),
)


def network(early_stopping: hd.EarlyStopping | None = None) -> hd.Supervised:
    x = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))

    def model(hp: Mapping[str, Any]) -> nn.Module:
        dropout = float(hp["dropout"])
        return nn.Sequential(nn.Linear(3, 6), nn.Dropout(dropout), nn.Linear(6, 1))

    return hd.Supervised(
        model=model,
        loss=nn.functional.mse_loss,
        optimizer=hd.optimizers.SGD(lr="lr", momentum="momentum", weight_decay="decay"),
        train=(x[:30], x[:30, :1]),
        validation=(x[30:], x[30:, :1]),
        test=(x[20:], x[20:, :1]),
        metrics={"bias": lambda output, target: (output - target).mean()},
        steps=6,
        batch_size=10,
        early_stopping=early_stopping,
    )


class Slopes:
    """An estimator that notes what it is given; its derivative is 1 in every float."""

    def __init__(self) -> None:
        self.given: list[dict[str, Any]] = []

    def __call__(
        self, training: Any, hparams: Mapping[str, Any], **_: Any
    ) -> tuple[Tensor, dict[str, Tensor]]:
        self.given.append(dict(hparams))
        floats = {name: value for name, value in hparams.items() if isinstance(value, float)}
        return torch.tensor(sum(floats.values())), {name: torch.ones(()) for name in floats}


def tuned(n: int, training: Any = None, **options: Any) -> hd.Study:
    study = hd.Study(SPACE, tuner=hd.Hypergradient(**options), seed=0)
    study.optimize(network() if training is None else training, n_trials=n, progress=False)
    return study


def test_only_what_is_continuous_and_not_fixed_is_differentiated() -> None:
    study = tuned(3, fixed=["dropout"])
    assert [trial.state.name for trial in study.trials] == ["COMPLETE"] * 3
    assert {tuple(trial.user_attrs["hypergradient"]) for trial in study.trials} == {("lr",)}


def test_what_is_fixed_is_drawn_with_the_chain_and_stays() -> None:
    study = tuned(9, PROBLEM, estimator=Slopes(), fixed=["dropout"], chain_length=3)
    dropout = [trial.params["dropout"] for trial in study.trials]
    lr = [trial.params["lr"] for trial in study.trials]
    assert [len(set(dropout[i : i + 3])) for i in (0, 3, 6)] == [1, 1, 1]
    assert len(set(dropout)) == 3
    assert all(lr[i] > lr[i + 1] > lr[i + 2] for i in (0, 3, 6))


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_a_fixed_name_may_be_held_at_a_value() -> None:
    starts = PartialFixedSampler({"dropout": 0.25}, RandomSampler())
    study = tuned(4, fixed=["dropout"], starts=starts, chain_length=2)
    assert {trial.params["dropout"] for trial in study.trials} == {0.25}
    assert {trial.state.name for trial in study.trials} == {"COMPLETE"}


def test_a_structural_float_that_is_not_fixed_fails_with_the_word_to_add() -> None:
    study = tuned(1)
    assert study.trials[0].state.name == "FAIL"
    assert "Hypergradient(fixed=['dropout'])" in study.trials[0].user_attrs["error"]


def test_the_same_holds_in_plain_optuna() -> None:
    def objective(trial: optuna.Trial) -> float:
        for name, dimension in SPACE.items():
            trial._suggest(name, dimension.distribution)  # type: ignore[union-attr]
        return hd.evaluate(trial, network())

    study = optuna.create_study(sampler=hd.Hypergradient(fixed=["dropout"]))
    study.optimize(objective, n_trials=2)
    assert {tuple(trial.user_attrs["hypergradient"]) for trial in study.trials} == {("lr",)}


def test_values_are_handed_on_as_they_are() -> None:
    slopes = Slopes()
    study = tuned(2, PROBLEM, estimator=slopes, fixed=["dropout"])
    assert [dict(given) for given in slopes.given] == [trial.params for trial in study.trials]


# What is wrong is said before trial 0


@pytest.mark.parametrize(
    ("options", "space", "message"),
    [
        ({"fixed": ["drop"]}, SPACE, r"must name numbers or choices of the space, .*'lr'.* got"),
        (
            {"fixed": ["w"]},
            hd.Space(w=hd.Array(2), lr=hd.Float(0.1, 0.2)),
            r"got \['w'\]. An Array that does not move belongs into the training",
        ),
    ],
)
def test_a_fixed_name_that_cannot_be_is_refused(
    options: dict[str, Any], space: hd.Space, message: str
) -> None:
    with pytest.raises(hd.StudyError, match=message):
        hd.Study(space, tuner=hd.Hypergradient(**options))


@pytest.mark.parametrize("fixed", ["dropout", 3, [0.5]])
def test_fixed_is_a_collection_of_names(fixed: Any) -> None:
    with pytest.raises(hd.StudyError, match=r"fixed must be names such as \('dropout',\)"):
        hd.Hypergradient(fixed=fixed)


def test_a_space_in_which_all_is_fixed_is_refused() -> None:
    study = hd.Study(SPACE, tuner=hd.Hypergradient(fixed=["dropout", "lr"]))
    with pytest.raises(hd.StudyError, match=r"has none beside the fixed \['dropout', 'lr'\]"):
        study.optimize(network(), n_trials=1)
    assert study.trials == []


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_a_tuner_inside_another_sampler_is_refused() -> None:
    wrapped = PartialFixedSampler({"dropout": 0.25}, hd.Hypergradient())
    with pytest.raises(hd.StudyError, match="Hypergradient must be the study's tuner itself"):
        hd.Study(SPACE, tuner=wrapped)


def test_early_stopping_is_refused() -> None:
    study = hd.Study(SPACE, tuner=hd.Hypergradient(fixed=["dropout"]))
    with pytest.raises(hd.StudyError, match=r"the loss after all 6 steps, but .* early_stopping"):
        study.optimize(network(hd.EarlyStopping()), n_trials=1)
    assert study.trials == []


# What a trial reports


def test_a_differentiated_trial_reports_the_metrics_of_its_run() -> None:
    study = tuned(1, fixed=["dropout"])
    (trial,) = study.trials
    training, seed = network(), trial.user_attrs["hd:run"]["seed"]
    state = hd.rollout(training, trial.params, seed=seed)
    assert trial.user_attrs["metrics"] == pytest.approx(training.metrics(state, trial.params))
    assert trial.user_attrs["test"] == pytest.approx(training.test_metrics(state, trial.params))
    assert trial.value == pytest.approx(float(training.loss(state, trial.params)))

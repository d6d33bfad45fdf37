"""Groups that a user names: what is wrong with them is said before anything is fitted."""

from collections.abc import Callable
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

import hyperopt_dl as hd
from hyperopt_dl.tuners import surrogate
from hyperopt_dl.tuners.known_groups import check_names, check_structure

SPACE = hd.Space(lr=hd.Float(0, 1), momentum=hd.Float(0, 1), width=hd.Int(3, 3))
TYPO = [["lr", "momentun"], ["width", "depth"]]
MESSAGE = r"dimensions of the study, \['lr', 'momentum', 'width'\], got \['depth', 'momentun'\]"


@pytest.fixture
def no_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any fit fails the test."""

    def fit(*_: object, **__: object) -> None:
        pytest.fail("a model was fitted")

    monkeypatch.setattr(surrogate, "fit", fit)


@pytest.mark.parametrize("structure", ["learned", "full", "additive", [], [["a"], ("b", "c")]])
def test_a_structure_of_words_or_of_names_is_accepted(structure: object) -> None:
    check_structure(structure)


@pytest.mark.parametrize("structure", ["sparse", None, 3, ["lr"], [[1, 2]], {"a": "b"}])
def test_what_is_neither_is_refused(structure: object) -> None:
    with pytest.raises(hd.StudyError, match=r"'learned', 'full', 'additive' or a list of lists"):
        check_structure(structure)


@pytest.mark.parametrize("groups", [[["lr", "width"], ["lr"]], [["lr", "lr"]]])
def test_a_name_that_is_repeated_is_refused_when_the_tuner_is_made(groups: Any) -> None:
    with pytest.raises(hd.StudyError, match=r"disjoint, got \['lr'\] more than once"):
        hd.AdditiveBO(structure=groups)


def test_known_names_pass() -> None:
    check_names([["lr"], ["width"]], {"lr", "width", "depth"})
    check_names("learned", {"lr"})


def test_a_study_with_a_space_refuses_unknown_names_before_trial_0() -> None:
    with pytest.raises(hd.StudyError, match=MESSAGE):
        hd.Study(SPACE, tuner=hd.AdditiveBO(structure=TYPO))
    hd.Study(SPACE, tuner=hd.AdditiveBO(structure=[["lr", "width"]]))


@pytest.mark.usefixtures("no_fit")
def test_propose_refuses_unknown_names_at_once() -> None:
    tuner = hd.AdditiveBO(structure=TYPO)
    study = optuna.create_study(sampler=tuner)
    with pytest.raises(hd.StudyError, match=MESSAGE):
        tuner.propose(study, SPACE, 1)


def objective(trial: optuna.Trial) -> float:
    trial.suggest_int("width", 3, 3)
    return trial.suggest_float("lr", 0, 1) + trial.suggest_float("momentum", 0, 1)


@pytest.mark.usefixtures("no_fit")
@pytest.mark.parametrize("batch", [1, 2])
def test_a_study_of_optuna_refuses_unknown_names_before_its_first_fit(batch: int) -> None:
    study = optuna.create_study(sampler=hd.AdditiveBO(structure=TYPO, n_startup=3, batch=batch))
    with pytest.raises(hd.StudyError, match=MESSAGE):
        study.optimize(objective, n_trials=8)
    complete = [t for t in study.trials if t.state == TrialState.COMPLETE]
    assert 3 <= len(complete) <= 4


@pytest.mark.usefixtures("no_fit")
@pytest.mark.parametrize("ask", [hd.AdditiveBO.structure, hd.AdditiveBO.diagnostics])
def test_what_is_learned_of_unknown_names_is_refused(ask: Callable[..., object]) -> None:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(0))
    study.optimize(objective, n_trials=4)
    with pytest.raises(hd.StudyError, match=MESSAGE):
        ask(hd.AdditiveBO(structure=TYPO), study)


def test_a_conditional_name_is_known_and_stands_outside_the_model() -> None:
    """A trial that has it is enough, and the model is of what all trials have."""

    def conditional(trial: optuna.Trial) -> float:
        x = trial.suggest_float("x", 0, 1) + trial.suggest_float("y", 0, 1)
        return x + (trial.suggest_float("z", 0, 1) if trial.number % 2 else 0.0)

    sampler = hd.AdditiveBO(structure=[["x", "z"]], n_startup=4, seed=0)
    study = optuna.create_study(sampler=sampler)
    study.optimize(conditional, n_trials=6)
    assert sampler.structure(study).groups == (("x",), ("y",))

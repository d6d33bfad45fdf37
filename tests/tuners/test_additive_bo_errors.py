"""`hd.AdditiveBO` in a study: a model that fails, and what is refused."""

from typing import Any

import optuna
import pytest
from optuna.distributions import FloatDistribution

import hyperopt_dl as hd
from hyperopt_dl.tuners import additive_bo
from tests.tuners.bowls import SQUARE, square, tell


def test_a_model_that_fails_costs_a_log_entry_and_no_trial(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    study = square()
    tell(study, 6)

    def fail(*_: object, **__: object) -> None:
        raise ArithmeticError("singular")

    monkeypatch.setattr(additive_bo, "propose", fail)
    tell(study, 2)
    assert "the model failed" in caplog.text
    monkeypatch.undo()
    tell(study, 1)
    tuner = study.tuner
    assert isinstance(tuner, hd.AdditiveBO)
    fallbacks = tuner.diagnostics(study.optuna).fallbacks
    assert fallbacks == {"6": "ArithmeticError('singular')", "7": "ArithmeticError('singular')"}


@pytest.mark.parametrize("error", [hd.StudyError, ValueError])
def test_several_objectives_are_refused_with_what_to_use(error: type[Exception]) -> None:
    sampler = hd.AdditiveBO()
    study = optuna.create_study(directions=["minimize"] * 2, sampler=sampler)
    for ask in (
        lambda: study.ask({"x": FloatDistribution(0, 1)}),
        lambda: sampler.propose(study, SQUARE, 1),
        lambda: sampler.structure(study),
        lambda: sampler.diagnostics(study),
    ):
        with pytest.raises(error, match=r"one objective, got 2\. Use optuna"):
            ask()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch": 0}, "batch must be a whole number of at least 1, got 0"),
        ({"chains": 1.5}, "chains must be a whole number of at least 1, got 1.5"),
        ({"n_startup": -1}, "n_startup must be a whole number of at least 0, got -1"),
        ({"seed": -1}, "seed must be a whole number of at least 0, got -1"),
        ({"seed": "a"}, "seed must be a whole number of at least 0, got 'a'"),
        ({"device": "gpu"}, "device must be 'auto' or a device of torch, got 'gpu'"),
        ({"device": "cuda:99"}, r"device must be there, got cuda:99 of \d+ visible"),
        ({"acquisition": "ei"}, "acquisition must be one of .*'logei'.*, got 'ei'"),
        ({"strategy": "best"}, "strategy must be one of .*'greedy'.*, got 'best'"),
        ({"structure": "sparse"}, "structure must be 'learned', .* got 'sparse'"),
        ({"structure": [[0, 1]]}, "a list of lists of names"),
    ],
)
def test_a_wrong_argument_is_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(hd.StudyError, match=message):
        hd.AdditiveBO(**options)


@pytest.mark.parametrize("n", [0, 2.5, "3"])
def test_a_number_of_points_must_be_whole(n: Any) -> None:
    with pytest.raises(hd.StudyError, match="n must be a whole number of at least 1"):
        hd.AdditiveBO().propose(square(), SQUARE, n)


def test_what_is_no_study_is_named() -> None:
    with pytest.raises(hd.StudyError, match="a study of Optuna, is needed, got Space"):
        hd.AdditiveBO().structure(SQUARE)

"""AdditiveBO with hypergradients: where they come from, that they help, and that a seed decides."""

import math
import pickle
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from optuna.exceptions import ExperimentalWarning
from torch import Tensor

import hyperopt_dl as hd
from hyperopt_dl.training import HParams, State
from hyperopt_dl.tuners.additive_bo import AdditiveBO

NAMES = tuple("abcdef")
SPACE = hd.Space(
    **{name: hd.Float(-1.0, 1.0) for name in NAMES[:3]},
    **{name: hd.Float(0.1, 10.0, log=True) for name in NAMES[3:]},
)
STARTS = 5


@dataclass(frozen=True)
class Bowl:
    """A run that walks to its hyperparameters; the loss is their distance to a target."""

    steps: int = 2
    broken: float = math.inf
    """The loss is nan where ``a`` is above this."""

    def init(self, hparams: HParams, *, seed: int, device: torch.device | str) -> State:
        return {"x": torch.zeros(len(NAMES), dtype=torch.double)}

    def step(self, state: State, hparams: HParams, t: int) -> State:
        raw = [torch.as_tensor(hparams[n], dtype=torch.double) for n in NAMES]
        goal = torch.stack([*raw[:3], *(x.log10() for x in raw[3:])])
        return {"x": state["x"] + (goal - state["x"]) / (self.steps - t)}

    def loss(self, state: State, hparams: HParams) -> Tensor:
        target = torch.linspace(-0.6, 0.7, len(NAMES), dtype=torch.double)
        loss: Tensor = (state["x"] - target).square().sum()
        return loss * math.nan if float(state["x"][0].detach()) > self.broken else loss


def study(tuner: AdditiveBO | None = None, **options: Any) -> hd.Study:
    made: Any = tuner or hd.AdditiveBO(
        n_startup=STARTS, structure="full", use_gradients=True, **options
    )
    return hd.Study(SPACE, tuner=made, seed=0)


def run(made: hd.Study, n: int, training: Bowl | None = None) -> list[dict[str, Any]]:
    made.optimize(training or Bowl(), n_trials=n, progress=False)
    return [dict(trial.params) for trial in made.trials]


def diagnostics(made: hd.Study) -> Any:
    assert isinstance(made.tuner, AdditiveBO)
    return made.tuner.diagnostics(made.optuna)


def test_gradients_find_a_minimum_in_fewer_trials() -> None:
    """Seven derivatives of a bowl of six dimensions say more than seven losses."""
    informed, blind = study(), study(hd.AdditiveBO(n_startup=STARTS, structure="full"))
    run(informed, STARTS + 7)
    run(blind, STARTS + 7)
    assert informed.best.values[0] < 0.1
    assert informed.best.values[0] < 0.3 * blind.best.values[0]
    found = diagnostics(informed)
    assert found.fallbacks == {}
    assert (found.derivatives, found.unusable_derivatives) == (6 * (STARTS + 7), 0)
    assert len(found.derivative_noise) == 1
    assert (diagnostics(blind).derivatives, diagnostics(blind).derivative_noise) == (0, ())


def test_the_starts_are_those_without_gradients() -> None:
    informed, blind = study(), study(hd.AdditiveBO(n_startup=STARTS, structure="full"))
    assert run(informed, STARTS) == run(blind, STARTS)


def test_gradients_of_another_tuner_are_used(tmp_path: Path) -> None:
    path = tmp_path / "study.log"
    first = hd.Study(SPACE, tuner=hd.Hypergradient(seed=0), storage=path, seed=0)
    run(first, 6)
    tuner = hd.AdditiveBO(n_startup=STARTS, structure="full", use_gradients=True)
    second = hd.Study(SPACE, tuner=tuner, storage=path, seed=0)
    assert diagnostics(second).derivatives == 36
    without = hd.Study(
        SPACE, tuner=hd.AdditiveBO(n_startup=STARTS, structure="full"), storage=path, seed=0
    )
    assert diagnostics(without).derivatives == 0
    assert second.ask().params != without.ask().params


def test_a_trial_without_a_gradient_has_a_value_alone() -> None:
    made = study()
    run(made, STARTS)
    for _ in range(2):
        trial = made.ask()
        made.tell(trial, 3.0)
    run(made, 1)
    found = diagnostics(made)
    assert (found.losses, found.derivatives) == (STARTS + 3, 6 * (STARTS + 1))
    assert found.fallbacks == {}


def test_a_study_without_any_gradient_is_that_of_use_gradients_false() -> None:
    tuners = [hd.AdditiveBO(n_startup=3, use_gradients=flag, seed=1) for flag in (True, False)]
    proposed = []
    for tuner in tuners:
        plain = optuna.create_study(sampler=tuner)
        plain.optimize(lambda t: sum(t.suggest_float(n, -1, 1) ** 2 for n in "ab"), n_trials=6)
        proposed.append([trial.params for trial in plain.trials])
    assert proposed[0] == proposed[1]


def test_gradients_that_are_not_finite_are_dropped_and_counted() -> None:
    made = study()
    run(made, STARTS)
    broken = optuna.trial.create_trial(
        params=made.trials[0].params,
        distributions=SPACE.distributions(),
        value=1.0,
        user_attrs={"hypergradient": {"a": None, "b": math.nan, "c": 1.0}},
    )
    made.optuna.add_trial(broken)
    run(made, 1)
    found = diagnostics(made)
    assert (found.derivatives, found.unusable_derivatives) == (6 * (STARTS + 1) + 1, 2)
    assert found.fallbacks == {}


def test_trials_that_fail_do_not_stop_it() -> None:
    made = study()
    run(made, STARTS + 4, Bowl(broken=-0.2))
    found = diagnostics(made)
    assert found.failed > 0
    assert found.derivatives == 6 * found.losses
    assert found.fallbacks == {}


def test_what_is_fixed_is_searched_and_not_differentiated() -> None:
    made = study(fixed=("b",))
    proposed = run(made, STARTS + 2)
    assert diagnostics(made).derivatives == 5 * (STARTS + 2)
    assert len({params["b"] for params in proposed}) == STARTS + 2


def test_dimensions_that_are_not_continuous_have_no_derivatives() -> None:
    space = hd.Space(**SPACE, n=hd.Int(1, 3), kind=hd.Categorical(["x", "y"]))
    tuner = hd.AdditiveBO(n_startup=STARTS, structure="full", use_gradients=True)
    made = hd.Study(space, tuner=tuner, seed=0)
    run(made, STARTS + 2)
    assert diagnostics(made).derivatives == 6 * (STARTS + 2)
    assert diagnostics(made).fallbacks == {}


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"acquisition": "qlognei"},
        {"acquisition": "ucb", "structure": "additive"},
        {"strategy": "thompson"},
        {"strategy": "dpp", "batch": 3},
        {"structure": "learned"},
    ],
    ids=str,
)
def test_every_way_of_choosing_uses_them(options: dict[str, Any]) -> None:
    merged = {"n_startup": STARTS, "structure": "full", "use_gradients": True, **options}
    made = study(hd.AdditiveBO(**merged))
    run(made, STARTS + 9)
    started = min(trial.values[0] for trial in made.trials[:STARTS])
    assert made.best.values[0] < 0.5 * started
    assert diagnostics(made).fallbacks == {}
    assert diagnostics(made).derivatives == 6 * (STARTS + 9)


# Plain Optuna


def objective(trial: optuna.Trial) -> float:
    for name in NAMES[:3]:
        trial.suggest_float(name, -1, 1)
    for name in NAMES[3:]:
        trial.suggest_float(name, 0.1, 10, log=True)
    return hd.evaluate(trial, Bowl())


def test_evaluate_differentiates_for_it_too() -> None:
    def values(seed: int) -> list[float | None]:
        sampler = hd.AdditiveBO(n_startup=STARTS, structure="full", use_gradients=True, seed=seed)
        plain = optuna.create_study(sampler=sampler)
        plain.optimize(objective, n_trials=STARTS + 5)
        assert sampler.diagnostics(plain).derivatives == 6 * (STARTS + 5)
        return [trial.value for trial in plain.trials]

    found = values(0)
    assert min(value or 0.0 for value in found) < 0.1
    assert values(0) == found


def test_without_use_gradients_evaluate_says_what_to_do() -> None:
    plain = optuna.create_study(sampler=hd.AdditiveBO(seed=0))
    with pytest.raises(hd.StudyError, match="AdditiveBO\\(use_gradients=True\\)"):
        plain.optimize(objective, n_trials=1)


# Nothing but the trials and the seed


def test_a_resumed_study_goes_on_as_if_it_had_not_stopped(tmp_path: Path) -> None:
    def opened(name: str) -> hd.Study:
        tuner = hd.AdditiveBO(n_startup=STARTS, structure="full", use_gradients=True)
        return hd.Study(SPACE, tuner=tuner, storage=tmp_path / f"{name}.log", name="s", seed=4)

    through = run(opened("through"), STARTS + 4)
    run(opened("stopped"), STARTS + 2)
    assert run(opened("stopped"), 2) == through


def test_what_a_sampler_remembers_changes_nothing() -> None:
    """A gradient that comes to light later, without another loss, is not missed."""
    made = study()
    run(made, STARTS)
    tuner = made.tuner
    assert isinstance(tuner, AdditiveBO)
    assert tuner.propose(made.optuna, SPACE, 1) == tuner.propose(made.optuna, SPACE, 1)
    others = made.optuna.get_trials()
    others[-1].user_attrs = {}
    other = optuna.create_study(sampler=tuner)
    other.add_trials(others)
    assert tuner.diagnostics(other).derivatives == 6 * (STARTS - 1)
    assert tuner.diagnostics(made.optuna).derivatives == 6 * STARTS


def test_the_same_seed_proposes_the_same_and_pickling_changes_nothing() -> None:
    one, other = study(), study()
    run(one, STARTS + 2)
    run(other, STARTS + 2)
    tuner = pickle.loads(pickle.dumps(one.tuner))
    assert (tuner.use_gradients, tuner.estimator) == (True, hd.hypergrad.Reverse())
    assert isinstance(other.tuner, AdditiveBO)
    points = [t.propose(s.optuna, SPACE, 2) for t, s in ((tuner, one), (other.tuner, other))]
    assert points[0] == points[1]


# What is refused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"use_gradients": 1}, "use_gradients must be True or False, got 1"),
        ({"estimator": hd.hypergrad.Reverse()}, "are for use_gradients=True"),
        ({"fixed": ("a",)}, "are for use_gradients=True"),
        (
            {"use_gradients": True, "estimator": "reverse"},
            "estimator must be 'auto' or an estimator",
        ),
        ({"use_gradients": True, "fixed": "dropout"}, "fixed must be names"),
    ],
)
def test_arguments_that_do_not_go_together_are_refused(
    options: dict[str, Any], message: str
) -> None:
    with pytest.raises(hd.StudyError, match=message):
        hd.AdditiveBO(**options)


def test_a_function_cannot_be_differentiated() -> None:
    with pytest.raises(hd.StudyError, match="AdditiveBO needs a Training"):
        study().optimize(lambda trial: 1.0, n_trials=1)


def test_inside_another_sampler_it_is_refused_with_a_hint_that_works() -> None:
    tuner = hd.AdditiveBO(use_gradients=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        wrapped = optuna.samplers.PartialFixedSampler({"a": 0.0}, tuner)
    with pytest.raises(hd.StudyError, match=r"write the value into the training\.$"):
        hd.Study(SPACE, tuner=wrapped)


def test_a_space_without_floats_is_refused() -> None:
    made = hd.Study(hd.Space(n=hd.Int(1, 3)), tuner=hd.AdditiveBO(use_gradients=True))
    with pytest.raises(hd.StudyError, match="AdditiveBO needs a Float without a step"):
        made.optimize(Bowl(), n_trials=1)

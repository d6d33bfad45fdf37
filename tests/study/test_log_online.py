"""Runs with an online tuner in the user's own loop, as trials of a study."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import hyperopt_dl as hd
from hyperopt_dl.online import DeltaBarDelta, ForwardTuner, HypergradientDescent, Move
from hyperopt_dl.online.history import from_lines, to_lines
from tests.online.runs import groups_of, loss_of, network, train

LR = hd.Float(1e-5, 10, log=True)
SPACE: dict[str, Any] = {"lr": LR, "width": hd.Int(1, 64)}


def forward_run(groups: int = 1, names: tuple[str, ...] = ("lr",)) -> ForwardTuner:
    model = network()
    params: Any = groups_of(model, [{}, {}]) if groups == 2 else model.parameters()
    tuner = ForwardTuner(torch.optim.SGD(params, lr=0.01, momentum=0.5), dict.fromkeys(names, LR))
    train(tuner, model, range(12), every=3)
    return tuner


def descent_run(kind: Callable[[Any], Any] = HypergradientDescent) -> Any:
    model = network()
    tuner = kind(torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.5))
    for t in range(12):
        tuner.optimizer.zero_grad()
        loss_of(model, t).backward()  # type: ignore[no-untyped-call]
        tuner.step()
        tuner.optimizer.step()
    return tuner


def delta_run() -> Any:
    return descent_run(lambda optimizer: DeltaBarDelta(optimizer, kappa=1e-3))


RUNS: dict[str, Callable[[], Any]] = {
    "ForwardTuner": forward_run,
    "HypergradientDescent": descent_run,
    "DeltaBarDelta": delta_run,
}


@pytest.mark.parametrize("kind", RUNS)
def test_a_run_becomes_a_trial_with_its_last_rates_and_all_moves(kind: str) -> None:
    tuner, study = RUNS[kind](), hd.Study(SPACE)
    number = study.log_online(tuner, 0.25, params={"width": 8})
    (trial,) = study.trials
    assert (number, trial.state.name, trial.value) == (0, "COMPLETE", 0.25)
    assert "hd:run" in trial.user_attrs  # what says that the trial was made by this package
    assert trial.params == {"width": 8, "lr": tuner.get_last_lr()[0]}
    record = trial.user_attrs["online"]
    assert (record["tuner"], record["steps"]) == (kind, 12)
    assert record["values"] == tuner.history[-1].values
    assert study.online_history(0) == tuner.history


def test_the_losses_of_a_forward_tuner_are_intermediate_values_and_the_last_the_value() -> None:
    model = network()
    tuner = ForwardTuner(torch.optim.SGD(model.parameters(), lr=0.01), {"lr": LR})
    losses = {}
    for t in range(12):
        tuner.optimizer.zero_grad()
        tuner.backward(loss_of(model, t))
        tuner.optimizer.step()
        if tuner.steps % 4 == 0:
            loss = loss_of(model, -1)
            losses[tuner.steps] = loss.item()
            tuner.step(loss)
    study = hd.Study(SPACE)
    study.log_online(tuner)
    assert study.trials[0].intermediate_values == losses
    assert list(losses) == [4, 8, 12]
    assert study.trials[0].value == losses[12]


def test_the_others_see_no_loss_and_need_a_value() -> None:
    with pytest.raises(hd.StudyError, match=r"HypergradientDescent sees no.*value=\.\.\."):
        hd.Study(SPACE).log_online(descent_run())


def test_a_tuner_that_has_not_moved_is_refused() -> None:
    optimizer = torch.optim.SGD(network().parameters(), lr=0.01)
    with pytest.raises(hd.StudyError, match="HypergradientDescent has not moved yet"):
        hd.Study(SPACE).log_online(HypergradientDescent(optimizer), 1.0)


def test_what_is_no_online_tuner_is_refused() -> None:
    with pytest.raises(hd.StudyError, match=r"needs a tuner of hyperopt_dl\.online"):
        hd.Study(SPACE).log_online(hd.Hypergradient(), 1.0)  # type: ignore[arg-type]


def test_rates_that_the_space_does_not_have_are_attributes_alone() -> None:
    study = hd.Study({"lr@1": LR})
    study.log_online(forward_run(groups=2, names=("lr@0", "lr@1")))
    trial = study.trials[0]
    values = trial.user_attrs["online"]["values"]
    assert values.keys() == {"lr@0", "lr@1"}
    assert trial.params == {"lr@1": values["lr@1"]}


@pytest.mark.parametrize(
    "space", [None, {"lr": hd.Float(1.0, 2.0)}, {"lr": hd.Categorical([0.01])}]
)
def test_a_rate_that_does_not_fit_the_space_is_no_parameter(space: Any) -> None:
    study = hd.Study(space)
    study.log_online(forward_run())
    assert study.trials[0].params == {}


def test_two_groups_are_not_one_rate() -> None:
    model = network()
    tuner = HypergradientDescent(torch.optim.SGD(groups_of(model, [{}, {}]), lr=0.01))
    tuner.step()
    study = hd.Study(SPACE)
    study.log_online(tuner, 1.0)
    assert study.trials[0].params == {}


def test_params_are_taken_before_the_rates_of_the_tuner() -> None:
    study = hd.Study(SPACE)
    study.log_online(forward_run(), params={"lr": 0.01})
    assert study.trials[0].params == {"lr": 0.01}


def test_params_that_the_space_does_not_have_are_refused_and_nothing_is_added() -> None:
    study = hd.Study(SPACE)
    with pytest.raises(hd.SpaceError, match="depth"):
        study.log_online(forward_run(), params={"depth": 3})
    with pytest.raises(hd.StudyError, match="needs a study with a space"):
        hd.Study().log_online(forward_run(), params={"depth": 3})
    assert study.trials == []


def test_an_array_among_the_params_is_a_file() -> None:
    study = hd.Study({"w": hd.Array((3,), low=0.0, high=1.0)}, tuner=hd.Hypergradient())
    study.log_online(forward_run(), params={"w": torch.tensor([0.0, 0.5, 1.0])})
    assert study.params(0)["w"].tolist() == [0.0, 0.5, 1.0]


def test_a_value_that_is_not_finite_makes_a_failed_trial_with_a_history() -> None:
    study, tuner = hd.Study(SPACE), forward_run()
    study.log_online(tuner, math.nan)
    trial = study.trials[0]
    assert (trial.state.name, trial.user_attrs["failure"]) == ("FAIL", "nan")
    assert study.online_history(0) == tuner.history


def test_several_objectives_have_a_value_each_and_no_intermediate_values() -> None:
    study = hd.Study(SPACE, directions=["minimize", "maximize"])
    study.log_online(forward_run(), (0.5, 3.0))
    assert study.trials[0].values == [0.5, 3.0]
    assert study.trials[0].intermediate_values == {}
    with pytest.raises(hd.StudyError, match="has not 2 values"):
        study.log_online(forward_run())


def test_a_study_goes_on_with_a_logged_run_after_it_is_opened_again(tmp_path: Path) -> None:
    storage, tuner = tmp_path / "s.log", forward_run()

    def objective(trial: hd.Trial) -> float:
        return float(trial.params["width"])

    first = hd.Study(SPACE, storage=storage, seed=1)
    first.optimize(objective, n_trials=2, progress=False)
    number = first.log_online(tuner, 0.5, params={"width": 8})
    again = hd.Study(SPACE, storage=storage, seed=1)
    again.optimize(objective, total_trials=5, progress=False)
    assert number == 2
    assert len(again.trials) == 5
    assert again.best.number == 2
    assert again.best.params["width"] == 8
    assert again.online_history(2) == tuner.history


def test_a_run_that_was_resumed_is_logged_whole() -> None:
    model = network()

    def build() -> ForwardTuner:
        return ForwardTuner(torch.optim.SGD(model.parameters(), lr=0.01), {"lr": LR})

    first = build()
    train(first, model, range(6), every=3)
    second = build()
    second.optimizer.load_state_dict(first.optimizer.state_dict())
    second.load_state_dict(first.state_dict())
    train(second, model, range(6, 12), every=3)
    study = hd.Study(SPACE)
    study.log_online(second)
    assert [move.step for move in study.online_history(0)] == [3, 6, 9, 12]
    assert list(study.trials[0].intermediate_values) == [3, 6, 9, 12]


def test_a_database_must_be_told_where_histories_are(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 's.db'}"
    with pytest.raises(hd.StudyError, match=r"histories are files.*artifacts=\.\.\."):
        hd.Study(SPACE, storage=url).log_online(forward_run())
    told = hd.Study(SPACE, storage=url, artifacts=tmp_path / "files")
    told.log_online(forward_run())
    assert [path.parent.name for path in (tmp_path / "files").iterdir()] == ["files"]
    assert len(told.trials) == 1


def test_a_study_without_files_makes_no_folder(tmp_path: Path) -> None:
    hd.Study(SPACE, storage=tmp_path / "s.log")
    assert not (tmp_path / "s.log.artifacts").exists()


def test_a_trial_without_a_history_says_so() -> None:
    study = hd.Study(SPACE)
    study.optimize(lambda trial: trial.params["lr"], n_trials=1, progress=False)
    with pytest.raises(hd.StudyError, match="Trial 0 must be one with an online tuner"):
        study.online_history(0)


def test_lines_hold_every_move_and_only_what_json_has() -> None:
    history = [
        Move(3, {"lr": -0.1}, {"lr": 0.01}, loss=2.5),
        Move(4, {}, {"lr": 0.0025}, restored=True, loss=math.inf),
        Move(4, {"lr": math.nan}, {"lr": 0.0025}),
    ]
    text = to_lines(history)
    rows = [json.loads(line, parse_constant=pytest.fail) for line in text.splitlines()]
    assert rows[0] == {
        "step": 3, "restored": False, "value.lr": 0.01, "gradient.lr": -0.1, "loss": 2.5
    }  # fmt: skip
    back = from_lines(text)
    assert back[0] == history[0]
    assert back[1] == Move(4, {}, {"lr": 0.0025}, restored=True)
    assert math.isnan(back[2].gradient["lr"])


@pytest.mark.parametrize("url", ["sqlite:///{}/s.db", "{}/s.log"])
def test_a_loss_that_is_not_finite_is_an_intermediate_value(url: str, tmp_path: Path) -> None:
    tuner = forward_run()
    tuner.history[1] = Move(6, {}, {"lr": 0.01}, restored=True, loss=math.inf)
    study = hd.Study(SPACE, storage=url.format(tmp_path), artifacts=tmp_path / "files")
    study.log_online(tuner)
    values = study.trials[0].intermediate_values
    assert list(values) == [3, 6, 9, 12]
    assert values[6] == math.inf


def test_a_return_to_the_last_good_weights_keeps_the_loss_that_led_to_it() -> None:
    model = network()
    tuner = ForwardTuner(torch.optim.SGD(model.parameters(), lr=0.01), {"lr": LR})
    train(tuner, model, range(3))
    tuner.step(1e6 * loss_of(model, -1))
    (move,) = tuner.history
    assert move.restored
    assert move.loss == pytest.approx(1e6 * loss_of(network(), -1).item(), rel=1.0)

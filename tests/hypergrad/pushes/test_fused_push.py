"""Forward mode with a compiled step: the same numbers, and which steps are one graph."""

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from hyperopt_dl.hypergrad import Forward, hypergradient
from hyperopt_dl.hypergrad.pushes.push import SplitPush
from hyperopt_dl.hypergrad.traces import compiled
from hyperopt_dl.optimizers import SGD, Adam, AdamW, ClipNorm, RMSprop, Schedule
from hyperopt_dl.optimizers.groups import GroupsLike
from hyperopt_dl.supervised import Supervised
from tests.hypergrad.runs import (
    ALL,
    DOUBLE,
    Answer,
    all_together,
    assert_close,
    fresh,
    mlp,
    supervised,
    unroll,
    vectors,
)

AT = {"lr": 0.05, "m": 0.6, "decay": 0.05, "b2": 0.8, "limit": 0.3}
GROUPS: GroupsLike = {"0.*": {"lr": 0.02, "weight_decay": "decay"}}


def of(rule: Any, **settings: Any) -> tuple[Supervised, dict[str, Any]]:
    training = supervised(
        fresh(mlp), vectors(), vectors(1), optimizer=rule, **{"batch_size": 5, **settings}
    )
    return training, {name: AT[name] for name in sorted(training.hparams)}


def of_weights() -> "Case":
    training = supervised(fresh(mlp), vectors(n=20), vectors(1), weights="w", batch_size=10)
    return training, {"w": torch.linspace(0.2, 2.0, 20, dtype=DOUBLE), "lr": 0.3}


Case = tuple[Supervised, Mapping[str, Any]]
FUSED: dict[str, Callable[[], Case]] = {
    "sgd": lambda: of(SGD("lr", weight_decay="decay")),
    "momentum": lambda: of(SGD("lr", "m", weight_decay="decay")),
    "nesterov": lambda: of(SGD("lr", "m", nesterov=True, groups=GROUPS)),
    "dampening": lambda: of(SGD("lr", "m", dampening=0.2)),
    "adam": lambda: of(Adam("lr", ("m", "b2"), 1e-2, weight_decay="decay")),
    "amsgrad": lambda: of(Adam("lr", ("m", "b2"), 1e-2, amsgrad=True)),
    "adamw": lambda: of(AdamW("lr", ("m", "b2"), 1e-2, weight_decay="decay", groups=GROUPS)),
    "loss": lambda: (all_together("mlp", batch_size=5), ALL),
    "frozen": lambda: (all_together("frozen parameters", batch_size=5), ALL),
}
APART: dict[str, Callable[[], Case]] = {
    "rmsprop": lambda: of(RMSprop("lr", "b2", 1e-2)),
    "clipped": lambda: of(ClipNorm(SGD("lr", "m"), "limit")),
    "schedule": lambda: of(SGD(Schedule("lr", lambda t: 0.8**t), "m")),
    "dropout": lambda: (all_together("dropout", batch_size=5), ALL),
    "batch norm": lambda: (all_together("batch norm", batch_size=5), ALL),
    "many": lambda: of_weights(),
}


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A compiler that leaves graphs as they are; the steps that are not one graph."""
    monkeypatch.setattr(compiled, "_compile", lambda module, tensors: module)
    steps: list[int] = []
    apart = SplitPush._made

    def counted(self: Any, state: Any, dot: Any, slots: Any, t: int) -> Any:
        steps.append(t)
        return apart(self, state, dot, slots, t)

    monkeypatch.setattr(SplitPush, "_made", counted)
    return steps


def both(training: Supervised, hparams: Mapping[str, Any]) -> tuple[Answer, Answer]:
    estimators = (Forward(compile=True), Forward())
    first, second = (
        hypergradient(training, hparams, estimator=each, seed=2) for each in estimators
    )
    return first, second


@pytest.mark.parametrize(
    "name",
    [n if n in ("momentum", "adamw") else pytest.param(n, marks=pytest.mark.slow) for n in FUSED],
    ids=lambda name: name.replace(" ", "_"),
)
def test_a_step_as_one_graph_gives_the_derivative_of_the_whole_run(
    name: str, plain: list[int]
) -> None:
    training, hparams = FUSED[name]()
    found = hypergradient(training, hparams, estimator=Forward(compile=True), seed=2)
    assert plain == [0, 1]  # the first one, and the one that the graph is held against
    assert_close(found, unroll(training, hparams, seed=2), 1e-10)


@pytest.mark.parametrize(
    "name",
    [n if n == "schedule" else pytest.param(n, marks=pytest.mark.slow) for n in APART],
    ids=lambda name: name.replace(" ", "_"),
)
def test_a_step_that_is_not_one_graph_gives_the_same_numbers(name: str, plain: list[int]) -> None:
    training, hparams = APART[name]()
    found = hypergradient(training, hparams, estimator=Forward(compile=True), seed=2)
    assert plain == [0, 1, 2, 3, 4]
    assert_close(found, unroll(training, hparams, seed=2), 1e-10)


def test_a_last_and_smaller_batch_is_made_apart(plain: list[int]) -> None:
    training, hparams = of(SGD("lr", "m"), batch_size=4, steps=8)
    found = hypergradient(training, hparams, estimator=Forward(compile=True), seed=2)
    assert plain == [0, 1, 2, 5]
    assert_close(found, unroll(training, hparams, seed=2), 1e-10)


def test_one_graph_serves_runs_of_other_values_and_seeds(
    plain: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    modules: list[Any] = []

    def note(module: Any, tensors: tuple[Tensor, ...]) -> Any:
        modules.append(module)
        return module

    monkeypatch.setattr(compiled, "_compile", note)
    training, hparams = FUSED["adam"]()
    for factor, seed in ((1.0, 2), (0.9, 3)):
        others = {name: factor * value for name, value in hparams.items()}
        found = hypergradient(training, others, estimator=Forward(compile=True), seed=seed)
        assert_close(found, unroll(training, others, seed=seed), 1e-10)
    assert len(modules) == 5  # a step, and the four graphs of the loss


@pytest.mark.slow
def test_other_hyperparameters_have_a_graph_of_their_own(plain: list[int]) -> None:
    training, hparams = of(SGD("lr", "m", weight_decay="decay"))
    for left in ({}, {"m": 1}, {"lr": 1}):
        given = {**hparams, **left}
        found = hypergradient(training, given, estimator=Forward(compile=True), seed=2)
        assert_close(found, unroll(training, given, seed=2), 1e-10)


def test_a_graph_that_gives_other_numbers_is_not_used(
    plain: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(module: Any, tensors: tuple[Tensor, ...]) -> Any:
        whole = len(tensors) > 10
        return (lambda *given: [1.001 * out for out in module(*given)]) if whole else module

    monkeypatch.setattr(compiled, "_compile", wrong)
    training, hparams = FUSED["adam"]()
    with pytest.warns(UserWarning, match="does not give the numbers of the plain one"):
        found = hypergradient(training, hparams, estimator=Forward(compile=True), seed=2)
    assert plain == [0, 1, 2, 3, 4]
    assert_close(found, unroll(training, hparams, seed=2), 1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["momentum", "adamw", "loss"])
def test_a_compiled_step_gives_the_derivative_of_the_whole_run(
    name: str, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path_factory.getbasetemp() / "inductor"  # one for all
    monkeypatch.setenv(compiled.CACHE, str(folder))
    training, hparams = FUSED[name]()
    found, expected = both(training, hparams)
    assert any(folder.rglob("*.so"))
    assert_close(found, expected, 1e-10)

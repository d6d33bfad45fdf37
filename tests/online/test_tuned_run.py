"""A training whose hyperparameters tune themselves: its tangents, its moves, its way back."""

import io
import math
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

import hyperopt_dl as hd
from hyperopt_dl.hypergrad.traces import compiled
from hyperopt_dl.online import ForwardTuner, TunedRun
from hyperopt_dl.online.course import Course
from hyperopt_dl.optimizers import SGD, Adam, ClipNorm, Schedule
from hyperopt_dl.training import HParams, State
from tests.online.tuned import AT, DIMENSIONS, RULES, data, in_a_loop, tangents, training, tuned
from tests.problems import Quadratic

DTYPES = {torch.double: 1e-12, torch.float: 1e-5}
LR = {"lr": DIMENSIONS["lr"]}


def stepped(run: TunedRun, steps: int) -> TunedRun:
    for _ in range(steps):
        run.step()
    return run


def along(name: str) -> float:
    """dλ/du at the start."""
    dimension = DIMENSIONS[name]
    return AT[name] if dimension.log else (dimension.high - dimension.low) / 10


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", RULES)
def test_a_run_that_does_not_move_has_the_hypergradient_of_forward_mode(
    name: str, dtype: torch.dtype
) -> None:
    made = training(RULES[name][0], dtype)
    run = stepped(tuned(made, hyper_lr=0.0, every=made.steps), made.steps)
    value, gradient = hd.hypergradient(made, run.values, estimator=hd.hypergrad.Forward(), seed=3)
    (move,) = run.history
    assert move.loss == pytest.approx(float(value), rel=DTYPES[dtype])
    assert move.gradient.keys() == gradient.keys()
    for option, derivative in gradient.items():
        expected = float(derivative) * along(option)
        assert move.gradient[option] == pytest.approx(expected, rel=10 * DTYPES[dtype])


@pytest.mark.parametrize("discount", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("name", RULES)
def test_without_a_hyper_lr_training_is_the_same_to_the_last_bit(
    name: str, discount: float
) -> None:
    made = training(RULES[name][0], torch.float)
    run = stepped(tuned(made, hyper_lr=0.0, discount=discount), made.steps)
    plain = hd.rollout(made, run.values, seed=3)
    assert run.state.keys() == plain.keys()
    for entry, value in plain.items():
        assert torch.equal(run.state[entry], value), entry
    assert len(run.history) == 4
    assert run.values == {n: AT[n] for n in sorted(made.hparams)}


@pytest.mark.parametrize("settings", [{}, {"discount": 0.8}, {"discount": 0.0}], ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", RULES)
def test_a_run_moves_as_a_loop_does_on_the_same_batches(
    name: str, dtype: torch.dtype, settings: Mapping[str, Any]
) -> None:
    made = training(RULES[name][0], dtype)
    run = stepped(tuned(made, hyper_lr=0.3, **settings), made.steps)
    tuner = in_a_loop(name, made, 3, made.steps, hyper_lr=0.3, **settings)
    assert [m.step for m in run.history] == [m.step for m in tuner.history] == [3, 6, 9, 12]
    tolerance = 100 * DTYPES[dtype]
    for ours, theirs in zip(run.history, tuner.history, strict=True):
        assert [*ours.values.values()] == pytest.approx([*theirs.values.values()], rel=tolerance)
        found, expected = [*ours.gradient.values()], [*theirs.gradient.values()]
        assert found == pytest.approx(expected, rel=tolerance, abs=tolerance * max(map(abs, found)))
    Z = torch.cat([block["x"] for block in tuner.state_dict()["tangents"]], dim=1)
    error = (tangents(run) - Z).norm() / Z.norm()
    assert error < tolerance
    assert run.values["lr"] != AT["lr"]
    assert run.get_last_lr() == pytest.approx(tuner.get_last_lr(), rel=tolerance)


def test_with_discount_0_the_tangent_in_log_lr_is_the_last_step() -> None:
    made = training(RULES["momentum"][0])
    run = stepped(tuned(made, "lr", hyper_lr=0.0, discount=0.0), 4)
    before = run.state["params"]
    run.step()
    expected = run.state["params"] - before
    torch.testing.assert_close(tangents(run)[0], expected, rtol=1e-12, atol=1e-15)


def quadratic_loss(output: Tensor, target: Tensor, hp: Mapping[str, Any]) -> Tensor:
    value: Tensor = (output - target).square().mean() + hp["l2"] * output.square().mean()
    return value


@pytest.mark.parametrize("discount", [0.0, 0.3, 1.0])
def test_tangents_are_the_damped_recursion_also_of_a_number_in_the_loss(discount: float) -> None:
    x = torch.randn(6, 2, generator=torch.Generator().manual_seed(0), dtype=torch.double)
    y = x @ torch.tensor([[1.0], [-2.0]], dtype=torch.double) + 0.5
    made = hd.Supervised(
        model=lambda _: torch.nn.Linear(2, 1, bias=False, dtype=torch.double),
        loss=quadratic_loss,
        validation_loss=torch.nn.functional.mse_loss,
        optimizer=SGD("lr", 0.5),
        train=(x, y),
        validation=(x + 1, y),
        steps=6,
    )
    tune = {"lr": DIMENSIONS["lr"], "l2": hd.Float(0.0, 1.0)}
    hparams = {"lr": 0.1, "l2": 0.2}
    run = ForwardTuner.from_training(made, hparams, tune, 0.0, discount, every=1)
    H = 2 * (1 + 0.2) * x.T @ x / 6
    w, b, zb = run.state["params"], torch.zeros(2).double(), torch.zeros(2, 2).double()
    z = torch.zeros(2, 2, dtype=torch.double)
    for move in range(6):
        g = H @ w - 2 * (x.T @ y)[:, 0] / 6
        mixed = torch.stack([torch.zeros(2).double(), 0.1 * 2 * x.T @ x @ w / 6])
        b = 0.5 * b + g
        zb = discount * (0.5 * zb + z @ H) + mixed
        own = torch.stack([0.1 * b, torch.zeros(2).double()])
        z, w = discount * z - 0.1 * zb - own, w - 0.1 * b
        run.step()
        torch.testing.assert_close(tangents(run), z, rtol=1e-12, atol=1e-14)
        e = 2 * (x + 1).T @ ((x + 1) @ w - y[:, 0]) / 6
        found = [run.history[move].gradient[name] for name in ("lr", "l2")]
        assert found == pytest.approx((z @ e).tolist(), rel=1e-11)


def smoothed(output: Tensor, target: Tensor, hp: Mapping[str, Any]) -> Tensor:
    value: Tensor = cross_entropy(output, target) + hp["l2"] * output.square().mean()
    return value


def test_a_number_that_the_validation_loss_reads_has_its_direct_part() -> None:
    made = training(SGD("lr"), loss=smoothed, validation_loss=smoothed)
    run = ForwardTuner.from_training(
        made, {"l2": 0.3, "lr": 0.05}, {"l2": hd.Float(0.1, 1.0, log=True)}, 0.0, every=12, seed=3
    )
    stepped(run, 12)
    _, exact = hd.hypergradient(made, run.values, estimator=hd.hypergrad.Reverse(), seed=3)
    assert run.history[0].gradient == pytest.approx({"l2": 0.3 * float(exact["l2"])}, rel=1e-10)


@pytest.mark.parametrize("name", ["momentum", "adamw"])
def test_a_run_goes_on_to_the_same_bits(name: str) -> None:
    made = training(RULES[name][0], torch.float)
    through = stepped(tuned(made, hyper_lr=0.3, discount=0.9), 11)
    first = stepped(tuned(made, hyper_lr=0.3, discount=0.9), 5)
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    stepped(first, 6)  # what was saved is not written to
    file.seek(0)
    resumed = tuned(made, hyper_lr=0.3, discount=0.9)
    resumed.load_state_dict(torch.load(file))
    stepped(resumed, 6)
    assert resumed.history == through.history
    assert resumed.values == through.values
    for entry, value in through.state.items():
        assert torch.equal(resumed.state[entry], value), entry
    assert torch.equal(tangents(resumed), tangents(through))


def test_a_run_that_explodes_goes_back_as_a_loop_does() -> None:
    """With a rule that counts its steps, which are not those of the run any more."""
    examples = data(0, torch.double, 200)
    made = training(
        RULES["adam"][0], batch_size=None, train=examples, validation=examples, steps=60
    )
    wild = {"hyper_lr": 1.0, "explosion": 1.02, "trust": 5.0}
    run = stepped(tuned(made, every=1, **wild), 60)
    tuner = in_a_loop("adam", made, 1, 60, **wild)
    assert sum(move.restored for move in run.history) == 2
    assert run.t < run.steps == 60
    assert [m.restored for m in run.history] == [m.restored for m in tuner.history]
    for ours, theirs in zip(run.history, tuner.history, strict=True):
        assert ours.step == theirs.step
        assert [*ours.values.values()] == pytest.approx([*theirs.values.values()], rel=1e-6)


def test_a_run_goes_back_to_the_last_move_and_from_there_to_the_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    losses: list[float] = []

    def explodes(self: Course, loss: float) -> bool:
        losses.append(loss)
        return len(losses) in (8, 9)

    monkeypatch.setattr(Course, "explodes", explodes)
    run = tuned(training(SGD("lr")), hyper_lr=0.1)
    start, states = run.state, [stepped(run, 1).state for _ in range(8)]
    assert run.t == 6
    assert torch.equal(run.state["params"], states[5]["params"])
    assert run.values["lr"] == pytest.approx(run.history[1].values["lr"] / 4)
    assert not tangents(run).any()
    run.step()
    assert (run.t, run.steps) == (0, 9)
    assert torch.equal(run.state["params"], start["params"])
    assert [move.restored for move in run.history] == [False, False, True, True]
    stepped(run, 2)
    assert losses[9] == losses[0]


def test_a_run_whose_rate_cannot_go_down_is_an_error() -> None:
    made = training(SGD("lr"))
    tune = {"lr": hd.Float(0.05, 10, log=True)}
    run = ForwardTuner.from_training(made, {"lr": 0.05}, tune, explosion=1e-3)
    with pytest.raises(hd.TrainingError, match="no tuned learning rate can go down further"):
        run.step()


@pytest.mark.parametrize("discount", [0.0, 0.6, 1.0])
def test_any_training_can_be_tuned(discount: float) -> None:
    made = Quadratic(steps=7)
    run = ForwardTuner.from_training(made, {"lr": 0.1}, LR, 0.0, discount, every=1)
    z = torch.zeros_like(made.start)
    for t in range(7):
        before = made.exact_state(0.1, t=t)
        z = discount * (1 - 0.1 * made.curvature) * z
        z = z - 0.1 * made.curvature * (before - made.centre)
        run.step()
        expected = float((made.exact_state(0.1, t=t + 1) - made.target) @ z)
        assert run.history[-1].gradient["lr"] == pytest.approx(expected, rel=1e-12)


def test_any_training_moves_towards_a_lower_loss() -> None:
    made = Quadratic(steps=7)
    run = stepped(ForwardTuner.from_training(made, {"lr": 0.01}, LR, 0.1, every=1), 7)
    fixed = made.loss(hd.rollout(made, {"lr": 0.01}), {})
    assert made.loss(run.state, {}) < fixed
    assert run.values["lr"] != 0.01
    with pytest.raises(hd.TrainingError, match="needs a Supervised"):
        run.get_last_lr()


class Named(Quadratic):
    """A training whose hyperparameter has the name of an entry of its state."""

    def step(self, state: State, hparams: HParams, t: int) -> State:
        return super().step(state, {"lr": hparams["x"]}, t)


def test_a_hyperparameter_may_have_the_name_of_an_entry_of_the_state() -> None:
    made = Named(steps=4)
    run = stepped(ForwardTuner.from_training(made, {"x": 0.1}, {"x": LR["lr"]}, 0.0, every=4), 4)
    _, exact = hd.hypergradient(made, {"x": 0.1}, estimator=hd.hypergrad.Reverse())
    assert run.history[-1].gradient["x"] == pytest.approx(0.1 * float(exact["x"]), rel=1e-12)


def test_schedules_clipping_and_groups_go_along() -> None:
    rate = Schedule("lr", lambda t: 0.8**t)
    rule = ClipNorm(SGD(rate, "m", groups={"2.*": {"lr": "decay"}}), max_norm=0.4)
    made = training(rule)
    run = stepped(tuned(made, hyper_lr=0.0, every=12), 12)
    _, exact = hd.hypergradient(made, run.values, estimator=hd.hypergrad.Reverse(), seed=3)
    expected = {name: along(name) * float(part) for name, part in exact.items()}
    assert run.history[0].gradient == pytest.approx(expected, rel=1e-9)
    assert run.get_last_lr() == [pytest.approx(0.05 * 0.8**12), 0.05]


def test_moves_of_groups_are_those_of_a_run_at_the_moved_values() -> None:
    rule = SGD("lr", "m", groups={"2.*": {"lr": "decay", "momentum": 0.3}})
    made = training(rule)
    run = stepped(tuned(made, hyper_lr=0.3, every=5), 5)
    values, state = run.values, run.state
    run.step()
    plain = made.step(state, values, 5)
    torch.testing.assert_close(run.state["params"], plain["params"], rtol=1e-14, atol=1e-15)
    assert values["decay"] != AT["decay"] != values["lr"] != AT["lr"]


def test_a_look_is_at_the_examples_that_it_was_told() -> None:
    made = training(SGD("lr"))
    whole, part = (stepped(tuned(made, hyper_lr=0.0, every=1, batch_size=b), 3) for b in (None, 8))
    means = [sum(move.loss or 0 for move in run.history) / 3 for run in (whole, part)]
    assert means[0] != pytest.approx(means[1], rel=1e-6)
    still = stepped(tuned(training(SGD("lr")), hyper_lr=0.0, every=1, batch_size=8), 3)
    assert [m.loss for m in still.history] == [m.loss for m in part.history]


def test_weights_go_back_into_the_module_and_moves_into_a_study() -> None:
    made = training(SGD("lr", "m"))
    run = stepped(tuned(made, hyper_lr=0.2), 12)
    model = made.module(run.state, run.values)
    x, y = data(1, torch.double)
    with torch.no_grad():
        assert run.history[-1].loss == pytest.approx(float(cross_entropy(model(x), y)), rel=1e-12)
    study = hd.Study({"lr": DIMENSIONS["lr"]})
    number = study.log_online(run)
    trial = study.trials[number]
    assert trial.params == {"lr": run.values["lr"]}
    assert trial.value == run.history[-1].loss
    assert study.online_history(number) == run.history


def test_what_the_model_reads_stays_where_it_is() -> None:
    made = hd.Supervised(
        model=lambda hp: torch.nn.Sequential(torch.nn.Linear(4, 2), torch.nn.Dropout(hp["p"])),
        loss=cross_entropy,
        optimizer=Adam("lr"),
        train=data(0, torch.float),
        validation=data(1, torch.float),
        steps=4,
    )
    run = stepped(ForwardTuner.from_training(made, {"p": 0.4, "lr": 0.01}, LR, every=2), 4)
    assert run.values == {"p": 0.4, "lr": run.history[-1].values["lr"]}
    tune = {"p": hd.Float(0.1, 0.9)}
    with pytest.raises(hd.TrainingError, match=r"the model depends on \['p'\]"):
        ForwardTuner.from_training(made, {"p": 0.4, "lr": 0.01}, tune, every=1)


@pytest.fixture
def uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """A compiler that leaves graphs as they are."""
    monkeypatch.setattr(compiled, "_compile", lambda module, tensors: module)


@pytest.mark.parametrize("discount", [0.8, 1.0])
@pytest.mark.parametrize("name", ["momentum", "adamw"])
def test_a_step_as_one_graph_moves_alike(name: str, discount: float, uncompiled: None) -> None:
    made = training(RULES[name][0])
    plain = stepped(tuned(made, hyper_lr=0.3, discount=discount), 12)
    fused = stepped(tuned(made, hyper_lr=0.3, discount=discount, compile=True), 12)
    assert len(fused.history) == len(plain.history) == 4
    for ours, theirs in zip(fused.history, plain.history, strict=True):
        assert ours.values == pytest.approx(theirs.values, rel=1e-10)
        assert ours.gradient == pytest.approx(theirs.gradient, rel=1e-8)
    assert math.isfinite(plain.history[-1].loss or math.nan)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["momentum", "adamw"])
def test_a_compiled_step_moves_alike(
    name: str, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(compiled.CACHE, str(tmp_path_factory.getbasetemp() / "inductor"))
    made = training(RULES[name][0], torch.float)
    plain = stepped(tuned(made, hyper_lr=0.1), 12)
    fast = stepped(tuned(made, hyper_lr=0.1, compile=True), 12)
    for ours, theirs in zip(fast.history, plain.history, strict=True):
        assert ours.values == pytest.approx(theirs.values, rel=1e-5)
    error = (tangents(fast) - tangents(plain)).norm() / tangents(plain).norm()
    assert error < 1e-5


@pytest.mark.parametrize("discount", [0.0, 1.0])
@pytest.mark.parametrize("compile", [False, True], ids=["by parts", "one graph"])
@pytest.mark.parametrize("nothing_at", [0, 4])
def test_a_batch_without_targets_is_a_step_of_zero_gradients(
    nothing_at: int,
    compile: bool,  # noqa: A002
    discount: float,
    uncompiled: None,
) -> None:
    x, y = data(0, torch.double)
    whole = training(RULES["momentum"][0])
    y[whole.batch(whole.init(AT, seed=3, device="cpu"), nothing_at).examples] = -100
    made = training(RULES["momentum"][0], train=(x, y), steps=6)
    run = stepped(tuned(made, hyper_lr=0.3, discount=discount, compile=compile, every=2), 6)
    tuner = in_a_loop("momentum", made, 2, 6, hyper_lr=0.3, discount=discount)
    for ours, theirs in zip(run.history, tuner.history, strict=True):
        assert not ours.restored
        assert [*ours.values.values()] == pytest.approx([*theirs.values.values()], rel=1e-10)
        assert [*ours.gradient.values()] == pytest.approx([*theirs.gradient.values()], rel=1e-10)
    assert run.t == 6
    assert run.values["lr"] != AT["lr"]


def test_validation_data_without_targets_say_nothing() -> None:
    x, y = data(1, torch.double)
    made = training(RULES["momentum"][0], validation=(x, torch.full_like(y, -100)))
    run = stepped(tuned(made), 6)
    assert run.history == []
    assert run.values == {n: AT[n] for n in sorted(made.hparams)}


def test_a_loss_that_is_not_finite_and_has_a_gradient_is_lost() -> None:
    def loss(output: Tensor, target: Tensor) -> Tensor:
        return math.nan * cross_entropy(output, target)

    run = stepped(tuned(training(RULES["momentum"][0], loss=loss)), 1)
    assert [move.restored for move in run.history] == [True]

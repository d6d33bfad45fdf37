"""Arrays under the sampler: their moves, and that nothing but the trials decides them."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import pytest
import torch
from optuna.artifacts import FileSystemArtifactStore
from torch import Tensor

import hyperopt_dl as hd
from hyperopt_dl import constraints
from tests.problems import Quadratic, Spiral

PROBLEM = Quadratic()
SPIRAL = Spiral(steps=4, target=1.0 + 2.0j)
START = hd.Array(2, low=-1.0, high=3.0, init=[1.2, -0.9], constraint=constraints.sum_at_most(0.7))
SPIRALS = hd.Space(
    decay=hd.Float(0.1, 1.0, log=True), start=START, frequency=hd.Float(1.0, 4.0), n=hd.Int(1, 9)
)
TARGET = torch.tensor([0.7, -0.4, 1.5], dtype=torch.double)
W = hd.Space(w=hd.Array(3, low=-2.0, high=2.0, init=[1.0, 1.0, 1.0]))


def paraboloid(training: Any, hparams: Mapping[str, Any], **_: Any) -> Any:
    """An estimator that needs no run: ``1/2 |w - target|**2`` for w of any shape, and ``x**2``."""
    w, x = hparams["w"], torch.tensor(hparams.get("x", 0.0), dtype=torch.double)
    error = w - TARGET.repeat(w.numel() // 3 + 1)[: w.numel()].reshape(w.shape)
    gradient = {"w": error, "x": 2 * x} if "x" in hparams else {"w": error}
    return error.square().sum() / 2 + x**2, gradient


def broken_above(norm: float, derivative: float = math.nan) -> Any:
    """The same, but where w is longer than ``norm``: ``derivative`` in its last entry."""

    def estimator(training: Any, hparams: Mapping[str, Any], **_: Any) -> Any:
        value, gradient = paraboloid(training, hparams)
        if hparams["w"].norm() > norm:
            gradient["w"] = gradient["w"].index_fill(0, torch.tensor(2), derivative)
        return value, gradient

    return estimator


def tuned(space: hd.Space, n: int, *, training: Any = PROBLEM, **options: Any) -> hd.Study:
    study = hd.Study(space, tuner=hd.Hypergradient(**options), seed=0)
    study.optimize(training, n_trials=n, progress=False)
    return study


def arrays(study: hd.Study, name: str = "w") -> list[Tensor]:
    return [study.params(trial.number)[name] for trial in study.trials]


def everything(study: hd.Study) -> list[dict[str, Any]]:
    """All parameters of all trials, bit by bit."""
    known = [study.params(trial.number) for trial in study.trials]
    return [
        {k: v.tolist() if isinstance(v, Tensor) else v for k, v in each.items()} for each in known
    ]


# Moves


def below_the_line(free: Tensor) -> Tensor:
    """The point with -1 <= x, y <= 3 and x + y <= 0.7 that is nearest, by bisection."""
    low, high = 0.0, 8.0
    for _ in range(200):
        shift = (low + high) / 2
        over = float((free - shift).clamp(-1, 3).sum()) > 0.7
        low, high = (shift, high) if over else (low, shift)
    return (free - high).clamp(-1, 3)


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_a_chain_is_the_projected_descent_of_torchs_optimizer(optimizer: str) -> None:
    study = tuned(SPIRALS, 12, training=SPIRAL, optimizer=optimizer, lr=0.02)
    first = study.params(0)
    assert torch.equal(first["start"], START.start)
    # By hand: decay = 0.1 * 10**a, frequency = 1 + 3 b, start = -1 + 4 c.
    a = torch.tensor(math.log10(first["decay"] / 0.1), dtype=torch.double)
    b = torch.tensor((first["frequency"] - 1) / 3, dtype=torch.double)
    c = (first["start"] + 1) / 4
    a, b, c = (part.requires_grad_() for part in (a, b, c))
    torchs = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD}[optimizer]
    descent = torchs([a, b, c], lr=0.02)
    touched = 0
    for trial in study.trials:
        hp = study.params(trial.number)
        start = -1 + 4 * c.detach()
        decay, frequency = 0.1 * 10 ** a.item(), 1 + 3 * b.item()
        assert hp["decay"] == pytest.approx(decay, rel=1e-12)
        assert hp["frequency"] == pytest.approx(frequency, rel=1e-12)
        torch.testing.assert_close(hp["start"], start, rtol=1e-12, atol=1e-12)
        exact = SPIRAL.exact_gradient(decay, frequency, start)
        a.grad = exact["decay"] * decay * math.log(10)
        b.grad = exact["frequency"] * 3
        c.grad = exact["start"] * 4
        descent.step()
        touched += float((4 * c.detach() - 1).clamp(-1, 3).sum()) > 0.7
        with torch.no_grad():
            a.clamp_(0, 1)
            b.clamp_(0, 1)
            c.copy_((below_the_line(4 * c - 1) + 1) / 4)
    assert touched > 0
    values = [trial.value or 0.0 for trial in study.trials]
    assert min(values) < values[0]


def test_an_array_without_finite_bounds_moves_in_its_own_unit() -> None:
    space = hd.Space(w=hd.Array(3, low=-9.0, init=[1.0, 2.0, 3.0]))
    study = tuned(space, 2, estimator=paraboloid, optimizer="sgd", lr=0.25)
    before, after = arrays(study)
    torch.testing.assert_close(after, before - 0.25 * (before - TARGET), rtol=1e-14, atol=0)


def test_an_array_in_a_finite_box_moves_in_units_of_its_range() -> None:
    study = tuned(W, 2, estimator=paraboloid, optimizer="sgd", lr=0.01)
    before, after = arrays(study)
    wanted = before - 0.01 * 4.0**2 * (before - TARGET)  # w = -2 + 4 u
    torch.testing.assert_close(after, wanted, rtol=1e-13, atol=0)


CONSTRAINED = {
    "box": hd.Array((2, 3), low=0.1, high=0.6),
    "simplex": hd.Array(7, low=0.0, high=0.5, constraint=constraints.simplex()),
    "sum": hd.Array(7, low=0.0, high=1.0, constraint=constraints.sum_at_most(1.3)),
    "l1": hd.Array(7, constraint=constraints.l1_ball(0.9)),
    "matrix": hd.Array((3, 3), constraint=constraints.nonnegative_symmetric(sum_at_most=1.1)),
}


@pytest.mark.parametrize("array", CONSTRAINED.values(), ids=CONSTRAINED)
def test_every_proposed_value_keeps_to_box_and_constraint(array: hd.Array) -> None:
    study = tuned(hd.Space(w=array), 8, estimator=paraboloid, lr=0.4)
    values = arrays(study)
    for value in values:
        torch.testing.assert_close(array.project(value), value, rtol=1e-13, atol=1e-13)
        assert array.contains(value)
    assert len({str(value) for value in values}) > 1


def test_one_optimizer_steps_scalars_and_arrays_together() -> None:
    def clipped(parameters: Any, lr: float) -> torch.optim.Optimizer:
        (vector,) = parameters
        assert vector.shape == (4,)
        return torch.optim.SGD([vector], lr=lr)

    space = hd.Space(x=hd.Float(-1.0, 1.0), w=W["w"])
    assert len(tuned(space, 2, estimator=paraboloid, optimizer=clipped).trials) == 2


def test_a_derivative_that_is_not_given_leaves_the_array_where_it_is() -> None:
    def estimator(training: Any, hparams: Any, **_: Any) -> Any:
        value, gradient = paraboloid(training, hparams)
        return value, {"x": gradient["x"]}

    space = hd.Space(x=hd.Float(-1.0, 1.0), w=W["w"])
    study = hd.Study(space, tuner=hd.Hypergradient(estimator), seed=0)
    study.enqueue({"w": [0.5, 0.5, 0.25]})
    study.optimize(PROBLEM, n_trials=3, progress=False)
    assert {str(w.tolist()) for w in arrays(study)} == {"[0.5, 0.5, 0.25]"}
    assert len({trial.params["x"] for trial in study.trials}) == 3


# Starts


def test_every_chain_begins_with_the_init() -> None:
    study = tuned(SPIRALS, 8, training=SPIRAL, chains=2, chain_length=2)
    starts = [study.params(number)["start"] for number in (0, 1, 4, 5)]
    assert all(torch.equal(start, START.start) for start in starts)
    assert len({study.trials[number].params["n"] for number in (0, 1, 4, 5)}) > 1


def test_an_enqueued_array_begins_a_chain_at_its_projection() -> None:
    study = hd.Study(SPIRALS, tuner=hd.Hypergradient(), seed=0)
    study.enqueue({"start": [0.1, 0.6 + 5e-7], "n": 3})
    study.optimize(SPIRAL, n_trials=2, progress=False)
    first, second = arrays(study, "start")
    nearest = torch.tensor([0.1 - 2.5e-7, 0.6 + 2.5e-7], dtype=torch.double)
    torch.testing.assert_close(first, nearest, rtol=0, atol=1e-15)
    assert [study.trials[i].params["n"] for i in (0, 1)] == [3, 3]
    assert not torch.equal(first, second)


def test_the_defaults_of_a_space_can_be_enqueued() -> None:
    study = hd.Study(W, tuner=hd.Hypergradient(paraboloid), seed=0)
    study.enqueue(W.defaults)
    assert torch.equal(study.ask().params["w"], torch.ones(3, dtype=torch.double))


# Failures


def test_a_derivative_that_is_not_finite_halves_the_step_from_the_last_good_point() -> None:
    space = hd.Space(w=hd.Array(3, init=0.0))
    # From 0 a step of SGD is lr * target = 2 target long, then target; |target| = 1.7.
    study = tuned(space, 3, estimator=broken_above(2.0), optimizer="sgd", lr=2.0)
    zero, two, one = arrays(study)
    assert torch.equal(zero, torch.zeros(3, dtype=torch.double))
    torch.testing.assert_close(two, 2 * TARGET, rtol=1e-14, atol=0)
    torch.testing.assert_close(one, TARGET, rtol=1e-14, atol=0)
    assert study.trials[1].user_attrs["hypergradient"] == {"w": None}


def test_a_failed_trial_sends_arrays_back_too() -> None:
    def estimator(training: Any, hparams: Any, **_: Any) -> Any:
        if hparams["w"].norm() > 2.0:
            raise MemoryError
        return paraboloid(training, hparams)

    space = hd.Space(w=hd.Array(3, init=0.0))
    study = tuned(space, 3, estimator=estimator, optimizer="sgd", lr=2.0)
    assert [trial.state.name for trial in study.trials] == ["COMPLETE", "FAIL", "COMPLETE"]
    torch.testing.assert_close(arrays(study)[2], TARGET, rtol=1e-14, atol=0)


def test_a_derivative_of_another_shape_fails_the_trial() -> None:
    study = tuned(W, 1, estimator=lambda *_, **__: (torch.tensor(1.0), {"w": torch.ones(2)}))
    assert "must be a tensor of its shape [3], got [2]" in study.trials[0].user_attrs["error"]


# Nothing but the trials decides


def test_a_study_in_pieces_is_a_study_in_one_piece_to_the_bit(tmp_path: Path) -> None:
    def tuner() -> hd.Hypergradient:
        return hd.Hypergradient(chains=2, chain_length=7, lr=0.1)

    whole = hd.Study(SPIRALS, tuner=tuner(), seed=1)
    whole.optimize(SPIRAL, n_trials=20, progress=False)
    for total in (1, 2, 9, 20):
        piece = hd.Study(SPIRALS, tuner=tuner(), storage=tmp_path / "s.log", seed=1)
        piece.optimize(SPIRAL, total_trials=total, progress=False)
    assert everything(piece) == everything(whole)


def test_failures_are_folded_alike_after_a_restart(tmp_path: Path) -> None:
    def study(storage: Path | None) -> hd.Study:
        tuner = hd.Hypergradient(broken_above(1.6), lr=0.1)
        return hd.Study(W, tuner=tuner, storage=storage, seed=1)

    whole = study(None)
    whole.optimize(PROBLEM, n_trials=14, progress=False)
    for _ in range(14):
        study(tmp_path / "s.log").optimize(PROBLEM, n_trials=1, progress=False)
    gradients = [trial.user_attrs["hypergradient"]["w"] for trial in whole.trials]
    assert None in gradients[1:-1]
    assert everything(study(tmp_path / "s.log")) == everything(whole)


def test_another_study_object_proposes_the_same_next_point(tmp_path: Path) -> None:
    tuner = hd.Hypergradient(lr=0.1)
    study = hd.Study(SPIRALS, tuner=tuner, storage=tmp_path / "s.log", seed=1)
    study.optimize(SPIRAL, n_trials=5, progress=False)
    copy = tmp_path / "copy.log"
    copy.write_bytes((tmp_path / "s.log").read_bytes())
    again = hd.Study(
        SPIRALS,
        tuner=hd.Hypergradient(lr=0.1),
        storage=copy,
        name="s",
        artifacts=tmp_path / "s.log.artifacts",
        seed=1,
    )
    here, there = study.ask().params, again.ask().params
    assert torch.equal(here.pop("start"), there.pop("start"))
    assert here == there


class Counting(FileSystemArtifactStore):
    """A store that counts what is read."""

    reads = 0

    def open_reader(self, artifact_id: str) -> BinaryIO:
        self.reads += 1
        return super().open_reader(artifact_id)


def test_a_proposal_reads_only_what_is_new(tmp_path: Path) -> None:
    store = Counting(tmp_path)
    study = hd.Study(W, tuner=hd.Hypergradient(paraboloid), artifacts=store, seed=0)
    reads = []
    for _ in range(6):
        before = store.reads
        study.optimize(PROBLEM, n_trials=1, progress=False)
        reads.append(store.reads - before)
    assert len(set(reads[1:])) == 1


def test_one_tuner_in_two_studies_keeps_them_apart() -> None:
    def studies(*tuners: hd.Hypergradient) -> list[list[dict[str, Any]]]:
        pair = [hd.Study(W, tuner=tuner, seed=0) for tuner in tuners]
        pair[1].enqueue({"w": [-1.0, -1.0, -1.0]})
        for study in pair * 4:
            study.optimize(PROBLEM, n_trials=1, progress=False)
        return [everything(study) for study in pair]

    tuner, other = (hd.Hypergradient(paraboloid, lr=0.1) for _ in range(2))
    together = studies(tuner, tuner)
    assert together == studies(tuner, other)
    assert together[0] != together[1]


def test_a_setting_that_has_changed_changes_the_next_step() -> None:
    study = hd.Study(W, tuner=hd.Hypergradient(paraboloid, optimizer="sgd", lr=0.01), seed=0)
    study.optimize(PROBLEM, n_trials=2, progress=False)
    study.tuner.lr = 0.02  # type: ignore[attr-defined]
    study.optimize(PROBLEM, n_trials=1, progress=False)
    _, before, after = arrays(study)
    torch.testing.assert_close(after, before - 0.02 * 16 * (before - TARGET), rtol=1e-13, atol=0)

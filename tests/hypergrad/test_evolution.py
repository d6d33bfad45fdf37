"""Evolution strategies: unbiased on a linear-quadratic problem, and reverse mode as σ falls."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import hyperopt_dl as hd
from hyperopt_dl.errors import TrainingError
from hyperopt_dl.hypergrad import PES, Constant, ESSingle, Estimator, Reverse, hypergradient
from hyperopt_dl.hypergrad.evolution import perturbations
from hyperopt_dl.optimizers import SGD, Schedule
from hyperopt_dl.training import HParams, State, Training
from tests.contracts.estimator import EstimatorManners, assert_same_answer, line
from tests.hypergrad.runs import ALL, DOUBLE, all_together
from tests.problems import Quadratic

MAKERS: dict[str, Callable[..., Estimator]] = {
    "pes": lambda **settings: PES(truncation=2, **settings),
    "es-single": ESSingle,
}
both = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)


class TestPES(EstimatorManners):
    @pytest.fixture
    def estimator(self) -> Estimator:
        return PES(truncation=4, pairs=2)


class TestESSingle(EstimatorManners):
    @pytest.fixture
    def estimator(self) -> Estimator:
        return ESSingle(pairs=2)


# Unbiased


@dataclass(frozen=True)
class LinearQuadratic:
    """``x' = 0.9 x + push`` from ``start``; the loss is ``|x - 1|**2 / 2 + 3 price``.

    It is quadratic in what is perturbed, so that smoothing leaves its derivative as it is.
    """

    steps: int = 6

    def init(self, hparams: HParams, *, seed: int, device: torch.device | str) -> State:
        return {"x": hparams["start"] * torch.ones(2, dtype=DOUBLE)}

    def step(self, state: State, hparams: HParams, t: int) -> State:
        return {"x": 0.9 * state["x"] + hparams["push"]}

    def loss(self, state: State, hparams: HParams) -> Tensor:
        loss: Tensor = (state["x"] - 1).square().sum() / 2 + 3 * hparams["price"]
        return loss

    def exact_gradient(self, start: float, push: Tensor) -> Tensor:
        """In push[0], push[1], start and price."""
        a, b = 0.9**self.steps, (1 - 0.9**self.steps) / 0.1
        error = a * start + b * push - 1
        return torch.stack([*(b * error), a * error.sum(), torch.tensor(3.0, dtype=DOUBLE)])


def samples(estimator: Estimator, n: int) -> Tensor:
    """Independent estimates ``[n, 4]`` of the gradient of the linear-quadratic problem."""
    push = torch.tensor([0.3, -0.1], dtype=DOUBLE)
    hparams = {"push": push, "start": 0.5, "price": 0.2}
    rows = []
    for seed in range(n):
        _, g = estimator(LinearQuadratic(), hparams, seed=seed, device="cpu")
        rows.append(torch.cat([g["push"], g["start"].view(1), g["price"].view(1)]))
    return torch.stack(rows)


@both
@pytest.mark.parametrize("sigma", [0.05, 1.5])
def test_the_estimate_is_unbiased_on_a_linear_quadratic_problem(
    make: Callable[..., Estimator], sigma: float
) -> None:
    found = samples(make(pairs=1, sigma=sigma), 800)
    exact = LinearQuadratic().exact_gradient(0.5, torch.tensor([0.3, -0.1], dtype=DOUBLE))
    error = found.std(0) / math.sqrt(len(found))
    assert bool((error < 0.25 * exact.abs().max()).all())  # or nothing would be tested
    assert bool(((found.mean(0) - exact).abs() < 4 * error).all())


@both
def test_more_pairs_scatter_less(make: Callable[..., Estimator]) -> None:
    one, nine = (samples(make(pairs=pairs, sigma=0.1), 150).std(0) for pairs in (1, 9))
    torch.testing.assert_close(nine, one / 3, rtol=0.3, atol=0)


@both
def test_a_scale_is_the_unit_of_sigma(make: Callable[..., Any]) -> None:
    problem, hparams = Quadratic(steps=6), {"lr": 0.1}  # of degree 12: sigma matters
    (_, a), (_, b), (_, c) = (
        make(sigma=sigma)(problem, hparams, seed=2, device="cpu", scale={"lr": scale})
        for sigma, scale in ((0.02, 2.0), (0.04, 1.0), (0.02, 1.0))
    )
    torch.testing.assert_close(a["lr"], b["lr"], rtol=1e-12, atol=0)
    assert not torch.isclose(a["lr"], c["lr"], rtol=1e-3)


# Against reverse mode


def test_with_one_window_the_estimate_is_that_of_its_directions_as_sigma_falls() -> None:
    training = all_together("mlp", steps=4, batch_size=None)
    _, exact = hypergradient(training, ALL, estimator=Reverse(), seed=3)
    shapes = {name: part.shape for name, part in exact.items()}
    drawn = [next(perturbations(shapes, 3, pair)) for pair in range(3)]
    along = [sum(float((e[name] * exact[name]).sum()) for name in e) for e in drawn]
    errors = []
    for sigma in (1e-2, 1e-3):
        _, found = hypergradient(training, ALL, estimator=ESSingle(3, sigma), seed=3)
        expected = {n: sum(s * e[n] for s, e in zip(along, drawn, strict=True)) / 3 for n in exact}
        errors.append(max(float((found[n] - expected[n]).abs().max()) for n in exact))
    size = max(float(torch.as_tensor(part).abs().max()) for part in expected.values())
    assert errors[1] < 1e-4 * size
    assert errors[1] < errors[0] / 50  # it falls with sigma**2


def test_with_windows_the_estimate_is_that_of_the_knots_as_sigma_falls() -> None:
    """One rate for all steps, perturbed anew in each window, is a knot for each window."""

    def of_knots(steps: int) -> Tensor:
        knots = Schedule(1.0, lambda t, hp: hp["knots"][t // 2])
        hparams = {"knots": torch.full((3,), 0.1, dtype=DOUBLE)}
        training = line(SGD(lr=knots), steps=steps)
        return hypergradient(training, hparams, estimator=Reverse())[1]["knots"]

    G = [of_knots(steps) for steps in (2, 4, 6)]  # of the loss after each window, in each knot
    p = [G[0], G[1] - G[0], G[2] - G[1]]
    expected = 0.0
    for pair in range(4):
        drawn = perturbations({"lr": torch.Size()}, 5, pair)
        epsilon = torch.stack([next(drawn)["lr"] for _ in range(3)])
        expected += sum(float(epsilon[: k + 1].sum() * (epsilon @ p[k])) for k in range(3)) / 4
    estimator = PES(truncation=2, pairs=4, sigma=1e-4)
    _, found = hypergradient(line(SGD(lr="lr"), steps=6), {"lr": 0.1}, estimator=estimator, seed=5)
    assert float(found["lr"]) == pytest.approx(expected, rel=1e-5)


@both
def test_the_average_over_many_pairs_is_near_the_derivative_of_a_smooth_run(
    make: Callable[..., Estimator],
) -> None:
    problem = Quadratic(steps=6, noise=0.3)
    estimator = make(pairs=1, sigma=1e-3)
    found = torch.stack([_of_perturbation(estimator, problem, seed) for seed in range(300)])
    error = float(found.std()) / math.sqrt(len(found))
    assert abs(float(found.mean() - problem.exact_gradient(0.1, seed=3))) < 4 * error


def test_one_window_for_all_steps_is_es_single() -> None:
    one = hypergradient(Quadratic(steps=7), {"lr": 0.1}, estimator=PES(7, pairs=3), seed=2)
    assert_same_answer(
        one, hypergradient(Quadratic(steps=7), {"lr": 0.1}, estimator=ESSingle(3), seed=2)
    )


# What has no derivative


@both
def test_the_value_is_that_of_the_run_itself_and_its_cost_is_noted(
    make: Callable[..., Any],
) -> None:
    notes: list[Mapping[str, Any]] = []
    problem, estimator = Quadratic(steps=7, noise=0.3), make(pairs=3, sigma=0.01)
    value, _ = estimator(problem, {"lr": 0.1}, seed=4, device="cpu", note=notes.append)
    assert float(value) == pytest.approx(problem.exact_loss(0.1, seed=4), rel=1e-12)
    assert notes == [{"exact": True, "steps": 7 * (2 * 3 + 1)}]


@both
def test_an_error_rate_can_be_descended(make: Callable[..., Estimator]) -> None:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(300, 2, generator=g, dtype=DOUBLE)
    y = (x[:, 0] > 0).long()
    model = nn.Linear(2, 2).double()
    nn.init.zeros_(model.weight)
    model.bias.data = torch.tensor([3.0, 0.5]).double()
    training = hd.Supervised(
        model=model,
        loss=nn.functional.cross_entropy,
        validation_loss=lambda output, target: (output.argmax(1) != target).double().mean(),
        optimizer=SGD(lr="lr"),
        train=(x[:200], y[:200]),
        validation=(x[200:], y[200:]),
        steps=6,
    )
    with pytest.raises(TrainingError, match="must depend on the state"):
        hypergradient(training, {"lr": 0.5}, estimator=Reverse())
    value, gradient = hypergradient(
        training, {"lr": 0.5}, estimator=make(pairs=20, sigma=0.2), seed=1
    )
    assert 0.1 < float(value) < 0.5
    assert float(gradient["lr"]) < 0


@both
def test_in_a_chaotic_run_the_estimate_stays_as_small_as_the_loss_allows(
    make: Callable[..., Estimator],
) -> None:
    hparams = {"r": 3.9}
    _, exact = hypergradient(_Logistic(), hparams, estimator=Reverse())
    _, found = hypergradient(_Logistic(), hparams, estimator=make(pairs=50, sigma=0.02))
    assert abs(float(exact["r"])) > 1e10
    assert abs(float(found["r"])) < 1e3


@both
def test_structure_and_constants_are_not_perturbed(make: Callable[..., Estimator]) -> None:
    seen: list[Mapping[str, Any]] = []

    class Watching(Quadratic):
        def step(self, state: State, hparams: HParams, t: int) -> State:
            seen.append(dict(hparams))
            return super().step(state, hparams, t)

    hparams = {"lr": 0.1, "width": 3, "name": "relu", "dropout": Constant(0.3)}
    _, gradient = hypergradient(Watching(steps=2), hparams, estimator=make())
    assert gradient.keys() == {"lr"}
    assert {(hp["width"], hp["name"], hp["dropout"]) for hp in seen} == {(3, "relu", 0.3)}
    assert len({float(hp["lr"]) for hp in seen}) > 8


@both
def test_a_run_that_is_not_finite_makes_the_estimate_so(make: Callable[..., Estimator]) -> None:
    class Breaking(Quadratic):
        def loss(self, state: State, hparams: HParams) -> Tensor:
            return super().loss(state, hparams) / (0.0 if hparams["lr"] > 0.1 else 1.0)

    _, gradient = hypergradient(Breaking(), {"lr": 0.1}, estimator=make())
    assert not math.isfinite(gradient["lr"])


# In a study, and errors


@both
def test_a_study_measures_perturbations_in_its_cube_and_descends(
    make: Callable[..., Estimator],
) -> None:
    space = hd.Space(lr=hd.Float(0.01, 1.0, log=True))
    study = hd.Study(space, tuner=hd.Hypergradient(make(pairs=3), lr=0.05), seed=0)
    study.enqueue({"lr": 0.02})
    study.optimize(Quadratic(), n_trials=12, progress=False)
    first = study.trials[0]
    scale = 0.02 * math.log(100.0)
    assert first.user_attrs["hd:keywords"] == {"scale": {"lr": pytest.approx(scale)}}
    assert first.user_attrs["estimator"]["steps"] == 10 * 7
    values = [trial.value for trial in study.trials]
    assert None not in values
    assert len(values) == 12  # values are exact: nothing is closed
    assert study.best.value < values[0]  # type: ignore[operator]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sigma": 0.0}, "sigma > 0"),
        ({"sigma": math.nan}, "sigma > 0"),
        ({"pairs": 0}, "pairs >= 1"),
        ({"pairs": 1.5}, "pairs >= 1"),
        ({"truncation": 0}, "truncation >= 1"),
    ],
)
def test_a_setting_that_is_none_is_an_error(settings: dict[str, Any], message: str) -> None:
    for make in (PES, *([] if "truncation" in settings else [ESSingle])):
        with pytest.raises(TrainingError, match=message):
            make(**settings)


def _of_perturbation(estimator: Any, problem: Quadratic, seed: int) -> Tensor:
    """The estimate for the noise of one run, and the perturbations of another seed."""
    fixed = _Fixed(problem, 3)
    _, gradient = hypergradient(fixed, {"lr": 0.1}, estimator=estimator, seed=seed)
    return gradient["lr"]


@dataclass(frozen=True)
class _Fixed:
    """A training whose runs all have one seed."""

    training: Training
    seed: int

    @property
    def steps(self) -> int:
        return self.training.steps

    def init(self, hparams: HParams, *, seed: int, device: torch.device | str) -> State:
        return self.training.init(hparams, seed=self.seed, device=device)

    def step(self, state: State, hparams: HParams, t: int) -> State:
        return self.training.step(state, hparams, t)

    def loss(self, state: State, hparams: HParams) -> Tensor:
        return self.training.loss(state, hparams)


class _Logistic:
    """``x' = r x (1 - x)``, chaotic at r = 3.9."""

    steps = 100

    def init(self, hparams: HParams, *, seed: int, device: torch.device | str) -> State:
        return {"x": torch.tensor(0.3, dtype=DOUBLE)}

    def step(self, state: State, hparams: HParams, t: int) -> State:
        r = torch.clamp(torch.as_tensor(hparams["r"]), max=4.0)
        return {"x": r * state["x"] * (1 - state["x"])}

    def loss(self, state: State, hparams: HParams) -> Tensor:
        return state["x"]

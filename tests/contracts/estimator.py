"""What every estimator must do, and every exact one: the closed forms.

Subclass ``EstimatorContract``, or ``EstimatorManners``, with a fixture ``estimator``.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from hyperopt_dl.errors import TrainingError
from hyperopt_dl.hypergrad import Estimator, hypergradient
from hyperopt_dl.optimizers import SGD, Optimizer, Schedule
from hyperopt_dl.supervised import Supervised
from hyperopt_dl.training import HParams, State, Training
from tests.problems import Quadratic, Spiral

DOUBLE = torch.double
NOISY = Quadratic(steps=10, noise=0.3)
SPIRAL_AT: dict[str, Any] = {
    "start": torch.tensor([1.2, -0.7], dtype=DOUBLE),
    "decay": 0.4,
    "frequency": 2.5,
}


@dataclass(frozen=True)
class ComplexSpiral:
    """``Spiral`` with one complex number as its state."""

    real: Spiral

    @property
    def steps(self) -> int:
        return self.real.steps

    def init(self, hparams: HParams, *, seed: int, device: torch.device | str) -> State:
        return {"z": torch.view_as_complex(self.real.init(hparams, seed=seed, device=device)["z"])}

    def step(self, state: State, hparams: HParams, t: int) -> State:
        rate = torch.complex(-_scalar(hparams["decay"]), _scalar(hparams["frequency"]))
        return {"z": state["z"] * (1 + self.real.h * rate)}

    def loss(self, state: State, hparams: HParams) -> Tensor:
        return self.real.loss({"z": torch.view_as_real(state["z"])}, hparams)


def line(
    optimizer: Optimizer,
    *,
    dtype: torch.dtype = DOUBLE,
    loss: Any = mse_loss,
    steps: int = 5,
) -> Supervised:
    """One weight w against 1: w[t + 1] = w[t] - 2 lr(t) (w[t] - 1), from w[0] = 3.

    The outer loss is ``(w[T] - 1)**2 = 4 prod_t (1 - 2 lr(t))**2``.
    """
    model = nn.Linear(1, 1, bias=False).to(dtype)
    nn.init.constant_(model.weight, 3.0)
    one = torch.ones(1, 1, dtype=dtype)
    return Supervised(
        model=model,
        loss=loss,
        validation_loss=mse_loss,
        optimizer=optimizer,
        train=(one, one),
        validation=(one, one),
        steps=steps,
    )


class _Augmented:
    """A data set whose examples are drawn when they are looked at."""

    def __len__(self) -> int:
        return 6

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        return torch.randn(3, dtype=DOUBLE), torch.ones(1, dtype=DOUBLE)


def drawn() -> Supervised:
    """Dropout, an init under the seed, and data that are drawn anew at each step."""
    held_out = torch.linspace(-1, 1, 9, dtype=DOUBLE).view(3, 3), torch.ones(3, 1, dtype=DOUBLE)
    return Supervised(
        model=lambda hp: nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.4), nn.Linear(4, 1)).double(),
        loss=mse_loss,
        optimizer=SGD(lr="lr"),
        train=_Augmented(),
        validation=held_out,
        batch_size=3,
        steps=5,
    )


def close(found: Tensor, expected: Tensor | float) -> None:
    expected = torch.as_tensor(expected, dtype=DOUBLE)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


class EstimatorManners:
    """What holds for every estimator, of however uncertain a derivative."""

    @pytest.fixture
    def estimator(self) -> Estimator:
        raise NotImplementedError("A contract test defines the fixture `estimator`.")

    def test_it_is_an_estimator(self, estimator: Estimator) -> None:
        assert isinstance(estimator, Estimator)

    @pytest.mark.parametrize("dtype", [torch.float32, DOUBLE], ids=str)
    def test_a_derivative_is_float64_in_the_shape_of_its_hyperparameter(
        self, estimator: Estimator, dtype: torch.dtype
    ) -> None:
        schedule = Schedule("lr", lambda t, hp: hp["knots"][0, t])
        hparams = {
            "lr": torch.tensor(0.2, dtype=dtype),
            "knots": torch.ones(1, 5, dtype=dtype),
        }
        training = line(SGD(lr=schedule), dtype=dtype)
        value, gradient = hypergradient(training, hparams, estimator=estimator)
        assert (value.shape, value.dtype) == ((), dtype)
        assert {name: (v.shape, v.dtype) for name, v in gradient.items()} == {
            "lr": ((), DOUBLE),
            "knots": ((1, 5), DOUBLE),
        }

    def test_neither_the_value_nor_the_derivative_has_a_graph(self, estimator: Estimator) -> None:
        value, gradient = hypergradient(Spiral(), SPIRAL_AT, estimator=estimator)
        assert not any(tensor.requires_grad for tensor in (value, *gradient.values()))

    def test_the_observer_sees_the_state_of_the_outer_loss_once_and_without_a_graph(
        self, estimator: Any
    ) -> None:
        seen: list[State] = []
        value, _ = estimator(Spiral(), SPIRAL_AT, seed=0, device="cpu", observe=seen.append)
        (state,) = seen
        assert not state["z"].requires_grad
        close(Spiral().loss(state, SPIRAL_AT), value)

    def test_hyperparameters_are_not_written_to(self, estimator: Estimator) -> None:
        start = torch.tensor([1.2, -0.7], dtype=DOUBLE, requires_grad=True)
        hparams = {**SPIRAL_AT, "start": start}
        before, version = dict(hparams), start._version
        hypergradient(Spiral(), hparams, estimator=estimator)
        assert hparams.keys() == before.keys()
        assert all(hparams[name] is value for name, value in before.items())
        assert start.grad is None
        assert start._version == version

    def test_global_randomness_is_neither_read_nor_moved(self, estimator: Estimator) -> None:
        answers = []
        with torch.random.fork_rng(devices=[]):
            for seed in (1, 2):
                torch.manual_seed(seed)
                before = torch.get_rng_state()
                answers.append(hypergradient(drawn(), {"lr": 0.1}, estimator=estimator))
                assert torch.equal(torch.get_rng_state(), before)
        assert_same_answer(*answers)

    def test_it_works_where_gradients_are_switched_off(self, estimator: Estimator) -> None:
        with torch.no_grad():
            inside = hypergradient(drawn(), {"lr": 0.1}, estimator=estimator)
            assert not torch.is_grad_enabled()
        assert_same_answer(inside, hypergradient(drawn(), {"lr": 0.1}, estimator=estimator))

    @pytest.mark.parametrize("name", ["noise", "dropout"])
    def test_the_same_seed_gives_the_same_bits(self, estimator: Estimator, name: str) -> None:
        training: Training = NOISY if name == "noise" else drawn()
        first, second = (
            hypergradient(training, {"lr": 0.1}, estimator=estimator, seed=5) for _ in range(2)
        )
        assert_same_answer(first, second)

    def test_no_floating_hyperparameter_is_an_error(self, estimator: Estimator) -> None:
        with pytest.raises(TrainingError, match=r"float or a floating tensor, got \{'lr': 'int'\}"):
            hypergradient(NOISY, {"lr": 1}, estimator=estimator)

    def test_what_is_no_training_is_an_error(self, estimator: Estimator) -> None:
        with pytest.raises(TrainingError, match=r"needs a Training, got a list, .* steps, init"):
            hypergradient([], {"lr": 0.1}, estimator=estimator)  # type: ignore[arg-type]


class EstimatorContract(EstimatorManners):
    """What an exact one does on top of that."""

    # ----------------------------------------------------------------------------- the closed forms

    @pytest.mark.parametrize("steps", [1, 2, 7, 30])
    @pytest.mark.parametrize("noise", [0.0, 0.3])
    def test_gradient_descent_has_its_closed_form(
        self, estimator: Estimator, steps: int, noise: float
    ) -> None:
        problem = Quadratic(steps=steps, noise=noise)
        value, gradient = hypergradient(problem, {"lr": 0.1}, estimator=estimator, seed=3)
        assert gradient.keys() == {"lr"}
        close(value, problem.exact_loss(0.1, seed=3))
        close(gradient["lr"], problem.exact_gradient(0.1, seed=3))

    @pytest.mark.parametrize("steps", [1, 2, 12])
    def test_a_spiral_has_its_closed_form_in_its_start_too(
        self, estimator: Estimator, steps: int
    ) -> None:
        self._check_spiral(Spiral(steps=steps), Spiral(steps=steps), estimator)

    def test_a_complex_state_has_the_derivative_of_its_two_parts(
        self, estimator: Estimator
    ) -> None:
        self._check_spiral(ComplexSpiral(Spiral()), Spiral(), estimator)

    def test_a_schedule_of_two_arguments_is_differentiated_in_what_it_reads(
        self, estimator: Estimator
    ) -> None:
        schedule = Schedule("lr", lambda t, hp: hp["decay"] ** t)
        hparams = {"lr": 0.2, "decay": 0.7}
        value, gradient = hypergradient(line(SGD(lr=schedule)), hparams, estimator=estimator)
        lr, decay = (torch.tensor(v, dtype=DOUBLE, requires_grad=True) for v in (0.2, 0.7))
        expected = 4 * torch.stack([(1 - 2 * lr * decay**t) ** 2 for t in range(5)]).prod()
        of_lr, of_decay = torch.autograd.grad(expected, (lr, decay))
        close(value, expected.detach())
        close(gradient["lr"], of_lr)
        close(gradient["decay"], of_decay)

    def test_knots_in_an_array_are_differentiated_entry_by_entry(
        self, estimator: Estimator
    ) -> None:
        schedule = Schedule(1.0, lambda t, hp: hp["knots"][t])
        at = torch.tensor([0.1, 0.3, 0.2, 0.05, 0.15], dtype=DOUBLE)
        _, gradient = hypergradient(line(SGD(lr=schedule)), {"knots": at}, estimator=estimator)
        factors = 1 - 2 * at
        close(gradient["knots"], -16 * factors.prod() ** 2 / factors)

    # ----------------------------------------------------------------------- what is differentiated

    def test_integers_flags_and_names_are_not_differentiated(self, estimator: Estimator) -> None:
        others = {"width": 3, "flag": True, "name": "relu", "count": torch.tensor(2), "no": None}
        value, gradient = hypergradient(NOISY, {"lr": 0.1, **others}, estimator=estimator)
        assert gradient.keys() == {"lr"}
        close(value, NOISY.exact_loss(0.1))
        close(gradient["lr"], NOISY.exact_gradient(0.1))

    @pytest.mark.parametrize(
        "lr",
        [0.1, torch.tensor(0.1, dtype=DOUBLE), torch.tensor(0.1, dtype=DOUBLE, requires_grad=True)],
        ids=["float", "tensor", "leaf"],
    )
    def test_a_hyperparameter_need_not_be_a_tensor(self, estimator: Estimator, lr: Any) -> None:
        _, gradient = hypergradient(NOISY, {"lr": lr}, estimator=estimator)
        close(gradient["lr"], NOISY.exact_gradient(0.1))

    def test_a_hyperparameter_that_is_known_but_does_not_matter_has_the_derivative_0(
        self, estimator: Estimator
    ) -> None:
        training = line(SGD(lr="lr", momentum=0.9, dampening="dampening"), steps=1)
        hparams = {"lr": 0.2, "dampening": 0.3}  # the first step is never dampened
        _, gradient = hypergradient(training, hparams, estimator=estimator)
        close(gradient["dampening"], 0.0)
        close(gradient["lr"], -16 * (1 - 0.4))

    # ---------------------------------------------------------------------------------------- seeds

    def test_another_seed_is_another_run(self, estimator: Estimator) -> None:
        for seed in (5, 6):
            _, gradient = hypergradient(NOISY, {"lr": 0.1}, estimator=estimator, seed=seed)
            close(gradient["lr"], NOISY.exact_gradient(0.1, seed=seed))
        assert not torch.isclose(
            NOISY.exact_gradient(0.1, seed=5), NOISY.exact_gradient(0.1, seed=6)
        )

    # --------------------------------------------------------------------------------------- errors

    def test_a_hyperparameter_that_nothing_uses_is_an_error(self, estimator: Estimator) -> None:
        with pytest.raises(TrainingError, match=r"No derivative reaches .* \['decay', 'typo'\]"):
            hypergradient(NOISY, {"typo": 0.1, "lr": 0.1, "decay": 0.2}, estimator=estimator)

    def test_an_outer_loss_without_a_graph_is_an_error(self, estimator: Estimator) -> None:
        with pytest.raises(TrainingError, match=r"outer loss must depend on the state"):
            hypergradient(_Detached(), {"lr": 0.1}, estimator=estimator)

    def test_an_inner_loss_without_a_graph_is_an_error(self, estimator: Estimator) -> None:
        training = line(SGD(lr="lr"), loss=lambda output, target: output.detach().mean())
        with pytest.raises(TrainingError, match=r"training loss must depend on the model's param"):
            hypergradient(training, {"lr": 0.1}, estimator=estimator)

    def _check_spiral(self, training: Training, spiral: Spiral, estimator: Estimator) -> None:
        value, gradient = hypergradient(training, SPIRAL_AT, estimator=estimator)
        point = (SPIRAL_AT["decay"], SPIRAL_AT["frequency"], SPIRAL_AT["start"])
        z = complex(*spiral.exact_state(*point).tolist())
        expected = spiral.exact_gradient(*point)
        assert gradient.keys() == expected.keys()
        close(value, abs(z - spiral.target) ** 2)
        for name in expected:
            close(gradient[name], expected[name])


def assert_same_answer(
    a: tuple[Tensor, Mapping[str, Tensor]], b: tuple[Tensor, Mapping[str, Tensor]]
) -> None:
    """Compare values and derivatives without any tolerance."""
    assert a[1].keys() == b[1].keys()
    assert torch.equal(a[0], b[0])
    for name in a[1]:
        torch.testing.assert_close(a[1][name], b[1][name], rtol=0, atol=0)


@dataclass(frozen=True)
class _Detached(Quadratic):
    """Its outer loss has no graph."""

    def loss(self, state: State, hparams: HParams) -> Tensor:
        return super().loss(state, hparams).detach()


def _scalar(value: Any) -> Tensor:
    return torch.as_tensor(value, dtype=DOUBLE)

"""The contract of a Training on every implementation, and rollouts against closed forms."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from hyperopt_dl.optimizers import SGD, Adam, Schedule
from hyperopt_dl.supervised import Supervised
from hyperopt_dl.training import Training, rollout
from tests.contracts.training import Case, TrainingContract
from tests.problems import Quadratic, Spiral

DOUBLE = torch.double


def number(value: float) -> torch.Tensor:
    return torch.tensor(value, dtype=DOUBLE)


def supervised_mlp() -> Case:
    """Dropout, data weights, a loss with a coefficient, weight decay by group and a schedule."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(10, 4, generator=generator, dtype=DOUBLE)
    y = torch.randint(0, 3, (10,), generator=generator)
    training = Supervised(
        model=lambda hp: nn.Sequential(
            nn.Linear(4, int(hp["hidden"])), nn.Tanh(), nn.Dropout(0.3), nn.Linear(5, 3)
        ).double(),
        loss=lambda output, target, hp: (
            nn.functional.cross_entropy(output, target, reduction="none")
            + hp["penalty"] * output.square().mean(1)
        ),
        validation_loss=nn.functional.cross_entropy,
        optimizer=SGD(
            lr=Schedule("lr", lambda t, hp: hp["decay"] ** t),
            momentum="momentum",
            weight_decay="weight_decay",
            groups={"*.bias": {"weight_decay": 0.0}},
        ),
        train=(x, y),
        validation=(x.flip(1), y),
        weights="w",
        batch_size=4,
        steps=5,
    )
    smooth = {
        "lr": number(0.4),
        "momentum": number(0.7),
        "weight_decay": number(0.05),
        "decay": number(0.9),
        "penalty": number(0.2),
        "w": torch.linspace(0.5, 1.5, 10, dtype=DOUBLE),
    }
    return Case(training, smooth, {"hidden": 5})


class Fading(nn.Module):
    """Fade with the number of training steps, which is a buffer."""

    steps: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.steps += 1
        return x / (1 + 0.1 * self.steps)


def supervised_cnn() -> Case:
    """BatchNorm, a buffer, channel dropout, an in-place first layer, Adam, the whole set a step.

    The statistics are those of the batch: running ones are constants to a derivative.
    """
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(6, 1, 5, 5, generator=generator, dtype=DOUBLE)
    y = torch.randn(6, 2, generator=generator, dtype=DOUBLE)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.ELU(inplace=True),
            nn.Conv2d(1, 2, 3),
            nn.BatchNorm2d(2, track_running_stats=False),
            Fading(),
            nn.Softplus(),
            nn.Dropout2d(0.2),
            nn.Flatten(),
            nn.Linear(18, 2),
        ).double()
    training = Supervised(
        model=model,
        loss=nn.MSELoss(),
        optimizer=Adam(lr="lr", betas=("beta1", 0.99), eps=1e-3),
        train=(x, y),
        validation=(x.flip(2), y),
        steps=4,
    )
    return Case(training, {"lr": number(0.05), "beta1": number(0.8)}, {})


CASES = {
    "quadratic": lambda: Case(Quadratic(), {"lr": number(0.3)}, {}),
    "noisy quadratic": lambda: Case(Quadratic(noise=0.5), {"lr": number(0.3)}, {}),
    "spiral": lambda: Case(
        Spiral(),
        {
            "decay": number(0.7),
            "frequency": number(2.0),
            "start": torch.tensor([1.5, -0.4], dtype=DOUBLE),
        },
        {},
    ),
    "supervised mlp": supervised_mlp,
    "supervised cnn": supervised_cnn,
}


class TestTraining(TrainingContract):
    @pytest.fixture(params=CASES, ids=lambda name: name.replace(" ", "_"))
    def case(self, request: pytest.FixtureRequest) -> Case:
        return CASES[request.param]()


STEPS = [1, 2, 7, 40]
NOISE = [0.0, 0.5]


@pytest.mark.parametrize("noise", NOISE)
@pytest.mark.parametrize("T", STEPS)
def test_gradient_descent_on_a_quadratic_reaches_the_state_of_the_closed_form(
    T: int, noise: float
) -> None:
    problem = Quadratic(steps=T, noise=noise)
    state = rollout(problem, {"lr": 0.3}, seed=5)
    torch.testing.assert_close(state["x"], problem.exact_state(0.3, seed=5), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("noise", NOISE)
@pytest.mark.parametrize("T", STEPS)
def test_a_full_unroll_gives_the_derivative_of_the_closed_form(T: int, noise: float) -> None:
    problem = Quadratic(steps=T, noise=noise)
    lr = number(0.3).requires_grad_()
    loss = problem.loss(rollout(problem, {"lr": lr}, seed=5), {"lr": lr})
    (gradient,) = torch.autograd.grad(loss, lr)
    assert float(loss.detach()) == pytest.approx(problem.exact_loss(0.3, seed=5), rel=1e-12)
    torch.testing.assert_close(gradient, problem.exact_gradient(0.3, seed=5), rtol=1e-11, atol=0)


def test_the_noise_of_the_quadratic_depends_on_the_seed() -> None:
    problem = Quadratic(noise=0.5)
    a, b = (rollout(problem, {"lr": 0.3}, seed=seed)["x"] for seed in (0, 1))
    assert not torch.allclose(a, b)


@pytest.mark.parametrize("T", STEPS)
def test_a_full_unroll_of_the_spiral_gives_the_derivatives_of_the_closed_form(T: int) -> None:
    problem = Spiral(steps=T)
    start = torch.tensor([1.5, -0.4], dtype=DOUBLE)
    hparams = {"decay": number(0.7), "frequency": number(2.0), "start": start}
    leaves = {name: value.requires_grad_() for name, value in hparams.items()}
    state = rollout(problem, leaves)
    found = torch.autograd.grad(problem.loss(state, leaves), list(leaves.values()))
    exact = problem.exact_gradient(0.7, 2.0, start.detach())
    torch.testing.assert_close(state["z"].detach(), problem.exact_state(0.7, 2.0, start.detach()))
    torch.testing.assert_close(dict(zip(leaves, found, strict=True)), exact, rtol=1e-11, atol=1e-12)


def test_the_spiral_approaches_the_solution_of_its_differential_equation() -> None:
    problem = replace(Spiral(), steps=100_000, h=1e-5)
    z = problem.exact_state(0.7, 2.0, torch.tensor([1.5, -0.4], dtype=DOUBLE))
    solution = torch.exp(torch.tensor(complex(-0.7, 2.0), dtype=torch.cdouble)) * (1.5 - 0.4j)
    torch.testing.assert_close(torch.view_as_real(solution), z, rtol=1e-4, atol=1e-4)


class Counting:
    """Counts the calls to ``init`` and notes the steps that it is asked for."""

    steps = 5

    def __init__(self) -> None:
        self.inits: list[tuple[int, str]] = []
        self.asked: list[int] = []

    def init(
        self, hparams: object, *, seed: int, device: torch.device | str
    ) -> dict[str, torch.Tensor]:
        self.inits.append((seed, str(device)))
        return {"x": torch.zeros(())}

    def step(
        self, state: dict[str, torch.Tensor], hparams: object, t: int
    ) -> dict[str, torch.Tensor]:
        self.asked.append(t)
        return {"x": state["x"] + 1}

    def loss(self, state: dict[str, torch.Tensor], hparams: object) -> torch.Tensor:
        return state["x"]


@pytest.mark.parametrize(
    ("start", "stop", "asked"),
    [(0, None, [0, 1, 2, 3, 4]), (2, None, [2, 3, 4]), (1, 3, [1, 2]), (3, 3, []), (0, 0, [])],
)
def test_a_rollout_runs_from_start_to_before_stop(
    start: int, stop: int | None, asked: list[int]
) -> None:
    training = Counting()
    rollout(training, {}, start=start, stop=stop)
    assert training.asked == asked


def test_a_rollout_hands_seed_and_device_to_init() -> None:
    training = Counting()
    rollout(training, {}, seed=11, device="cpu")
    assert training.inits == [(11, "cpu")]


def test_a_rollout_from_a_state_does_not_call_init() -> None:
    training = Counting()
    assert float(rollout(training, {}, state={"x": torch.tensor(2.0)}, start=3)["x"]) == 4.0
    assert training.inits == []


def test_what_lacks_a_loss_is_no_training() -> None:
    class Half:
        steps = 1
        init = Counting.init
        step = Counting.step

    assert not isinstance(Half(), Training)

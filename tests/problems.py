"""Training runs with known answers: states, losses and derivatives in closed form, float64."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from hyperopt_dl.seeds import derive
from hyperopt_dl.training import HParams, State


def _vector(*entries: float) -> Tensor:
    return torch.tensor(entries, dtype=torch.double)


@dataclass(frozen=True)
class Quadratic:
    """Gradient descent on ``1/2 * sum_i curvature[i] * (x[i] - centre[i])**2``, with noise.

    ``x[t + 1] = x[t] - lr * (curvature * (x[t] - centre) + noise * n[t])``, where n[t] is standard
    normal and comes from the seed and t. The outer loss is half the squared distance to a target
    that is not the centre. The only hyperparameter is ``lr``.
    """

    curvature: Tensor = field(default_factory=lambda: _vector(0.5, 2.0, 3.0))
    steps: int = 10
    noise: float = 0.0

    @property
    def start(self) -> Tensor:
        """x[0], a vector as long as ``curvature``."""
        return self._between(4.0, -1.5)

    @property
    def centre(self) -> Tensor:
        """Where the descent would end."""
        return self._between(1.0, -2.0)

    @property
    def target(self) -> Tensor:
        """Where the outer loss is 0."""
        return self._between(0.5, 2.0)

    def init(self, hparams: HParams, *, seed: int, device: torch.device | str) -> State:
        return {"x": self.start.to(device), "seed": torch.tensor(seed)}

    def step(self, state: State, hparams: HParams, t: int) -> State:
        x = state["x"]
        gradient = self.curvature.to(x) * (x - self.centre.to(x))
        noise = self.noise * self._noise(int(state["seed"]), t).to(x)
        return {"x": x - hparams["lr"] * (gradient + noise), "seed": state["seed"]}

    def loss(self, state: State, hparams: HParams) -> Tensor:
        return (state["x"] - self.target.to(state["x"])).square().sum() / 2

    def exact_state(self, lr: float, *, seed: int = 0, t: int | None = None) -> Tensor:
        """x[t], the last one by default: a sum over the steps, not a recursion."""
        t = self.steps if t is None else t
        rate = 1 - lr * self.curvature
        x = self.centre + rate**t * (self.start - self.centre)
        for s in range(t):
            x = x - lr * self.noise * rate ** (t - 1 - s) * self._noise(seed, s)
        return x

    def exact_loss(self, lr: float, *, seed: int = 0) -> float:
        """The outer loss after the last step."""
        return float((self.exact_state(lr, seed=seed) - self.target).square().sum()) / 2

    def exact_gradient(self, lr: float, *, seed: int = 0) -> Tensor:
        """d loss / d lr after the last step, 0-dim."""
        rate, T = 1 - lr * self.curvature, self.steps
        tangent = -T * self.curvature * rate ** (T - 1) * (self.start - self.centre)
        for s in range(T):
            k = T - 1 - s
            of_rate = -lr * k * self.curvature * rate ** (k - 1) if k else 0 * rate
            tangent = tangent - self.noise * (rate**k + of_rate) * self._noise(seed, s)
        return ((self.exact_state(lr, seed=seed) - self.target) * tangent).sum()

    def _between(self, first: float, last: float) -> Tensor:
        return torch.linspace(first, last, len(self.curvature), dtype=torch.double)

    def _noise(self, seed: int, t: int) -> Tensor:
        generator = torch.Generator().manual_seed(derive(seed, "noise", t))
        return torch.randn(len(self.curvature), generator=generator, dtype=torch.double)


@dataclass(frozen=True)
class Spiral:
    """Euler steps of the linear ODE ``z' = (-decay + i * frequency) * z`` in the complex plane.

    No optimizer, no seed, and a start that is a hyperparameter itself: ``start`` is an Array of
    shape ``[2]``, ``decay`` and ``frequency`` are scalars. With ``m = 1 + h * (-decay + i *
    frequency)`` the state is ``z[T] = m**T * start``; the outer loss is ``|z[T] - target|**2``.
    """

    steps: int = 12
    h: float = 0.1
    target: complex = 0.6 - 0.3j

    def init(self, hparams: HParams, *, seed: int, device: torch.device | str) -> State:
        start = torch.as_tensor(hparams["start"], dtype=torch.double, device=device)
        return {"z": start.clone()}

    def step(self, state: State, hparams: HParams, t: int) -> State:
        x, y = state["z"]
        a, w = hparams["decay"], hparams["frequency"]
        return {"z": torch.stack([x + self.h * (-a * x - w * y), y + self.h * (w * x - a * y)])}

    def loss(self, state: State, hparams: HParams) -> Tensor:
        x, y = state["z"]
        loss: Tensor = (x - self.target.real).square() + (y - self.target.imag).square()
        return loss

    def exact_state(self, decay: float, frequency: float, start: Tensor) -> Tensor:
        """z[T] as its real and imaginary part, shape ``[2]``."""
        z = self._power(decay, frequency, self.steps) * complex(*start.tolist())
        return _vector(z.real, z.imag)

    def exact_gradient(self, decay: float, frequency: float, start: Tensor) -> dict[str, Tensor]:
        """d loss / d each hyperparameter after the last step."""
        T, z0 = self.steps, complex(*start.tolist())
        mT = self._power(decay, frequency, T)
        error = (mT * z0 - self.target).conjugate()
        of_m = T * self._power(decay, frequency, T - 1) * z0
        return {
            "decay": torch.tensor(2 * (error * of_m * -self.h).real, dtype=torch.double),
            "frequency": torch.tensor(2 * (error * of_m * 1j * self.h).real, dtype=torch.double),
            "start": _vector(2 * (error * mT).real, 2 * (error * mT * 1j).real),
        }

    def _power(self, decay: float, frequency: float, exponent: int) -> complex:
        return complex((1 + self.h * complex(-decay, frequency)) ** exponent)

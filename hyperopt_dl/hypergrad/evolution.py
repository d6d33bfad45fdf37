"""Hypergradients without derivatives: evolution strategies on whole runs.

Letters: λ the hyperparameters; T the steps; E the outer loss; σ the size of a perturbation; a run
is cut into windows k = 1, ..., K, which end at t[k]. A pair i of runs is perturbed by ``σ ε[i, k]``
and ``-σ ε[i, k]`` in window k, ε standard normal; ``ξ[i, k] = ε[i, 1] + ... + ε[i, k]`` is what has
perturbed it so far, and ``p[k] = E(s[t[k]]) - E(s[t[k - 1]])`` what window k adds to the loss. Then

    ĝ = 1/(2 σ N) Σ_i Σ_k ξ[i, k] (p⁺[i, k] - p⁻[i, k])

estimates the derivative of the loss at the end, smoothed over the perturbations, without a bias
(Vicol, Metz, Sohl-Dickstein 2021, section 4). One window is one perturbation for a whole run:
ES-Single (Vicol 2023).
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hyperopt_dl.errors import TrainingError
from hyperopt_dl.hypergrad.estimator import Note, Observer
from hyperopt_dl.hypergrad.steps.leaves import Gathered
from hyperopt_dl.seeds import derive
from hyperopt_dl.training import State, Training, rollout


@dataclass(frozen=True)
class PES:
    """An estimate by persistent evolution strategies, for what has no derivative.

    Neither the steps nor the outer loss need a derivative: the loss may be an error rate. In a
    chaotic run, whose derivative grows beyond all bounds, that of the loss smoothed over ``sigma``
    does not. Each window has a perturbation of its own, and what the loss gains in a window is
    laid to all perturbations up to it, and to none behind it. Perturbed runs share the run's seed.

    An estimate takes ``2 pairs + 1`` runs forward; the last of them, without a perturbation, gives
    the value. It scatters the less, the more pairs there are and the fewer the hyperparameters. The
    bias against the derivative itself falls with ``sigma**2``. A run that is not finite makes the
    estimate so.

    Args:
        truncation: The steps of a window, at whose end the loss is taken.
        pairs: Pairs of runs with opposite perturbations.
        sigma: The standard deviation of a perturbation. Under ``Hypergradient`` in units of the
            cube, a part of each dimension's range (on a log scale of its decades), converted at the
            trial's point; in ``hypergradient`` in the unit of each hyperparameter.

    Raises:
        TrainingError: A setting that is not positive.

    Example:
        >>> import hyperopt_dl as hd
        >>> tuner = hd.Hypergradient(estimator=hd.hypergrad.PES(truncation=50, pairs=8))
    """

    truncation: int = 10
    pairs: int = 4
    sigma: float = 0.01

    def __post_init__(self) -> None:
        _check(self, pairs=self.pairs, sigma=self.sigma, truncation=self.truncation)

    def __call__(
        self,
        training: Training,
        hparams: Mapping[str, Any],
        *,
        seed: int,
        device: torch.device | str,
        observe: Observer | None = None,
        note: Callable[[Note], None] | None = None,
        scale: Mapping[str, float] | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the outer loss and an estimate of its derivative, as ``Estimator`` says."""
        particles = _Particles(training, hparams, seed, torch.device(device), self.sigma, scale)
        gradient = particles.gradient(self.pairs, self.truncation)
        return particles.value(observe, note), gradient


@dataclass(frozen=True)
class ESSingle:
    """An estimate by evolution strategies with one perturbation for a whole run (ES-Single).

    As ``PES`` with one window: the loss is taken at the end alone, and how far the estimate
    scatters does not depend on a truncation.

    Args:
        pairs: Pairs of runs with opposite perturbations.
        sigma: The standard deviation of a perturbation, in the units of ``PES``.

    Raises:
        TrainingError: A setting that is not positive.

    Example:
        >>> import hyperopt_dl as hd
        >>> tuner = hd.Hypergradient(estimator=hd.hypergrad.ESSingle(pairs=8, sigma=0.02))
    """

    pairs: int = 4
    sigma: float = 0.01

    def __post_init__(self) -> None:
        _check(self, pairs=self.pairs, sigma=self.sigma)

    def __call__(
        self,
        training: Training,
        hparams: Mapping[str, Any],
        *,
        seed: int,
        device: torch.device | str,
        observe: Observer | None = None,
        note: Callable[[Note], None] | None = None,
        scale: Mapping[str, float] | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the outer loss and an estimate of its derivative, as ``Estimator`` says."""
        particles = _Particles(training, hparams, seed, torch.device(device), self.sigma, scale)
        gradient = particles.gradient(self.pairs, training.steps)
        return particles.value(observe, note), gradient


def perturbations(shapes: Mapping[str, torch.Size], seed: int, pair: int) -> Iterator[Any]:
    """Yield ε of one window after the other: standard normal float64 tensors by name."""
    generator = torch.Generator().manual_seed(derive(seed, "perturbation", pair))
    while True:
        yield {
            name: torch.randn(shape, generator=generator, dtype=torch.double)
            for name, shape in shapes.items()
        }


class _Particles:
    """The perturbed runs of one estimate."""

    def __init__(
        self,
        training: Training,
        hparams: Mapping[str, Any],
        seed: int,
        device: torch.device,
        sigma: float,
        scale: Mapping[str, float] | None,
    ) -> None:
        self._training, self._seed, self._device = training, seed, device
        gathered = Gathered(hparams, device)
        self._leaves = {name: leaf.detach() for name, leaf in gathered.leaves.items()}
        self._hparams = {**gathered.hparams, **self._leaves}
        self._sigma = {name: sigma * (scale or {}).get(name, 1.0) for name in self._leaves}
        self._runs = 0

    def gradient(self, pairs: int, window: int) -> dict[str, Tensor]:
        """Return ĝ by name, float64."""
        total = {n: torch.zeros_like(leaf, dtype=torch.double) for n, leaf in self._leaves.items()}
        for pair in range(pairs):
            for name, term in self._pair(pair, window).items():
                total[name] += term.to(total[name].device) / (2 * self._sigma[name] * pairs)
        return total

    def value(self, observe: Observer | None, note: Callable[[Note], None] | None) -> Tensor:
        """Return the loss of the run without a perturbation."""
        with torch.no_grad():
            state = rollout(self._training, self._hparams, seed=self._seed, device=self._device)
            value = self._training.loss(state, self._hparams)
        if observe is not None:
            observe(state)
        if note is not None:
            note({"exact": True, "steps": (self._runs + 1) * self._training.steps})
        return value

    def _pair(self, pair: int, window: int) -> dict[str, Tensor]:
        """Return ``Σ_k ξ[k] (p⁺[k] - p⁻[k])`` of one pair."""
        shapes = {name: leaf.shape for name, leaf in self._leaves.items()}
        drawn = perturbations(shapes, self._seed, pair)
        states: dict[float, State | None] = {1.0: None, -1.0: None}
        before = 0.0
        xi = {name: torch.zeros(shape, dtype=torch.double) for name, shape in shapes.items()}
        total = dict(xi)
        for start in range(0, self._training.steps, window):
            epsilon = next(drawn)
            stop = min(start + window, self._training.steps)
            losses = {}
            for sign in states:
                states[sign], losses[sign] = self._run(states[sign], epsilon, sign, start, stop)
            gap = losses[1.0] - losses[-1.0]
            for name, step in epsilon.items():
                xi[name] = xi[name] + step
                total[name] = total[name] + xi[name] * (gap - before)
            before = gap
        self._runs += len(states)
        return total

    def _run(
        self, state: State | None, epsilon: Mapping[str, Tensor], sign: float, start: int, stop: int
    ) -> tuple[State, float]:
        """Return the state after a window of one run, and the loss there."""
        moved = {
            name: leaf + sign * self._sigma[name] * epsilon[name].to(leaf)
            for name, leaf in self._leaves.items()
        }
        hparams = {**self._hparams, **moved}
        with torch.no_grad():
            state = rollout(
                self._training,
                hparams,
                seed=self._seed,
                device=self._device,
                state=state,
                start=start,
                stop=stop,
            )
            return state, float(self._training.loss(state, hparams))


def _check(estimator: PES | ESSingle, *, sigma: float, **counts: int) -> None:
    name = type(estimator).__name__
    if not 0 < sigma < float("inf"):
        raise TrainingError(f"{name} needs a finite sigma > 0, got {sigma!r}.")
    for what, count in counts.items():
        if type(count) is not int or count < 1:
            raise TrainingError(f"{name} needs {what} >= 1, a whole number, got {count!r}.")

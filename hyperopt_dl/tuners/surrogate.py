"""The models of a study's losses, constraints and failures, fitted as its trials end.

Structures are learned by chains that go on from where they were, so a fit depends on the fits
before it. To keep it a function of the finished trials alone, the chains move only when the number
of losses reaches one of ``checkpoints``, and then see the losses that were known first; between two
checkpoints hyperparameters are fitted to all losses from where the last checkpoint left them. A
study that is opened again goes through its checkpoints once more, and arrives at the same model.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from hyperopt_dl.gp.acquisition import Limit
from hyperopt_dl.gp.chains import Fitted, fit, kernel_of, refit
from hyperopt_dl.gp.derivative_choice import choose
from hyperopt_dl.gp.derivative_noise import informed
from hyperopt_dl.gp.posterior import Posterior, condition
from hyperopt_dl.gp.warp import Warp, compressing, plain
from hyperopt_dl.seeds import derive
from hyperopt_dl.tuners.cube import Cube
from hyperopt_dl.tuners.observations import Observations

Structure: TypeAlias = Literal["learned", "full", "additive"] | Sequence[Sequence[str]]
"""What the model's groups are: learned, none, every dimension alone, or known, by name."""
FIRST = 8
"""The losses at the first checkpoint; from fewer no structure is learned."""
ROUNDS = 20
"""Rounds of moves of each chain at a checkpoint."""
DERIVATIVES = 400
"""The most derivatives that a posterior knows."""
_KEPT = 256  # checkpoints in memory


@dataclass(frozen=True)
class Surrogate:
    """What the models believe after the observations that they were fitted to."""

    fitted: Fitted
    warp: Warp
    chains: tuple[Posterior, ...]
    """Of the objective, one for each chain."""
    limits: tuple[Limit, ...]
    """Of the constraints in the order of their names, and of failure where a trial has failed."""
    derivative_noise: tuple[float, ...] = ()
    """By chain, the relative noise of the derivatives that the posteriors know; () if they know
    none."""

    @property
    def derivatives(self) -> int:
        """How many derivatives the posteriors of the objective know."""
        known = self.chains[0].derivatives
        return 0 if known is None else len(known)


@dataclass(frozen=True)
class _Data:
    """Losses on the device of the models, and what else a fit of them needs to know."""

    x: Tensor
    losses: Tensor
    categorical: Tensor
    structure: Literal["learned", "full", "additive"] | Sequence[Sequence[int]]
    chains: int

    def first(self, n: int) -> "_Data":
        return _Data(self.x[:n], self.losses[:n], self.categorical, self.structure, self.chains)

    @property
    def digest(self) -> bytes:
        """What tells these data apart from all others."""
        told = hashlib.blake2b(repr((self.categorical.tolist(), self.structure)).encode())
        told.update(self.x.cpu().numpy().tobytes() + self.losses.cpu().numpy().tobytes())
        return told.digest()

    def fit(self, warp: Warp, state: Fitted | None) -> Fitted:
        few = self.structure == "learned" and len(self.losses) < FIRST
        return fit(
            self.x,
            warp(self.losses),
            self.categorical,
            structure="additive" if few else self.structure,
            chains=self.chains,
            state=state,
            seed=derive(0, "structure", len(self.losses)),
            rounds=ROUNDS,
        )


@dataclass(frozen=True)
class _Checkpoint:
    fitted: Fitted
    compressed: bool


class Fitter:
    """Fits surrogates. What it remembers saves time and changes nothing.

    Args:
        structure: What to learn or to assume.
        chains: How many chains learn.
        device: Where the models are computed.
        use_gradients: Whether the posteriors of the objective know derivatives, where there are
            some. Structure and hyperparameters come from the losses in any case.
    """

    def __init__(
        self,
        structure: Structure,
        chains: int,
        device: torch.device,
        use_gradients: bool = False,
    ) -> None:
        self._structure = structure
        self._chains = chains
        self._device = device
        self._use_gradients = use_gradients
        self._checkpoints: dict[bytes, _Checkpoint] = {}
        self._last: tuple[bytes, Fitted, Warp] | None = None
        self._informed: tuple[bytes, Surrogate] | None = None

    def __call__(self, observations: Observations, cube: Cube) -> Surrogate:
        """Return the surrogate given at least one loss.

        Costs a fit of up to about 40 gradients of the likelihood for each chain, and at a
        checkpoint the moves of the chains. With the losses of the last call it costs nothing but
        the models of constraints and failures, where there are any.
        """
        data = _Data(
            observations.x.to(self._device),
            observations.losses.to(self._device),
            cube.categorical.to(self._device),
            self._groups(cube),
            self._chains,
        )
        digest = data.digest
        if self._last is None or self._last[0] != digest:
            self._last = digest, *self._fit(data)
        _, fitted, warp = self._last
        values = warp(data.losses).unsqueeze(-1)
        kernels = [kernel_of(chain, data.categorical) for chain in fitted.chains]
        chains = tuple(condition(kernel, data.x, values) for kernel in kernels)
        surrogate = Surrogate(fitted, warp, chains, _limits(observations, data))
        if not self._use_gradients:
            return surrogate
        told = digest + observations.gradients.numpy().tobytes()
        if self._informed is None or self._informed[0] != told:
            self._informed = told, _informed(surrogate, observations, data)
        return replace(self._informed[1], limits=surrogate.limits)

    def _groups(
        self, cube: Cube
    ) -> Literal["learned", "full", "additive"] | Sequence[Sequence[int]]:
        """Return the structure by index; names that the cube does not have are left out."""
        if self._structure in ("learned", "full", "additive"):
            return self._structure
        groups = [[n for n in group if n in cube.names] for group in self._structure]
        return [[cube.names.index(name) for name in group] for group in groups if group]

    def _fit(self, data: _Data) -> tuple[Fitted, Warp]:
        sizes = checkpoints(len(data.losses))
        if not sizes:
            warp = plain(data.losses)
            return data.fit(warp, None), warp
        before = self._checkpoint(data, sizes)
        warp = (compressing(data.losses) if before.compressed else None) or plain(data.losses)
        if sizes[-1] == len(data.losses):
            return before.fitted, warp
        return refit(data.x, warp(data.losses), before.fitted), warp

    def _checkpoint(self, data: _Data, sizes: Sequence[int]) -> _Checkpoint:
        """Return the last checkpoint, after going through those before it that are not known."""
        known, before = self._checkpoints, None
        for size in sizes:
            then = data.first(size)
            digest = then.digest
            if digest not in known:
                if len(known) >= _KEPT:
                    del known[next(iter(known))]
                warp = _best_warp(then)
                fitted = then.fit(warp, before.fitted if before else None)
                known[digest] = _Checkpoint(fitted, compressed=warp != plain(then.losses))
            before = known[digest]
        assert before is not None
        return before


def checkpoints(n: int) -> list[int]:
    """Return the numbers of losses up to n at which structures are learned anew.

    They are ``FIRST`` apart at first, later a quarter of the number before.
    """
    sizes = [FIRST]
    while sizes[-1] <= n:
        sizes.append(sizes[-1] + max(FIRST, sizes[-1] // 4))
    return sizes[:-1]


def _best_warp(data: _Data) -> Warp:
    """Return the warp under which the losses themselves are most likely, by a full kernel."""
    compressed = compressing(data.losses)
    if compressed is None:
        return plain(data.losses)

    def evidence(warp: Warp) -> float:
        fitted = fit(data.x, warp(data.losses), data.categorical, structure="full", seed=0)
        return fitted.best.log_posterior + warp.log_jacobian(data.losses)

    return max((plain(data.losses), compressed), key=evidence)


def _informed(surrogate: Surrogate, observations: Observations, data: _Data) -> Surrogate:
    """Return the surrogate whose posteriors of the objective know derivatives as well."""
    values, to_values = surrogate.warp(data.losses), surrogate.warp.slope(data.losses)
    gradients = observations.gradients.to(data.x) * to_values.unsqueeze(-1)
    derivatives = choose(data.x, values, gradients, budget=DERIVATIVES)
    if derivatives is None:
        return surrogate
    pairs = [informed(chain, derivatives) for chain in surrogate.chains]
    chains, noises = zip(*pairs, strict=True)
    return replace(surrogate, chains=chains, derivative_noise=noises)


def _limits(observations: Observations, data: _Data) -> tuple[Limit, ...]:
    """Return the models of what decides whether a point is feasible."""
    limits = []
    for values in observations.constraints.values():
        known = values.isfinite()
        if bool(known.any()):
            limits.append(_limit(data.x[known], values[known].to(data.x), data.categorical))
    if len(observations.failed):
        x = torch.cat([data.x, observations.failed.to(data.x)])
        failed = x.new_ones(len(x))
        failed[: len(data.x)] = -1.0
        limits.append(_limit(x, failed, data.categorical))
    return tuple(limits)


def _limit(x: Tensor, values: Tensor, categorical: Tensor) -> Limit:
    """Return the model of a quantity that must be at most 0."""
    mean, sd = float(values.mean()), float(values.std(correction=0))
    sd = sd if sd > 0 else 1.0
    z = (values - mean) / sd
    fitted = fit(x, z, categorical, structure="full", seed=0)
    return Limit(condition(fitted.kernel[0], x, z.unsqueeze(-1)), -mean / sd)

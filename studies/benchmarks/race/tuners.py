"""One face for all that races: tell it points and losses, ask it for the next points."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import optuna

import hyperopt_dl as hd
from studies.benchmarks.race.botorch_peer import BoTorch
from studies.benchmarks.race.problem import Params, Problem
from studies.benchmarks.race.turbo import TuRBO


class Tuner(Protocol):
    """It is told the starts first, and then, before it is asked again, all that it proposed."""

    def tell(self, points: Sequence[Params], losses: Sequence[float]) -> None:
        """Learn the losses of points."""

    def ask(self, q: int) -> list[Params]:
        """Return q points to evaluate together."""


class Sampler:
    """A sampler of Optuna; a batch is asked for one by one, the earlier ones still running."""

    def __init__(self, sampler: optuna.samplers.BaseSampler, problem: Problem) -> None:
        self.study = optuna.create_study(sampler=sampler)
        self.space = dict(problem.space)
        self.running: list[optuna.Trial] = []

    def tell(self, points: Sequence[Params], losses: Sequence[float]) -> None:
        """Learn the losses of points."""
        if self.running:
            for trial, loss in zip(self.running, losses, strict=True):
                self.study.tell(trial, loss)
            self.running = []
            return
        for params, loss in zip(points, losses, strict=True):
            known = optuna.create_trial(params=params, distributions=self.space, value=loss)
            self.study.add_trial(known)

    def ask(self, q: int) -> list[Params]:
        """Return q points to evaluate together."""
        self.running = [self.study.ask(self.space) for _ in range(q)]
        return [trial.params for trial in self.running]


Make: TypeAlias = Callable[[Problem, int, Params], Tuner]
"""From a problem, a seed and the best start."""


@dataclass(frozen=True)
class Method:
    """What races, on how many seeds, and with another batch than the race's if it says so."""

    make: Make
    seeds: int = 5
    batch: int | None = None
    known_groups: bool = False


def gp_sampler(problem: Problem, seed: int, best: Params) -> Tuner:
    """Return Optuna's Gaussian process, without the random starts that it would add."""
    del best
    return Sampler(optuna.samplers.GPSampler(seed=seed, n_startup_trials=1), problem)


def additive_bo(structure: str) -> Make:
    """Return a maker of ours; "known" is for the groups that the problem has."""

    def make(problem: Problem, seed: int, best: Params) -> Tuner:
        del best
        groups = problem.groups if structure == "known" else structure
        return Sampler(hd.AdditiveBO(seed=seed, n_startup=1, structure=groups), problem)

    return make


def tpe(problem: Problem, seed: int, best: Params) -> Tuner:
    """Return Optuna's estimator of Parzen trees, all dimensions together."""
    del best
    sampler = optuna.samplers.TPESampler(seed=seed, multivariate=True, constant_liar=True)
    return Sampler(sampler, problem)


def cma_es(problem: Problem, seed: int, best: Params) -> Tuner:
    """Return Optuna's CMA-ES from the best start; it draws categorical dimensions at random."""
    numbers = {
        name: best[name]
        for name, dimension in problem.space.items()
        if not isinstance(dimension, optuna.distributions.CategoricalDistribution)
    }
    discrete = any(
        isinstance(d, optuna.distributions.IntDistribution) for d in problem.space.values()
    )
    sampler = optuna.samplers.CmaEsSampler(
        x0=numbers, seed=seed, with_margin=discrete, warn_independent_sampling=False
    )
    return Sampler(sampler, problem)


def random(problem: Problem, seed: int, best: Params) -> Tuner:
    """Return uniform draws."""
    del best
    return Sampler(optuna.samplers.RandomSampler(seed=seed), problem)


METHODS: dict[str, Method] = {
    "GPSampler": Method(gp_sampler, seeds=10),
    "AdditiveBO": Method(additive_bo("learned"), seeds=10),
    "AdditiveBO-full": Method(additive_bo("full")),
    "AdditiveBO-additive": Method(additive_bo("additive")),
    "AdditiveBO-known": Method(additive_bo("known"), known_groups=True),
    "GPSampler-sequential": Method(gp_sampler, batch=1),
    "BoTorch": Method(lambda problem, seed, _best: BoTorch(problem, seed)),
    "TuRBO": Method(lambda problem, seed, _best: TuRBO(problem, seed)),
    "TPE": Method(tpe),
    "CMA-ES": Method(cma_es),
    "random": Method(random),
}

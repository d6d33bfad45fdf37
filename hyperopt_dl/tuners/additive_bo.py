"""Bayesian optimization with an additive model whose groups are learned, as an Optuna sampler."""

import copy
import logging
import threading
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import optuna
import torch
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from torch import Tensor

from hyperopt_dl.errors import StudyError
from hyperopt_dl.gp.batch import AcquisitionName, Knowledge, Strategy, propose
from hyperopt_dl.gp.candidates import uniform
from hyperopt_dl.gp.threads import small_matrices
from hyperopt_dl.hypergrad import Estimator
from hyperopt_dl.seeds import derive
from hyperopt_dl.space import Dimension, Space
from hyperopt_dl.tuners.additive_bo_arguments import check_arguments, check_whole, device_of
from hyperopt_dl.tuners.behind import Around, behind, stated
from hyperopt_dl.tuners.cube import Cube, searchable, unsearchable
from hyperopt_dl.tuners.differentiating import check_use_of_gradients, estimator_of
from hyperopt_dl.tuners.known_groups import check_names
from hyperopt_dl.tuners.learned import Diagnostics, LearnedStructure, learned_structure
from hyperopt_dl.tuners.objectives import check_objectives
from hyperopt_dl.tuners.observations import Observations, common_space, observe
from hyperopt_dl.tuners.surrogate import Fitter, Structure, Surrogate

_logger = logging.getLogger(__name__)

STARTS = "additive_bo:starts"
"""The study attribute with the seed of the quasi-random starts."""
PLAN = "additive_bo:plan"
"""The study attribute with the trial that the last batch begins with, and what then still ran."""
FALLBACKS = "additive_bo:fallbacks"
"""The study attribute with the errors that models raised, by the trials that they were met for."""
_FEWEST_STARTS = 10


class AdditiveBO(BaseSampler):
    """Bayesian optimization under a sum of one full and many small kernels, with learned groups.

    The objective is modelled as a Gaussian process whose kernel is the sum of one Matern kernel
    over all dimensions, of one for each group of them, and of one that reads the distance from the
    middle of the space. Which dimensions share a group is learned by Markov chains, after Wang, Li,
    Jegelka and Kohli ("Batched High-dimensional Bayesian Optimization via Structural Kernel
    Learning", ICML 2017). The full kernel keeps the model right where the objective has no such
    structure, and the last one lets bad corners of a large space count against the others. The next
    point maximises the logarithm of expected improvement. Trials that still run are pending: their
    values are drawn, so that a batch of points that are asked for one by one is spread as if it
    were chosen at once.

    A constraint (``trial.set_constraint``) and failure have models of their own, and expected
    improvement is weighted with the probability that a point is feasible and does not fail. A
    pruned trial counts with the last value it reported, but at least the median of the complete
    ones. Losses with a heavy upper tail are compressed where that makes them likelier.

    Proposals are a function of the finished and running trials and the seed: a study that is opened
    again goes on as if it had never stopped, at the price of fitting its models once more.
    Dimensions that not every trial has (conditional ones) are proposed by TPE, each by itself.
    If a model cannot be fitted, a quasi-random point is proposed instead, which is logged
    and shown by ``diagnostics``.

    Args:
        batch: How many points are planned from one fit. Trials that are asked for before others are
            told share a fit in any case, so 1 is right for ``Study`` with any executor. More saves
            fits where trials are asked and told one by one, and sets the size of the sets that the
            strategies "dpp" and "pe" choose.
        chains: How many chains learn structures; the points of a batch take turns between them.
        structure: "learned", "full" (no groups), "additive" (every dimension alone), or a list of
            lists of names, of which a study must have all. The full kernel and that of the distance
            from the middle are always there.
        acquisition: "logei"; "qlognei" for losses with noise; "ucb", per group, as in the paper.
        strategy: "greedy" chooses points one by one; "dpp" and "pe" choose a batch by sampling, or
            greedily maximising, a determinantal point process per group, as in the paper;
            "thompson" maximises draws of the function. The last three do not read `acquisition`.
        n_startup: Losses before the model is used; until then points come from a scrambled Sobol
            sequence. ``None`` is the larger of 10 and `batch`.
        device: Where models are computed, a device of torch; "auto" is the CPU.
        seed: Fixes all proposals; ``None`` is a new one every time. A seed of the ``Study``
            replaces it.
        use_gradients: Whether the model of the loss knows the hypergradients of trials. ``Study``
            then takes a ``Training``, each trial of which is differentiated, for the price of one
            to two more; those that trials of another tuner carry count as well. They enter
            for a Float without a step.
        estimator: Computes the hypergradients; ``None`` is ``Reverse()``, and ``"auto"`` is
            ``Auto()``. Only with `use_gradients`.
        fixed: Names of Floats that are searched but not differentiated, such as a dropout rate
            that the model's factory reads. Only with `use_gradients`.

    Raises:
        StudyError: An argument that is none of these.

    Example:
        >>> import optuna, hyperopt_dl as hd
        >>> study = optuna.create_study(sampler=hd.AdditiveBO(seed=0))
        >>> study.optimize(lambda trial: trial.suggest_float("x", 0, 1) ** 2, n_trials=12)
    """

    one_objective = True

    def __init__(
        self,
        batch: int = 1,
        chains: int = 2,
        structure: Structure = "learned",
        acquisition: AcquisitionName = "logei",
        strategy: Strategy = "greedy",
        n_startup: int | None = None,
        device: torch.device | str = "auto",
        seed: int | None = None,
        use_gradients: bool = False,
        estimator: Estimator | Literal["auto"] | None = None,
        fixed: Collection[str] = (),
    ) -> None:
        check_arguments(batch, chains, structure, acquisition, strategy, n_startup, seed)
        check_use_of_gradients(use_gradients, estimator, fixed)
        self.batch = batch
        self.chains = chains
        self.structure_choice = structure
        self.acquisition = acquisition
        self.strategy = strategy
        self.n_startup = max(_FEWEST_STARTS, batch) if n_startup is None else n_startup
        self.device = device_of(device)
        self.seed = seed
        self.use_gradients = use_gradients
        self.estimator = estimator_of(estimator) if use_gradients else None
        self.fixed = frozenset(fixed)
        self._rng = np.random.default_rng(seed)
        self._remember_nothing()

    def __getstate__(self) -> dict[str, Any]:
        forgotten = ("_fitter", "_batch", "_lock", "_told")
        return {k: v for k, v in vars(self).items() if k not in forgotten}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._remember_nothing()

    def _remember_nothing(self) -> None:
        self._fitter = Fitter(self.structure_choice, self.chains, self.device, self.use_gradients)
        self._batch: tuple[str, list[dict[str, Any]]] = ("", [])
        self._lock = threading.Lock()
        self._told = set[tuple[str, str]]()

    def reseed_rng(self) -> None:
        """Take a new seed from the system."""
        self._rng = np.random.default_rng()

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """Return the dimensions that all trials so far agree on."""
        check_objectives(self, len(study.directions))
        trials = study.get_trials(deepcopy=False)
        others = [other for other in trials if other.number != trial.number]
        return common_space(others, stated(study))

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Return the values of the next point."""
        check_objectives(self, len(study.directions))
        cube = Cube(searchable(search_space))
        if not cube.names:
            return {}
        with self._lock:
            if self.batch > 1:
                return self._planned(study, trial, cube)
            trials = [t for t in study.get_trials(deepcopy=False) if t.number != trial.number]
            return self._propose(study, cube, trials, _unfinished(trials), [trial.number])[0]

    def sample_independent(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """Return a value, from TPE, of a dimension that the model does not have.

        One that has no place in a cube is drawn at random.
        """
        check_objectives(self, len(study.directions))
        seed = derive(self._key(), "independent", trial.number, param_name) % 2**32
        reason = unsearchable(param_name, param_distribution)
        if reason:
            self._warn_once(study, param_name, f"drawn at random: {reason}")
            sampler: BaseSampler = RandomSampler(seed)
        else:
            why = "not every trial with a value has it, with the same range."
            self._warn_once(study, param_name, f"left to TPE, without the model: {why}")
            sampler = TPESampler(n_startup_trials=max(1, self.n_startup), seed=seed)
        return sampler.sample_independent(study, trial, param_name, param_distribution)

    def propose(
        self,
        study: optuna.Study | Around,
        space: Mapping[str, BaseDistribution | Dimension],
        n: int,
    ) -> list[dict[str, Any]]:
        """Return n points to try together, given the trials of a study; it is left as it is.

        Args:
            study: Its finished trials are what is known, its running ones are pending.
            space: The dimensions, as a ``Space`` or as distributions of Optuna by name.
            n: How many points.

        Raises:
            StudyError: n is no whole number of at least 1, a group names a dimension that is not in
                the space, or the study has several objectives.
        """
        study = behind(study)
        check_objectives(self, len(study.directions))
        check_whole("n", n, least=1)
        distributions = Space(dict(space)).distributions()
        check_names(self.structure_choice, distributions)
        constants = {k: _only_value(d) for k, d in distributions.items() if d.single()}
        cube = Cube(searchable(distributions))
        if not cube.names:
            return [dict(constants) for _ in range(n)]
        trials = study.get_trials(deepcopy=False)
        numbers = range(len(trials), len(trials) + n)
        with self._lock:
            points = self._propose(study, cube, trials, _unfinished(trials), numbers)
        return [{name: {**constants, **point}[name] for name in distributions} for point in points]

    def diagnostics(self, study: optuna.Study | Around) -> Diagnostics:
        """Return what the model of a study is based on and believes, and what went wrong with it.

        Raises:
            StudyError: The study has several objectives, or a group names no dimension of it.
        """
        study = behind(study)
        observations, surrogate, _ = self._believed(study)
        return Diagnostics.of(observations, surrogate, study.user_attrs.get(FALLBACKS, {}))

    def structure(self, study: optuna.Study | Around) -> LearnedStructure:
        """Return which dimensions the model of a study thinks act together.

        Raises:
            StudyError: The study has no loss yet or several objectives, or a group names no
                dimension of it.
        """
        study = behind(study)
        _, surrogate, cube = self._believed(study)
        if surrogate is None:
            raise StudyError(
                "structure needs a study with at least one complete trial, and a dimension of more "
                "than one value that every trial has. Run some trials first."
            )
        return learned_structure(surrogate, cube, sign=_sign(study))

    def _warn_once(self, study: optuna.Study, name: str, what: str) -> None:
        """Log what happens to a dimension, when the others are searched by the model."""
        if (study.study_name, name) in self._told:
            return
        ended = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))
        if len(ended) >= max(1, self.n_startup):
            self._told.add((study.study_name, name))
            _logger.warning("%r is %s", name, what)

    def _believed(self, study: optuna.Study) -> tuple[Observations, Surrogate | None, Cube]:
        check_objectives(self, len(study.directions))
        trials = study.get_trials(deepcopy=False)
        cube = Cube(common_space(trials, stated(study)))
        observations = observe(trials, cube, sign=_sign(study), running=_unfinished(trials))
        if not cube.names or len(observations.losses) == 0:
            return observations, None, cube
        check_names(self.structure_choice, _seen(trials))
        with self._lock, small_matrices():
            return observations, self._fitter(observations, cube), cube

    def _planned(self, study: optuna.Study, trial: FrozenTrial, cube: Cube) -> dict[str, Any]:
        """Return the trial's part of a batch that was planned, here or by another process."""
        trials = study.get_trials(deepcopy=False)
        plan = study.user_attrs.get(PLAN, {"first": -self.batch})
        if not 0 <= trial.number - plan["first"] < self.batch:
            earlier = [other for other in trials if other.number < trial.number]
            plan = {"first": trial.number, "unfinished": sorted(_unfinished(earlier))}
            study.set_user_attr(PLAN, plan)
        first = int(plan["first"])
        key = repr((study.study_name, plan, cube, self._key()))
        if self._batch[0] != key:
            earlier = [other for other in trials if other.number < first]
            numbers = range(first, first + self.batch)
            points = self._propose(study, cube, earlier, plan["unfinished"], numbers)
            self._batch = key, points
        batch = self._batch[1]
        return batch[trial.number - first]

    def _propose(
        self,
        study: optuna.Study,
        cube: Cube,
        trials: Sequence[FrozenTrial],
        unfinished: Collection[int],
        numbers: Sequence[int],
    ) -> list[dict[str, Any]]:
        """Return the points of the trials with these numbers."""
        observations = observe(trials, cube, sign=_sign(study), running=unfinished)
        if len(observations.losses) < max(1, self.n_startup):
            return self._quasi_random(study, cube, numbers)
        check_names(self.structure_choice, _seen(trials).union(cube.names))
        try:
            with small_matrices():
                x = self._model_based(observations, cube, numbers)
            if not bool(x.isfinite().all()):
                raise ArithmeticError(f"The proposed points must be finite, got {x.tolist()}.")
            return [cube.decode(point) for point in x.cpu()]
        except Exception as error:
            _logger.warning(
                "Trial %d gets a quasi-random point, since the model failed.",
                numbers[0],
                exc_info=True,
            )
            fallbacks = study.user_attrs.get(FALLBACKS, {})
            study.set_user_attr(FALLBACKS, {**fallbacks, str(numbers[0]): repr(error)})
            return self._quasi_random(study, cube, numbers)

    def _model_based(
        self, observations: Observations, cube: Cube, numbers: Sequence[int]
    ) -> Tensor:
        surrogate = self._fitter(observations, cube)
        knowledge = Knowledge(
            domain=cube.domain,
            chains=surrogate.chains,
            feasible=observations.feasible.to(self.device),
            limits=surrogate.limits,
            pending=observations.pending.to(self.device),
            avoid=observations.failed.to(self.device),
        )
        key = self._key()
        return propose(
            knowledge,
            turns=numbers,
            seeds=[derive(key, "point", number) for number in numbers],
            acquisition=self.acquisition,
            strategy=self.strategy,
        )

    def _quasi_random(
        self, study: optuna.Study, cube: Cube, numbers: Sequence[int]
    ) -> list[dict[str, Any]]:
        seed = study.user_attrs.get(STARTS)
        if seed is None:
            seed = derive(self._key(), "starts")
            study.set_user_attr(STARTS, seed)
        with small_matrices():
            points = uniform(cube.domain, max(numbers) + 1, seed=seed)
        return [cube.decode(points[number]) for number in numbers]

    def _key(self) -> int:
        """Return what the generator would draw next; it stays where it is.

        So proposals differ by their trial's number, and not by how many were made in this process.
        """
        return int(copy.deepcopy(self._rng).integers(2**63 - 1))


def _sign(study: optuna.Study) -> float:
    return -1.0 if study.direction == StudyDirection.MAXIMIZE else 1.0


def _unfinished(trials: Sequence[FrozenTrial]) -> set[int]:
    """Return the numbers of the trials that wait or run."""
    return {t.number for t in trials if t.state in (TrialState.RUNNING, TrialState.WAITING)}


def _seen(trials: Sequence[FrozenTrial]) -> set[str]:
    """Return the names of the dimensions that a trial has, conditional ones too."""
    return {name for trial in trials for name in trial.distributions}


def _only_value(distribution: BaseDistribution) -> Any:
    if isinstance(distribution, CategoricalDistribution):
        return distribution.choices[0]
    assert isinstance(distribution, (FloatDistribution, IntDistribution))
    return distribution.low

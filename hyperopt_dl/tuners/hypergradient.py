"""Descent along the hypergradient, as an Optuna sampler."""

import logging
import threading
import warnings
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple
from weakref import WeakKeyDictionary

import optuna
from optuna.distributions import BaseDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.pruners import HyperbandPruner
from optuna.samplers import BaseSampler, QMCSampler
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from torch import Tensor

from hyperopt_dl.hypergrad import Estimator
from hyperopt_dl.hypergrad.estimator import Learner
from hyperopt_dl.tuners.archive import archive_of, array_ids
from hyperopt_dl.tuners.chain import Descent, Optimizer, turn
from hyperopt_dl.tuners.clipping import ESTIMATED, EXACT
from hyperopt_dl.tuners.closing import average_point, is_closing
from hyperopt_dl.tuners.differentiating import check_estimator, check_fixed, estimator_of
from hyperopt_dl.tuners.hypergradient_arguments import check_chains, check_descent
from hyperopt_dl.tuners.keywords import keywords_for
from hyperopt_dl.tuners.moving import Dimensions, moving, values_at
from hyperopt_dl.tuners.objectives import check_objectives
from hyperopt_dl.tuners.record import recorded
from hyperopt_dl.tuners.trail import (
    Place,
    can_move,
    good_of,
    latest,
    read_places,
    trail_of,
    write_place,
)
from hyperopt_dl.tuners.visits import Visits

_logger = logging.getLogger(__name__)


class _Fold(NamedTuple):
    """A descent and what went into it: the settings, and the numbers of the trials it followed."""

    settings: tuple[Any, ...]
    numbers: list[int]
    descent: Descent


class Hypergradient(BaseSampler):
    """Descend the hypergradient of the validation loss (Franceschi et al. 2017, section 3).

    Each trial is a whole training run, whose value and hypergradient the ``estimator`` computes;
    the next trial of its chain is one step of a torch optimizer away. Steps are made in the unit
    cube of the dimensions that are continuous (on a log scale where they have one), and end at its
    faces. An ``Array`` moves with them, each entry scaled by its range where the box is finite and
    in its own unit where it is not; after each step it is projected to its box and constraint. One
    optimizer steps all of them together, as one vector.

    Whatever else a trial has, such as integers, categories and what is ``fixed``, is drawn by
    ``starts`` when a chain begins, and stays where it is in the chain. Every chain begins with the
    ``init`` of an ``Array``.

    A trial that fails or is pruned, whose hypergradient is not finite, or whose loss lies above all
    losses on the chain's way to its lowest one, sends its chain back to its last good point with
    half the step, for the rest of the chain; every further failure halves it again. Every trial has
    a seed of its own, and its loss some luck: a higher one counts where the gradients on the way
    predict a rise too, or where it rises by more than luck has so far (``setback.py``). A chain
    whose first trial fails, or that fails ten times in a row, begins anew. A gradient that is far
    longer than those before it in its chain is shortened (``clipping.py``). A trial that was
    interrupted counts for nothing; one whose parameters were enqueued begins its chain there. Where
    more trials run at once than there are chains, spare chains take the rest.

    In ``Study`` the workload is a ``Training``, and pruning is off: trials of one chain are like
    each other and unlike all others. In an objective of plain Optuna, ``evaluate`` runs the
    estimator; a trial that ends without it (or without the user attribute ``"hypergradient"``, a
    dict of derivatives by name in natural units) is a start that does not move.

    What chain a trial belongs to, and its position there, are attributes of the study; all else is
    a fold over its finished trials, of which only those are gone through that are new since the
    last proposal. So a study that is opened again goes on where it was. A study that maximizes
    ascends.

    Args:
        estimator: Computes the value and the hypergradient of a run; ``None`` is ``Reverse()``, and
            ``"auto"`` is ``Auto()``, which chooses forward or reverse mode for each run.
        optimizer: ``"adam"``, ``"sgd"``, or a factory that takes a list of tensors and ``lr``, such
            as ``functools.partial(torch.optim.SGD, momentum=0.9)``.
        lr: The optimizer's learning rate, in units of the cube: with Adam about the length of a
            step, as a part of each dimension's range.
        chains: How many descents take turns.
        chain_length: Trials after which a chain begins anew; ``None`` is never.
        starts: The sampler that draws the trial that begins a chain; ``None`` is a scrambled Sobol
            sequence (whose scrambling only ``seed`` changes), after a first trial at random.
        fixed: Names of numbers that are not differentiated although they are continuous, such as a
            dropout rate that the model's factory reads; ``starts`` draws them.
        seed: Seed of the default ``starts``, and of the runs of ``evaluate``.
        average_last: Which part of a chain's points is averaged in the end, the last ones, where
            the estimator's values are estimates (``Telescoping``): ``Study.optimize`` closes with
            a trial that runs their average in full. 1 averages all of them.

    Raises:
        StudyError: An argument that is none of these.

    Example:
        >>> import hyperopt_dl as hd
        >>> tuner = hd.Hypergradient(lr=0.1, chains=2, chain_length=20, seed=0)
        >>> study = hd.Study({"lr": hd.Float(1e-4, 1.0, log=True)}, tuner=tuner, seed=0)
    """

    one_objective = True

    def __init__(
        self,
        estimator: Estimator | Literal["auto"] | None = None,
        optimizer: Optimizer = "adam",
        lr: float = 0.05,
        chains: int = 1,
        chain_length: int | None = None,
        starts: BaseSampler | None = None,
        fixed: Collection[str] = (),
        seed: int | None = None,
        average_last: float = 0.5,
    ) -> None:
        check_estimator(estimator)
        check_descent(optimizer, lr, average_last)
        check_chains(chains, chain_length, starts)
        check_fixed(fixed)
        self.estimator = estimator_of(estimator)
        self.optimizer = optimizer
        self.lr = lr
        self.chains = chains
        self.chain_length = chain_length
        self.starts = _quasi_random(seed) if starts is None else starts
        self.fixed = frozenset(fixed)
        self.seed = seed
        self.average_last = average_last
        self._forget()

    def __getstate__(self) -> dict[str, Any]:
        passing = ("_placing", "_places", "_folds", "_visits")
        return {name: value for name, value in vars(self).items() if name not in passing}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._forget()

    def reseed_rng(self) -> None:
        """Reseed ``starts``; nothing else is random."""
        self.starts.reseed_rng()

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Give the trial its place in a chain."""
        if is_closing(trial):
            return
        if _supported(study) and self._place(study, trial).position == 0:
            self.starts.before_trial(study, trial)

    def after_trial(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        state: TrialState,
        values: Sequence[float] | None,
    ) -> None:
        """Let ``starts`` see how a trial of its own ended; warn once of trials without gradient."""
        if is_closing(trial) or not _supported(study):
            return
        if self._place(study, trial).position == 0:
            self.starts.after_trial(study, trial, state, values)
        if state == TrialState.COMPLETE and recorded(trial.user_attrs) is None:
            earlier = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
            if all(recorded(t.user_attrs) is not None for t in earlier if t.number < trial.number):
                _logger.warning(
                    "Trial %d ended without a hypergradient, so its chain begins anew. In an "
                    "objective, return hyperopt_dl.evaluate(trial, training).",
                    trial.number,
                )

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """Return what the chain's last good trial has suggested, or what ``starts`` infers."""
        self._refuse(study)
        if is_closing(trial):
            return {}
        if self._place(study, trial).position == 0:
            return self.starts.infer_relative_search_space(study, trial)
        return dict(self._anchor(study, trial).distributions)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Return the chain's next point, or a start."""
        self._refuse(study)
        if is_closing(trial):
            return {}
        if self._place(study, trial).position == 0:
            return self.starts.sample_relative(study, trial, search_space)
        params = {**self._anchor(study, trial).params, **self._ahead(study, trial)}
        return {name: params[name] for name in search_space if name in params}

    def sample_arrays(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, Tensor]:
        """Return a value of every Array of the study: its ``init``, or the chain's next point."""
        self._refuse(study)
        archive = archive_of(study)
        values = {name: array.start for name, array in archive.arrays.items()}
        if self._place(study, trial).position == 0:
            return values
        ahead = self._ahead(study, trial)
        before = array_ids(self._anchor(study, trial))
        still = {name: before[name] for name in values if name in before and name not in ahead}
        moved = {name: x for name, x in ahead.items() if isinstance(x, Tensor)}
        return {**values, **archive.values(still), **moved}

    def keywords(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, Any]:
        """Return what the estimator is to know of a trial, beside its hyperparameters."""
        return keywords_for(self.estimator, study, trial, self.fixed)

    def closing(self, study: optuna.Study) -> list[dict[str, Any]]:
        """Return the average of the last points of every chain, where values are estimates."""
        if not isinstance(self.estimator, Learner):
            return []
        trials, places = study.get_trials(deepcopy=False), read_places(study)
        closed = max((t.number for t in trials if is_closing(t)), default=-1)
        points = []
        for chain in sorted({place.chain for place in places.values()}):
            good = self._good(study, trail_of(trials, places, chain, len(trials)))
            if good and good[-1].number > closed:
                dims = moving(good[-1], archive_of(study), self.fixed)
                alike = [t for t in good if moving(t, archive_of(study), self.fixed) == dims]
                average = average_point(alike, dims, archive_of(study), self.average_last)
                points.append({**good[-1].params, **average})
        return points

    def sample_independent(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """Let ``starts`` draw a parameter that the chain has not met."""
        self._refuse(study)
        return self.starts.sample_independent(study, trial, param_name, param_distribution)

    def _refuse(self, study: optuna.Study) -> None:
        check_objectives(self, len(study.directions))
        if not _supported(study):
            raise ValueError(
                "Hypergradient needs to see all trials of a study, but HyperbandPruner shows those "
                "of one bracket. Use optuna.pruners.NopPruner()."
            )

    def _place(self, study: optuna.Study, trial: FrozenTrial) -> Place:
        """Return a trial's place; where it has none yet, it gets one for good."""
        with self._placing:
            places = self._places.get(study, {})
            if trial.number not in places:
                places = read_places(study)
            if trial.number not in places:
                places[trial.number] = self._next_place(study, trial, places)
                write_place(study, trial.number, places[trial.number])
            self._places[study] = places
            return places[trial.number]

    def _next_place(
        self, study: optuna.Study, trial: FrozenTrial, places: Mapping[int, Place]
    ) -> Place:
        trials = study.get_trials(deepcopy=False)
        last = {places[number].chain: number for number in sorted(places)}
        running = {t.number for t in trials if t.state == TrialState.RUNNING}
        busy = {place.chain for number, place in places.items() if number in running}
        chain = turn(last, busy, self.chains)
        if chain not in last or "fixed_params" in trial.system_attrs:
            return Place(chain, 0)
        position = places[last[chain]].position + 1
        long = self.chain_length is not None and position >= self.chain_length
        trail = trail_of(trials, places, chain, trial.number)
        stuck = not can_move(trail, self._good(study, trail))
        return Place(chain, 0 if long or stuck else position)

    def _trail(self, study: optuna.Study, trial: FrozenTrial) -> list[FrozenTrial]:
        """Return the trials of the same chain that a trial can learn from."""
        chain, trials = self._place(study, trial).chain, study.get_trials(deepcopy=False)
        return trail_of(trials, self._places[study], chain, trial.number)

    def _anchor(self, study: optuna.Study, trial: FrozenTrial) -> FrozenTrial:
        """Return the chain's last good trial."""
        return self._good(study, self._trail(study, trial))[-1]

    def _good(self, study: optuna.Study, trail: Sequence[FrozenTrial]) -> list[FrozenTrial]:
        """Return the trials that a descent along a trail follows."""
        return good_of(trail, self._visits_of(study).change, sign=_sign(study))

    def _visits_of(self, study: optuna.Study) -> Visits:
        if study not in self._visits:
            self._visits[study] = Visits(archive_of(study), self.fixed, _sign(study))
        return self._visits[study]

    def _ahead(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, float | Tensor]:
        """Return what moves, at the chain's next point."""
        archive, anchor = archive_of(study), self._anchor(study, trial)
        dims = moving(anchor, archive, self.fixed)
        if not dims:
            return {}
        whole = self._trail(study, trial)
        followed = self._good(study, whole)
        trail = latest(whole, followed, lambda t: moving(t, archive, self.fixed) == dims)
        numbers = {t.number for t in trail}
        good = [t for t in followed if t.number in numbers]
        descent = self._descent(study, self._place(study, trial).chain, good, dims)
        return values_at(descent.ahead(failures=len(trail) - len(good)), dims)

    def _descent(
        self, study: optuna.Study, chain: int, good: Sequence[FrozenTrial], dims: Dimensions
    ) -> Descent:
        """Return a chain's descent after its good trials, gone on with where it was left."""
        visit = partial(self._visits_of(study).of, dims=dims)
        settings, numbers = (dims, self.optimizer, self.lr), [t.number for t in good]
        folds = self._folds.setdefault(study, {})
        fold = folds.pop(chain, None)  # an error on the way must not leave half a step
        if fold is None or fold.settings != settings or not _begins(numbers, fold.numbers):
            most = ESTIMATED if isinstance(self.estimator, Learner) else EXACT
            descent = Descent(self.optimizer, self.lr, visit(good[0]), most=most)
            fold = _Fold(settings, numbers[:1], descent)
        for trial in good[len(fold.numbers) :]:
            fold.descent.follow(visit(trial))
        folds[chain] = fold._replace(numbers=numbers)
        return fold.descent

    def _forget(self) -> None:
        self._placing = threading.Lock()
        self._places: WeakKeyDictionary[optuna.Study, dict[int, Place]] = WeakKeyDictionary()
        self._folds: WeakKeyDictionary[optuna.Study, dict[int, _Fold]] = WeakKeyDictionary()
        self._visits: WeakKeyDictionary[optuna.Study, Visits] = WeakKeyDictionary()


def _sign(study: optuna.Study) -> float:
    return -1.0 if study.direction == StudyDirection.MAXIMIZE else 1.0


def _begins(numbers: Sequence[int], first: Sequence[int]) -> bool:
    return list(numbers[: len(first)]) == list(first)


def _supported(study: optuna.Study) -> bool:
    return len(study.directions) == 1 and not isinstance(study.pruner, HyperbandPruner)


def _quasi_random(seed: int | None) -> BaseSampler:
    """Return a sampler of starts; its scrambling is fixed, for no study's seed can reach it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        return QMCSampler(
            scramble=True,
            seed=0 if seed is None else seed,
            independent_sampler=optuna.samplers.RandomSampler(seed),
            warn_independent_sampling=False,
        )

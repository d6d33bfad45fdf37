"""One trial: what a workload sees of it, what comes out of it, and the only code that runs one.

A worker holds no storage. Whatever a trial asks for or records goes over its ``Link``: a direct
call in the parent's process, a pipe from any other.
"""

import json
import logging
import math
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias

import torch
from optuna import TrialPruned as TrialPruned
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from torch import Tensor

from hyperopt_dl.early_stopping import EarlyStopping
from hyperopt_dl.errors import TrainingError
from hyperopt_dl.hypergrad import Estimator
from hyperopt_dl.hypergrad.estimator import Note, accepted
from hyperopt_dl.online.history import OnlineRecord
from hyperopt_dl.online.run import OnlineRun
from hyperopt_dl.space import Choice
from hyperopt_dl.training import Online, State, Training, rollout
from hyperopt_dl.tuners.record import is_exact, keep_note

_logger = logging.getLogger(__name__)

Distribution: TypeAlias = BaseDistribution
"""What a parameter is sampled from; Optuna's, so that every sampler knows it."""
Failure: TypeAlias = Literal["nan", "oom", "exception", "lost", "timeout", "interrupted"]
LONGEST_ERROR = 4000


class Link(Protocol):
    """What the storage's side does for a trial; each call returns when it is recorded."""

    def suggest(self, name: str, distribution: Distribution) -> Any:
        """Return the trial's value of a parameter, sampling it at the first call."""

    def report(self, value: float, step: int) -> None:
        """Record an intermediate value."""

    def should_prune(self) -> bool:
        """Return whether the pruner would end the trial now."""

    def set_constraint(self, key: str, value: float) -> None:
        """Record a constraint; at most 0 is feasible."""

    def set_user_attr(self, key: str, value: Any) -> None:
        """Record a JSON-serializable attribute."""


@dataclass(frozen=True)
class Job:
    """One attempt at a trial: everything a worker needs beside the workload and the link."""

    number: int
    params: Mapping[str, Any]
    seed: int
    objectives: int = 1
    keywords: Mapping[str, Any] = field(default_factory=dict)
    """More keywords for the estimator, of which it is given those that it takes."""


@dataclass(frozen=True)
class Outcome:
    """How a trial ended.

    ``values`` has one finite number for each objective if the state is ``"complete"``, else it is
    ``None``; ``failure`` and ``error`` are set if the state is ``"failed"``. ``gradient`` is the
    value's derivative in the hyperparameters, in natural units, where an estimator has run: a
    number, or a tensor for an Array; it may have entries that are not finite. ``online`` is what an
    online tuner did, where one has run.
    """

    state: Literal["complete", "pruned", "failed"]
    values: tuple[float, ...] | None = None
    failure: Failure | None = None
    error: str = ""
    gradient: Mapping[str, float | Tensor] | None = None
    online: OnlineRecord | None = None


class Trial:
    """A trial as its workload sees it, in whatever process that runs.

    Attributes:
        number: The trial's number in its study, from 0.
        params: The hyperparameters by name: all of them where the study has a space, and those
            suggested so far.
        seed: The trial's own seed, a number in ``[0, 2**63)``; the same at a second attempt. It is
            for ``torch.Generator().manual_seed``, ``numpy.random.default_rng``, ``random.Random``
            (``numpy.random.seed`` takes 32 bits only).
        device: Where to put the model and the data.
    """

    def __init__(self, job: Job, link: Link, device: torch.device) -> None:
        self.number = job.number
        self.params: dict[str, Any] = dict(job.params)
        self.seed = job.seed
        self.device = device
        self._link = link
        self._keywords = job.keywords

    def __repr__(self) -> str:
        return f"Trial(number={self.number}, params={self.params}, device='{self.device}')"

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float:
        """Suggest a number in ``[low, high]``, as ``optuna.Trial.suggest_float`` does."""
        return float(self._suggest(name, FloatDistribution(low, high, log=log, step=step)))

    def suggest_int(
        self, name: str, low: int, high: int, *, step: int = 1, log: bool = False
    ) -> int:
        """Suggest an integer in ``[low, high]``, as ``optuna.Trial.suggest_int`` does."""
        return int(self._suggest(name, IntDistribution(low, high, log=log, step=step)))

    def suggest_categorical(self, name: str, choices: Sequence[Choice]) -> Any:
        """Suggest one of the choices, as ``optuna.Trial.suggest_categorical`` does."""
        return self._suggest(name, CategoricalDistribution(choices))

    def report(self, value: float, step: int) -> None:
        """Report an intermediate value (of the same unit as the trial's value) at a step.

        Raises:
            TypeError: The value is no number.
            StudyError: The study has several objectives, for which Optuna has no pruning.
        """
        try:
            number = _number(value)
        except TypeError as error:
            raise TypeError(f"Trial.report needs a number, got {error}.") from error
        self._link.report(number, int(step))

    def should_prune(self) -> bool:
        """Return whether the study's pruner would stop this trial; then raise ``TrialPruned``."""
        return self._link.should_prune()

    def set_constraint(self, key: str, value: float) -> None:
        """Record a constraint of this trial; the trial is feasible where all are at most 0."""
        self._link.set_constraint(key, float(value))

    def set_user_attr(self, key: str, value: Any) -> None:
        """Record anything that JSON can hold.

        Raises:
            TypeError: JSON cannot hold it.
        """
        json.dumps(value)
        self._link.set_user_attr(key, value)

    def _suggest(self, name: str, distribution: Distribution) -> Any:
        self.params[name] = value = self._link.suggest(name, distribution)
        return value


Workload: TypeAlias = Training | Callable[[Trial], Any]
"""What a study runs: a ``Training``, or a function of a trial that returns a value or several."""


def run_trial(
    workload: Workload, trial: Trial, objectives: int = 1, estimator: Estimator | None = None
) -> Outcome:
    """Run a workload once. Whatever happens in it, but for an interrupt, becomes an ``Outcome``.

    A ``Training`` is run by ``estimator``, where there is one. The loss is then reported once, at
    the last step, and ``early_stopping`` is not looked at: what is differentiated is the loss after
    all steps. The metrics are those of the last state, where the estimator shows it.
    """
    try:
        if isinstance(workload, Training):
            if estimator is not None:
                return _differentiate(workload, trial, estimator, objectives)
            run = _online_run(workload, trial)
            outcome = read_values(_train(workload, trial, run), objectives)
            return outcome if run is None else replace(outcome, online=run.record)
        return read_values(workload(trial), objectives)
    except TrialPruned:
        return Outcome("pruned")
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # SystemExit too: a library that exits must not end the study
        message = _describe(error) + _shapes(trial.params)
        return Outcome("failed", failure=_kind(error), error=message)


def read_values(result: Any, objectives: int) -> Outcome:
    """Read what an objective returned: a number, or one number for each objective.

    Numbers are Python's and NumPy's, and tensors with one element. Anything else, and a number that
    is not finite, makes the trial a failed one.
    """
    several = isinstance(result, Sequence) and not isinstance(result, (str, bytes))
    parts = list(result) if several else [result]
    try:
        values = tuple(_number(part) for part in parts)
    except (TypeError, ValueError, OverflowError) as error:
        return Outcome("failed", failure="exception", error=f"The objective returned {error}.")
    if len(values) != objectives:
        message = f"The objective must return {objectives} value(s), got {len(values)}: {result!r}."
        return Outcome("failed", failure="exception", error=message[:LONGEST_ERROR])
    if not all(math.isfinite(value) for value in values):
        return Outcome("failed", failure="nan", error=f"The objective returned {values}.")
    return Outcome("complete", values)


def _differentiate(
    training: Training, trial: Trial, estimator: Estimator, objectives: int
) -> Outcome:
    """Run a training by an estimator, and report its loss and metrics at the last step.

    The value is the loss after all steps, where the estimator has looked at it.
    """
    final: list[State] = []
    notes: list[Note] = []
    offered = {**trial._keywords, "observe": final.append, "note": notes.append}
    value, gradient = estimator(
        training,
        trial.params,
        seed=trial.seed,
        device=trial.device,
        **accepted(estimator, offered),
    )
    for note in notes:
        keep_note(trial, note)
        value = note.get("loss", value)
    if all(map(is_exact, notes)):
        trial.report(_number(value), training.steps)
    outcome = read_values(value, objectives)
    if outcome.state != "complete":
        return outcome
    for state in final:
        _record_metrics(training, state, trial)
    derivatives = {n: _derivative(n, d, trial.params.get(n)) for n, d in gradient.items()}
    return replace(outcome, gradient=derivatives)


def _derivative(name: str, derivative: Any, value: Any) -> float | Tensor:
    """Return the derivative in a hyperparameter: a number, or a tensor on the CPU for an Array."""
    if not isinstance(value, Tensor):
        return _number(derivative)
    if not isinstance(derivative, Tensor) or derivative.shape != value.shape:
        got = list(derivative.shape) if isinstance(derivative, Tensor) else repr(derivative)
        raise TrainingError(
            f"The derivative in the Array {name!r} must be a tensor of its shape "
            f"{list(value.shape)}, got {got}."
        )
    return derivative.detach().cpu()


class _Report(NamedTuple):
    """What a run has reached after ``step`` steps."""

    step: int
    value: float
    metric: float
    state: State


def _online_run(training: Training, trial: Trial) -> OnlineRun[Any] | None:
    """Return the run of a training with an online tuner, and ``None`` of any other."""
    online: Online | None = getattr(training, "online", None)
    if online is None:
        return None
    run: OnlineRun[Any] = online.start(training, trial.params, seed=trial.seed, device=trial.device)
    return run


def _train(training: Training, trial: Trial, run: OnlineRun[Any] | None) -> float:
    """Run a training, report its loss on the way, and return the loss of the state it ends with."""
    stopping: EarlyStopping | None = getattr(training, "early_stopping", None)
    best: _Report | None = None
    waited = 0
    metric = "loss" if stopping is None else stopping.metric
    for report in _reports(training, trial, metric, run):
        trial.report(report.value, report.step)
        if not math.isfinite(report.value):
            if stopping is None or best is None:
                return report.value
            break
        if stopping is None or best is None or stopping.improves(report.metric, best.metric):
            best, waited = report, 0
        else:
            waited += 1
            if waited >= stopping.patience:
                break
        if report.step < training.steps and trial.should_prune():
            raise TrialPruned
    if best is None:
        raise TrainingError(f"A training must have at least one step, got steps={training.steps}.")
    if stopping is not None:
        trial.set_user_attr("best_step", best.step)
    _record_metrics(training, best.state, trial)
    return best.value


def _record_metrics(training: Training, state: State, trial: Trial) -> None:
    """Record what a training measures at the end of its run, or why it cannot: the loss stands."""
    for attribute, method in (("metrics", "metrics"), ("test", "test_metrics")):
        try:
            numbers = _measured(training, method, state, trial.params)
        except Exception as error:
            _logger.warning("A trial keeps its loss, but %s failed.", method, exc_info=True)
            trial.set_user_attr(f"{attribute}_error", _describe(error))
            continue
        if numbers:
            trial.set_user_attr(attribute, numbers)


def _reports(
    training: Training, trial: Trial, metric: str, run: OnlineRun[Any] | None
) -> Iterator[_Report]:
    """Run a training without recording a graph and yield where it stands, every so many steps."""
    every: int = getattr(training, "report_every", max(1, training.steps))
    hparams, state = trial.params, None
    for start in range(0, training.steps, every):
        stop = min(start + every, training.steps)
        with torch.no_grad():
            if run is not None:
                state = run.advance(stop)
            else:
                state = rollout(
                    training,
                    hparams,
                    seed=trial.seed,
                    device=trial.device,
                    state=state,
                    start=start,
                    stop=stop,
                )
            value = float(training.loss(state, hparams))
            watched = (
                value
                if metric == "loss"
                else _measured(training, "metrics", state, hparams)[metric]
            )
        yield _Report(stop, value, watched, state)


def _measured(
    training: Training, method: str, state: State, hparams: Mapping[str, Any]
) -> dict[str, float]:
    """Return what an optional method of a training measures; nothing where it has none."""
    measure = getattr(training, method, None)
    if measure is None:
        return {}
    with torch.no_grad():
        return {name: float(number) for name, number in measure(state, hparams).items()}


def _number(value: Any) -> float:
    """Return ``value`` as a float; text is no number."""
    if isinstance(value, (str, bytes)) or value is None:
        raise TypeError(f"{value!r}, which is no number")
    if isinstance(value, Tensor) and value.numel() != 1:
        raise TypeError(f"a tensor of shape {tuple(value.shape)} where a number belongs")
    try:
        return float(value.item() if hasattr(value, "item") else value)
    except (TypeError, ValueError, OverflowError) as error:
        raise TypeError(f"{type(value).__name__} {str(value)[:100]}, which is no number") from error


def _kind(error: BaseException) -> Failure:
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return "oom"
    if isinstance(error, TimeoutError):
        return "timeout"
    return "exception"


def _describe(error: BaseException) -> str:
    """Return the traceback, its end if it is long, with the exception itself as the last line."""
    return "".join(traceback.format_exception(error)).strip()[-LONGEST_ERROR:]


def _shapes(params: Mapping[str, Any]) -> str:
    """Return what a message adds of a trial's Arrays, whose shapes the user has chosen."""
    arrays = [f"{n!r} {tuple(x.shape)}" for n, x in params.items() if isinstance(x, Tensor)]
    return f" (Arrays of the trial: {', '.join(arrays)})" if arrays else ""

"""Online tuners as parts of a ``Supervised``: what to make when a trial begins.

As in an optimizer's twin, a number is a constant and a string names a hyperparameter::

    Supervised(..., optimizer=SGD(lr=0.01), online=Forward({"lr": Float(1e-5, 10, log=True)},
               hyper_lr="hyper_lr"))
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from hyperopt_dl.errors import TrainingError
from hyperopt_dl.online.coordinates import parse
from hyperopt_dl.online.course import check_every, check_numbers
from hyperopt_dl.online.directions import check_family
from hyperopt_dl.online.forward_tuner import ForwardTuner
from hyperopt_dl.online.hypergradient_descent import HypergradientDescent, check_rule
from hyperopt_dl.online.kept import params_of
from hyperopt_dl.online.rules import rule_of
from hyperopt_dl.online.run import OnlineRun
from hyperopt_dl.optimizers.options import names_in
from hyperopt_dl.optimizers.resolve import evaluate
from hyperopt_dl.optimizers.torch_twin import kind_of
from hyperopt_dl.space import Dimension, Float
from hyperopt_dl.space.bounds import bounds
from hyperopt_dl.supervised import Supervised
from hyperopt_dl.training import HParams

Setting: TypeAlias = float | str
"""A constant, or the name of a hyperparameter."""


@dataclass(frozen=True)
class Forward:
    """A `ForwardTuner` in every trial, which moves on the training's validation data.

    Args:
        tune: As for `ForwardTuner`. Group 0 holds the parameters that no pattern of the optimizer's
            ``groups`` takes, the next ones are those of the patterns, in order. They start at the
            values of the training's optimizer.
        hyper_lr: As for `ForwardTuner`, or the name of a hyperparameter; so are the other numbers.
        discount: As for `ForwardTuner`; "adaptive" is no name.
        clip: As for `ForwardTuner`.
        trust: As for `ForwardTuner`.
        explosion: As for `ForwardTuner`.
        every: Steps between two moves.
        batch_size: Examples of the validation data that a move looks at, shuffled by the trial's
            seed; ``None`` is all of them, at the cost of a gradient on all of them.

    Raises:
        TrainingError: A constant cannot be.
    """

    tune: Mapping[str, Float]
    hyper_lr: Setting = 0.1
    discount: Setting = 1.0
    clip: Setting = 1.0
    trust: Setting = 0.5
    explosion: Setting = 4.0
    every: int = 10
    batch_size: int | None = None

    def __post_init__(self) -> None:
        check_numbers(**_constants(self._settings(), default=0.5))
        if not self.tune:
            raise TrainingError("tune must name a hyperparameter, got none. Write {'lr': ...}.")
        check_every(self.every)

    def names(self) -> frozenset[str]:
        """The hyperparameters that the settings name."""
        return names_in(value for value in self._settings().values() if value != "adaptive")

    def check(self, training: Supervised) -> None:
        """Raise unless this can tune the training's optimizer, and moves at least once."""
        rule = rule_of(kind_of(training.optimizer))
        for name, dimension in self.tune.items():
            parse(name, dimension, rule)
        training.held_out(self.batch_size)
        if self.every > training.steps:
            raise TrainingError(
                f"every must be at most the {training.steps} steps of the training, got "
                f"{self.every}: the rates would never move."
            )

    def check_space(self, space: Mapping[str, Dimension]) -> None:
        """Raise unless the dimensions of the names can be the settings, with all their values."""
        _check_bounds(self, self._settings(), space)

    def start(
        self, training: Supervised, hparams: HParams, *, seed: int, device: torch.device | str
    ) -> OnlineRun[ForwardTuner]:
        """Return the run of a training with a tuner of its own, before step 0."""
        settings = _values(self._settings(), hparams)

        def tuner_of(optimizer: torch.optim.Optimizer) -> ForwardTuner:
            return ForwardTuner(optimizer, self.tune, **settings)

        return OnlineRun(
            training,
            hparams,
            tuner_of,
            self._step,
            seed=seed,
            device=device,
            batch_size=self.batch_size,
        )

    def _step(
        self,
        tuner: ForwardTuner,
        loss: Tensor,
        max_norm: float | None,
        validation_loss: Callable[[], Tensor],
    ) -> None:
        tuner.backward(loss)
        if max_norm is not None:
            tuner.clip_grad_norm_(max_norm)
        tuner.optimizer.step()
        if tuner.steps % self.every == 0:
            tuner.step(validation_loss())

    def _settings(self) -> dict[str, Setting]:
        return {
            "hyper_lr": self.hyper_lr,
            "discount": self.discount,
            "clip": self.clip,
            "trust": self.trust,
            "explosion": self.explosion,
        }


@dataclass(frozen=True)
class Descent:
    """A `HypergradientDescent` in every trial, which sees no validation data.

    Args:
        hyper_lr: As for `HypergradientDescent`, or the name of a hyperparameter.
        rule: As for `HypergradientDescent`.

    Raises:
        TrainingError: A constant cannot be.
    """

    hyper_lr: Setting = 0.02
    rule: Literal["multiplicative", "additive"] = "multiplicative"

    def __post_init__(self) -> None:
        check_rule(**_constants({"hyper_lr": self.hyper_lr}, default=0.02), rule=self.rule)

    def names(self) -> frozenset[str]:
        """The hyperparameters that the settings name."""
        return names_in([self.hyper_lr])

    def check(self, training: Supervised) -> None:
        """Raise unless this can tune the training's optimizer."""
        check_family(kind_of(training.optimizer))

    def check_space(self, space: Mapping[str, Dimension]) -> None:
        """Raise unless the dimensions of the names can be the settings, with all their values."""
        _check_bounds(self, {"hyper_lr": self.hyper_lr}, space)

    def start(
        self, training: Supervised, hparams: HParams, *, seed: int, device: torch.device | str
    ) -> OnlineRun[HypergradientDescent]:
        """Return the run of a training with a tuner of its own, before step 0."""
        settings = _values({"hyper_lr": self.hyper_lr}, hparams)

        def tuner_of(optimizer: torch.optim.Optimizer) -> HypergradientDescent:
            return HypergradientDescent(optimizer, rule=self.rule, **settings)

        return OnlineRun(training, hparams, tuner_of, self._step, seed=seed, device=device)

    def _step(
        self,
        tuner: HypergradientDescent,
        loss: Tensor,
        max_norm: float | None,
        validation_loss: Callable[[], Tensor],  # noqa: ARG002
    ) -> None:
        loss.backward()  # type: ignore[no-untyped-call]
        if max_norm is not None:
            torch.nn.utils.clip_grad_norm_(params_of(tuner.optimizer), max_norm)
        tuner.step()
        tuner.optimizer.step()


def _constants(settings: Mapping[str, Setting], *, default: float) -> dict[str, Any]:
    """Return settings with a number that can be in the place of each name."""
    named = {name: default for name, value in settings.items() if _is_name(value)}
    return {**settings, **named}


def _check_bounds(
    declared: Forward | Descent, settings: Mapping[str, Setting], space: Mapping[str, Dimension]
) -> None:
    """Make the declaration with the least and the greatest value of each name, which checks it."""
    named = {setting: str(name) for setting, name in settings.items() if _is_name(name)}
    for setting, name in named.items():
        try:
            for bound in _bounds(setting, space[name]):
                changed: dict[str, Any] = {setting: bound}
                replace(declared, **changed)
        except TrainingError as error:
            raise TrainingError(f"The space has {name}={space[name]!r}: {error}") from error


def _bounds(setting: str, dimension: Dimension) -> tuple[float, float]:
    found = bounds(dimension)
    if found is None:
        raise TrainingError(f"{setting} must be one number. Use a Float.")
    return found


def _values(settings: Mapping[str, Setting], hparams: HParams) -> dict[str, Any]:
    return {
        name: value if value == "adaptive" else float(evaluate(name, value, hparams, 0))
        for name, value in settings.items()
    }


def _is_name(setting: Setting) -> bool:
    return isinstance(setting, str) and setting != "adaptive"

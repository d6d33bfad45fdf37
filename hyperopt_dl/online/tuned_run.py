"""A run of a training whose hyperparameters tune themselves, by the steps of forward mode.

A step that is a pure function can be traced once and replayed with its tangents
(``hypergrad.pushes``), which is cheaper than to record a graph in a loop that somebody else makes.
What moves, and when the run goes back, is decided as by `ForwardTuner` in such a loop.

Letters: s the state, t its step; Z = ds/du, the tangents in the coordinates u; h hypergradient.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from hyperopt_dl.errors import TrainingError
from hyperopt_dl.hypergrad.forward import check_room, tangents_of
from hyperopt_dl.hypergrad.pushes.look import look_of
from hyperopt_dl.online.course import Course, check_constant, check_every, check_numbers
from hyperopt_dl.online.history import Move, figure, packed, unpacked
from hyperopt_dl.online.products import says_nothing, vanishes
from hyperopt_dl.online.start import constant, coordinates_from
from hyperopt_dl.optimizers.groups import everywhere
from hyperopt_dl.optimizers.options import names_in
from hyperopt_dl.optimizers.resolve import evaluate
from hyperopt_dl.space import Float
from hyperopt_dl.state_entries import unpack
from hyperopt_dl.supervised import Supervised
from hyperopt_dl.training import HParams, State, Training

_NOTHING: Mapping[str, Any] = {"values": {}, "tangents": {}}
"""What a state has that is of no run."""


class TunedRun:
    """One run of a training, from ``ForwardTuner.from_training``, whose hyperparameters move.

    ``step()`` makes a step of the training, and after each ``every`` of them moves the tuned
    hyperparameters against the derivative of the validation loss, as a `ForwardTuner` does in a
    loop: in the coordinates of their dimensions, log λ where ``log=True``. Losses that a tuner
    holds for lost put the run back to where the last move was made, with the tuned learning rates
    divided by 4: it goes through the same steps again. With ``hyper_lr=0`` the run is that of
    ``rollout``.

    Weights: ``training.module(run.state, run.values)`` is the network as it is now.

    Args:
        training: A ``Supervised``, whose steps are traced, or any other ``Training``: that has no
            learning rates to lower, and a run of it that diverges is an error.
        hparams: Where its hyperparameters start: numbers and choices.
        tune: The dimensions of those that move, by the names that they have in the training.
        hyper_lr: As for `ForwardTuner`.
        discount: As for `ForwardTuner`, a number.
        every: Steps between two moves.
        batch_size: Validation examples that a move looks at, shuffled by the seed; ``None`` for
            all.
        clip: As for `ForwardTuner`.
        trust: As for `ForwardTuner`.
        explosion: As for `ForwardTuner`.
        compile: As for ``hypergrad.Forward``.
        seed: Seed of the run.
        device: Device of the run.

    Raises:
        TrainingError: An argument is wrong, or the tangents do not fit into memory.
        SpaceError: A dimension cannot be tuned, or does not hold where it starts.

    Attributes:
        state: The state of the training.
        t: The step that comes next: fewer than ``steps`` are behind it where the run has gone back.
        steps: Calls of ``step`` so far.
        history: The moves so far.

    Example:
        >>> import torch, hyperopt_dl as hd
        >>> x = torch.linspace(-1, 1, 40)[:, None]
        >>> training = hd.Supervised(
        ...     model=torch.nn.Linear(1, 1), loss=torch.nn.functional.mse_loss,
        ...     optimizer=hd.optimizers.SGD(lr="lr", momentum=0.9),
        ...     train=(x, 2 * x), validation=(x, 2 * x), steps=20, batch_size=10,
        ... )
        >>> tune = {"lr": hd.Float(1e-5, 10, log=True)}
        >>> run = hd.online.ForwardTuner.from_training(training, {"lr": 1e-3}, tune, every=5)
        >>> for _ in range(training.steps):
        ...     run.step()
        >>> len(run.history), run.values["lr"] > 1e-3
        (4, True)
    """

    def __init__(
        self,
        training: Training,
        hparams: HParams,
        tune: Mapping[str, Float],
        *,
        hyper_lr: float,
        discount: float,
        every: int,
        batch_size: int | None,
        clip: float,
        trust: float,
        explosion: float,
        compile: bool,  # noqa: A002
        seed: int,
        device: torch.device | str,
    ) -> None:
        check_numbers(hyper_lr, discount, clip, trust, explosion)
        check_every(every)
        check_constant(discount)
        self._coordinates = coordinates_from(training, hparams, tune)
        self._training, self._every, self._hyper_lr = training, every, hyper_lr
        self._held = {n: v for n, v in hparams.items() if n not in tune}
        self._tuned = {c.name: float(hparams[c.name]) for c in self._coordinates}
        self._course = Course(
            len(tune), hyper_lr=hyper_lr, clip=clip, trust=trust, explosion=explosion
        )
        given = {**self._tuned, **{n: constant(n, value) for n, value in self._held.items()}}
        self._push = tangents_of(
            training,
            given,
            seed=seed,
            device=torch.device(device),
            discount=discount,
            compile=compile,
        )
        check_room(self._push)
        self._look = look_of(self._push, batch_size=batch_size, compile=compile)
        self._push.move(self._tuned, self._slopes())
        self.state, self._Z = self._push.initial()
        self.t = self.steps = 0
        self._start = self._good = (self.state, self.t)
        self.history: list[Move] = []

    @property
    def values(self) -> dict[str, Any]:
        """All hyperparameters, as the next step takes them."""
        return {**self._held, **self._tuned}

    def step(self) -> None:
        """Make a step of the training, and after each ``every`` of them move the hyperparameters.

        Raises:
            TrainingError: The run has diverged, and no learning rate can go down; or nothing
                depends on a hyperparameter that is tuned.
        """
        pushed = self._push.push(self.state, self._Z, self.t)
        self.steps += 1
        first, loss = not self._course.begun, pushed.loss
        value = None if loss is None else float(loss)
        void = value is not None and not math.isfinite(value) and self._says_nothing(pushed.g)
        if value is not None and not void and self._course.explodes(value):
            self._fall_back(f"a training loss of {value:g}")
        else:
            if first and not void and pushed.g is not None:
                self._course.begin([pushed.g])
            self.state, self._Z = pushed.state, pushed.Z
            self.t += 1
            self._course.steps += 1
        if self.steps % self._every == 0:
            self._see()

    def get_last_lr(self) -> list[float]:
        """Return the learning rate that the next step takes, and those of groups with their own.

        Raises:
            TrainingError: The training is no ``Supervised``, which has an optimizer.
        """
        if not isinstance(self._training, Supervised):
            raise TrainingError(
                f"get_last_lr() needs a Supervised, whose optimizer has learning rates, got a "
                f"{type(self._training).__name__}. Look at values."
            )
        rates = _rates(self._training)
        return [float(evaluate("lr", rate, self.values, self.t)) for rate in rates]

    def plot(self) -> Any:
        """Return a plotly figure of the hyperparameters over the steps."""
        return figure(self.history, log={c.name: c.dimension.log for c in self._coordinates})

    def state_dict(self) -> dict[str, Any]:
        """Return what a run needs to go on elsewhere: the states, with tangents, and the moves."""
        return {
            "values": dict(self._tuned),
            "steps": self.steps,
            "t": self.t,
            "state": self.state,
            "tangents": self._Z,
            "course": self._course.state_dict(),
            "kept": [self._start, self._good],
            "history": packed(self.history),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up a run where ``state_dict`` left it.

        Raises:
            TrainingError: The state is of a run with other hyperparameters or another network.
        """
        known, found = (
            ([*part["values"]], {n: tuple(z.shape) for n, z in part["tangents"].items()})
            for part in (self.state_dict(), state if "values" in state else _NOTHING)
        )
        if known != found:
            raise TrainingError(
                f"A state must be of a run that tunes {known[0]} with tangents of shapes "
                f"{known[1]}, got {found[0]} and {found[1]}. Build training and run as they were."
            )
        self.steps, self.t = state["steps"], state["t"]
        self._course.load_state_dict(state["course"])
        self.history = unpacked(state["history"])
        self._set(state["values"])
        self._Z = {n: z.to(self._Z[n].device) for n, z in state["tangents"].items()}
        self._start, self._good = ((self._placed(s), t) for s, t in state["kept"])
        self.state = self._placed(state["state"])

    def _says_nothing(self, g: Tensor | None) -> bool:
        """Return whether the gradient of step ``t`` is zero, as where all targets are ignored."""
        if g is not None:
            return not bool(g.count_nonzero())
        training, state, hparams = self._training, self.state, self.values
        assert isinstance(training, Supervised)  # whose steps have a loss
        network = training.network(state, hparams)
        with (
            torch.enable_grad(),
            training.draws(state, self.t),
            network.holding(unpack(state), training=True) as held,
        ):
            loss = training.inner_loss(network, training.batch(state, self.t), hparams)
            return says_nothing(loss, held.params)

    def _see(self) -> None:
        """Look at the validation data, and move or go back."""
        seen = self._look(self.state, self._Z, self.steps - 1)
        if not self.history:
            self._check_reached()
        value, h = float(seen.value), seen.h.tolist()
        if not math.isfinite(value) and vanishes(seen.e):
            return
        if self._course.lost(value, h, seen.e):
            self._fall_back(f"a validation loss of {value:g} with the hypergradient {h}", value)
        elif self._course.steps:
            if self._hyper_lr:
                self._move(self._course.move(h))
                self._good = (self.state, self.t)
            self._record(h, value)

    def _move(self, by: Sequence[float]) -> None:
        pairs = zip(self._coordinates, by, strict=True)
        self._set({c.name: c.moved(self._tuned[c.name], step) for c, step in pairs})

    def _set(self, values: Mapping[str, float]) -> None:
        self._tuned = dict(values)
        self._push.move(self._tuned, self._slopes())

    def _slopes(self) -> list[float]:
        return [c.slope(self._tuned[c.name]) for c in self._coordinates]

    def _fall_back(self, why: str, loss: float | None = None) -> None:
        """Go back to the state after the last move, with lower learning rates."""
        rates = names_in(_rates(self._training))
        before = self._tuned
        self._move([-c.back_off if c.name in rates else 0.0 for c in self._coordinates])
        if self._tuned == before:
            raise TrainingError(
                f"The run diverged ({why}), and no tuned learning rate can go down further, got "
                f"{before}. Tune the learning rate, lower its bound, or start lower."
            )
        if self._course.fell:  # twice in a row: the state that was held for good is not
            self._good = self._start
        self._course.fall()
        self.state, self.t = self._good
        self._Z = {name: torch.zeros_like(z) for name, z in self._Z.items()}
        self._record(None, loss)

    def _record(self, h: Sequence[float] | None, loss: float | None) -> None:
        gradient = {} if h is None else dict(zip(self._tuned, h, strict=True))
        move = Move(self.steps, gradient, dict(self._tuned), restored=h is None, loss=loss)
        self.history.append(move)

    def _check_reached(self) -> None:
        known = self._push.reached | self._look.reached
        if lost := sorted(self._tuned.keys() - known - getattr(self._training, "hparams", set())):
            raise TrainingError(
                f"tune must name hyperparameters that a derivative reaches, but nothing uses "
                f"{lost}, or only the structure of the model. Name them in the optimizer or the "
                f"loss of the training, or leave them out of tune."
            )

    def _placed(self, state: Mapping[str, Tensor]) -> State:
        return {name: value.to(self.state[name].device) for name, value in state.items()}


def _rates(training: Training) -> list[Any]:
    """Return what the learning rate is set to, by the optimizer and by its groups, if any."""
    if not isinstance(training, Supervised):
        return []
    options = training.optimizer.options()
    return everywhere("lr", options, training.optimizer.groups) if "lr" in options else []

"""The tangents of a state, carried along a run: any step as a whole, or split at the gradient.

Letters: s[t] the state before step t; Z[t] = ds[t]/dλ, a row for each of the m coordinates of λ;
A, B the derivatives of a step in the state and in λ, ``Z[t + 1] = A[t] Z[t] + B[t]`` (Franceschi,
Donini, Frasconi, Pontil 2017, section 3.3); E the outer loss. Of a ``Supervised``: x the p
parameters, g the gradient of the training loss, H its Hessian.
"""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from hyperopt_dl.hypergrad.closed_forms.rule_tangents import push_in_turns
from hyperopt_dl.hypergrad.closed_forms.tangents import Seeds, Step, Vectors
from hyperopt_dl.hypergrad.pushes.directions import Directions
from hyperopt_dl.hypergrad.pushes.fused_push import RULES, FusedPush, Made
from hyperopt_dl.hypergrad.steps.run_options import Options, RunOptions
from hyperopt_dl.hypergrad.steps.step_loss import StepLoss
from hyperopt_dl.hypergrad.steps.whole_step import WholeStep
from hyperopt_dl.hypergrad.traces.pushforward import Pushforward
from hyperopt_dl.hypergrad.traces.row_pulls import MOST
from hyperopt_dl.optimizers.turns import turns_of, update_in_turns
from hyperopt_dl.state_entries import SKIPPED, SLOT, slots_of
from hyperopt_dl.supervised import Supervised
from hyperopt_dl.training import State, Training

_OTHER_NUMBERS = (
    "The compiled step does not give the numbers of the plain one, and is not used: this run of "
    "Forward(compile=True) compiles the graphs of the loss alone, which is right but slower."
)

LAMBDA = "λ/"
"""What tells a hyperparameter from an entry of the state that may have the same name."""

Tangents: TypeAlias = dict[str, Tensor]
"""Z by the names of a state's floating (or complex) entries, ``m`` in front of an entry's shape.

What is missing is zero.
"""


class Pushed(NamedTuple):
    """A state after a step, with its tangents."""

    state: State
    Z: Tangents
    loss: Tensor | None = None
    """The training loss that the step began at, where that is known."""
    g: Tensor | None = None
    """Its gradient, where that is at hand."""


class WholePush:
    """The steps of one run of a training with their tangents, each step by autograd.

    Args:
        training: The dynamical system.
        hparams: Its hyperparameters, of which those that are floating are differentiated.
        seed: Seed of the run.
        device: Device of the run.
        discount: What the tangents are multiplied with before each step: 1 in an exact derivative.

    Attributes:
        run: The run that the tangents go along with.
        directions: The coordinates.
        reached: The hyperparameters that something has been seen to depend on.
    """

    def __init__(
        self,
        training: Training,
        hparams: Mapping[str, Any],
        *,
        seed: int,
        device: torch.device,
        discount: float = 1.0,
    ) -> None:
        self.run = WholeStep(training, hparams, seed=seed, device=device)
        self.directions = Directions(self.run.gathered.leaves)
        self.discount = discount
        self.reached: set[str] = set()

    def initial(self) -> tuple[State, Tangents]:
        """Return s[0] and Z[0], which is zero but where the initial state depends on λ."""
        recorded = self.run.recorded_initial()
        state = {name: value.detach() for name, value in recorded.items()}
        return state, self._pushed(Pushforward(recorded, self._leaves()), {})

    def push(self, state: State, Z: Tangents, t: int) -> Pushed:
        """Return s[t + 1] and Z[t + 1]."""
        after, (inputs, outputs) = self.run.record(state, t)
        step = Pushforward(outputs, {**inputs, **self._leaves()})
        return Pushed(after, self._pushed(step, self._damped(Z)))

    def move(self, values: Mapping[str, float], slopes: Sequence[float]) -> None:
        """Set hyperparameters that are numbers, and dλ/du of all coordinates, during a run."""
        with torch.no_grad():
            for name, value in values.items():
                self.run.gathered.leaves[name].fill_(value)
        self.directions.slopes = slopes

    def finish(self, state: State, Z: Tangents) -> Tensor:
        """Return E(s[T]), and gather ``dE/dλ = ∂E/∂s Z[T] + ∂E/∂λ``."""
        value, adjoint = self.run.pull_loss(state)
        total = torch.zeros(self.directions.m, dtype=torch.double)
        for name, bar in adjoint.items():
            if name in Z:
                total += inner(Z[name], bar).to(total.device)
        for name, derivative in self.directions.split(total).items():
            if name in self.reached:
                self.run.gathered.add(name, derivative.to(self.run.gathered.leaves[name].device))
        return value

    def _damped(self, Z: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        if self.discount == 1:
            return Z
        return {name: self.discount * z for name, z in Z.items()}

    def _leaves(self) -> Mapping[str, Tensor]:
        return {LAMBDA + name: leaf for name, leaf in self.run.gathered.leaves.items()}

    def _pushed(self, push: Pushforward, Z: Mapping[str, Tensor]) -> Tangents:
        """Return the tangents of the outputs, along all coordinates."""
        self.reached |= {n.removeprefix(LAMBDA) for n in push.reached & self._leaves().keys()}
        rows = []
        for k in range(self.directions.m):
            along = {LAMBDA + name: part for name, part in self.directions[k].items()}
            rows.append(push({**{name: z[k] for name, z in Z.items()}, **along}))
        return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


class SplitPush(WholePush):
    """The steps of one run of a ``Supervised`` with their tangents.

    The tangents of g are Hessian products on one linearisation of the loss; those of the rule are
    closed forms. Args as ``WholePush``, and ``compile`` as for ``Forward``: all of a step is one
    graph where the rule and the loss allow for it, and the graphs of the loss are compiled where
    they do not.

    Attributes:
        training: The training.
        symmetric: Whether the derivative of the gradient is a symmetric matrix: else the tangents
            are wrong, and those of a ``WholePush`` right.
        moving: The entries of the state that have a tangent beside the parameters and slots.
    """

    def __init__(
        self,
        training: Supervised,
        hparams: Mapping[str, Any],
        *,
        seed: int,
        device: torch.device,
        discount: float = 1.0,
        compile: bool = False,  # noqa: A002
    ) -> None:
        super().__init__(training, hparams, seed=seed, device=device, discount=discount)
        self.training = training
        state, gathered = self.run.initial(), self.run.gathered
        self._loss = StepLoss(training, gathered, state, compile=compile, forward=True)
        self.symmetric, self.moving = self._loss.symmetric, self._loss.moving
        self._inside = self.directions.matrix(self._loss.used, state["params"])
        self.reached.update(self._loss.used)
        layout = self._loss.network.layout
        self._options = RunOptions(training.optimizer, layout, state["params"], gathered)
        self._in_options: Seeds | None = None
        self._seeds: Seeds | None = None
        self._fused = self._fusing(state) if compile else None
        self._trusted = False  # the first graph that is replayed is held against the step itself

    def initial(self) -> tuple[State, Tangents]:
        """Return s[0] and Z[0], of the parameters and of every slot."""
        state, Z = super().initial()
        entries = ("params", *(SLOT + name for name in slots_of(state)), *self.moving)
        zeros = {n: state[n].new_zeros(self.directions.m, *state[n].shape) for n in entries}
        return state, {name: Z.get(name, zero) for name, zero in zeros.items()}

    def move(self, values: Mapping[str, float], slopes: Sequence[float]) -> None:
        """Set hyperparameters that are numbers, and dλ/du of all coordinates, during a run."""
        super().move(values, slopes)
        self._options.refresh()
        self._seeds = None
        if self._loss.used:
            self._inside = self.directions.matrix(self._loss.used, self._inside)
        if self._fused is not None:
            options = self._options.at(0)
            self._fused.turn_to(options.plain, self._seeds_of(options), self._inside)

    def push(self, state: State, Z: Tangents, t: int) -> Pushed:
        """Return s[t + 1] and Z[t + 1]."""
        slots = slots_of(state)
        dot = {"x": Z["params"], **{name: Z[SLOT + name] for name in slots}}
        dot |= {name: Z[name] for name in self.moving}
        made, g = None, None
        if self._fused is not None and t > 0:
            made = self._fused(state, dot, slots, t)
        if made is None:
            made, g = self._made(state, dot, slots, t)
        elif not self._trusted:
            expected, g = self._made(state, dot, slots, t)
            self._trusted = made.agrees(expected)
            if not self._trusted:
                warnings.warn(_OTHER_NUMBERS, UserWarning, stacklevel=2)
                self._fused, made = None, expected
        after = {
            **state,
            SKIPPED: state[SKIPPED] if made.skipped is None else made.skipped,
            "params": made.x,
            **(self._loss.named(state, made.others) if made.others else {}),
            **{SLOT + name: value for name, value in made.slots.items()},
        }
        Z = {"params": made.dot["x"], **{SLOT + n: made.dot[n] for n in slots}}
        Z |= {name: made.dot[name] for name in self.moving}
        return Pushed(after, Z, made.loss, g)

    def _fusing(self, state: State) -> FusedPush | None:
        """Return whole steps as graphs, where the steps after the first one are all alike."""
        options, rule = self._options.at(0), self.training.optimizer
        several = self._options.scheduled or self.directions.m > MOST
        if several or self.moving or type(rule) not in RULES or self.discount == 0:
            return None
        if not self._loss.is_pure(state):
            return None
        x, slots = state["params"], slots_of(state)
        g_dot, seeds = x.new_zeros(self.directions.m, len(x)), self._seeds_of(options)
        step = Step(self.directions.m, x, x, g_dot, slots, 1, options.plain, seeds)
        return FusedPush(self._loss, rule, self._inside, step, self.discount)

    def _made(self, state: State, dot: Vectors, slots: Vectors, t: int) -> tuple[Made, Tensor]:
        """Make a step: the loss by its graphs, the rule and its tangents by themselves."""
        x, rule, dot = state["params"], self.training.optimizer, dict(self._damped(dot))
        if self.discount == 0 and not self._loss.used and not self.moving:
            g, (loss, *others) = self._loss.call("gradient", state, t)
            g_dot = torch.zeros_like(dot["x"])
        else:
            g, (loss, *others), saved = self._loss.call("linearize", state, t)
            pulled = saved.pull_rows(self._along(dot))
            g_dot = pulled[:, : len(x)]
            dot |= self._moved(pulled, state)
        g, options = g[: len(x)], self._options.at(t)
        seeds = self._seeds_of(options)
        step = Step(self.directions.m, x, g, g_dot, slots, t + 1, options.plain, seeds)
        own = {name: dot[name] for name in ("x", *slots)}
        missed, skipped = self._loss.missed, state[SKIPPED]
        skips = skipped + torch.tensor(missed).long() if any(missed) else skipped
        turns = turns_of(skipped, skips, t, self._loss.network.sizes, x.device)
        with torch.no_grad():
            dot_after = push_in_turns(rule, turns, own, step)
            x_after, after = update_in_turns(rule, turns, x, g, slots, options.plain, t)
        dot_after |= {name: dot[name] for name in self.moving}
        return Made(x_after, after, dot_after, loss, tuple(others), skips), g

    def _along(self, dot: Vectors) -> Tensor:
        """Return the tangents of x̃ by rows: of x, of λ, of what moves; none of s."""
        if not self._loss.sizes:
            return dot["x"]
        moving = [vectors(dot[name]) for name in self.moving]
        rows = torch.cat([dot["x"], self._inside, *moving], 1)
        of_s = sum(self._loss.sizes) + len(dot["x"][0]) - rows.shape[1]
        return torch.cat([rows, rows.new_zeros(len(rows), of_s)], 1) if of_s else rows

    def _moved(self, pulled: Tensor, state: State) -> Vectors:
        """Return the tangents of what moves beside the parameters, the last part of a product."""
        if not self.moving:
            return {}
        sizes = self._loss.sizes[len(self._loss.used) :][: len(self.moving)]
        parts = torch.split(pulled[:, pulled.shape[1] - sum(sizes) :], sizes, 1)
        named = zip(self.moving, parts, strict=True)
        return {name: _shaped(part, state[name]) for name, part in named}

    def _seeds_of(self, options: Options) -> Seeds:
        """Return how the coordinates move the options.

        Without a schedule, an option is a hyperparameter or has some among its entries: how it
        moves with them is found once, whatever they are.
        """
        if self._seeds is not None and not self._options.scheduled:
            return self._seeds
        if self._in_options is None or self._options.scheduled:
            self._in_options, reached = self.directions.seeds(options)
            self.reached |= reached
        self._seeds = self.directions.along(self._in_options)
        return self._seeds


def vectors(tangents: Tensor) -> Tensor:
    """Return tangents as vectors, of complex entries the pairs of their parts."""
    real = torch.view_as_real(tangents) if tangents.is_complex() else tangents
    return real.reshape(len(tangents), -1)


def _shaped(rows: Tensor, like: Tensor) -> Tensor:
    """Invert ``_rows`` for the tangents of a tensor."""
    if like.is_complex():
        return torch.view_as_complex(rows.reshape(len(rows), *like.shape, 2).contiguous())
    return rows.reshape(len(rows), *like.shape).to(like.dtype)


def inner(rows: Tensor, bar: Tensor) -> Tensor:
    """Return the inner products ``[m]`` of tangents with an adjoint, added up in double."""
    wide = torch.complex128 if bar.is_complex() else torch.double
    product = rows.to(wide).reshape(len(rows), -1).conj() @ bar.to(wide).reshape(-1)
    return product.real

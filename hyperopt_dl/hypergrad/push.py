"""The tangents of a state, carried along a run: any step as a whole, or split at the gradient.

Letters: s[t] the state before step t; Z[t] = ds[t]/dλ, a row for each of the m coordinates of λ;
A, B the derivatives of a step in the state and in λ, ``Z[t + 1] = A[t] Z[t] + B[t]`` (Franceschi,
Donini, Frasconi, Pontil 2017, section 3.3); E the outer loss. Of a ``Supervised``: x the p
parameters, g the gradient of the training loss, H its Hessian.
"""

import warnings
from collections.abc import Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor

from hyperopt_dl.hypergrad.directions import Directions
from hyperopt_dl.hypergrad.fused_push import MOST, RULES, FusedPush, Made
from hyperopt_dl.hypergrad.pushforward import Pushforward
from hyperopt_dl.hypergrad.rule_tangents import push_rule
from hyperopt_dl.hypergrad.run_options import Options, RunOptions
from hyperopt_dl.hypergrad.step_loss import StepLoss
from hyperopt_dl.hypergrad.tangents import Seeds, Step, Vectors
from hyperopt_dl.hypergrad.whole_step import WholeStep
from hyperopt_dl.supervised import BUFFER, SLOT, Supervised, slots_of, unpack
from hyperopt_dl.training import State, Training

_OTHER_NUMBERS = (
    "The compiled step does not give the numbers of the plain one, and is not used: this run of "
    "Forward(compile=True) compiles the graphs of the loss alone, which is right but slower."
)

Tangents: TypeAlias = dict[str, Tensor]
"""Z by the names of a state's floating (or complex) entries, ``m`` in front of an entry's shape.

What is missing is zero.
"""


class WholePush:
    """The steps of one run of a training with their tangents, each step by autograd.

    Args:
        training: The dynamical system.
        hparams: Its hyperparameters, of which those that are floating are differentiated.
        seed: Seed of the run.
        device: Device of the run.

    Attributes:
        run: The run that the tangents go along with.
        directions: The coordinates.
    """

    def __init__(
        self, training: Training, hparams: Mapping[str, Any], *, seed: int, device: torch.device
    ) -> None:
        self.run = WholeStep(training, hparams, seed=seed, device=device)
        self.directions = Directions(self.run.gathered.leaves)
        self._reached: set[str] = set()

    def initial(self) -> tuple[State, Tangents]:
        """Return s[0] and Z[0], which is zero but where the initial state depends on λ."""
        recorded = self.run.recorded_initial()
        state = {name: value.detach() for name, value in recorded.items()}
        return state, self._pushed(Pushforward(recorded, self.run.gathered.leaves), {})

    def push(self, state: State, Z: Tangents, t: int) -> tuple[State, Tangents]:
        """Return s[t + 1] and Z[t + 1]."""
        after, (inputs, outputs) = self.run.record(state, t)
        return after, self._pushed(Pushforward(outputs, {**inputs, **self.run.gathered.leaves}), Z)

    def finish(self, state: State, Z: Tangents) -> Tensor:
        """Return E(s[T]), and gather ``dE/dλ = ∂E/∂s Z[T] + ∂E/∂λ``."""
        value, adjoint = self.run.pull_loss(state)
        total = torch.zeros(self.directions.m, dtype=torch.double)
        for name, bar in adjoint.items():
            if name in Z:
                total += _inner(Z[name], bar).to(total.device)
        for name, derivative in self.directions.split(total).items():
            if name in self._reached:
                self.run.gathered.add(name, derivative.to(self.run.gathered.leaves[name].device))
        return value

    def _pushed(self, push: Pushforward, Z: Tangents) -> Tangents:
        """Return the tangents of the outputs, along all coordinates."""
        self._reached |= push.reached & self.run.gathered.leaves.keys()
        rows = [
            push({**{name: z[k] for name, z in Z.items()}, **self.directions[k]})
            for k in range(self.directions.m)
        ]
        return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


class SplitPush(WholePush):
    """The steps of one run of a ``Supervised`` with their tangents.

    The tangents of g are Hessian products on one linearisation of the loss; those of the rule are
    closed forms. Args as ``WholePush``, and ``compile`` as for ``Forward``: all of a step is one
    graph where the rule and the loss allow for it, and the graphs of the loss are compiled where
    they do not.
    """

    def __init__(
        self,
        training: Supervised,
        hparams: Mapping[str, Any],
        *,
        seed: int,
        device: torch.device,
        compile: bool = False,  # noqa: A002
    ) -> None:
        super().__init__(training, hparams, seed=seed, device=device)
        self._training = training
        state, gathered = self.run.initial(), self.run.gathered
        self._loss = StepLoss(training, gathered, state, compile=compile, shifted=True)
        self._inside = self.directions.matrix(self._loss.used, state["params"])
        self._reached.update(self._loss.used)
        layout = self._loss.network.layout
        self._options = RunOptions(training.optimizer, layout, state["params"], gathered)
        self._seeds: tuple[Options | None, Seeds] = (None, {})
        self._fused = self._fusing(state) if compile else None
        self._trusted = False  # the first graph that is replayed is held against the step itself

    def initial(self) -> tuple[State, Tangents]:
        """Return s[0] and Z[0], of the parameters and of every slot."""
        state, Z = super().initial()
        moving = {"params": state["params"], **{SLOT + n: v for n, v in slots_of(state).items()}}
        zeros = {n: v.new_zeros(self.directions.m, len(v)) for n, v in moving.items()}
        return state, {name: Z.get(name, zero) for name, zero in zeros.items()}

    def push(self, state: State, Z: Tangents, t: int) -> tuple[State, Tangents]:
        """Return s[t + 1] and Z[t + 1]."""
        slots = slots_of(state)
        dot = {"x": Z["params"], **{name: Z[SLOT + name] for name in slots}}
        made = None
        if self._fused is not None and t > 0:
            made = self._fused(state, dot, slots, t)
        if made is None:
            made = self._made(state, dot, slots, t)
        elif not self._trusted:
            expected = self._made(state, dot, slots, t)
            self._trusted = made.agrees(expected)
            if not self._trusted:
                warnings.warn(_OTHER_NUMBERS, UserWarning, stacklevel=2)
                self._fused, made = None, expected
        named = dict(zip(unpack(state).buffers, made.buffers, strict=True)) if made.buffers else {}
        after = {
            **state,
            "params": made.x,
            **{BUFFER + name: value for name, value in named.items()},
            **{SLOT + name: value for name, value in made.slots.items()},
        }
        return after, {"params": made.dot["x"], **{SLOT + n: made.dot[n] for n in slots}}

    def _fusing(self, state: State) -> FusedPush | None:
        """Return whole steps as graphs, where the steps after the first one are all alike."""
        options, rule = self._options.at(0), self._training.optimizer
        scheduled = options is not self._options.at(1)
        if scheduled or type(rule) not in RULES or self.directions.m > MOST:
            return None
        if not self._loss.is_pure(state):
            return None
        x, slots = state["params"], slots_of(state)
        g_dot, seeds = x.new_zeros(self.directions.m, len(x)), self._seeds_of(options)
        step = Step(self.directions.m, x, x, g_dot, slots, 1, options.plain, seeds)
        return FusedPush(self._loss, rule, self._inside, step, state)

    def _made(self, state: State, dot: Vectors, slots: Vectors, t: int) -> Made:
        """Make a step: the loss by its graphs, the rule and its tangents by themselves."""
        g, buffers, saved = self._loss.call("linearize", state, t)
        x, rule = state["params"], self._training.optimizer
        g = g[: len(x)]
        both = torch.cat([dot["x"], self._inside], 1) if self._loss.used else dot["x"]
        g_dot = torch.stack([saved.pull(row)[0][: len(x)] for row in both])
        options = self._options.at(t)
        seeds = self._seeds_of(options)
        step = Step(self.directions.m, x, g, g_dot, slots, t + 1, options.plain, seeds)
        with torch.no_grad():
            dot_after = push_rule(rule, dot, step)
            x_after, after = rule.update(x, g, slots, options.plain, t)
        return Made(x_after, after, dot_after, buffers)

    def _seeds_of(self, options: Options) -> Seeds:
        """Return how the coordinates move the options; once for a run without a schedule."""
        if self._seeds[0] is not options:
            seeds, reached = self.directions.seeds(options)
            self._reached |= reached
            self._seeds = (options, seeds)
        return self._seeds[1]


def _inner(rows: Tensor, bar: Tensor) -> Tensor:
    """Return the inner products ``[m]`` of tangents with an adjoint, added up in double."""
    wide = torch.complex128 if bar.is_complex() else torch.double
    product = rows.to(wide).reshape(len(rows), -1).conj() @ bar.to(wide).reshape(-1)
    return product.real

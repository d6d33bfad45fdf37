"""The loss of a ``Supervised`` along a run, and the choice of its derivatives.

The loss of step t is a function of the parameters and of everything else that it reads: frozen
parameters, buffers, the batch, hyperparameters. Its derivatives are traced once and replayed
(``hypergrad.traces.traced``), or, in a run too short for a trace, taken by autograd.

Reverse mode differentiates the loss in x, forward mode in x̃ (``module_loss``): so it also sees how
g moves with hyperparameters inside the loss and with buffers, and how buffers move.

What a run does is looked at before it begins: what the loss reads, what moves beside the
parameters, and whether the derivatives are right. What is found is remembered for all runs of the
structure, and so is what was wrong.

Letters: x the p parameters; λ the hyperparameters that the loss reads; b the buffers that move; g
the gradient; t the step.
"""

from collections.abc import Hashable, Sequence
from typing import Any

import torch
from torch import Tensor

from hyperopt_dl.batches import Batch
from hyperopt_dl.errors import TrainingError
from hyperopt_dl.hypergrad.steps.held_out import HeldOut
from hyperopt_dl.hypergrad.steps.leaves import Gathered
from hyperopt_dl.hypergrad.steps.module_loss import ModuleLoss
from hyperopt_dl.hypergrad.steps.outer_check import check_outer_loss
from hyperopt_dl.hypergrad.steps.reads_and_moves import reads_and_moves
from hyperopt_dl.hypergrad.traces.agreement import Example, disagreement, must_be_derivative
from hyperopt_dl.hypergrad.traces.eager import Eager
from hyperopt_dl.hypergrad.traces.graphs import Graphs
from hyperopt_dl.hypergrad.traces.traced import Traced, checked, choose
from hyperopt_dl.nested import only_tensors, tensors_in
from hyperopt_dl.seeds import derive
from hyperopt_dl.state_entries import entry_of, packed, unpack
from hyperopt_dl.supervised import Supervised
from hyperopt_dl.training import State
from hyperopt_dl.weights import Weights

PROBES = 3
"""How many inputs, different in everything, a trace is compared on before it is believed."""
PROBED_EVERY = 2000
"""Of so many steps one, at random, is looked at again, which takes about 20 times as long."""
KEPT_TRACES = 16
"""Sets of structural hyperparameters whose traces are kept for a network."""
TRACED_FROM = 50
"""Steps from which on a run is worth a trace, which all trials of a structure share."""
TRACED_ALONE_FROM = 150
"""The same where each trial has a trace of its own, since the factory reads a number.

A trace and its probes took as long as it saves in 90 to 130 steps of an MLP, a CNN, a transformer
and an LSTM, and in 400 to 500 of two networks with large activations.
"""


class StepLoss:
    """The training loss of one run, or its validation loss, and the derivatives.

    Args:
        training: The training, or its validation data.
        gathered: Its hyperparameters.
        state: The state before step 0.
        compile: Whether the graphs are compiled, however short the run.
        forward: Whether the loss is for forward mode: a function of x̃, whose value comes with its
            gradient, before the others.
        moves_by: The frozen parameters and buffers that move, where it is the validation loss.

    Raises:
        TrainingError: A step cannot be computed again, or not be differentiated rightly.

    Attributes:
        network: The structure that the state belongs to.
        used: The hyperparameters with a derivative that the loss itself depends on.
        moving: The frozen parameters and buffers that have a derivative, by their entries in the
            state.
        sizes: The numbers of entries that x̃ has beyond x: of δ, β and s.
        symmetric: Whether the derivative of the gradient is a symmetric matrix, as forward mode
            needs it.
        key: What two runs of a network share where the same traces serve both.
    """

    def __init__(
        self,
        training: Supervised | HeldOut,
        gathered: Gathered,
        state: State,
        *,
        compile: bool = False,  # noqa: A002
        forward: bool = False,
        moves_by: Sequence[str] = (),
    ) -> None:
        self._training = training
        self._gathered = gathered
        self.network = training.network(state, gathered.hparams)
        self._read_only = False
        self._batch: Batch | None = None
        self.used, moving = reads_and_moves(training, self.network, gathered, state)
        self._check_doors(state)
        self._moves_by = [name.partition("/")[2] for name in moves_by] or moving
        self._moving = moving
        weights = unpack(state)
        self.moving = tuple(entry_of(weights, name) for name in self._moves_by)
        given = {**weights.frozen, **weights.buffers}
        self._names = list(given)
        self.sizes = [
            *(gathered.leaves[name].numel() for name in self.used),
            *(_entries(given[name]) for name in self._moves_by),
            *(_entries(given[name]) for name in moving),
        ]
        self._forward = forward
        self._shifted = forward and bool(self.sizes)
        self.key = self._key_of(compile)
        self._plain = self._module_loss(state)
        self._loss = self._module_loss(state, forward=True) if forward else self._plain
        self.symmetric = self._check(state)
        self._derivatives = self._choose(state, compile)
        self._read_only = self._only_reads(state)

    def call(self, name: str, state: State, t: int, *more: Tensor) -> Any:
        """Call one of the derivatives at a step, on its batch and its stream of random numbers."""
        training, x = self._training, self.at(state["params"])
        if not training.in_memory:  # to look at an example may draw, and comes first
            with training.draws(state, t):
                return getattr(self._derivatives, name)(x, self.tensors(state, t), *more)
        tensors = self.tensors(state, t)
        derivatives = self._derivatives.at(x, tensors)
        if t and name != "product" and _is_probed(state, t):
            self._look_again(derivatives, state, t)
        if not derivatives.draws:
            return getattr(derivatives, name)(x, tensors, *more)
        with training.draws(state, t):
            return getattr(derivatives, name)(x, tensors, *more)

    def _look_again(self, derivatives: Eager | Graphs, state: State, t: int) -> None:
        """See in the middle of a run that derivatives are right, and traces those of the step.

        Raises:
            TrainingError: They are not.
        """
        if not isinstance(self._training, Supervised):
            return
        example = self._example(state, t, shifted=False, scaled=False)
        must_be_derivative(self._eager(self._plain, example), example, t)
        if isinstance(derivatives, Graphs):
            example = self._example(state, t, scaled=False)
            if reason := disagreement(self._eager(self._loss, example), derivatives, example, t):
                raise TrainingError(
                    f"A training step must do the same for all weights and data, but at step {t} "
                    f"{reason}. Likely source: a branch on a value that torch does not see. Run "
                    f"fewer than {TRACED_FROM} steps, or take the branch by torch.where."
                )

    @property
    def missed(self) -> Sequence[bool]:
        """For each parameter, whether the last step that was made did not reach it.

        The graphs of a trace reach what the step did that they were traced from.
        """
        return self._loss.missed

    def is_pure(self, state: State) -> bool:
        """Return whether a step is known to draw nothing, to write nowhere and to reach all."""
        if not self._read_only or any(self.missed):
            return False
        return not self._derivatives.at(self.at(state["params"]), self.tensors(state, 0)).draws

    def graphs(self, x: Tensor, tensors: tuple[Tensor, ...]) -> Graphs | None:
        """Return the graphs for parameters and ``tensors``; ``None`` where there is no trace."""
        found = self._derivatives.at(self.at(x), tensors)
        return found if isinstance(found, Graphs) else None

    def at(self, x: Tensor) -> Tensor:
        """Return what the loss is differentiated at: x, or x̃."""
        return torch.cat([x, x.new_zeros(sum(self.sizes))]) if self._shifted else x

    def tensors(self, state: State, t: int) -> tuple[Tensor, ...]:
        """Return everything but the parameters that the loss of step t may depend on."""
        weights = unpack(state)
        batch = self._training.batch(state, t, shared=self._read_only)
        self._plain.batch = self._loss.batch = batch
        return (
            *weights.frozen.values(),
            *weights.buffers.values(),
            *tensors_in(tuple(batch)),
            *self._gathered.leaves.values(),  # also those that have no derivative: they may be read
        )

    def named(self, state: State, others: Sequence[Tensor]) -> dict[str, Tensor]:
        """Return frozen parameters and buffers after a step as entries of a state."""
        weights = unpack(state)
        frozen = len(weights.frozen)
        return packed(
            Weights(
                weights.params,
                dict(zip(weights.frozen, others[:frozen], strict=True)),
                dict(zip(weights.buffers, others[frozen:], strict=True)),
            )
        )

    def _module_loss(self, state: State, *, forward: bool = False) -> ModuleLoss:
        return ModuleLoss(
            self._training,
            self.network,
            unpack(state),
            self._gathered.hparams,
            tuple(self._gathered.leaves),
            used=self.used,
            moves_by=self._moves_by,
            moving=self._moving,
            forward=forward,
        )

    def _wrt(self, example: Example) -> list[int]:
        """Return which tensors of an example have a derivative: λ, then b."""
        width, leaves = len(example[1]), tuple(self._gathered.leaves)
        return [
            *(width - len(leaves) + leaves.index(name) for name in self.used),
            *(self._names.index(name) for name in self._moves_by),
        ]

    def _check_doors(self, state: State) -> None:
        """Raise where the model itself depends on a hyperparameter that a derivative is wanted in.

        Looked at once for each set of hyperparameters; what does not matter once does not later.
        """
        if not isinstance(self._training, Supervised):
            return
        known, names = self.network.derived, tuple(self._gathered.leaves)
        if ("doors", names) not in known:
            known["doors", names] = self._training.modelled(state, self._gathered.hparams, names)
        if found := known["doors", names]:
            raise TrainingError(
                f"The model's factory sees hyperparameters as plain numbers, and no derivative "
                f"goes through it, but the model depends on {found}. Give what the loss or the "
                f"optimizer reads a name of its own; hold what the factory reads where it is with "
                f"Hypergradient(fixed={found}) or hypergrad.Constant, or tune it with a black-box "
                f"tuner."
            )

    def _check(self, state: State) -> bool:
        """See that the derivatives are right, once for all runs of a structure.

        Of the validation loss only the first derivative counts.
        """
        if not isinstance(self._training, Supervised):
            return True
        known, key = self._training.checked, (self.network.layout, *self._key_without_numbers())
        if key not in known:
            try:
                example = self._example(state, 0, shifted=False)
                known[key] = checked(self._eager(self._plain, example), example, 0)
                check_outer_loss(self._training, self.network, self._gathered, state, self.moving)
            except TrainingError as error:
                known[key] = error
        if isinstance(known[key], TrainingError):
            raise known[key]
        symmetric: bool = known[key]
        return symmetric

    def _choose(self, state: State, compiled: bool) -> Eager | Traced:
        """Return the derivatives of the loss; they are traced once for all runs of a structure."""
        example = self._example(state, 0)
        eager = self._eager(self._loss, example)
        if not self._traces(compiled):
            return eager
        known = self.network.derived
        if self.key in known:
            kinds = known[self.key]
            return eager if kinds is None else Traced(eager, compile=compiled, kinds=kinds)
        if len(known) >= KEPT_TRACES:
            known.clear()
        examples = [example, *(self._example(state, t) for t in range(1, PROBES))]
        kinds = {}
        found = choose(eager, examples, range(PROBES), compile=compiled, kinds=kinds)
        known[self.key] = kinds if isinstance(found, Traced) else None
        return found

    def _traces(self, compiled: bool) -> bool:
        """Return whether a trace can stand for the step, and pays."""
        assert self._batch is not None
        if self.network.scripted or self._training.beside.drawn:
            return False
        if not only_tensors(tuple(self._batch)):
            return False
        least = TRACED_ALONE_FROM if self._reads_a_number() else TRACED_FROM
        return compiled or self._training.steps >= least

    def _reads_a_number(self) -> bool:
        """Return whether the model depends on a number that each trial may have another one for."""
        hparams = self._gathered.hparams
        return any(isinstance(hparams.get(name), float) for name in self._training.looked_at())

    def _eager(self, loss: ModuleLoss, example: Example) -> Eager:
        wrt = [] if loss is not self._plain else self._wrt(example)
        return Eager(loss, wrt=wrt, recurrent=self.network.recurrent)

    def _key_of(self, compiled: bool) -> tuple[Hashable, ...]:
        """Return what two runs of a network must share to have the same traces."""
        leaves = tuple(self._gathered.leaves)
        structure = {n: _whole(v) for n, v in self._gathered.hparams.items() if n not in leaves}
        kind = type(self._training), self._forward
        moved = tuple(self._moves_by), tuple(self._moving)
        return kind, compiled, moved, self.used, leaves, repr(sorted(structure.items()))

    def _key_without_numbers(self) -> tuple[Hashable, ...]:
        """Return the key but for the numbers in it: none decides whether derivatives are right."""
        hparams, leaves = self._gathered.hparams, self._gathered.leaves
        structure = {n: v for n, v in hparams.items() if n not in leaves and type(v) is not float}
        plain = {name: _whole(value) for name, value in structure.items()}
        return *self.key[2:5], repr(sorted(plain.items()))

    def _only_reads(self, state: State) -> bool:
        """Return whether the step is known to leave the batch that it is given as it is."""
        if not self._training.in_memory:
            return False
        return not self._derivatives.at(self.at(state["params"]), self.tensors(state, 0)).writes

    def _example(
        self, state: State, t: int, *, shifted: bool = True, scaled: bool = True
    ) -> Example:
        """Return an input of the derivatives, ``scaled`` such that each t differs in everything."""
        scale = 1 + 0.03 * t if scaled else 1.0
        with self._training.draws(state, t):
            given = self.tensors(state, t)
        self._batch = self._loss.batch
        at = self.at(state["params"]) if shifted else state["params"]
        x, *tensors = (
            value.detach() * scale if value.is_floating_point() else value.clone()
            for value in (at, *given)
        )
        beside = 0 if shifted and self._forward else self._size_of_moving(state)
        generator = torch.Generator().manual_seed(derive(0, "probe", t))
        u = torch.randn(len(x) + beside, generator=generator, dtype=x.dtype).to(x.device)
        return x, tuple(tensors), u

    def _size_of_moving(self, state: State) -> int:
        weights = unpack(state)
        given = {**weights.frozen, **weights.buffers}
        return sum(_entries(given[name]) for name in self._moving)


def _is_probed(state: State, t: int) -> bool:
    """Return whether derivatives are looked at again at this step of a run."""
    return derive(int(state["seed"]), "look again", t) % PROBED_EVERY == 0


def _entries(tensor: Tensor) -> int:
    """Return the number of entries, of which a complex one counts two."""
    return tensor.numel() * (1 + tensor.is_complex())


def _whole(value: Any) -> Any:
    """Return what prints in full: of a long array or tensor, ``repr`` leaves entries out."""
    return (value.dtype, value.tolist()) if hasattr(value, "tolist") else value

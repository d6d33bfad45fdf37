"""The derivative of a whole step of any ``Training``, by autograd.

Letters: s the state, λ the hyperparameters, E the outer loss, α = dE/ds the adjoint of the state (a
row vector), ``s[t + 1] = Φ(s[t], λ, t)``, ``A = ∂Φ/∂s``, ``B = ∂Φ/∂λ`` (Franceschi et al. 2017).
"""

from collections.abc import Mapping, Set
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from hyperopt_dl.errors import TrainingError
from hyperopt_dl.hypergrad.steps.leaves import Gathered
from hyperopt_dl.hypergrad.traces.eager import explained
from hyperopt_dl.hypergrad.traces.kernels import kernels_with_second_derivatives
from hyperopt_dl.supervised import Supervised
from hyperopt_dl.training import NOT_REPLAYED, State, Training
from hyperopt_dl.weights import has_derivative

Adjoint: TypeAlias = dict[str, Tensor]
"""dE/ds by the names of a state's floating (or complex) entries; what is missing is zero."""


class Recorded(NamedTuple):
    """The graph of one step: from the floating entries of s[t] to those of s[t + 1]."""

    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]


class WholeStep:
    """The steps of one run of a training, with their derivatives.

    Args:
        training: The dynamical system.
        hparams: Its hyperparameters, of which those that are floating are differentiated.
        seed: Seed of the run.
        device: Device of the run.

    Raises:
        TrainingError: The training has an online tuner, or no hyperparameter is floating.
    """

    def __init__(
        self, training: Training, hparams: Mapping[str, Any], *, seed: int, device: torch.device
    ) -> None:
        if getattr(training, "online", None) is not None:
            raise TrainingError(NOT_REPLAYED)
        self._training = training
        self._seed = seed
        self.device = device
        self.steps = training.steps
        self.gathered = Gathered(hparams, device)

    def check(self) -> None:
        """See that the first step gives the same state twice, with what went in: costs two steps.

        Raises:
            TrainingError: It does not, or a state is none.
        """
        state = self.initial()
        _must_be_state("init", state)
        first, second = self.advance(state, 0), self.advance(state, 0)
        _must_be_state("step", first)
        if first.keys() != state.keys():
            raise TrainingError(
                f"step must return the entries of the state that it is given, {sorted(state)}, got "
                f"{sorted(first)}."
            )
        for name, value in first.items():
            if not _alike(value, second[name]):
                raise TrainingError(
                    f"A step must give the same numbers when it is computed again from the same "
                    f"state, but {name!r} differed. Likely sources: torch's global generator, "
                    f"numpy.random, Python's random, a counter, or a write into the state that was "
                    f"given. Draw from a torch.Generator that is seeded from the run's seed and t."
                )

    def initial(self) -> State:
        """Return s[0], without a graph."""
        with torch.no_grad():
            return self._init()

    def recorded_initial(self) -> State:
        """Return s[0], with its graph where it depends on the hyperparameters."""
        with torch.enable_grad():
            return self._init()

    def advance(self, state: State, t: int) -> State:
        """Return s[t + 1], without a graph."""
        with torch.no_grad():
            return self._training.step(state, self.gathered.hparams, t)

    def record(self, state: State, t: int) -> tuple[State, Recorded]:
        """Return s[t + 1] and the graph of the step, whose activations are memory."""
        inputs = _leaves(state)
        with torch.enable_grad(), kernels_with_second_derivatives(self._recurrent(state)):
            after = self._training.step({**state, **inputs}, self.gathered.hparams, t)
        outputs = {name: value for name, value in after.items() if value.requires_grad}
        return {name: value.detach() for name, value in after.items()}, Recorded(inputs, outputs)

    def recorded_bytes(self) -> int | None:
        """Return the bytes that one recorded step keeps; ``None`` where that cannot be told."""
        return None

    def pull(self, recorded: Recorded, adjoint: Adjoint) -> Adjoint:
        """Return α[t] = α[t + 1] A, and gather α[t + 1] B."""
        names = [name for name in recorded.outputs if name in adjoint]
        outputs = [recorded.outputs[name] for name in names]
        bars = [adjoint[name] for name in names]
        try:
            return self.gathered.pull(outputs, bars, recorded.inputs)
        except RuntimeError as error:
            if reason := explained(error):
                raise reason from error
            raise

    def pull_between(
        self,
        state: State,
        after: State,  # noqa: ARG002
        t: int,
        adjoint: Adjoint,
    ) -> Adjoint:
        """Return α[t] from s[t], where s[t + 1] is known too and may spare some of the step."""
        return self.pull(self.record(state, t)[1], adjoint)

    def pull_loss(self, state: State, weight: float = 1.0) -> tuple[Tensor, Adjoint]:
        """Return E(s) and ``weight`` times its adjoint, and gather as much of ∂E/∂λ."""
        loss, inputs = self._recorded_loss(state)
        return loss.detach(), self.gathered.pull([loss], [torch.full_like(loss, weight)], inputs)

    def gradient_of_loss(self, state: State) -> tuple[Tensor, Adjoint, dict[str, Tensor]]:
        """Return E(s), ∂E/∂s and ∂E/∂λ, each by name; nothing is gathered."""
        loss, inputs = self._recorded_loss(state)
        leaves = self.gathered.leaves
        found = torch.autograd.grad(loss, [*inputs.values(), *leaves.values()], allow_unused=True)
        adjoint, direct = (
            {n: part for n, part in zip(names, parts, strict=True) if part is not None}
            for names, parts in ((inputs, found[: len(inputs)]), (leaves, found[len(inputs) :]))
        )
        return loss.detach(), adjoint, direct

    def _recorded_loss(self, state: State) -> tuple[Tensor, dict[str, Tensor]]:
        inputs = _leaves(state)
        with torch.enable_grad():
            loss = self._training.loss({**state, **inputs}, self.gathered.hparams)
        if not isinstance(loss, Tensor) or loss.ndim != 0:
            shape = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
            raise TrainingError(f"The outer loss must be a 0-dim tensor, got {shape}.")
        if not loss.requires_grad:
            raise TrainingError(
                "The outer loss must depend on the state in a differentiable way, got a value "
                "without a graph. Remove the detach(), .item(), argmax or no_grad() between them."
            )
        return loss, inputs

    def pull_initial(self, adjoint: Adjoint) -> None:
        """Gather α[0] ∂s[0]/∂λ, where the initial state depends on the hyperparameters."""
        state = self.recorded_initial()
        names = [name for name in adjoint if state[name].requires_grad]
        self.gathered.pull([state[n] for n in names], [adjoint[n] for n in names], {})

    def gradient(self, used: Set[str]) -> dict[str, Tensor]:
        """Return dE/dλ by name, of all that has been pulled back; ``used`` as for ``Gathered``."""
        return self.gathered.gradient(used)

    def _recurrent(self, state: State) -> bool:
        """Return whether the step is known to contain a fused recurrent layer."""
        training = self._training
        if not isinstance(training, Supervised):
            return False
        return training.network(state, self.gathered.hparams).recurrent

    def _init(self) -> State:
        return self._training.init(self.gathered.hparams, seed=self._seed, device=self.device)


def _leaves(state: State) -> dict[str, Tensor]:
    """Return the entries of a state that have a derivative, cut from any graph, for a new one."""
    return {
        name: value.detach().requires_grad_()
        for name, value in state.items()
        if has_derivative(value)
    }


def _must_be_state(method: str, state: Any) -> None:
    """Raise unless this is a flat dictionary of tensors."""
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        kinds = (
            {n: type(v).__name__ for n, v in state.items()} if isinstance(state, dict) else state
        )
        raise TrainingError(
            f"{method} must return a state, a flat dict[str, Tensor], got {str(kinds)[:200]}."
        )


def _alike(a: Tensor, b: Tensor) -> bool:
    """Return whether two tensors are equal, up to the order in which a device adds up."""
    if not (a.is_floating_point() or a.is_complex()):
        return torch.equal(a, b)
    rounding = 1e4 * torch.finfo(a.dtype).eps if a.is_cuda else 0.0
    return torch.allclose(a, b, rtol=rounding, atol=rounding, equal_nan=True)

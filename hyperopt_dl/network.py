"""An unmodified ``nn.Module`` that holds the weights of one step for as long as the step lasts.

A state has its weights as one flat vector; a module has tensors of its own, which others know too:
the loss, which sums up ``net.parameters()``; a list that the module keeps; a checkpoint, which runs
a part of the forward pass again during the backward pass. So the module holds the weights of the
state for the whole of a step, its loss, its backward pass and whatever runs again inside of it
(``holding``, and ``recording`` where the step is differentiated). Before and after, its weights are
the user's.

A trace is made of a function of tensors, and there other tensors take the place of the module's
(``standing_in``); what finds weights by another way is seen by its numbers.

Letters: p the number of trainable entries, of which a complex one counts two.
"""

import copy
import itertools
import threading
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

from hyperopt_dl.errors import TrainingError
from hyperopt_dl.module_checks import check_parameters
from hyperopt_dl.module_modes import (
    Attribute,
    acting_once,
    changed,
    hidden_state,
    hooks_on_gradients,
    not_compiled,
    put_back,
    set_flags,
    training_flags,
)
from hyperopt_dl.second_derivatives.first_pass import FirstPass
from hyperopt_dl.weights import Weights, flat

R = TypeVar("R")


class Held:
    """What a module holds during a step.

    Args:
        network: The module.
        pieces: What its trainable parameters hold: memory that the step may write into.

    Attributes:
        params: The module's trainable parameters, in the order of the flat vector.
    """

    def __init__(self, network: "Network", pieces: Iterable[Tensor]) -> None:
        self.params = network.params
        self.pieces = list(pieces)
        self._layout = network.layout
        self._versions = [each._version for each in network.params]

    def written(self) -> str | None:
        """Return the name of a trainable parameter that was written into, if one is seen to be."""
        pairs = zip(self._layout, self.params, self._versions, strict=True)
        return next((n for (n, _), each, before in pairs if each._version != before), None)

    def vector(self) -> Tensor:
        """Return the trainable entries as they are now, ``[p]``."""
        return flat(self.pieces)


class Network:
    """The structure of a module: names, shapes and code, but not its weights.

    Args:
        module: The module. Its tensors are those of a step while the step lasts, and its training
            flags too.

    Raises:
        TrainingError: As ``module_checks.check_parameters``.

    Attributes:
        layout: The names of the trainable parameters, and their numbers of entries.
        sizes: These numbers.
        params: These parameters.
        frozen: The other parameters, by name.
        owners: Where each buffer is kept: the module, and its name there.
        recurrent: Whether a recurrent layer is inside, which has fused kernels.
        scripted: Whether a part of the module is compiled by TorchScript.
        loose: Whether the module holds tensors that are neither parameters nor registered buffers.
        by_backward: Whether the gradient has to come from ``loss.backward()``.
        flags: Which parts of the module are in training mode while it trains.
        derived: What others have made of this structure and want to find again, such as traces.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        named = dict(module.named_parameters())
        trainable = {n: q for n, q in named.items() if q.requires_grad}
        check_parameters(type(module).__name__, named)
        self.params = list(trainable.values())
        self.layout = tuple((n, q.numel() * (1 + q.is_complex())) for n, q in trainable.items())
        self.sizes = [size for _, size in self.layout]
        self._shapes = [q.shape for q in self.params]
        self._complex = [q.is_complex() for q in self.params]
        ends = itertools.accumulate(self.sizes)
        # A view as complex numbers must not begin between two of them: see ``_shaped``.
        self._plain = not any(self._complex) and not any(end % 2 for end in [*ends][:-1])
        self.frozen = {n: q for n, q in named.items() if not q.requires_grad}
        self.owners = _owners(module, (name for name, _ in module.named_buffers()))
        self._frozen_owners = _owners(module, self.frozen)
        self._whole = _Whole(module)
        parts = list(module.modules())
        self._places = _places(module)
        self.loose = any(isinstance(v, Tensor) for each in parts for v in vars(each).values())
        self.recurrent = any(isinstance(each, nn.RNNBase) for each in parts)
        self.scripted = any(isinstance(each, torch.jit.ScriptModule) for each in parts)
        self._hooks = hooks_on_gradients(parts, self.params)
        self._parts = parts
        self.flags = training_flags(module, parts)
        self._entries = [
            (each._parameters, name, param)
            for each in parts
            for name, param in each._parameters.items()
            if param is not None
        ]
        self._stood_in = False
        self._hidden: list[Attribute] | None = None
        self._writes: frozenset[str] | None = None
        self._writes_params: bool | None = None
        self._lock = threading.RLock()
        self.by_backward = False
        self.derived: dict[Hashable, Any] = {}

    @property
    def module(self) -> nn.Module:
        """The module itself."""
        return self._module

    def weights(self, device: torch.device | None = None) -> Weights:
        """Return copies of the weights that the module holds, where they are or on a device."""
        return Weights(
            flat([q.detach() for q in self.params]).to(device),
            {n: q.detach().to(device, copy=True) for n, q in self.frozen.items()},
            {n: b.detach().to(device, copy=True) for n, b in self._module.named_buffers()},
        )

    def copy(self, weights: Weights) -> nn.Module:
        """Return a copy of the module that holds these weights, in evaluation mode."""
        module = copy.deepcopy(self._module).to(weights.params.device).eval()
        held = {**self.unflatten(weights.params), **weights.frozen, **weights.buffers}
        own = dict(module.named_parameters()) | dict(module.named_buffers())
        with torch.no_grad():
            for name, value in held.items():
                own[name].copy_(value)
        return module

    def unflatten(self, params: Tensor) -> dict[str, Tensor]:
        """Return the named, shaped pieces of a flat vector ``[p]``, views where that can be."""
        # One split is one node of the graph: its backward is one concatenation, where a slice per
        # parameter would add up as many vectors of length p.
        pieces = params.split_with_sizes(self.sizes)
        if self._plain:
            return {
                name: piece.view(shape)
                for (name, _), piece, shape in zip(self.layout, pieces, self._shapes, strict=True)
            }
        shaped = zip(self.layout, pieces, self._shapes, self._complex, strict=True)
        return {name: _shaped(piece, shape, pair) for (name, _), piece, shape, pair in shaped}

    @contextmanager
    def holding(self, weights: Weights, *, training: bool) -> Iterator[Held]:
        """Let the module hold these weights, and put its own ones back in the end.

        The module's tensors stay what they are, and have other memory for as long as the block
        lasts: whoever knows them finds the weights of the step. ``after`` reads what the step has
        made of frozen parameters and buffers.

        Args:
            weights: What it holds.
            training: Whether it is in training mode.
        """
        with self._own(training):
            # Most steps write into no parameter; the first one shows whether this one does.
            own = self._writes_params is False
            vector = weights.params.detach()
            held = Held(self, self.unflatten(vector if own else vector.clone()).values())
            others = {**self.frozen, **self.now()}
            given = self._copied(weights)
            tensors = [*self.params, *others.values()]
            before = [each.data for each in tensors]
            versions = {name: each._version for name, each in self.frozen.items()}
            try:
                for each, piece in zip(tensors, held.pieces, strict=False):
                    each.data = piece
                for name, each in others.items():
                    each.data = given[name]
                yield held
                if self._writes_params is None and not vector.is_meta:
                    self._writes_params = not torch.equal(held.vector(), vector)
                elif held.written():
                    self._writes_params = True
                self._see_written(versions)
            finally:
                self._put_back(self.owners, others)
                for each, piece in zip(tensors, before, strict=True):
                    each.data = piece

    @contextmanager
    def recording(
        self, weights: Weights, first: FirstPass, held: Held, *, training: bool
    ) -> Iterator[None]:
        """Let the module hold weights for a step whose graph is recorded.

        The graph ends in the module's parameters. Frozen parameters and buffers are copies of the
        tensors that are given, so that what the step makes of these has a graph too. To read the
        graph later, enter again with the same arguments.

        Args:
            weights: What it holds of frozen parameters and buffers.
            first: The first backward pass of the step, in which alone hooks on gradients act.
            held: What it holds of the trainable parameters.
            training: Whether it is in training mode.
        """
        with self._own(training), self._acting_in(first), not_compiled():
            others = {**self.frozen, **self.now()}
            before = [each.data for each in self.params]
            try:
                for each, piece in zip(self.params, held.pieces, strict=True):
                    each.data = piece
                self._put_back({**self.owners, **self._frozen_owners}, self._copied(weights))
                yield
            finally:
                self._put_back({**self.owners, **self._frozen_owners}, others)
                for each, piece in zip(self.params, before, strict=True):
                    each.data = piece

    def standing_in(
        self,
        weights: Weights,
        body: Callable[[], R],
        first: FirstPass,
        *,
        training: bool,
        pieces: Iterable[Tensor] | None = None,
    ) -> R:
        """Call ``body`` while tensors stand where the module's own ones are.

        Args:
            weights: The tensors, which may have a graph; buffers and frozen ones are copied.
            body: The step.
            first: The first backward pass of the step.
            training: Whether the module is in training mode.
            pieces: The trainable parameters, where they are no part of one vector.
        """
        named = self.unflatten(weights.params)
        if pieces is not None:
            named = dict(zip(named, pieces, strict=True))
        tensors = {**named, **self._copied(weights)}
        inside = {f"module.{place}": tensors[name] for place, name in self._places}
        with self._own(training), self._acting_in(first), not_compiled():
            for param, piece in zip(self.params, named.values(), strict=True):
                for hook in (getattr(param, "_backward_hooks", None) or {}).values():
                    piece.register_hook(hook)  # type: ignore[no-untyped-call]
            before, self._stood_in = self._stood_in, True
            try:
                found: R = functional_call(self._whole, inside, (body,), tie_weights=False)
            finally:
                self._stood_in = before
            return found

    def forget(self) -> None:
        """Put back the attributes that steps change, such as a hidden state that is no buffer."""
        put_back(self._hidden or [])

    @contextmanager
    def as_it_came(self) -> Iterator[None]:
        """Let a step find the hidden state from before the first one, and leave the present one."""
        now = hidden_state(self._parts)
        self.forget()
        try:
            yield
        finally:
            put_back(changed(self._parts, now))

    def now(self) -> dict[str, Tensor]:
        """Return the buffers that the module has at this moment."""
        return {name: getattr(owner, last) for name, (owner, last) in self.owners.items()}

    def after(self) -> Weights:
        """Return frozen parameters and buffers at this moment; ``params`` has no entry."""
        frozen: dict[str, Any] = {
            n: owner._parameters[last] for n, (owner, last) in self._frozen_owners.items()
        }
        return Weights(torch.empty(0), frozen, self.now())

    @contextmanager
    def _own(self, training: bool) -> Iterator[None]:
        """Have the module for oneself, in training mode or not, with parameters of its own."""
        with self._lock:
            flags = [each.training for each in self._parts]
            wanted = self.flags if training else [False] * len(flags)
            seen = None if self._hidden is not None else hidden_state(self._parts)
            others = self._take_places() if self._stood_in else None
            try:
                set_flags(self._parts, flags, wanted)
                yield
            finally:
                set_flags(self._parts, wanted, flags)
                if seen is not None:
                    self._hidden = changed(self._parts, seen)
                if others is not None:
                    self._give_places(others)

    def _copied(self, weights: Weights) -> dict[str, Tensor]:
        """Return what the step may write into: copies, but of what is known not to be written."""
        fixed = {
            name: value if self._writes is not None and name not in self._writes else value.clone()
            for name, value in weights.frozen.items()
        }
        return {**fixed, **{name: value.clone() for name, value in weights.buffers.items()}}

    def _see_written(self, versions: Mapping[str, int]) -> None:
        """Remember which frozen parameters the first step writes into: a teacher's, for example."""
        found = {name for name, before in versions.items() if self.frozen[name]._version != before}
        if self._writes is None:
            self._writes = frozenset(found)
        elif later := sorted(found - self._writes):
            raise TrainingError(
                f"What a training step writes into must be the same in every step, but the frozen "
                f"parameters {later} were left alone by the first one. Register them as buffers."
            )

    def _take_places(self) -> list[Any]:
        """Put the module's own parameters where other tensors stand, and return these."""
        there = [table[name] for table, name, _ in self._entries]
        for table, name, param in self._entries:
            table[name] = param
        self._stood_in = False
        return there

    def _give_places(self, tensors: list[Any]) -> None:
        """Undo ``_take_places``."""
        self._stood_in = True
        for (table, name, _), tensor in zip(self._entries, tensors, strict=True):
            table[name] = tensor

    def _acting_in(self, first: FirstPass) -> AbstractContextManager[None]:
        return acting_once(self._hooks, first) if self._hooks else nullcontext()

    @staticmethod
    def _put_back(
        owners: Mapping[str, tuple[nn.Module, str]], tensors: Mapping[str, Tensor]
    ) -> None:
        for name, (owner, last) in owners.items():
            kept = owner._buffers if last in owner._buffers else owner._parameters
            if kept[last] is not tensors[name]:
                kept[last] = tensors[name]  # type: ignore[assignment]


class _Whole(nn.Module):
    """A step, as the forward pass of a module that the network is a part of."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, body: Callable[[], Any]) -> Any:
        return body()


def _owners(module: nn.Module, names: Iterable[str]) -> dict[str, tuple[nn.Module, str]]:
    """Return where tensors are kept: the part of the module, and the name there."""
    split = {name: name.rpartition(".") for name in names}
    return {name: (module.get_submodule(path), last) for name, (path, _, last) in split.items()}


def _shaped(piece: Tensor, shape: torch.Size, pair: bool) -> Tensor:
    """Return a view, or a copy where a view as complex numbers would begin between two of them."""
    if piece.storage_offset() % 2:
        piece = piece.clone()
    return torch.view_as_complex(piece.view(*shape, 2)) if pair else piece.view(shape)


def _places(module: nn.Module) -> list[tuple[str, str]]:
    """Return where tensors stand in a module, each place once, and their names there.

    A shared tensor stands in several places. A shared part is one place with several names, which
    ``functional_call`` must not be told: it puts back the tensor that it has put there itself.
    """
    named = [*module.named_parameters(), *module.named_buffers()]
    names: dict[int, str] = {id(tensor): name for name, tensor in named}
    return [
        (f"{path}.{name}" if path else name, names[id(tensor)])
        for path, part in module.named_modules()
        for name, tensor in (*part._parameters.items(), *part._buffers.items())
        if tensor is not None
    ]

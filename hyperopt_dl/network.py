"""An unmodified ``nn.Module`` as a pure function of one flat parameter vector.

Letters: p the number of trainable entries.
"""

import copy
from collections.abc import Hashable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

from hyperopt_dl.errors import TrainingError


class Weights(NamedTuple):
    """Everything that a module's output depends on beside its inputs.

    ``params`` is the vector of the p trainable entries; ``frozen`` holds the parameters that do not
    require a gradient, ``buffers`` the registered buffers, both by the module's own names.
    """

    params: Tensor
    frozen: dict[str, Tensor]
    buffers: dict[str, Tensor]


class Network:
    """The structure of a module: names, shapes and code, but not its weights.

    Args:
        module: The module. It is kept and its training flag is switched, so hand over a copy.

    Raises:
        TrainingError: No trainable parameter, a lazy module that has not seen data, or trainable
            parameters of several dtypes.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module.train()
        trainable = {n: q for n, q in module.named_parameters() if q.requires_grad}
        if not trainable:
            raise TrainingError(
                "The model must have a parameter that requires a gradient, "
                f"{type(module).__name__} has none."
            )
        lazy = [n for n, q in trainable.items() if nn.parameter.is_lazy(q)]
        if lazy:
            raise TrainingError(
                f"The model's parameters must have shapes, {lazy} have none yet. Call the lazy "
                "module on one batch first."
            )
        dtypes = {q.dtype for q in trainable.values()}
        if len(dtypes) > 1 or not next(iter(dtypes)).is_floating_point:
            raise TrainingError(
                "The trainable parameters must share one floating dtype, got "
                f"{sorted(map(str, dtypes))}. Convert the model with .to(dtype), or freeze the "
                "others."
            )
        self.layout = tuple((n, q.numel()) for n, q in trainable.items())
        self._sizes = [size for _, size in self.layout]
        self._shapes = [q.shape for q in trainable.values()]
        self._tied = _names(module, unique=True) < _names(module, unique=False)
        self.loose = any(
            isinstance(value, Tensor) for each in module.modules() for value in vars(each).values()
        )
        """Whether the module holds tensors that are neither parameters nor registered buffers."""
        self.recurrent = any(isinstance(each, nn.RNNBase) for each in module.modules())
        """Whether a fused recurrent layer is inside, whose kernels have no second derivative."""
        self.derived: dict[Hashable, Any] = {}
        """What others have made of this structure and want to find again, such as traces of it."""

    def weights(self) -> Weights:
        """Return copies of the weights that the module holds."""
        own = dict(self._module.named_parameters())
        return Weights(
            torch.cat([own[name].detach().reshape(-1) for name, _ in self.layout]),
            {n: q.detach().clone() for n, q in own.items() if not q.requires_grad},
            {n: b.detach().clone() for n, b in self._module.named_buffers()},
        )

    def module(self, weights: Weights) -> nn.Module:
        """Return a copy of the module that holds these weights, in evaluation mode."""
        module = copy.deepcopy(self._module).eval()
        held = {**self.unflatten(weights.params), **weights.frozen, **weights.buffers}
        own = dict(module.named_parameters()) | dict(module.named_buffers())
        with torch.no_grad():
            for name, value in held.items():
                own[name].copy_(value)
        return module

    def unflatten(self, params: Tensor) -> dict[str, Tensor]:
        """Return the named, shaped views of a flat vector ``[p]``."""
        # One split is one node of the graph: its backward is one concatenation, where a slice per
        # parameter would add up as many vectors of length p.
        pieces = torch.split(params, self._sizes)
        return {
            name: piece.view(shape)
            for (name, _), piece, shape in zip(self.layout, pieces, self._shapes, strict=True)
        }

    def __call__(
        self, weights: Weights, inputs: tuple[Any, ...], *, training: bool
    ) -> tuple[Any, dict[str, Tensor]]:
        """Return the module's output and the buffers after the call; nothing given is written to.

        Buffers (BatchNorm's running statistics) are values, not functions: they carry no
        derivative.
        """
        if self._module.training != training:
            self._module.train(training)
        buffers = {name: buffer.detach().clone() for name, buffer in weights.buffers.items()}
        tensors: dict[str, Tensor] = {**self.unflatten(weights.params), **weights.frozen, **buffers}
        output = functional_call(self._module, tensors, inputs, tie_weights=self._tied)
        return output, {name: tensors[name].detach() for name in buffers}


class Reads(Mapping[str, Any]):
    """Hyperparameters as a model factory sees them, and a record of what it looked at.

    Scalars are plain numbers and arrays are detached: structure is not differentiable.
    """

    def __init__(self, hparams: Mapping[str, Any]) -> None:
        self._hparams = hparams
        self._seen: dict[str, Any] = {}
        self._listed: frozenset[str] | None = None

    def __getitem__(self, name: str) -> Any:
        self._seen[name] = value = _look(self._hparams, name)
        if value is _ABSENT:
            raise KeyError(name)
        return value

    def __iter__(self) -> Iterator[str]:
        self._listed = frozenset(self._hparams)
        return iter(self._hparams)

    def __len__(self) -> int:
        self._listed = frozenset(self._hparams)
        return len(self._hparams)

    def turn_to(self, hparams: Mapping[str, Any]) -> None:
        """Answer from these hyperparameters now: a model may look when it is called."""
        self._hparams = hparams

    def agree(self, hparams: Mapping[str, Any]) -> bool:
        """Return whether the factory would have seen the same in ``hparams``."""
        return self._listed in (None, frozenset(hparams)) and all(
            _same(value, _look(hparams, name)) for name, value in self._seen.items()
        )


_ABSENT = object()


def _look(hparams: Mapping[str, Any], name: str) -> Any:
    return _plain(hparams[name]) if name in hparams else _ABSENT


def _plain(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.item() if value.ndim == 0 else value.detach()
    return value


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return isinstance(a, Tensor) and isinstance(b, Tensor) and torch.equal(a, b)
    return type(a) is type(b) and bool(a == b)


def _names(module: nn.Module, *, unique: bool) -> int:
    """Return how many names the module's tensors have; ``unique`` counts a shared tensor once."""
    parameters = module.named_parameters(remove_duplicate=unique)
    return sum(1 for _ in parameters) + sum(
        1 for _ in module.named_buffers(remove_duplicate=unique)
    )

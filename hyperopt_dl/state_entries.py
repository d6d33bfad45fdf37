"""What the entries of a ``Supervised``'s state are, by the beginnings of their names."""

from collections.abc import Mapping

from torch import Tensor

from hyperopt_dl.training import State
from hyperopt_dl.weights import Weights

FROZEN, BUFFER, SLOT = "frozen/", "buffer/", "optimizer/"
"""How the names in a state begin, beside ``params``, ``seed`` and ``SKIPPED``."""
SKIPPED = "skipped"
"""How many steps have left each parameter alone, for want of a gradient; on the host."""


def slots_of(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the optimizer's slots in a state."""
    return _part(state, SLOT)


def unpack(state: Mapping[str, Tensor]) -> Weights:
    """Return what the model's output depends on, in a state."""
    return Weights(state["params"], _part(state, FROZEN), _part(state, BUFFER))


def packed(weights: Weights) -> State:
    """Return frozen parameters and buffers as entries of a state, cut from any graph."""
    return {
        **{FROZEN + name: value.detach() for name, value in weights.frozen.items()},
        **{BUFFER + name: value.detach() for name, value in weights.buffers.items()},
    }


def entry_of(weights: Weights, name: str) -> str:
    """Return the name in a state of a frozen parameter or a buffer."""
    return (FROZEN if name in weights.frozen else BUFFER) + name


def _part(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {n.removeprefix(prefix): v for n, v in state.items() if n.startswith(prefix)}

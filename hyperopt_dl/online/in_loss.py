"""Hyperparameters that the loss reads: 0-dim tensors of the user, moved in place.

The weight ρ of a term is in no optimizer. It changes the weights through the gradient alone, whose
derivative in ρ is that of ∂L/∂ρ in the weights: second derivatives are symmetric. So the product
that a tangent of the weights needs anyway takes it along, where g is the gradient in weights and
ρ together, and the tangent is continued by that of ρ.

Letters: L training loss, E validation loss, ρ a tensor that the loss reads, u its coordinate.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from hyperopt_dl.errors import TrainingError
from hyperopt_dl.online.coordinates import Coordinate
from hyperopt_dl.online.discount import Discount


class InLoss:
    """The tensors among the coordinates.

    Args:
        coordinates: All that is tuned.
        tensors: By name, those that the loss reads.

    Attributes:
        tensors: Those, in the order of the coordinates.
    """

    def __init__(self, coordinates: Sequence[Coordinate], tensors: Mapping[str, Tensor]) -> None:
        self._rows = [row for row, c in enumerate(coordinates) if c.name in tensors]
        self._coordinates = [coordinates[row] for row in self._rows]
        self.tensors = [tensors[c.name] for c in self._coordinates]
        self._left: list[int] | None = None

    def along(self, row: int) -> list[Tensor | None]:
        """Return dρ/du of each tensor, for the coordinate u of a row; None for 0."""
        return [
            torch.full_like(tensor, self._slope(i)) if own == row else None
            for i, (own, tensor) in enumerate(zip(self._rows, self.tensors, strict=True))
        ]

    def add_direct(self, h: Tensor, e: Sequence[Tensor | None]) -> None:
        """Add to h, `m`, the part of the tensors that E reads itself, e = ∂E/∂ρ."""
        for i, (row, part) in enumerate(zip(self._rows, e, strict=True)):
            if part is not None:
                h[row] += self._slope(i) * float(part)

    def check(self) -> None:
        """Raise a TrainingError where somebody else has written to a tensor since the last call."""
        versions = [tensor._version for tensor in self.tensors]
        for c, version, left in zip(
            self._coordinates, versions, self._left or versions, strict=True
        ):
            if version != left:
                raise TrainingError(
                    f"What is tuned must be moved by the tuner alone, got another write to the "
                    f"tensor {c.name!r}. Leave {c.name!r} out of tune, or make a new tuner."
                )
        self._left = versions

    def move(self, by: Sequence[float]) -> None:
        """Move the tensors, by one number a coordinate, of whatever kind."""
        self.check()
        with torch.no_grad():
            for row, c, tensor in zip(self._rows, self._coordinates, self.tensors, strict=True):
                tensor.fill_(c.moved(float(tensor), by[row]))
        self._left = [tensor._version for tensor in self.tensors]

    def values(self) -> dict[str, float]:
        """Return the values by name."""
        pairs = zip(self._coordinates, self.tensors, strict=True)
        return {coordinate.name: float(tensor.detach()) for coordinate, tensor in pairs}

    def load(self, values: Mapping[str, float]) -> None:
        """Set the values by name."""
        with torch.no_grad():
            for coordinate, tensor in zip(self._coordinates, self.tensors, strict=True):
                tensor.fill_(values[coordinate.name])
        self._left = None

    def check_read(self, g: Sequence[Tensor | None]) -> None:
        """Raise a TrainingError where the loss does not depend on a tensor, g = dL/dρ."""
        unread = [c.name for c, part in zip(self._coordinates, g, strict=True) if part is None]
        if unread:
            raise TrainingError(
                f"The first training loss must depend on every tensor of in_loss, got one that "
                f"does not depend on {unread}. Let the loss read the very tensor that the tuner "
                f"has, and no float() or copy of it."
            )

    def _slope(self, i: int) -> float:
        return self._coordinates[i].slope(float(self.tensors[i].detach()))


def check_in_loss(
    tensors: Mapping[str, Tensor], tune: Mapping[str, object], discount: Discount
) -> None:
    """Raise a TrainingError unless each is a trainable number that ``tune`` names.

    A discount of 0 is refused too: it leaves out the second derivatives that these live on.
    """
    if tensors and discount == 0:
        raise TrainingError(
            f"Tensors of in_loss need second derivatives, which discount=0 leaves out, got "
            f"{list(tensors)}. Set discount above 0."
        )
    for name, tensor in tensors.items():
        if name not in tune:
            raise TrainingError(
                f"tune must name the dimension of each tensor of in_loss, got {list(tune)} without "
                f"{name!r}. Write tune={{..., {name!r}: hd.Float(low, high)}}."
            )
        number = isinstance(tensor, Tensor) and tensor.ndim == 0 and tensor.is_leaf
        if not (number and tensor.is_floating_point() and tensor.requires_grad):
            raise TrainingError(
                f"{name!r} in in_loss must be a floating 0-dim leaf tensor that requires a "
                f"gradient, got {tensor!r}. Write torch.tensor(0.1, requires_grad=True)."
            )

"""How far back tangents reach: the discount μ, a constant or adapted as in MARTHE.

    z  = min(max(η / (∇E·∇L), 0), 1)        μ' = z^(1 / (c' + 1)),  c' = c sign μ + μ

    η   learning rate, after its move        ∇E  validation gradient, after the last step
    c   how long μ has been above 0          ∇L  training gradient that the last step was made with

Where the step that trains also validates, ∇E·∇L > 0, the past counts, and the more the longer that
has been so; where the two disagree, μ is 0 and the tangents begin anew. With c the root takes μ
towards 1. The unit of the loss matters: the same loss times 2 has a fourth of the z.

Source: Donini, Franceschi, Majumder, Pontil, Frasconi, "MARTHE: Scheduling the Learning Rate Via
Online Hypergradients", IJCAI 2020; the formulas are those that the authors' program, adatune,
computes. It begins with a negative μ; here it begins with 0.
"""

import math
from collections.abc import Sequence
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from hyperopt_dl.errors import TrainingError
from hyperopt_dl.online.coordinates import Coordinate

Discount: TypeAlias = float | Literal["adaptive"]
Factor: TypeAlias = float | Tensor
"""What tangents of m coordinates are multiplied with: one number, or an ``m x 1`` column."""


def adapted(mu: float, c: float, rate: float, agreement: float) -> tuple[float, float]:
    """Return the next (μ, c) from η and ∇E·∇L."""
    z = 1.0 if agreement == 0 else min(max(rate / agreement, 0.0), 1.0)
    c = c + mu if mu > 0 else 0.0
    return z ** (1 / (c + 1)), c


class Discounts:
    """The discounts of the coordinates, each its own where they adapt.

    Args:
        discount: A constant for all, or ``"adaptive"``.
        coordinates: What is tuned.

    Raises:
        TrainingError: The discount is to adapt for something else than a learning rate.
    """

    def __init__(self, discount: Discount, coordinates: Sequence[Coordinate]) -> None:
        others = [c.name for c in coordinates if c.option != "lr"]
        self.adaptive = discount == "adaptive"
        if self.adaptive and others:
            raise TrainingError(
                f"discount='adaptive' is defined for learning rates alone, got {others} in tune. "
                f"Give a number from 0 to 1."
            )
        self._constant = 0.0 if discount == "adaptive" else discount
        self._coordinates = coordinates
        self._gradients: list[list[Tensor | None]] = []
        self.reset()

    def reset(self) -> None:
        """Begin anew: nothing lies behind."""
        self.state = [(self._constant, 0.0)] * len(self._coordinates)

    @property
    def factor(self) -> Factor:
        """What the tangents before the next step are multiplied with."""
        first, *rest = [mu for mu, _ in self.state]
        if all(mu == first for mu in rest):
            return first
        return torch.tensor([[mu] for mu, _ in self.state], dtype=torch.double)

    def see(self, gradients: Sequence[Sequence[Tensor | None]]) -> None:
        """Remember the training gradients of each parameter group, of the step that follows."""
        if self.adaptive:
            self._gradients = [
                [None if g is None else g.detach().clone() for g in group] for group in gradients
            ]

    def adapt(self, e: Sequence[Sequence[Tensor | None]], rates: Sequence[float]) -> None:
        """Adapt to a move.

        Args:
            e: The validation gradients of each parameter group.
            rates: The learning rate of each parameter group.
        """
        if not self.adaptive:
            return
        products = [_inner(*pair) for pair in zip(e, self._gradients, strict=True)]
        for row, coordinate in enumerate(self._coordinates):
            agreement = math.fsum(products[number] for number in coordinate.groups)
            rate = rates[coordinate.groups[0]]
            self.state[row] = adapted(*self.state[row], rate, agreement)


def check_discount(discount: object) -> None:
    """Raise a TrainingError unless this can be a discount."""
    if discount == "adaptive":
        return
    if not (isinstance(discount, int | float) and 0 <= discount <= 1):
        raise TrainingError(
            f"discount must be a number from 0 (one step) to 1 (the whole run), or 'adaptive', got "
            f"{discount!r}."
        )


def _inner(e: Sequence[Tensor | None], g: Sequence[Tensor | None]) -> float:
    """Return the inner product of two gradients; what one of them lacks counts as 0."""
    pairs = [(a, b) for a, b in zip(e, g, strict=True) if a is not None and b is not None]
    return math.fsum(float((a.detach() * b).sum(dtype=torch.double)) for a, b in pairs)

"""The hyperparameter that is one of a list of choices."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
from optuna.distributions import CategoricalDistribution
from torch import Tensor

from hyperopt_dl.errors import SpaceError
from hyperopt_dl.space.unit import cell_from_unit, cell_to_unit, one_coordinate

Choice: TypeAlias = bool | int | float | str | None


@dataclass(frozen=True, repr=False)
class Categorical:
    """One of a list of choices, which have no order.

    Attributes:
        choices: None, bools, ints, floats and strings, as Optuna can store; at least one, and no
            two that compare equal (1, 1.0 and True do).
        init: the choice in `Space.defaults`, which `Study.enqueue` can run first; None for no such
            (so a choice that is None cannot be the default; call it "none" then).

    Raises:
        SpaceError: if the choices cannot be told apart or stored.
    """

    choices: Sequence[Choice]
    init: Choice = None
    size = 1
    differentiable = False
    # 1 == True in Python, but Categorical([0, 1]) is not Categorical([False, True]).
    _types: tuple[type, ...] = field(init=False, default=())

    def __post_init__(self) -> None:
        if isinstance(self.choices, (str, bytes)) or not isinstance(self.choices, Sequence):
            raise SpaceError(
                f"Categorical needs a list or tuple of choices, got {self.choices!r}. Put the "
                f"choices in a list."
            )
        choices = tuple(_plain(choice) for choice in self.choices)
        if not choices:
            raise SpaceError("Categorical needs at least one choice, got none. Name the choices.")
        for index, choice in enumerate(choices):
            _check_choice(choice, choices[:index])
        object.__setattr__(self, "choices", choices)
        object.__setattr__(self, "_types", tuple(type(choice) for choice in choices))
        object.__setattr__(self, "init", _plain(self.init))
        if self.init is not None and not self.contains(self.init):
            raise SpaceError(
                f"Categorical needs an init among its choices, got init={self.init!r}. Take one of "
                f"{list(choices)!r}; the type counts too."
            )

    def __repr__(self) -> str:
        init = "" if self.init is None else f", init={self.init!r}"
        return f"Categorical({list(self.choices)!r}{init})"

    @property
    def distribution(self) -> CategoricalDistribution:
        """The Optuna distribution over the same choices."""
        return CategoricalDistribution(self.choices)

    def contains(self, value: object) -> bool:
        """Say whether `value` is one of the choices, in type as well as in value."""
        return self._index(value) is not None

    def to_unit(self, value: object) -> Tensor:
        """Return the centre of the choice's cell, a 0-dim float64 tensor in (0, 1).

        Raises:
            SpaceError: if the value is no choice.
        """
        index = self._index(value)
        if index is None:
            raise SpaceError(
                f"{value!r} is not a choice of {self!r}. Pass one that is; the type counts too."
            )
        return cell_to_unit(index, len(self.choices))

    def from_unit(self, u: float | Tensor) -> Choice:
        """Return the choice whose cell holds the unit coordinate `u`, one number.

        Raises:
            SpaceError: if `u` is NaN, or more than one number.
        """
        cell = cell_from_unit(one_coordinate(u), len(self.choices))
        return self.choices[int(cell)]

    def _index(self, value: object) -> int | None:
        value = _plain(value)
        for index, choice in enumerate(self.choices):
            if type(choice) is type(value) and choice == value:
                return index
        return None


def _plain(value: object) -> object:
    """Turn a numpy scalar into the Python value that it stands for."""
    return value.item() if isinstance(value, np.generic) else value


def _check_choice(choice: object, before: tuple[object, ...]) -> None:
    if choice is not None and not isinstance(choice, (bool, int, float, str)):
        raise SpaceError(
            f"Categorical choices must be None, bool, int, float or str, got {choice!r} of type "
            f"{type(choice).__name__}. Use strings, and look the objects up in a dict by them."
        )
    if isinstance(choice, float) and math.isnan(choice):
        raise SpaceError("Categorical choices must equal themselves, got NaN. Use None instead.")
    if choice in before:
        raise SpaceError(
            f"Categorical choices must differ from each other, got {choice!r} after "
            f"{before[before.index(choice)]!r}, which compares equal. Leave one out, or use "
            f"strings."
        )

"""The one map between hyperparameters, the unit cube and Optuna.

A `Space` names the dimensions of a search: `Float`, `Int`, `Categorical` and `Array`. It is an
immutable mapping, so ``space["lr"]``, ``len(space)`` and ``for name in space`` mean what they say.
Its unit coordinates are those of its dimensions, one after the other in the order given.
"""

from collections.abc import Iterator, Mapping
from keyword import iskeyword
from typing import Any, TypeAlias

import torch
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from torch import Tensor

from hyperopt_dl.errors import SpaceError
from hyperopt_dl.space.array import Array
from hyperopt_dl.space.categorical import Categorical
from hyperopt_dl.space.numeric import Float, Int
from hyperopt_dl.space.unit import coordinate

Dimension: TypeAlias = Float | Int | Categorical | Array

_LONGEST_NAME = 512  # characters of a parameter's name that Optuna's databases hold


class Space(Mapping[str, Dimension]):
    """An immutable mapping from names to dimensions.

    Two spaces are equal if they give the same names the same dimensions, in whatever order.

    Args:
        dimensions: a mapping, for names that are no Python identifiers, such as "lr/layer1".
        **named: dimensions by keyword.

    In both, an Optuna distribution may stand for the dimension that says the same.

    Raises:
        SpaceError: if there is no dimension, one is given twice, a name is not a string of 1 to 512
            characters, or a value is no dimension.

    Example:
        >>> space = Space(lr=Float(1e-4, 1.0, log=True), depth=Int(1, 4))
        >>> space.size
        2
        >>> space.to_unit({"lr": 0.01, "depth": 4})
        tensor([0.5000, 0.8750], dtype=torch.float64)
    """

    def __init__(
        self,
        dimensions: Mapping[str, Dimension | BaseDistribution] | None = None,
        /,
        **named: Dimension | BaseDistribution,
    ) -> None:
        given = {} if dimensions is None else dimensions
        if not isinstance(given, Mapping):
            raise SpaceError(
                f"Space needs a mapping from names to dimensions, got {given!r}. Pass a dict, or "
                f"keywords as in Space(lr=Float(1e-4, 1.0, log=True))."
            )
        if twice := sorted(given.keys() & named.keys()):
            raise SpaceError(
                f"Space needs every name once, got {twice} in the mapping and as keywords. Leave "
                f"one of them out."
            )
        if not given and not named:
            raise SpaceError(
                "Space needs at least one dimension, got none. Name one, as in "
                "Space(lr=Float(1e-4, 1.0, log=True))."
            )
        self._dimensions = {
            _checked_name(name): _dimension(name, value)
            for name, value in {**given, **named}.items()
        }

    @classmethod
    def from_optuna(cls, source: Mapping[str, BaseDistribution]) -> "Space":
        """Make a space from Optuna distributions by name, as `distributions` returns them.

        Raises:
            SpaceError: if one of them has no dimension that says the same.
        """
        return cls(source)

    def __getitem__(self, name: str) -> Dimension:
        return self._dimensions[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._dimensions)

    def __len__(self) -> int:
        return len(self._dimensions)

    def __hash__(self) -> int:
        return hash(frozenset(self._dimensions.items()))

    def __repr__(self) -> str:
        if all(name.isidentifier() and not iskeyword(name) for name in self):
            return f"Space({', '.join(f'{name}={value!r}' for name, value in self.items())})"
        return f"Space({self._dimensions!r})"

    @property
    def size(self) -> int:
        """The number of unit coordinates, one for a scalar and one for each entry of an Array."""
        return sum(dimension.size for dimension in self.values())

    @property
    def arrays(self) -> tuple[str, ...]:
        """The names of the Arrays, which a black-box tuner cannot search."""
        return tuple(name for name, value in self.items() if isinstance(value, Array))

    @property
    def defaults(self) -> dict[str, Any]:
        """Where a search may start, which is every `init` that was given, and that of every Array.

        An Array, which always has one, gives a float64 tensor of its shape.
        """
        starts: dict[str, Any] = {}
        for name, dimension in self.items():
            if isinstance(dimension, Array):
                starts[name] = dimension.start
            elif dimension.init is not None:
                starts[name] = dimension.init
        return starts

    def distributions(self) -> dict[str, BaseDistribution]:
        """Return the Optuna distribution of every dimension, by name.

        Raises:
            SpaceError: if there is an Array.
        """
        distributions: dict[str, BaseDistribution] = {}
        for name, dimension in self.items():
            if isinstance(dimension, Array):
                raise SpaceError(
                    f"Optuna distributions exist for Float, Int and Categorical only, got the "
                    f"Array {name!r}. Leave it out of the space, or differentiate a rollout in it."
                )
            distributions[name] = dimension.distribution
        return distributions

    def validate(self, params: Mapping[str, object], *, partial: bool = False) -> None:
        """Check that `params` gives every dimension a value that it contains.

        Args:
            params: values by name.
            partial: whether names may be missing.

        Raises:
            SpaceError: if a name is missing or unknown, or a value lies outside; it lists them all.
        """
        missing = [] if partial else [name for name in self if name not in params]
        unknown = [name for name in params if name not in self]
        outside = [
            f"{name}={value!r} is not in {self[name]!r}"
            for name, value in params.items()
            if name in self and not self[name].contains(value)
        ]
        if not missing and not unknown and not outside:
            return
        wrong = [
            f"{names} {word}"
            for names, word in ((missing, "missing"), (unknown, "unknown"))
            if names
        ]
        raise SpaceError(
            f"Hyperparameters must give {'only' if partial else 'all'} the names of the space "
            f"({', '.join(self)}) values inside, got {'; '.join(wrong + outside)}. Correct the "
            f"values, or change the space."
        )

    def to_unit(self, params: Mapping[str, Any]) -> Tensor:
        """Return the unit coordinates of hyperparameters, a float64 tensor of shape [size].

        The graph of tensors among them is kept, but for what is discrete.

        Raises:
            SpaceError: if `validate` does.
        """
        self.validate(params)
        parts = [dimension.to_unit(params[name]) for name, dimension in self.items()]
        return torch.cat([part.reshape(-1) for part in parts])

    def from_unit(self, u: Tensor) -> dict[str, Any]:
        """Return the hyperparameters at a point of the unit cube.

        Args:
            u: a floating tensor of shape [size].

        Returns:
            Values by name. For a Float a 0-dim tensor and for an Array one of its shape, of `u`'s
            dtype and differentiable in it; for an Int an int; for a Categorical the choice.

        Raises:
            SpaceError: if `u` has another shape or dtype.
        """
        u = coordinate(u)
        if u.shape != (self.size,):
            raise SpaceError(
                f"Space.from_unit needs a tensor of shape [{self.size}], one coordinate for each "
                f"of {', '.join(self)} (and each entry of an Array), got {list(u.shape)}. Pass one "
                f"point at a time."
            )
        parts = torch.split(u, [dimension.size for dimension in self.values()])
        return {
            name: dimension.from_unit(part if isinstance(dimension, Array) else part.reshape(()))
            for (name, dimension), part in zip(self.items(), parts, strict=True)
        }


def _checked_name(name: object) -> str:
    if not isinstance(name, str) or not 0 < len(name) <= _LONGEST_NAME:
        raise SpaceError(
            f"A dimension's name must be a string of 1 to {_LONGEST_NAME} characters, got "
            f"{name!r}. Rename it."
        )
    return name


def _dimension(name: str, value: object) -> Dimension:
    if isinstance(value, (Float, Int, Categorical, Array)):
        return value
    if isinstance(value, FloatDistribution):
        return Float(value.low, value.high, log=value.log, step=value.step)
    if isinstance(value, IntDistribution):
        return Int(value.low, value.high, log=value.log, step=value.step)
    if isinstance(value, CategoricalDistribution):
        return Categorical(value.choices)
    raise SpaceError(
        f"Space needs a dimension for {name!r}, got {value!r}. Pass a Float, Int, Categorical or "
        f"Array, or the Optuna distribution of a scalar; a constant is no hyperparameter."
    )

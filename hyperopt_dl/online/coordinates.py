"""What is tuned, as coordinates: from the user's names to numbers in ``optimizer.param_groups``.

A name is an option, alone for all parameter groups together (``"lr"``), with the number of a group
for that group alone (``"lr@0"``), and with an index for one of Adam's two betas (``"betas[0]"``,
``"betas[1]@2"``). Any other name is that of a tensor which the loss reads. The coordinate u of a
dimension with ``log=True`` is log λ, of any other λ in tenths of its interval. So a tangent in a
log coordinate is that of a factor on λ.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from hyperopt_dl.errors import SpaceError, TrainingError
from hyperopt_dl.online.rules import Rule, options_of
from hyperopt_dl.optimizers.options import check_option
from hyperopt_dl.space import Float

Group: TypeAlias = dict[str, Any]
"""An entry of ``optimizer.param_groups``."""

_NAME = re.compile(r"(?P<option>[a-z_]+)(\[(?P<index>[01])\])?(@(?P<group>\d+))?")
_BETAS = {"0": "beta1", "1": "beta2"}


@dataclass(frozen=True)
class Coordinate:
    """One tuned hyperparameter.

    Attributes:
        name: As the user wrote it.
        option: The option, ``betas[0]`` as beta1; of a tensor that the loss reads, its name.
        groups: The numbers of the parameter groups whose option it moves; none for a tensor.
        dimension: Where the values lie.
    """

    name: str
    option: str
    groups: tuple[int, ...]
    dimension: Float

    def slope(self, value: float) -> float:
        """Return dλ/du at a value λ."""
        return value if self.dimension.log else self._tenth

    def moved(self, value: float, by: float) -> float:
        """Return the value, ``by`` further along the coordinate and inside the bounds.

        A move of 0 returns the very same number.
        """
        if by == 0:
            return value
        further = value * math.exp(by) if self.dimension.log else value + by * self._tenth
        return min(max(further, self.dimension.low), self.dimension.high)

    @property
    def back_off(self) -> float:
        """How far a rate goes down where training has diverged: to a fourth, where log."""
        return math.log(4.0) if self.dimension.log else 2.5

    @property
    def _tenth(self) -> float:
        return (self.dimension.high - self.dimension.low) / 10


def coordinates_of(
    tune: Mapping[str, Float],
    optimizer: torch.optim.Optimizer,
    rule: Rule,
    in_loss: Mapping[str, Tensor],
) -> tuple[Coordinate, ...]:
    """Return the coordinates that ``tune`` names, in its order; ``in_loss`` has the tensors.

    Raises:
        TrainingError: A name is none, or two names move the same number.
        SpaceError: A dimension is no continuous ``Float``, goes beyond what the option may be, or
            does not hold the value that it starts with.
    """
    if not tune:
        raise TrainingError("tune must name a hyperparameter, got none. Write tune={'lr': ...}.")
    found = tuple(
        _in_loss(name, dimension, in_loss[name], rule)
        if name in in_loss
        else _coordinate(name, dimension, optimizer.param_groups, rule)
        for name, dimension in tune.items()
    )
    taken: dict[tuple[str, int], str] = {}
    for coordinate in found:
        for number in coordinate.groups:
            other = taken.setdefault((coordinate.option, number), coordinate.name)
            if other != coordinate.name:
                raise TrainingError(
                    f"Each number may be moved by one name only, got {other!r} and "
                    f"{coordinate.name!r} for group {number}. Name each group by itself."
                )
    return found


def read(group: Group, option: str) -> float:
    """Return the value of an option of a parameter group."""
    if option in ("beta1", "beta2"):
        return float(group["betas"][option == "beta2"])
    return float(group[option])


def write(group: Group, option: str, value: float) -> None:
    """Set an option of a parameter group."""
    if option in ("beta1", "beta2"):
        beta1, beta2 = group["betas"]
        group["betas"] = (value, beta2) if option == "beta1" else (beta1, value)
    else:
        group[option] = value


def parse(name: str, dimension: object, rule: Rule) -> tuple[str, int | None]:
    """Return the option that a name means, and the number of its group, ``None`` for all.

    Raises:
        TrainingError: The optimizer has no such option.
        SpaceError: The dimension is none that the option can be tuned in.
    """
    parsed = _NAME.fullmatch(name)
    option = parsed["option"] if parsed else name
    if parsed and option == "betas" and parsed["index"]:
        option = _BETAS[parsed["index"]]
    elif parsed is None or parsed["index"] or option in _BETAS.values():
        option = name
    if parsed is None or option not in rule.options:
        known = [_written(known) for known in rule.options]
        raise TrainingError(
            f"tune may name {', '.join(known)} for this optimizer, each alone or for one parameter "
            f"group ('lr@0'), got {name!r}. Correct the name."
        )
    _check_dimension(name, option, dimension, rule)
    return option, None if parsed["group"] is None else int(parsed["group"])


def continuous(name: str, dimension: object) -> Float:
    """Return the dimension, or raise a SpaceError where it is not a line to move along."""
    if not isinstance(dimension, Float) or dimension.step is not None:
        raise SpaceError(
            f"Online tuning moves a number continuously: {name!r} needs a Float without a step, "
            f"got {dimension!r}. Write Float(low, high, log=True)."
        )
    if dimension.low == dimension.high:
        raise SpaceError(f"{name!r} needs low < high, got {dimension!r}. Leave it out of tune.")
    return dimension


def check_start(coordinate: Coordinate, group: Group, number: int) -> None:
    """Raise unless an option of a group can be where a coordinate starts.

    Raises:
        TrainingError: It is a tensor.
        SpaceError: It is outside of the dimension.
    """
    name = coordinate.option
    raw = options_of(group)[name]
    if isinstance(raw, torch.Tensor):
        raise TrainingError(
            f"{coordinate.name!r} must be a plain number in group {number} of the optimizer, got a "
            f"tensor. Give the optimizer a float."
        )
    value = group["initial_lr"] if name == "lr" and "initial_lr" in group else raw
    if not coordinate.dimension.contains(value):
        raise SpaceError(
            f"{coordinate.name!r} must start inside {coordinate.dimension!r}, got {value!r} in "
            f"group {number} of the optimizer. Widen the bounds, or start elsewhere."
        )


def _in_loss(name: str, dimension: object, tensor: Tensor, rule: Rule) -> Coordinate:
    if re.split(r"[@\[]", name)[0] in (*rule.options, "betas"):
        raise TrainingError(
            f"A tensor of in_loss must not be named as an option of the optimizer, got {name!r}. "
            f"Give it another name."
        )
    coordinate = Coordinate(name, name, (), continuous(name, dimension))
    value = float(tensor.detach())
    if not coordinate.dimension.contains(value):
        raise SpaceError(
            f"{name!r} must start inside {dimension!r}, got {value!r} in its tensor. Widen the "
            f"bounds, or start elsewhere."
        )
    return coordinate


def _coordinate(name: str, dimension: Float, groups: Sequence[Group], rule: Rule) -> Coordinate:
    option, number = parse(name, dimension, rule)
    numbers = range(len(groups)) if number is None else (number,)
    if numbers[-1] >= len(groups):
        raise TrainingError(
            f"{name!r} must name one of the optimizer's {len(groups)} parameter groups, counted "
            f"from 0. Correct the number after the @."
        )
    coordinate = Coordinate(name, option, tuple(numbers), dimension)
    for member in numbers:
        check_start(coordinate, groups[member], member)
    return coordinate


def _check_dimension(name: str, option: str, dimension: object, rule: Rule) -> None:
    dimension = continuous(name, dimension)
    for bound in (dimension.low, dimension.high):
        check_option("tune", name, bound, rule.options[option])
    if option == "momentum" and dimension.low == 0:
        raise SpaceError(
            f"{name!r} needs low > 0, got {dimension!r}: torch keeps no buffer at momentum 0, and "
            f"no derivative leads away from there. Start at a small positive number."
        )


def _written(option: str) -> str:
    return {"beta1": "betas[0]", "beta2": "betas[1]"}.get(option, option)

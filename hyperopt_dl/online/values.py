"""The tuned options in ``optimizer.param_groups``: read, moved, and watched for other writes."""

from collections.abc import Sequence

import torch

from hyperopt_dl.errors import TrainingError
from hyperopt_dl.online.coordinates import Coordinate, check_start, read, write
from hyperopt_dl.online.rates import Rates


class Values:
    """The options that coordinates move, of which a learning rate is that without a scheduler.

    Args:
        optimizer: Whose options these are.
        coordinates: What is tuned.
        rates: The optimizer's learning rates.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        coordinates: Sequence[Coordinate],
        rates: Rates,
    ) -> None:
        self._optimizer, self._coordinates, self._rates = optimizer, coordinates, rates
        self._left: dict[tuple[str, int], float] | None = None

    def value(self, coordinate: Coordinate, number: int) -> float:
        """Return the value of an option in a parameter group."""
        if coordinate.option == "lr":
            return self._rates.base(number)
        return read(self._optimizer.param_groups[number], coordinate.option)

    def move(self, by: Sequence[float]) -> None:
        """Move the options, by one number a coordinate, of whatever kind."""
        self.check()
        for coordinate, step in zip(self._coordinates, by, strict=True):
            for number in coordinate.groups:
                value = self.value(coordinate, number)
                moved = coordinate.moved(value, step)
                if moved == value:
                    continue
                if coordinate.option == "lr":
                    self._rates.set_base(number, moved)
                else:
                    write(self._optimizer.param_groups[number], coordinate.option, moved)
        self._take()

    def accept(self) -> None:
        """Take whatever there is at the next step for right."""
        self._left = None

    def check(self) -> None:
        """Raise where a tuned option is not what was left there.

        Raises:
            TrainingError: Somebody has written to it since.
            SpaceError: It was written to before the first step, and is not in its dimension.
        """
        if self._left is None:
            for coordinate in self._coordinates:
                for number in coordinate.groups:
                    check_start(coordinate, self._optimizer.param_groups[number], number)
            self._take()
            return
        for coordinate in self._coordinates:
            for number in coordinate.groups:
                found = self.value(coordinate, number)
                left = self._left[coordinate.option, number]
                if found != left:
                    raise _overwritten(coordinate.name, number, left, found)

    def _take(self) -> None:
        self._left = {
            (coordinate.option, number): self.value(coordinate, number)
            for coordinate in self._coordinates
            for number in coordinate.groups
        }


def _overwritten(name: str, number: int, left: float, found: float) -> TrainingError:
    way_out = (
        "Warm up and decay by a torch scheduler that gives its groups an 'initial_lr' (LambdaLR, "
        "CosineAnnealingLR), which the tuner scales, in place of ReduceLROnPlateau or a write to "
        "group['lr']"
        if name.split("@")[0] == "lr"
        else "With OneCycleLR or CyclicLR, set cycle_momentum=False; leave out what else sets it"
    )
    return TrainingError(
        f"What is tuned must be moved by the tuner alone, got {name!r} at {found:g} in group "
        f"{number}, where it had left {left:g}. {way_out}, or leave {name!r} out of tune. After a "
        f"change by hand, make a new tuner."
    )

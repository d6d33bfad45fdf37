"""Whether the values that a space has can be the numbers of an optimizer.

t the step, T the number of steps, f the factor of a schedule.
"""

from collections.abc import Mapping
from typing import Any

from hyperopt_dl.errors import TrainingError
from hyperopt_dl.optimizers.optimizer import Optimizer, intervals_of
from hyperopt_dl.optimizers.options import FINITE, Interval
from hyperopt_dl.optimizers.schedule import Schedule
from hyperopt_dl.space import Dimension
from hyperopt_dl.space.bounds import bounds


def check_ranges(optimizer: Optimizer, space: Mapping[str, Dimension], steps: int) -> None:
    """Check all that is named by the options and groups of an optimizer.

    A ``Schedule`` is looked at in its first and its last step, unless its factor reads
    hyperparameters itself: then nothing is known of its values.

    Args:
        optimizer: The rule.
        space: A dimension for each name in ``optimizer.names()``.
        steps: The number of steps T of a run.

    Raises:
        TrainingError: A dimension is not one number, or has values outside of its option's
            interval; or a factor fails.
    """
    intervals = intervals_of(optimizer)
    for owner, options in _written(optimizer).items():
        for name, option in options.items():
            needed = intervals.get(name, FINITE)
            if isinstance(option, Schedule):
                _check_schedule(owner, name, option, needed, space, steps)
            elif isinstance(option, str):
                low, high = _numbers(owner, name, option, space[option])
                if low not in needed or high not in needed:
                    got = f"in {space[option]!r}. Narrow the dimension."
                    if low == high:
                        got = f"at {low:g}. Change that value."
                    raise TrainingError(
                        f"{owner} needs {needed.condition(name)}, got the hyperparameter "
                        f"{option!r} {got}"
                    )


def factors_read(optimizer: Optimizer) -> bool:
    """Return whether a schedule of an optimizer has a factor that reads hyperparameters itself."""
    options = (option for part in _written(optimizer).values() for option in part.values())
    return any(isinstance(option, Schedule) and option.takes_hparams for option in options)


def _written(optimizer: Optimizer) -> dict[str, Mapping[str, Any]]:
    """Return the options as given, by what has them: the optimizer itself, and its groups."""
    kind = type(optimizer).__name__
    return {kind: optimizer.options()} | {
        f"{kind}.groups[{pattern!r}]": changes for pattern, changes in optimizer.groups.items()
    }


def _numbers(owner: str, name: str, option: str, dimension: Dimension) -> tuple[float, float]:
    """Return the bounds of a dimension, which must hold nothing but numbers."""
    found = bounds(dimension)
    if found is None:
        raise TrainingError(
            f"{owner} needs one number as {name}, got the hyperparameter {option!r} in "
            f"{dimension!r}. Use a Float; for one value a step a Schedule with a factor of "
            f"(t, hparams), for one value a layer groups."
        )
    return found


def _check_schedule(
    owner: str,
    name: str,
    schedule: Schedule,
    needed: Interval,
    space: Mapping[str, Dimension],
    steps: int,
) -> None:
    v = schedule.value
    values = _numbers(owner, name, v, space[v]) if isinstance(v, str) else (v, v)
    if schedule.takes_hparams:
        return
    for t in (0, steps - 1):
        try:
            f = round(float(schedule.factor_at(t, {})), 12)  # 0.3 - 0.1 * 3 is not negative
        except TrainingError:
            raise
        except Exception as error:
            raise TrainingError(
                f"The factor of a Schedule must have a value at every step of the run, that of "
                f"{name} of {owner} fails at step {t} of {steps}: {error!r}."
            ) from error
        for value in values:
            if value * f not in needed:
                raise TrainingError(
                    f"{owner} needs {needed.condition(name)}, got {value * f:g} at step {t}"
                    f": the Schedule's value {value!r} times its factor {f:g}. Change the factor, "
                    f"or narrow the dimension."
                )

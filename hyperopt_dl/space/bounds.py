"""Between which numbers a dimension lies."""

from hyperopt_dl.space.categorical import Categorical
from hyperopt_dl.space.numeric import Float, Int
from hyperopt_dl.space.space import Dimension


def bounds(dimension: Dimension) -> tuple[float, float] | None:
    """Return the least and the greatest number of a dimension; ``None`` if not all are numbers.

    An Array has none: it is no single number.
    """
    if isinstance(dimension, (Float, Int)):
        return float(dimension.low), float(dimension.high)
    if isinstance(dimension, Categorical):
        numbers = [
            float(choice) for choice in dimension.choices if isinstance(choice, (int, float))
        ]
        if len(numbers) == len(dimension.choices):
            return min(numbers), max(numbers)
    return None

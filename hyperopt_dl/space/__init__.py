"""Search spaces: dimensions, their map to the unit cube, and Optuna's distributions."""

from hyperopt_dl.space.array import Array
from hyperopt_dl.space.categorical import Categorical, Choice
from hyperopt_dl.space.numeric import Float, Int
from hyperopt_dl.space.space import Dimension, Space

__all__ = ["Array", "Categorical", "Choice", "Dimension", "Float", "Int", "Space"]

"""How far a point is from the middle of the cube: one more number that a component can read.

    ρ(x) = 4/O Σ_d (x_d - ½)²,    ∂ρ/∂x_d = 8/O (x_d - ½),    d  of the O ordered dimensions

In many dimensions most of a cube is corners. They are far from each other, so however many of them
were bad, to a kernel of distances between points the next is unexplored, and a whole batch goes
there. What corners share is their distance from the middle, and a component that reads it learns
from all of them at once. The square, on [0, 1], is smooth in the middle too.

Masks and scales that have a column more than points have dimensions have it for ρ, and it is the
last. The component that reads it reads nothing else.

The idea is that of Oh, Gavves and Welling, "BOCK: Bayesian Optimization with Cylindrical Kernels",
ICML 2018, where distance from the middle and direction are multiplied; here a term is added.
"""

from torch import Tensor


def radius(z: Tensor) -> Tensor:
    """Return ρ, ``[...]``, of ordered coordinates ``[..., O]`` taken from the middle, x - ½."""
    return 4 / max(1, z.shape[-1]) * z.square().sum(-1)


def radius_slope(z: Tensor) -> Tensor:
    """Return ∂ρ/∂x, ``[..., O]``."""
    return 8 / max(1, z.shape[-1]) * z

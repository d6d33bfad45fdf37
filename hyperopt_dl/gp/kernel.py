"""The kernel: a sum of components, each of which reads its own dimensions.

    k(x, x') = Σ_g w_g κ(r_g²),    r_g² = Σ_d m_gd a_gd δ_d(x, x')

    g  component, of G                        d  dimension, of D
    m  mask, 1 where g reads d                a  scale, 1 / lengthscale²
    w  weight, the variance of a component    κ  correlation, a function of the squared distance
    δ  (x_d - x'_d)², or [x_d ≠ x'_d] for a categorical d, or (ρ - ρ')² of the radius ρ(x), which
       is one more column d of masks and scales where a component reads it

One tensor of masks in place of lists of dimensions lets structures stand in one batch: two kernels
of a batch may group the dimensions differently.

Squared distances come from matrix products, exact to about 1e-16 times the scales, and κ is smooth
in r² down to 0, so nothing is lost where points coincide.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from hyperopt_dl.gp.distances import Distances, distances_to

Family: TypeAlias = Literal["matern52", "rbf"]
_ROOT5 = 5.0**0.5


@dataclass(frozen=True)
class Kernel:
    """A covariance function, or a batch of them: the leading dimensions ``...`` of its tensors.

    Where there is a full component, which reads every dimension, it is component 0. A component
    with weight 0 is empty: it pads a batch whose members have different numbers of components.
    """

    masks: Tensor
    """``[..., G, D]``, 0 or 1; ``[..., G, D + 1]`` where a component reads the radius."""
    scales: Tensor
    """Of the shape of the masks, in 1 / (unit of the cube)²; read only where the mask is 1."""
    weights: Tensor
    """``[..., G]``, in (unit of the values)²."""
    noise: Tensor
    """``[...]``, the variance of an observation around the function."""
    categorical: Tensor
    """``[D]``, bool."""
    family: Family = "matern52"

    def __call__(self, x1: Tensor, x2: Tensor) -> Tensor:
        """Return the covariance ``[..., n1, n2]`` of the function at two sets of points.

        Args:
            x1: A ``... x n1 x D`` tensor of points.
            x2: A ``... x n2 x D`` tensor of points. Leading dimensions broadcast with the kernel's.
        """
        return self.parts(x1, x2).sum(-3)

    def parts(self, x1: Tensor, x2: Tensor) -> Tensor:
        """Return the covariance of each component, ``[..., G, n1, n2]``; they sum to the kernel."""
        correlations = correlation(self.squared_distances(x1, x2), self.family)
        return self.weights[..., None, None] * correlations

    def squared_distances(self, x1: Tensor, x2: Tensor) -> Tensor:
        """Return r², ``[..., G, n1, n2]``, never below 0."""
        return self.distances_to(x2)(x1)

    def distances_to(self, x: Tensor) -> Distances:
        """Prepare the squared distances to ``... x n x D`` points."""
        return distances_to(x, self.masks * self.scales, self.categorical)

    @property
    def variance(self) -> Tensor:
        """The variance ``[...]`` of the function at any point: the diagonal of the kernel."""
        return self.weights.sum(-1)

    @property
    def has_radius(self) -> bool:
        """Whether masks and scales have a column for the radius."""
        return self.masks.shape[-1] > len(self.categorical)

    @property
    def reads(self) -> Tensor:
        """On which dimensions a component depends, ``[..., G, D]`` of bool.

        A component that reads the radius depends on all that are not categorical.
        """
        D = len(self.categorical)
        radial = (self.masks[..., D:] > 0).any(-1, keepdim=True)
        return (self.masks[..., :D] > 0) | (radial & ~self.categorical)

    def __getitem__(self, index: Any) -> "Kernel":
        """Return the members of a batch that `index` selects."""
        return Kernel(
            self.masks[index],
            self.scales[index],
            self.weights[index],
            self.noise[index],
            self.categorical,
            self.family,
        )


def stack(kernels: Sequence[Kernel]) -> Kernel:
    """Return the batch of kernels of equal batch shape over the same dimensions.

    The new dimension comes first. Members with fewer components are padded with empty ones.
    """
    most = max(kernel.weights.shape[-1] for kernel in kernels)
    padded = [_pad(kernel, most) for kernel in kernels]
    return Kernel(
        torch.stack([kernel.masks for kernel in padded]),
        torch.stack([kernel.scales for kernel in padded]),
        torch.stack([kernel.weights for kernel in padded]),
        torch.stack([kernel.noise for kernel in padded]),
        padded[0].categorical,
        padded[0].family,
    )


def correlation(r2: Tensor, family: Family) -> Tensor:
    """Return κ(r²), which is 1 at 0. Differentiable twice, at 0 too.

    Matern-5/2: (1 + √5 r + 5/3 r²) exp(-√5 r). RBF: exp(-r²/2).
    """
    if family == "rbf":
        return torch.exp(-0.5 * r2)
    correlations: Tensor = _Matern52.apply(r2)  # type: ignore[no-untyped-call]
    return correlations


def slope(r2: Tensor, family: Family) -> Tensor:
    """Return dκ/d(r²).

    Matern-5/2: -5/6 (1 + √5 r) exp(-√5 r), free of the 1/r that autograd would meet at 0.
    """
    if family == "rbf":
        return -0.5 * torch.exp(-0.5 * r2)
    slopes: Tensor = _Matern52Slope.apply(r2)  # type: ignore[no-untyped-call]
    return slopes


def correlation_and_slope(r2: Tensor, family: Family) -> tuple[Tensor, Tensor]:
    """Return κ(r²) and dκ/d(r²) for the price of one exponential; not differentiable at 0."""
    if family == "rbf":
        correlations = torch.exp(-0.5 * r2)
        return correlations, -0.5 * correlations
    r = (5 * r2).sqrt_()
    decay = r.neg().exp_()
    slopes = r.mul_(decay).add_(decay)
    return torch.addcmul(slopes, decay, r2, value=5 / 3), slopes.mul(-5 / 6)


class _Matern52(torch.autograd.Function):
    """κ as a function of r²: the square root inside it has no derivative at 0, but κ has."""

    generate_vmap_rule = True

    @staticmethod
    def forward(r2: Tensor) -> Tensor:
        r = r2.sqrt().mul_(_ROOT5)
        polynomial = r2.mul(5 / 3).add_(r).add_(1)  # in place, a third of the time: memory decides
        return polynomial.mul_(r.neg_().exp_())

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        del output
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (r2,) = ctx.saved_tensors
        return gradient * slope(r2, "matern52")


class _Matern52Slope(torch.autograd.Function):
    """dκ/d(r²), whose own derivative 25/12 exp(-√5 r) is finite at 0 as well."""

    generate_vmap_rule = True

    @staticmethod
    def forward(r2: Tensor) -> Tensor:
        r = r2.sqrt().mul_(_ROOT5)
        return (r + 1).mul_(-5 / 6).mul_(r.neg_().exp_())

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        del output
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (r2,) = ctx.saved_tensors
        return gradient * (25 / 12) * torch.exp(-_ROOT5 * r2.sqrt())


def _pad(kernel: Kernel, components: int) -> Kernel:
    """Return the kernel with empty components added up to a number."""
    missing = components - kernel.weights.shape[-1]
    return Kernel(
        torch.nn.functional.pad(kernel.masks, (0, 0, 0, missing)),
        torch.nn.functional.pad(kernel.scales, (0, 0, 0, missing)),
        torch.nn.functional.pad(kernel.weights, (0, missing)),
        kernel.noise,
        kernel.categorical,
        kernel.family,
    )

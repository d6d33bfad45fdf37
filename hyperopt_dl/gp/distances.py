"""Squared distances to a set of points, in the dimensions that each component of a kernel reads.

    r_g² = Σ_d a_gd δ_d(x, x') = Σ_d a_gd x_d² + (Σ_d a_gd x'_d² + Σ_e a_ge) - 2 Σ_c s_gc u_c u'_c

    a  scale, 0 where g does not read d     δ  (x_d - x'_d)², or [x_d ≠ x'_d] if categorical
    d  number: an ordered dimension, or     u  the columns of a point: x_d, and for each choice
       the radius, if a component reads it     of e the number [x_e = choice]
    e  categorical dimension
    c  column                               s  a_gd, or ½ a_ge for a choice of e

Coordinates are taken from the middle of the cube: smaller numbers cancel with less rounding.

The last sum is a matrix product. Where columns are few it is one over all of them. Where they are
many, that is so only for the first component, which may read everything; for each of the others it
is one over the columns that it reads. With D components that read a dimension each, a product over
all columns would be D times the work.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from hyperopt_dl.gp.radius import radius, radius_slope

MANY = 32
"""Columns from which on components but the first read their own alone."""


@dataclass(frozen=True)
class Distances:
    """What the squared distances to n points need; ``distances_to`` makes it."""

    ordered: Tensor
    """``[O]``, the indices of the dimensions that are not categorical."""
    choices: tuple[tuple[int, Tensor], ...]
    """Each categorical dimension, and the choices in it that the points have."""
    a: Tensor
    """``[..., G, O]``, the scales of the ordered dimensions, and with the radius one more."""
    reads: Tensor
    """``[..., G - F, P]``, the columns that all components but the first F read, at most P, and
    any others for those that read fewer."""
    first: Tensor
    """``[..., F, C, n]``, ``-2 s u'`` of the first components, over all columns."""
    others: Tensor
    """``[..., G - F, P, n]``, that of the others; 0 in a column that a component does not read."""
    norms: Tensor
    """``[..., G, 1, n]``, the part of r² that x has no share in."""

    def __call__(self, x: Tensor) -> Tensor:
        """Return r², ``[..., G, m, n]``, never below 0, of ``... x m x D`` points.

        Differentiable in the ordered dimensions.
        """
        u = self._columns(x)
        own = (self._numbers(u).square() @ self.a.mT).mT.unsqueeze(-1)
        r2 = u.unsqueeze(-3) @ self.first
        if self.reads.shape[-2]:
            r2 = torch.cat([r2, _pick(u, self.reads) @ self.others], -3)
        return r2.add_(self.norms).add_(own).relu_()

    def pull(self, x: Tensor, cotangent: Tensor) -> Tensor:
        """Return ``Σ cotangent ∂r²/∂x`` in the ordered dimensions, ``[..., m, O]``.

        Args:
            x: A ``... x m x D`` tensor of points.
            cotangent: A ``... x G x m x n`` tensor.
        """
        u = self._columns(x)
        F = self.first.shape[-3]
        meets = (cotangent[..., :F, :, :] @ self.first.mT).sum(-3)
        if self.reads.shape[-2]:
            others = (cotangent[..., F:, :, :] @ self.others.mT).movedim(-3, -2).flatten(-2)
            reads = self.reads.flatten(-2).unsqueeze(-2).expand_as(others)
            meets = meets.scatter_add(-1, reads, others)
        to_numbers = 2 * (cotangent.sum(-1).mT @ self.a) * self._numbers(u) + self._numbers(meets)
        if not self.has_radius:
            return to_numbers
        slope = radius_slope(u[..., : len(self.ordered)])
        return to_numbers[..., :-1] + to_numbers[..., -1:] * slope

    def to(self, dtype: torch.dtype) -> "Distances":
        """Return the same in another precision."""
        return replace(
            self,
            choices=tuple((d, known.to(dtype)) for d, known in self.choices),
            a=self.a.to(dtype),
            first=self.first.to(dtype),
            others=self.others.to(dtype),
            norms=self.norms.to(dtype),
        )

    @property
    def has_radius(self) -> bool:
        """Whether the last of the numbers is the radius."""
        return self.a.shape[-1] > len(self.ordered)

    def _columns(self, x: Tensor) -> Tensor:
        return _columns(x, self.ordered, self.choices, self.has_radius)

    def _numbers(self, columns: Tensor) -> Tensor:
        """Return those of the columns that are numbers: the first ones."""
        return columns[..., : self.a.shape[-1]]


def distances_to(x: Tensor, a: Tensor, categorical: Tensor) -> Distances:
    """Prepare the squared distances to points.

    Args:
        x: A ``... x n x D`` tensor of points.
        a: A ``... x G x D`` tensor of scales, 0 where a component does not read a dimension; with
            a column more, the radius is read as well.
        categorical: A ``D`` tensor of bool.
    """
    ordered, unordered = (~categorical).nonzero().squeeze(-1), categorical.nonzero().squeeze(-1)
    choices = tuple((d, torch.unique(x[..., d])) for d in unordered.tolist())
    has_radius = a.shape[-1] > len(categorical)
    u = _columns(x, ordered, choices, has_radius)
    of_numbers = torch.cat([a[..., ordered], a[..., len(categorical) :]], -1)
    s = torch.cat(
        [
            of_numbers,
            *(0.5 * a[..., d : d + 1].expand(*a.shape[:-1], len(known)) for d, known in choices),
        ],
        -1,
    )
    F = 1 if u.shape[-1] >= MANY else s.shape[-2]
    reads = columns_read(s[..., F:, :])
    of_others = s[..., F:, :].gather(-1, reads).unsqueeze(-2)
    squares = u[..., : of_numbers.shape[-1]].square() @ of_numbers.mT
    return Distances(
        ordered,
        choices,
        of_numbers,
        reads,
        (-2 * s[..., :F, :].unsqueeze(-2) * u.unsqueeze(-3)).mT,
        (-2 * of_others * _pick(u, reads)).mT,
        (squares.mT + a[..., unordered].sum(-1, keepdim=True)).unsqueeze(-2),
    )


def _columns(
    x: Tensor, ordered: Tensor, choices: tuple[tuple[int, Tensor], ...], has_radius: bool
) -> Tensor:
    """Return the columns ``[..., m, C]`` of points; a choice that is not known has none."""
    z = x[..., ordered] - 0.5
    rho = [radius(z).unsqueeze(-1)] if has_radius else []
    matches = [(x[..., d : d + 1] == known).to(x) for d, known in choices]
    return torch.cat([z, *rho, *matches], -1)


def columns_read(s: Tensor) -> Tensor:
    """Return what is not 0 in each row, ``[..., G, P]``, and where P is more than that any others.

    Args:
        s: A ``... x G x C`` tensor, masks or scales.
    """
    found = s != 0
    most = int(found.sum(-1).max()) if found.numel() else 0
    return found.to(torch.uint8).sort(dim=-1, descending=True, stable=True).indices[..., :most]


def _pick(u: Tensor, reads: Tensor) -> Tensor:
    """Return the columns ``[..., G, m, P]`` of points ``[..., m, C]`` that each component reads."""
    batch = np.broadcast_shapes(u.shape[:-2], reads.shape[:-2])
    G, P = reads.shape[-2:]
    everywhere = u.unsqueeze(-3).expand(*batch, G, *u.shape[-2:])
    return everywhere.gather(-1, reads.unsqueeze(-2).expand(*batch, G, u.shape[-2], P))

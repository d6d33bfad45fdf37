"""The posterior density of hyperparameters: marginal likelihood times priors, and its gradient.

    L(θ) = ½ y' K⁻¹ y + ½ log|K| + ½ n log 2π - log p(θ),    K = Σ_g w_g κ(S_g) + diag(s² / c)
    S_g  = Σ_d m_gd a_vd E_d,   v the vector of scales that g reads

    w  weights        a  scales, 1 / lengthscale²       s²  noise variance
    m  masks          c  observations at a point        E   squared differences of the pairs,
                                                            the radius' last if masks have it

With α = K⁻¹ y and W = ½ (K⁻¹ - α α'):

    ∂L/∂log w_g  = w_g ⟨W, κ(S_g)⟩
    ∂L/∂a_vd     = Σ_g m_gd w_g ⟨W κ'(S_g), E_d⟩, over the g that read v
    ∂L/∂log s²   = Σ_i W_ii s² / c_i

One Cholesky factor and one inverse, O(n³), and O(n²) for every dimension that a component reads.

Priors, on natural parameters and without a Jacobian, of the form that Optuna's GPSampler has:
exp(-0.1 c/a - 0.1 a/c) for each scale, Gamma(2, 1) for the total variance, Gamma(1.1, 30) for the
noise. Here c is 1 in a component that reads every dimension and ``GROUP_SCALE`` in a group, since
points are less far apart in a few dimensions than in all of them; a component that reads the radius
counts as a group. Of many categories that a component reads with every dimension, c is less, since
two random points differ in half of them or more: with 50 switches and c = 1 every two points would
be strangers, and the switches noise. And log w_g is normal, with
deviation 1, around g's share of the total: a half for the component that reads every dimension, the
other half evenly for the groups. With an even share for all, forty groups would leave the full
component nothing, and the model would be sure of sums where there are hardly any data.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import scipy.optimize
import torch
from torch import Tensor

from hyperopt_dl.gp.data import Data
from hyperopt_dl.gp.distances import columns_read
from hyperopt_dl.gp.kernel import Family, Kernel, correlation_and_slope

LOWEST, HIGHEST, LOWEST_NOISE = -12.0, 8.0, math.log(1e-6)
"""The bounds of the logarithms."""
GROUP_SCALE = 4.0
"""The typical scale in a component that does not read every dimension: a lengthscale of a half."""
CATEGORIES = 20 / 3
"""So many categories at most have the typical scale 1 in a component that reads every dimension,
and more of them share what these have. Two points that differ in half of them are then as far apart
as two random points are in 20 numbers, whose squared differences are 1/6 on average."""
_AT_ONCE = 2**15
"""Numbers of a temporary tensor that components share."""
_WALL = 1e10
"""What the search meets in place of a likelihood that cannot be computed."""
_JITTERS = (0.0, 1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2)
"""Added in turn to the diagonal of a matrix without a Cholesky factor, times its mean diagonal."""


@dataclass(frozen=True)
class Parameters:
    """The logarithms of the hyperparameters of a batch ``b`` of kernels."""

    scales: Tensor
    """``[b, V, D]``: V vectors of scales, which components share."""
    weights: Tensor
    """``[b, G]``."""
    noise: Tensor
    """``[b]``."""

    def flat(self) -> Tensor:
        """Return ``[b, V D + G + 1]``."""
        return torch.cat([self.scales.flatten(1), self.weights, self.noise.unsqueeze(-1)], -1)

    def like(self, flat: Tensor) -> "Parameters":
        """Return the parameters of these shapes that are written in a flat tensor."""
        split = self.scales[0].numel()
        return Parameters(
            flat[:, :split].reshape(-1, *self.scales.shape[1:]), flat[:, split:-1], flat[:, -1]
        )


@dataclass(frozen=True)
class Structure:
    """Which dimensions the components of a batch of kernels read, and which scales."""

    masks: Tensor
    """``[b, G, D]``, 0 or 1; with the radius ``[b, G, D + 1]``, and so are scales."""
    vector: Tensor
    """``[G]``, the index of the scale vector that each component reads."""
    categorical: Tensor
    """``[D]``, bool."""
    family: Family = "matern52"

    @property
    def has_radius(self) -> bool:
        """Whether the last column is the radius."""
        return self.masks.shape[-1] > len(self.categorical)

    @property
    def real(self) -> Tensor:
        """1 for a component that reads a column, 0 for an empty one, ``[b, G]``."""
        return self.masks.amax(-1)

    @property
    def whole(self) -> Tensor:
        """1 for a component that reads every dimension, ``[b, G]``."""
        return (self.masks[..., :-1] if self.has_radius else self.masks).amin(-1)

    @cached_property
    def reads(self) -> Tensor:
        """The columns that all components but the first read, ``[b, G - 1, P]``."""
        return columns_read(self.masks[:, 1:])

    @cached_property
    def log_shares(self) -> Tensor:
        """The log of each component's typical share of the total variance, ``[b, G]``.

        The components that read every dimension have half of it together, if there are others.
        """
        whole = self.whole
        parts = self.real - whole
        wholes, others = whole.sum(-1, keepdim=True), parts.sum(-1, keepdim=True)
        both = ((wholes > 0) & (others > 0)).to(whole)
        alike = torch.where(whole > 0, wholes, others).clamp(min=1)
        return -math.log(2) * both - alike.log()

    @cached_property
    def typical_scales(self) -> Tensor:
        """The c of each vector of scales, of the masks' width: ``[V, D]``."""
        width, D = self.masks.shape[-1], len(self.categorical)
        of_category = min(1.0, CATEGORIES / max(1, int(self.categorical.sum())))
        in_whole = self.masks.new_ones(width)
        in_whole[:D].masked_fill_(self.categorical, of_category)
        c = self.masks.new_full((int(self.vector.max()) + 1, width), GROUP_SCALE)
        c[self.vector[self.whole.amax(0) > 0]] = in_whole
        return c

    def kernel(self, parameters: Parameters) -> Kernel:
        """Return the batch of kernels that have these hyperparameters."""
        return Kernel(
            masks=self.masks,
            scales=parameters.scales.exp()[:, self.vector],
            weights=self.real * parameters.weights.exp(),
            noise=parameters.noise.exp(),
            categorical=self.categorical,
            family=self.family,
        )


def initial(structure: Structure) -> Parameters:
    """Return the start of a fit: typical scales, weights that sum to 1, noise exp(-4)."""
    b, like = len(structure.masks), structure.masks
    return Parameters(
        structure.typical_scales.log().repeat(b, 1, 1),
        structure.log_shares,
        like.new_full((b,), -4.0),
    )


def negative_log_posterior(
    data: Data, structure: Structure, parameters: Parameters
) -> tuple[Tensor, Parameters]:
    """Return L, ``[b]``, and its gradient in the logarithms.

    L is in nats and complete but for the priors' constants; NaN where a matrix is beyond repair.
    """
    value, gradient = _likelihood(data, structure, parameters)
    penalty, slope = _prior(structure, parameters)
    total = Parameters(
        gradient.scales + slope.scales,
        gradient.weights + slope.weights,
        gradient.noise + slope.noise,
    )
    return value + penalty, total


def _likelihood(
    data: Data, structure: Structure, parameters: Parameters
) -> tuple[Tensor, Parameters]:
    """Return the negative log marginal likelihood ``[b]`` and its gradient."""
    a, s2 = parameters.scales.exp(), parameters.noise.exp()
    w = structure.real * parameters.weights.exp()
    k, dk = _components(data, structure, a)
    below = (w.unsqueeze(-2) @ k).squeeze(-2)
    noise = s2.unsqueeze(-1) / data.counts
    L, ok = cholesky(data.square(below, w.sum(-1, keepdim=True) + noise))
    alpha = torch.cholesky_solve(data.y.expand(len(w), -1).unsqueeze(-1), L)
    repeats = data.counts.sum() - len(data.y)
    value = 0.5 * (data.y @ alpha).squeeze(-1) + L.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    value = value + constant(data) + 0.5 * (repeats * parameters.noise + data.spread / s2)

    W = 0.5 * (torch.cholesky_inverse(L) - alpha @ alpha.mT)
    diagonal = W.diagonal(dim1=-2, dim2=-1)
    pairs = 2 * data.below(W).unsqueeze(-1)
    to_weights = w * ((k @ pairs).squeeze(-1) + diagonal.sum(-1, keepdim=True))
    to_scales = structure.masks * w.unsqueeze(-1) * _pull(data, structure, dk.mul_(pairs.mT))
    vectors = torch.zeros_like(a).index_add_(1, structure.vector, to_scales)
    to_noise = (diagonal * noise).sum(-1) + 0.5 * (repeats - data.spread / s2)
    return torch.where(ok, value, torch.nan), Parameters(vectors * a, to_weights, to_noise)


def _components(data: Data, structure: Structure, a: Tensor) -> tuple[Tensor, Tensor]:
    """Return κ(S_g) and κ'(S_g), ``[b, G, N]``.

    The first may read every dimension. The others go over what they read alone, a few of them at a
    time, so that what lies between stays in the processor's cache.
    """
    scales = structure.masks * a[:, structure.vector]
    reads, E = structure.reads, data.E[: scales.shape[-1]]
    of_others = scales[:, 1:].gather(-1, reads).unsqueeze(-2)
    k, dk = E.new_empty(2, *scales.shape[:2], E.shape[-1])
    k[:, 0], dk[:, 0] = correlation_and_slope(scales[:, 0] @ E, structure.family)
    for i, some in _blocks(data, reads):
        S = (of_others[i, some] @ E[reads[i, some]]).squeeze(-2)
        k[i, 1:][some], dk[i, 1:][some] = correlation_and_slope(S, structure.family)
    return k, dk


def _pull(data: Data, structure: Structure, to_S: Tensor) -> Tensor:
    """Return ``⟨to_S_g, E_d⟩``, of the masks' shape, where a component reads the column."""
    reads, E = structure.reads, data.E[: structure.masks.shape[-1]]
    products = to_S.new_zeros(*to_S.shape[:2], len(E))
    products[:, 0] = to_S[:, 0] @ E.T
    for i, some in _blocks(data, reads):
        known = E[reads[i, some]] @ to_S[i, 1:][some].unsqueeze(-1)
        products[i, 1:][some].scatter_(-1, reads[i, some], known.squeeze(-1))
    return products


def _blocks(data: Data, reads: Tensor) -> Iterator[tuple[int, slice]]:
    """Return a kernel, and some of its components but the first, until all have been there."""
    b, others, P = reads.shape
    size = max(1, _AT_ONCE // max(1, P * data.E.shape[-1]))
    for i in range(b):
        for start in range(0, others, size):
            yield i, slice(start, start + size)


def constant(data: Data) -> float:
    """Return what no hyperparameter changes in the negative log likelihood of all observations."""
    m = data.counts.sum().item()
    return 0.5 * m * math.log(2 * math.pi) + 0.5 * data.counts.log().sum().item()


def cholesky(K: Tensor) -> tuple[Tensor, Tensor]:
    """Return lower Cholesky factors of a batch of matrices, and which of them are right.

    A matrix that has none gets a jitter on its diagonal, more and more of it, the others do not.

    Args:
        K: A ``b x n x n`` tensor, of which the lower half is read.
    """
    L, info = torch.linalg.cholesky_ex(K)
    for jitter in _JITTERS:
        failed = (info > 0) | ~L.diagonal(dim1=-2, dim2=-1).sum(-1).isfinite()
        if not bool(failed.any()):
            break
        again = K[failed]
        diagonal = again.diagonal(dim1=-2, dim2=-1)
        diagonal += jitter * diagonal.mean(-1, keepdim=True)
        L[failed], info[failed] = torch.linalg.cholesky_ex(again)
    return L, (info == 0) & L.diagonal(dim1=-2, dim2=-1).sum(-1).isfinite()


def _prior(structure: Structure, parameters: Parameters) -> tuple[Tensor, Parameters]:
    """Return the priors' negative log density ``[b]``, without constants, and its gradient."""
    a, s2, real = parameters.scales.exp(), parameters.noise.exp(), structure.real
    w = real * parameters.weights.exp()
    total = w.sum(-1, keepdim=True)
    u = real * (parameters.weights - total.log() - structure.log_shares)
    a_c = a / structure.typical_scales
    value = (
        0.1 * (1 / a_c + a_c).sum((-2, -1))
        + (total - total.log()).squeeze(-1)
        + 0.5 * u.square().sum(-1)
        + 30 * s2
        - 0.1 * parameters.noise
    )
    to_weights = w - w / total + u - u.sum(-1, keepdim=True) * w / total
    return value, Parameters(0.1 * (a_c - 1 / a_c), to_weights, 30 * s2 - 0.1)


@dataclass(frozen=True)
class Fit:
    """The end of a search for the hyperparameters of one kernel."""

    parameters: Parameters
    """The best seen, a batch of one."""
    value: float
    """L there, in nats; infinite if it could not be computed anywhere."""
    sound: bool
    """Whether every L on the way was finite."""


def fit(data: Data, structure: Structure, start: Parameters, iterations: int) -> Fit:
    """Minimise L by L-BFGS-B from a start, within bounds, and return the best seen.

    Never raises on an ill-conditioned matrix. About 1.2 Choleskys and inverses per iteration.

    Args:
        data: The observations.
        structure: The structure of one kernel: a batch of one.
        start: Where to begin; moved into the bounds first.
        iterations: At most so many.
    """
    flat = start.flat()
    low = torch.full_like(flat[0], LOWEST)
    low[-1] = LOWEST_NOISE
    best, least, sound = flat.clamp(low, flat.new_tensor(HIGHEST)), math.inf, True

    def evaluate(point: np.ndarray) -> tuple[float, np.ndarray]:
        nonlocal best, least, sound
        at = torch.from_numpy(point).to(flat).unsqueeze(0)
        value, gradient = negative_log_posterior(data, structure, start.like(at))
        slope = gradient.flat()[0]
        if not bool((value + slope.sum()).isfinite()):
            sound = False
            return _WALL, np.zeros_like(point)
        if value.item() < least:
            best, least = at.clone(), value.item()
        return value.item(), slope.cpu().numpy()

    scipy.optimize.minimize(
        evaluate,
        best[0].cpu().numpy(),
        jac=True,
        method="L-BFGS-B",
        bounds=[(bound, HIGHEST) for bound in low.tolist()],
        options={"maxiter": iterations, "maxfun": 2 * iterations + 10, "gtol": 1e-2},
    )
    return Fit(start.like(best), least, sound)

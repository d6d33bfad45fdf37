"""Which dimensions seem to interact, read off a fit in which none may.

At the fit of the additive model (one group per dimension) the derivative of the log likelihood in
the weight of one more component k_ij = z_i z_j, the product of two centred one-dimensional kernels,
is ½ ⟨Q, k_ij⟩ with Q = α α' - K⁻¹. A large one means that the residuals want this interaction. All
pairs together cost two matrix products, O(D² n²), where a fit of each would be a fit of each.

    a  scales, 1 / lengthscale²    s²  noise variance    w  weights    E  as in `data`
"""

import numpy as np
import scipy.cluster.hierarchy
import torch
from torch import Tensor

from hyperopt_dl.gp.data import Data
from hyperopt_dl.gp.kernel import Family, correlation
from hyperopt_dl.gp.likelihood import cholesky
from hyperopt_dl.gp.moves import Affinity
from hyperopt_dl.gp.partition import Partition, canonical, groups

_MOST = 3.0
"""Affinities are cut at so many deviations, so that none of them forbids a proposal."""


def interaction_scores(
    data: Data, scales: Tensor, weights: Tensor, noise: float, family: Family = "matern52"
) -> Tensor:
    """Return ``[D, D]``, ⟨Q, k_ij⟩ / |k_ij|, at an additive model.

    Args:
        data: The observations.
        scales: A ``D`` tensor, those of the one-dimensional kernels.
        weights: A ``D`` tensor, the variances of them.
        noise: The variance of an observation.
        family: The family of the kernels.
    """
    kernels = correlation(scales.unsqueeze(-1) * data.E[:-1], family)
    L, _ = cholesky(data.square(weights @ kernels, weights.sum() + noise / data.counts)[None])
    alpha = torch.cholesky_solve(data.y[None, :, None], L)
    Q = (alpha @ alpha.mT - torch.cholesky_inverse(L))[0]
    diagonals = torch.empty(len(scales), len(data.y)).to(kernels)
    for d, below in enumerate(kernels):
        centred = _centre(data.square(below, torch.ones_like(data.y)))
        kernels[d], diagonals[d] = data.below(centred), centred.diagonal()
    projections = 2 * (kernels * data.below(Q)) @ kernels.T
    projections += (diagonals * Q.diagonal()) @ diagonals.T
    kernels, diagonals = kernels.square_(), diagonals.square_()
    norms = 2 * kernels @ kernels.T + diagonals @ diagonals.T
    return projections / norms.clamp(min=1e-30).sqrt()


def affinity_of(scores: Tensor) -> Affinity:
    """Return the scores of the pairs in robust deviations from their median, cut at 3."""
    matrix = scores.cpu().numpy()
    pairs = matrix[np.triu_indices(len(matrix), 1)]
    if len(pairs) == 0:
        return np.zeros_like(matrix)
    median = np.median(pairs)
    deviation = 1.4826 * np.median(np.abs(pairs - median))
    scaled = (matrix - median) / max(float(deviation), 1e-30)
    return np.asarray(np.clip(np.nan_to_num(scaled), -_MOST, _MOST))


def clusters(affinity: Affinity, cap: int, rng: np.random.Generator) -> Partition:
    """Return a partition by average linkage of the affinities under noise of deviation 1.

    The number of groups is drawn between D/5 and D/2; groups above the cap are cut.
    """
    D = len(affinity)
    noise = np.triu(rng.normal(size=(D, D)), 1)
    distances = 3 * _MOST - (affinity + noise + noise.T)
    wanted = int(rng.integers(max(2, D // 5), max(2, D // 2) + 1))
    condensed = np.maximum(distances[np.triu_indices(D, 1)], 0)
    tree = scipy.cluster.hierarchy.linkage(condensed, method="average")
    found = canonical(scipy.cluster.hierarchy.fcluster(tree, wanted, criterion="maxclust").tolist())
    labels = {
        d: (g, k // cap) for g, group in enumerate(groups(found)) for k, d in enumerate(group)
    }
    return canonical(labels[d] for d in range(D))


def _centre(matrix: Tensor) -> Tensor:
    """Return a symmetric matrix, of which the lower half is given, with rows that sum to 0."""
    whole = matrix + matrix.tril(-1).T
    means = whole.mean(-1)
    return whole - means - means.unsqueeze(-1) + means.mean()

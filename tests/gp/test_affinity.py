"""The scores of interactions against the derivative that they are."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from hyperopt_dl.gp.affinity import affinity_of, clusters, interaction_scores
from hyperopt_dl.gp.data import Data, observe
from hyperopt_dl.gp.kernel import Kernel
from hyperopt_dl.gp.partition import canonical, sizes

D, NOISE = 4, 0.05
SCALES = torch.tensor([4.0, 9.0, 2.0, 1.0], dtype=torch.double)
WEIGHTS = torch.tensor([0.5, 0.3, 0.4, 0.2], dtype=torch.double)
FLAGS = torch.tensor([False, False, False, True])


def observations(n: int = 15, copies: int = 3) -> tuple[Data, Tensor, Tensor]:
    """Data with duplicates, and all of its points and values."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(n, D, generator=generator, dtype=torch.double)
    x[:, 3] = (3 * x[:, 3]).floor()
    x = torch.cat([x, x[:copies]])
    y = torch.randn(len(x), generator=generator, dtype=torch.double)
    return observe(x, y, FLAGS), x, y


def one_dimensional(x: Tensor) -> Tensor:
    """The correlation under each dimension alone, ``[D, n, n]``."""
    eye, ones = torch.eye(D, dtype=torch.double), torch.ones(D, dtype=torch.double)
    return Kernel(eye, SCALES.expand(D, D), ones, ones[0], FLAGS).parts(x, x)


def log_likelihood(K: Tensor, y: Tensor) -> float:
    return -0.5 * float(y @ torch.linalg.solve(K, y) + torch.logdet(2 * math.pi * K))


def test_a_score_is_the_derivative_of_the_likelihood_in_a_new_component() -> None:
    data, x, y = observations(copies=0)
    scores = interaction_scores(data, SCALES, WEIGHTS, NOISE)
    single = one_dimensional(x)
    K = (WEIGHTS[:, None, None] * single).sum(0) + NOISE * torch.eye(len(x)).double()
    centre = torch.eye(len(x)).double() - 1 / len(x)
    centred = centre @ single @ centre
    step = 1e-6
    for i in range(D):
        for j in range(D):
            new = centred[i] * centred[j]
            change = log_likelihood(K + step * new, y) - log_likelihood(K - step * new, y)
            wanted = 2 * change / (2 * step) / float(new.norm())
            assert scores[i, j].item() == pytest.approx(wanted, rel=1e-5, abs=1e-5)


def test_duplicates_count_as_often_as_they_were_observed() -> None:
    data, _, _ = observations()
    single = one_dimensional(data.x)
    K = (WEIGHTS[:, None, None] * single).sum(0) + torch.diag(NOISE / data.counts)
    alpha = torch.linalg.solve(K, data.y)
    Q = torch.outer(alpha, alpha) - torch.linalg.inv(K)
    centre = torch.eye(len(K)).double() - 1 / len(K)
    new = (centre @ single[0] @ centre) * (centre @ single[3] @ centre)
    scores = interaction_scores(data, SCALES, WEIGHTS, NOISE)
    torch.testing.assert_close(scores[0, 3], (Q * new).sum() / new.norm())


def test_affinities_are_in_deviations_from_the_median() -> None:
    scores = torch.zeros(4, 4, dtype=torch.double)
    values = [1.0, 2.0, 3.0, 4.0, 5.0, 1000.0]
    scores[*torch.triu_indices(4, 4, 1)] = torch.tensor(values, dtype=torch.double)
    affinity = affinity_of(scores + scores.T)
    got = affinity[np.triu_indices(4, 1)]
    np.testing.assert_allclose(got[:5], (np.array(values[:5]) - 3.5) / (1.4826 * 1.5))
    assert got[5] == 3.0
    np.testing.assert_array_equal(affinity, affinity.T)


@pytest.mark.parametrize("D", [1, 2, 3])
def test_few_dimensions_have_affinities_too(D: int) -> None:
    affinity = affinity_of(torch.rand(D, D, dtype=torch.double))
    assert affinity.shape == (D, D)
    assert np.isfinite(affinity).all()


def test_clusters_follow_strong_affinities() -> None:
    truth = canonical([0, 1, 2, 0, 1, 2, 0, 1, 2])
    affinity = 6.0 * np.equal.outer(truth, truth) - 3.0
    found = {clusters(affinity, 6, np.random.default_rng(seed)) for seed in range(20)}
    assert truth in found
    for partition in found:  # only ever a coarser or a finer one
        pairs = {(a, b) for a, b in zip(truth, partition, strict=True)}
        assert len(pairs) == max(len(set(truth)), len(set(partition)))


@pytest.mark.parametrize("D", [2, 3, 8, 20])
def test_clusters_keep_to_the_cap(D: int) -> None:
    cap = max(1, int(0.7 * D))
    for seed in range(20):
        partition = clusters(np.zeros((D, D)), cap, np.random.default_rng(seed))
        assert len(partition) == D
        assert max(sizes(partition)) <= cap

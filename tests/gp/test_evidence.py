"""The posterior of partitions against the likelihood of the whole model."""

import math

import numpy as np
import pytest
import torch

from hyperopt_dl.gp.data import Data, observe
from hyperopt_dl.gp.evidence import Evidence
from hyperopt_dl.gp.kernel import Family, Kernel
from hyperopt_dl.gp.partition import (
    Capped,
    Multiplicity,
    Partition,
    canonical,
    groups,
    singletons,
    sizes,
)

D, NOISE, W0 = 5, 0.05, 0.4
SCALES = torch.tensor([1.0, 9.0, 3.0, 0.5, 2.0], dtype=torch.double)
VARIANCES = torch.tensor([0.1, 0.2, 0.15, 0.05, 0.2], dtype=torch.double)
FULL = torch.tensor([0.2, 1.0, 0.1, 3.0, 0.7], dtype=torch.double)


def observations(n: int = 20, copies: int = 4) -> Data:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(n, D, generator=generator, dtype=torch.double)
    x[:, 3] = (3 * x[:, 3]).floor()
    x = torch.cat([x, x[:copies]])
    y = torch.randn(len(x), generator=generator, dtype=torch.double)
    return observe(x, y, torch.tensor([False, False, False, True, False]))


def kernel_of(partition: Partition | None, full: bool, family: Family = "matern52") -> Kernel:
    rows = [list(range(D))] if full else []
    masks = torch.zeros(len(rows), D, dtype=torch.double)
    masks[:] = 1
    scales, weights = FULL.expand(len(rows), D), torch.full((len(rows),), W0, dtype=torch.double)
    if partition is not None:
        members = groups(partition)
        more = torch.zeros(len(members), D, dtype=torch.double)
        for g, group in enumerate(members):
            more[g, group] = 1
        masks, scales = torch.cat([masks, more]), torch.cat([scales, SCALES.expand(len(more), D)])
        weights = torch.cat([weights, more @ VARIANCES])
    flags = torch.tensor([False, False, False, True, False])
    return Kernel(masks, scales, weights, torch.tensor(NOISE).double(), flags, family)


def dense(data: Data, partition: Partition, full: bool, family: Family) -> float:
    """log p(y | z) of all observations, from the square matrix of them all."""
    generator = torch.Generator().manual_seed(0)
    torch.rand(20, D, generator=generator, dtype=torch.double)
    x = torch.cat([data.x, data.x[:4]])
    y = torch.randn(len(x), generator=generator, dtype=torch.double)
    K = kernel_of(partition, full, family)(x, x) + NOISE * torch.eye(len(x), dtype=torch.double)
    return -0.5 * float(y @ torch.linalg.solve(K, y) + torch.logdet(2 * math.pi * K))


def evidence_of(data: Data, full: bool, family: Family = "matern52") -> Evidence:
    beside = None
    if full:
        beside = (data.below(kernel_of(None, full=True, family=family)(data.x, data.x)), W0)
    return Evidence(
        data,
        scales=SCALES,
        variances=VARIANCES,
        noise=NOISE,
        prior=Multiplicity(),
        beside=beside,
        family=family,
    )


@pytest.mark.parametrize("family", ["matern52", "rbf"])
@pytest.mark.parametrize("full", [True, False])
def test_the_evidence_is_the_dense_likelihood_times_the_prior(full: bool, family: Family) -> None:
    data = observations()
    evidence = evidence_of(data, full, family)
    partitions = [(0, 0, 0, 0, 0), (0, 1, 2, 3, 4), (0, 1, 0, 1, 2)]
    wanted = [dense(data, z, full, family) + Multiplicity().log(sizes(z)) for z in partitions]
    assert evidence(partitions) == pytest.approx(wanted, rel=1e-9)


def test_a_long_path_of_small_changes_does_not_drift() -> None:
    data, rng, z = observations(), np.random.default_rng(0), singletons(D)
    walking = evidence_of(data, full=True)
    for _ in range(300):
        labels = list(z)
        labels[rng.integers(D)] = int(rng.integers(D))
        z = canonical(labels)
        assert walking([z])[0] == pytest.approx(evidence_of(data, full=True)([z])[0], abs=1e-9)


def test_what_is_known_is_not_computed_again() -> None:
    evidence = evidence_of(observations(), full=False)
    first = evidence([(0, 0, 1, 1, 2), (0, 1, 2, 3, 4), (0, 0, 1, 1, 2)])
    assert evidence.computed == 2
    assert evidence([(0, 0, 1, 1, 2)]) == first[:1]
    assert evidence.computed == 2


def test_what_the_prior_forbids_costs_nothing() -> None:
    data = observations()
    prior = Capped(Multiplicity(), 2)
    evidence = Evidence(data, scales=SCALES, variances=VARIANCES, noise=NOISE, prior=prior)
    assert evidence([(0, 0, 0, 1, 2)]) == [-math.inf]
    assert evidence.computed == 0


def test_data_that_are_no_numbers_have_no_evidence() -> None:
    data = observations()
    broken = Data(data.x, data.y * math.nan, *list(vars(data).values())[2:])
    assert evidence_of(broken, full=True)([(0, 0, 1, 1, 2)]) == [-math.inf]

"""Chains: what they find, what they promise, and what they survive."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from hyperopt_dl.errors import SpaceError
from hyperopt_dl.gp import chains
from hyperopt_dl.gp.chains import Chain, Fitted, StructureChoice, fit, kernel_of, refit
from hyperopt_dl.gp.data import observe
from hyperopt_dl.gp.likelihood import Parameters, Structure, negative_log_posterior
from hyperopt_dl.gp.partition import Multiplicity, Partition, default_prior, groups, sizes
from hyperopt_dl.gp.posterior import condition

D = 6
TRUTH: Partition = (0, 1, 2, 0, 1, 2)
CONTINUOUS = torch.zeros(D, dtype=torch.bool)


def standardised(y: Tensor) -> Tensor:
    return (y - y.mean()) / y.std()


def additive(n: int = 70, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A function of three pairs of dimensions."""
    x = torch.rand(n, D, generator=torch.Generator().manual_seed(seed), dtype=torch.double)
    y = sum(torch.cos(4 * (x[:, i] + x[:, i + 3]) + i) for i in range(3))
    return x, standardised(torch.as_tensor(y))


def same(one: Fitted, other: Fitted) -> bool:
    kernels = zip(one.chains, other.chains, strict=True)
    return all(
        a.partition == b.partition
        and torch.equal(a.parameters.flat(), b.parameters.flat())
        and np.array_equal(a.together, b.together)
        for a, b in kernels
    )


@pytest.fixture(scope="module")
def learned() -> Fitted:
    return fit(*additive(), CONTINUOUS, chains=2, seed=0, cycles=2)


def test_the_structure_of_a_clearly_additive_function_is_found(learned: Fitted) -> None:
    assert learned.best.partition == TRUTH


def test_the_pairs_of_the_truth_are_together_most_of_the_time(learned: Fitted) -> None:
    together, truth = learned.together(), np.equal.outer(TRUTH, TRUTH)
    np.testing.assert_array_equal(together, together.T)
    np.testing.assert_allclose(together.diagonal(), 1)
    assert together[truth].min() > together[~truth].max()


def test_the_structure_found_is_better_than_none_and_no_worse_than_the_truth(
    learned: Fitted,
) -> None:
    full = fit(*additive(), CONTINUOUS, structure="full", seed=0).best.log_posterior
    truth = fit(*additive(), CONTINUOUS, structure=groups(TRUTH), seed=0).best.log_posterior
    assert learned.best.log_posterior > full + 5
    assert learned.best.log_posterior == pytest.approx(truth, abs=0.5)


def test_the_log_posterior_is_that_of_the_partition_and_the_hyperparameters(
    learned: Fitted,
) -> None:
    data = observe(*additive(), CONTINUOUS)
    for chain in learned.chains:
        assert chain.partition is not None
        kernel = kernel_of(chain, CONTINUOUS)
        vector = torch.tensor([0] + [1] * len(kernel.masks[1:]))
        structure = Structure(kernel.masks[None], vector, CONTINUOUS)
        value, _ = negative_log_posterior(data, structure, chain.parameters)
        prior = Multiplicity().log(sizes(chain.partition))
        assert chain.log_posterior == pytest.approx(prior - value.item(), rel=1e-9)


def test_the_kernels_are_the_full_component_the_radius_and_the_groups(learned: Fitted) -> None:
    x, _ = additive()
    for c, chain in enumerate(learned.chains):
        kernel, parameters = kernel_of(chain, CONTINUOUS), chain.parameters
        assert chain.partition is not None
        assert kernel.masks[0].tolist() == [1.0] * D + [0.0]
        assert kernel.masks[1].tolist() == [0.0] * D + [1.0]
        rows = [np.flatnonzero(mask).tolist() for mask in kernel.masks[2:].numpy()]
        assert rows == groups(chain.partition)
        assert torch.equal(kernel.scales[0], parameters.scales[0, 0].exp())
        assert torch.equal(kernel.scales[1], parameters.scales[0, 1].exp())
        torch.testing.assert_close(learned.kernel[c](x, x), kernel(x, x))


def test_a_seed_fixes_the_outcome(learned: Fitted) -> None:
    again = fit(*additive(), CONTINUOUS, chains=2, seed=0, cycles=2)
    other = fit(*additive(), CONTINUOUS, chains=2, seed=1, cycles=2)
    assert same(learned, again)
    assert not same(learned, other)


def test_chains_go_on_with_more_data() -> None:
    x, y = additive(60)
    first = fit(x[:40], standardised(y[:40]), CONTINUOUS, seed=0)
    second = fit(x, y, CONTINUOUS, seed=0, state=first)
    third = fit(x, y, CONTINUOUS, seed=0, state=second)
    assert [first.calls, second.calls, third.calls] == [1, 2, 3]
    assert third.best.log_posterior >= second.best.log_posterior - 5
    assert same(third, fit(x, y, CONTINUOUS, seed=0, state=second))


def test_a_fit_without_moves_only_improves_where_the_chain_is(learned: Fitted) -> None:
    still = fit(*additive(), CONTINUOUS, seed=3, state=learned, rounds=0)
    for before, after in zip(learned.chains, still.chains, strict=True):
        assert after.partition == before.partition
        assert after.log_posterior >= before.log_posterior - 1e-9


@pytest.mark.parametrize(
    ("structure", "partition"),
    [("full", None), ("additive", (0, 1, 2, 3, 4, 5)), ([[5, 0], [2]], (0, 1, 2, 3, 4, 0))],
)
def test_a_structure_that_is_given_is_kept(
    structure: StructureChoice, partition: Partition | None
) -> None:
    fitted = fit(*additive(), CONTINUOUS, structure=structure, chains=3, seed=0)
    assert [chain.partition for chain in fitted.chains] == [partition]
    again = fit(*additive(), CONTINUOUS, structure=structure, seed=0, state=fitted)
    assert again.best.log_posterior >= fitted.best.log_posterior - 1e-9


def test_groups_that_overlap_are_refused() -> None:
    with pytest.raises(SpaceError, match="disjoint"):
        fit(*additive(), CONTINUOUS, structure=[[0, 1], [1, 2]], seed=0)


def test_one_dimension_has_no_structure_to_learn() -> None:
    x, y = additive(20)
    assert fit(x[:, :1], y, CONTINUOUS[:1], seed=0).best.partition is None


@pytest.mark.parametrize("D", [2, 3, 6])
def test_no_chain_has_a_second_full_component(D: int) -> None:
    x, y = additive(15)
    state = None
    for _ in range(3):
        state = fit(x[:, :D], y, CONTINUOUS[:D], chains=3, seed=0, state=state, rounds=10)
        for chain in state.chains:
            assert chain.partition is not None
            assert default_prior(D).log(sizes(chain.partition)) > -math.inf


def test_a_choice_that_matters_is_seen() -> None:
    x, _ = additive(60)
    x[:, 2] = (4 * x[:, 2]).floor()
    y = standardised(torch.tensor([3.0, -1.0, 2.0, 0.0]).double()[x[:, 2].long()] + x[:, 0])
    flags = torch.tensor([False, False, True, False, False, False])
    kernel = fit(x, y, flags, seed=0).kernel[0]
    unlike = x[:1].clone()
    unlike[0, 2] = (unlike[0, 2] + 1) % 4
    irrelevant = x[:1].clone()
    irrelevant[0, 4] = 1 - irrelevant[0, 4]
    assert kernel(x[:1], unlike).item() < kernel(x[:1], irrelevant).item() - 0.1


def test_many_choices_beside_a_number_are_no_noise() -> None:
    generator = torch.Generator().manual_seed(3)
    x = torch.rand(140, 51, generator=generator, dtype=torch.double)
    flags = torch.arange(51) < 50
    x = x.where(~flags, x.round())
    worth = torch.randn(50, generator=generator, dtype=torch.double)
    y = standardised(x[:, :50] @ worth + 12 * (x[:, 50] - 0.5).square())
    kernel = fit(x[:100], y[:100], flags, structure="full", seed=0).kernel[0]
    predicted = condition(kernel, x[:100], y[:100, None]).mean(x[100:])
    assert torch.corrcoef(torch.cat([predicted.mT, y[None, 100:]]))[0, 1] > 0.9


@pytest.mark.parametrize("n", [1, 2, 3])
def test_a_handful_of_points_is_enough_to_answer(n: int) -> None:
    x = additive()[0][:n]
    y = torch.linspace(-1, 1, n, dtype=torch.double) if n > 1 else torch.zeros(1).double()
    kernel = fit(x, y, CONTINUOUS, seed=0).kernel
    assert bool(kernel(x, x).isfinite().all())


@pytest.mark.parametrize("y", [0.0, math.nan], ids=["constant", "nan"])
def test_values_that_say_nothing_end_in_no_exception(y: float) -> None:
    x, _ = additive(12)
    fitted = fit(x, torch.full((12,), y, dtype=torch.double), CONTINUOUS, seed=0, rounds=3)
    assert bool(fitted.kernel(x, x).isfinite().all())
    assert all(chain.sound is (y == 0.0) for chain in fitted.chains)


def test_the_same_point_many_times_ends_in_no_exception() -> None:
    x, y = additive(30)
    x = x[:3].repeat(10, 1)
    assert all(chain.sound for chain in fit(x, y, CONTINUOUS, seed=0, rounds=3).chains)


def chain_at(partition: Partition, weights: list[float], log_posterior: float = 0.0) -> Chain:
    scales = torch.zeros(1, 2, len(partition) + 1, dtype=torch.double)
    log_weights = torch.tensor([[0.5, 0.1, *weights]], dtype=torch.double).log()
    parameters = Parameters(scales, log_weights, torch.zeros(1, dtype=torch.double))
    return Chain(partition, parameters, log_posterior, np.eye(len(partition)), True)


def test_dimensions_bring_their_share_of_the_variance_into_new_groups() -> None:
    before = chain_at((0, 1, 0, 1, 2), [0.2, 0.4, 0.3])
    weights = chains._regroup(before, (0, 1, 0, 2, 1)).weights.exp()[0]
    wanted = torch.tensor([0.5, 0.1, 0.2, 0.5, 0.2], dtype=torch.double)
    torch.testing.assert_close(weights, wanted)


def test_the_weights_of_groups_that_stay_are_kept() -> None:
    before = chain_at((0, 1, 0, 1, 2), [0.2, 0.4, 0.3])
    after = chains._regroup(before, (0, 1, 0, 1, 2)).weights
    torch.testing.assert_close(after, before.parameters.weights)


def test_the_moves_start_from_the_likelihood_of_the_chain(learned: Fitted) -> None:
    data = observe(*additive(), CONTINUOUS)
    for chain in learned.chains:
        assert chain.partition is not None
        kernel = kernel_of(chain, CONTINUOUS)
        K = kernel(data.x, data.x) + kernel.noise * torch.eye(len(data.y)).double()
        quadratic = data.y @ torch.linalg.solve(K, data.y)
        likelihood = -0.5 * float(quadratic + torch.logdet(2 * math.pi * K))
        prior = Multiplicity().log(sizes(chain.partition))
        (got,) = chains._evidence(data, chain)([chain.partition])
        assert got == pytest.approx(likelihood + prior, rel=1e-7)


@pytest.mark.parametrize(
    ("log_posteriors", "hopeless"),
    [([0.0, -30.0, -20.0], 1), ([0.0, -9.0], None), ([0.0], None), ([], None)],
)
def test_the_worst_chain_is_hopeless_if_it_is_far_below_the_best(
    log_posteriors: list[float], hopeless: int | None
) -> None:
    found = [chain_at((0, 1), [0.1, 0.1], value) for value in log_posteriors]
    assert chains._hopeless(found) == hopeless


def test_a_hopeless_chain_starts_again(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = additive()
    state = fit(x, y, CONTINUOUS, seed=0, cycles=2)
    monkeypatch.setattr(chains, "HOPELESS", -1.0)  # the worst one always is
    monkeypatch.setattr(chains, "RESTARTS_EVERY", 1)
    again = fit(x, y, CONTINUOUS, seed=0, state=state, rounds=0)
    changed = [a.partition != b.partition for a, b in zip(again.chains, state.chains, strict=True)]
    assert changed[chains._hopeless(state.chains) or 0]


def test_a_refit_moves_the_hyperparameters_alone(learned: Fitted) -> None:
    x, y = additive(90)
    again = refit(x, y, learned)
    for chain, before in zip(again.chains, learned.chains, strict=True):
        assert chain.partition == before.partition
        assert np.array_equal(chain.together, before.together)
        assert not torch.equal(chain.parameters.flat(), before.parameters.flat())
        assert chain.log_posterior > before.log_posterior

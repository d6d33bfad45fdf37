"""What every Training must do: the properties that replaying and differentiating rest on.

Subclass ``TrainingContract`` with a fixture ``case``; its run should take a few steps.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import cloudpickle
import pytest
import torch
from torch import Tensor

from hyperopt_dl.training import State, Training, rollout


@dataclass(frozen=True)
class Case:
    """A training and a point at which to run it.

    ``differentiable`` holds float64 tensors: the hyperparameters in which the outer loss is smooth.
    ``fixed`` holds the other ones.
    """

    training: Training
    differentiable: Mapping[str, Tensor]
    fixed: Mapping[str, Any]
    seed: int = 7

    @property
    def hparams(self) -> dict[str, Any]:
        return {**self.fixed, **self.differentiable}

    def start(self) -> State:
        return self.training.init(self.hparams, seed=self.seed, device="cpu")

    def value(self, hparams: Mapping[str, Any]) -> Tensor:
        state = rollout(self.training, hparams, seed=self.seed)
        return self.training.loss(state, hparams)


class TrainingContract:
    """The contract."""

    @pytest.fixture
    def case(self) -> Case:
        raise NotImplementedError("A contract test defines the fixture `case`.")

    def test_it_is_a_training(self, case: Case) -> None:
        assert isinstance(case.training, Training)
        assert case.training.steps >= 2

    def test_the_state_is_a_flat_dict_of_tensors(self, case: Case) -> None:
        state = case.training.step(case.start(), case.hparams, 0)
        assert type(state) is dict
        assert all(type(k) is str and isinstance(v, Tensor) for k, v in state.items())

    def test_a_step_keeps_names_shapes_and_dtypes(self, case: Case) -> None:
        state = case.start()
        after = case.training.step(state, case.hparams, 0)
        assert _forms(after) == _forms(state)

    def test_a_step_changes_the_state(self, case: Case) -> None:
        state = case.start()
        after = case.training.step(state, case.hparams, 0)
        assert any(not torch.equal(after[name], value) for name, value in state.items())

    @pytest.mark.parametrize("grad", [False, True], ids=["no_grad", "grad"])
    def test_a_step_writes_into_nothing_that_it_is_given(self, case: Case, grad: bool) -> None:
        state, hparams = case.start(), case.hparams
        given = _tensors(state, hparams)
        before = [(tensor.clone(), tensor._version) for tensor in given]
        with torch.set_grad_enabled(grad):
            case.training.step(state, hparams, 0)
        for tensor, (copy, version) in zip(given, before, strict=True):
            assert torch.equal(tensor, copy)
            assert tensor._version == version

    def test_the_loss_writes_into_nothing_that_it_is_given(self, case: Case) -> None:
        state, hparams = case.start(), case.hparams
        given = _tensors(state, hparams)
        before = [(tensor.clone(), tensor._version) for tensor in given]
        case.training.loss(state, hparams)
        for tensor, (copy, version) in zip(given, before, strict=True):
            assert torch.equal(tensor, copy)
            assert tensor._version == version

    def test_later_steps_leave_an_earlier_state_as_it_was(self, case: Case) -> None:
        first = case.training.step(case.start(), case.hparams, 0)
        kept = _copy(first)
        second = case.training.step(first, case.hparams, 1)
        case.training.loss(second, case.hparams)
        case.training.step(case.start(), case.hparams, 0)
        assert_same_bits(first, kept)

    def test_a_step_computed_again_gives_the_same_bits(self, case: Case) -> None:
        training, hparams = case.training, case.hparams
        state = rollout(training, hparams, seed=case.seed, stop=1)
        once = training.step(state, hparams, 1)
        training.step(once, hparams, 0)
        training.loss(once, hparams)
        assert_same_bits(training.step(state, hparams, 1), once)

    def test_recording_a_graph_does_not_change_the_bits(self, case: Case) -> None:
        hparams = {**case.fixed, **_leaves(case.differentiable)}
        recorded = rollout(case.training, hparams, seed=case.seed)
        with torch.no_grad():
            plain = rollout(case.training, hparams, seed=case.seed)
        assert any(value.requires_grad for value in recorded.values())
        assert not any(value.requires_grad for value in plain.values())
        assert_same_bits(recorded, plain)

    def test_no_graph_is_recorded_where_no_hyperparameter_wants_one(self, case: Case) -> None:
        state = rollout(case.training, case.hparams, seed=case.seed)
        assert not any(value.requires_grad for value in state.values())

    @pytest.mark.parametrize("length", [1, 2, 3])
    def test_a_run_in_segments_gives_the_bits_of_one_in_one_piece(
        self, case: Case, length: int
    ) -> None:
        training, hparams = case.training, case.hparams
        state: State | None = None
        for start in range(0, training.steps, length):
            stop = min(start + length, training.steps)
            seed = case.seed if state is None else case.seed + 1  # only init may read it
            state = rollout(training, hparams, seed=seed, state=state, start=start, stop=stop)
            training.loss(state, hparams)
        assert state is not None
        assert_same_bits(state, rollout(training, hparams, seed=case.seed))

    def test_a_pickled_copy_goes_on_with_the_same_bits(self, case: Case) -> None:
        half = rollout(case.training, case.hparams, seed=case.seed, stop=1)
        copy, state = cloudpickle.loads(cloudpickle.dumps((case.training, half)))
        there = rollout(copy, case.hparams, state=state, start=1)
        here = rollout(case.training, case.hparams, state=half, start=1)
        assert_same_bits(there, here)

    def test_init_depends_on_nothing_but_hparams_and_seed(self, case: Case) -> None:
        first = case.start()
        rollout(case.training, case.hparams, seed=case.seed + 1)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(123)
            assert_same_bits(case.start(), first)

    def test_global_randomness_is_neither_read_nor_moved(self, case: Case) -> None:
        ends = []
        with torch.random.fork_rng(devices=[]):
            for seed in (1, 2):
                torch.manual_seed(seed)
                before = torch.get_rng_state()
                state = rollout(case.training, case.hparams, seed=case.seed)
                case.training.loss(state, case.hparams)
                assert torch.equal(torch.get_rng_state(), before)
                ends.append(state)
        assert_same_bits(*ends)

    def test_the_loss_is_one_finite_number(self, case: Case) -> None:
        value = case.value(case.hparams)
        assert value.shape == ()
        assert value.dtype.is_floating_point
        assert torch.isfinite(value)

    def test_the_derivative_of_the_loss_is_the_central_difference(self, case: Case) -> None:
        leaves = _leaves(case.differentiable)
        found = torch.autograd.grad(case.value({**case.fixed, **leaves}), list(leaves.values()))
        for (name, at), gradient in zip(case.differentiable.items(), found, strict=True):
            expected = central_difference(case, name)
            assert_close_vector(gradient, expected, rtol=1e-6)
            assert torch.isfinite(at).all()


def central_difference(case: Case, name: str) -> Tensor:
    """d loss / d one hyperparameter, entry by entry, from two runs for each: error O(h^4).

    Two central differences, of step h and 2h, extrapolated (Richardson); h is 1e-3 of the entry.
    """
    at = case.differentiable[name]
    gradient = torch.empty_like(at)
    for i in range(at.numel()):
        h = 1e-3 * max(float(at.flatten()[i].abs()), 1e-2)
        slopes = []
        for step in (h, 2 * h):
            ends = []
            for sign in (1, -1):
                moved = at.clone()
                moved.view(-1)[i] += sign * step
                with torch.no_grad():
                    ends.append(float(case.value({**case.hparams, name: moved})))
            slopes.append((ends[0] - ends[1]) / (2 * step))
        gradient.view(-1)[i] = (4 * slopes[0] - slopes[1]) / 3
    return gradient


def assert_close_vector(found: Tensor, expected: Tensor, *, rtol: float) -> None:
    """Compare in the largest entry: ``|found - expected| <= rtol * max |expected|``, not 0."""
    scale = float(expected.abs().max())
    assert scale > 1e-6, "the loss does not depend on this hyperparameter"
    torch.testing.assert_close(found, expected, rtol=0, atol=rtol * scale)


def assert_same_bits(a: State, b: State) -> None:
    """Compare two states without any tolerance."""
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name].detach(), b[name].detach(), rtol=0, atol=0)


def _leaves(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.clone().requires_grad_() for name, value in values.items()}


def _forms(state: State) -> dict[str, tuple[torch.Size, torch.dtype, torch.device]]:
    return {name: (value.shape, value.dtype, value.device) for name, value in state.items()}


def _copy(state: State) -> State:
    return {name: value.detach().clone() for name, value in state.items()}


def _tensors(*mappings: Mapping[str, Any]) -> list[Tensor]:
    return [v for mapping in mappings for v in mapping.values() if isinstance(v, Tensor)]

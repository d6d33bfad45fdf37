"""Which inputs a trace is for, and what it leaves as it was."""

import pytest
import torch
from torch import Tensor, nn

from hyperopt_dl.hypergrad.traces import traced as engine
from hyperopt_dl.hypergrad.traces.traced import Traced
from hyperopt_dl.seeds import seeded
from tests.hypergrad.step_losses import CPU, Tensors, build, chosen, close, eager_of


def mean_by_length(x: Tensor, tensors: Tensors) -> tuple[Tensor, Tensors]:
    """The size of the batch is a Python number here."""
    inputs, weight = tensors
    return weight * (inputs @ x).tanh().sum() / len(inputs), ()


def batch(size: int, seed: int = 0) -> tuple[Tensor, Tensors, Tensor]:
    g = torch.Generator().manual_seed(seed)
    x, u = torch.randn(2, 4, dtype=torch.double, generator=g)
    inputs = torch.randn(size, 4, dtype=torch.double, generator=g)
    return x, (inputs, torch.rand((), dtype=torch.double, generator=g)), u


def test_a_smaller_last_batch_is_traced_for_itself() -> None:
    traced = chosen(mean_by_length, [batch(8, seed) for seed in range(3)], [0, 1, 2], wrt=(1,))
    assert isinstance(traced, Traced)
    for size in (8, 3, 8, 3):
        example = batch(size, seed=5)
        close(traced.product(*example), eager_of(mean_by_length, wrt=(1,)).product(*example))
    assert len(traced.kinds) == 2


def test_many_sizes_are_computed_eagerly_in_the_end() -> None:
    traced, eager = Traced(eager_of(mean_by_length, wrt=(1,))), eager_of(mean_by_length, wrt=(1,))
    for size in (1, 2, 3, 4, 5, 6, 5, 1):
        example = batch(size)
        close(traced.product(*example), eager.product(*example))
    assert len(traced.kinds) == engine.MAX_TRACES


def test_other_strides_are_another_kind() -> None:
    traced, eager = Traced(eager_of(mean_by_length)), eager_of(mean_by_length)
    x, (inputs, weight), u = batch(8)
    for given in (inputs, inputs.t().contiguous().t(), inputs[:1].expand(8, 4)):
        example = (x, (given, weight), u)
        close(traced.product(*example), eager.product(*example))
    assert len(traced.kinds) == 3


def test_the_key_tells_apart_what_the_tensors_do_not_show() -> None:
    module = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5)).double()

    def loss(x: Tensor, tensors: Tensors) -> tuple[Tensor, Tensors]:
        given = {"0.weight": x.outer(x), "0.bias": x}
        return torch.func.functional_call(module, given, tensors[:1]).square().mean(), ()

    traced, (x, tensors, _) = Traced(eager_of(loss)), batch(8)
    for training in (True, False, True):
        module.train(training)
        with seeded(3, CPU):
            expected = eager_of(loss).gradient(x, tensors)
        with seeded(3, CPU):
            close(traced.gradient(x, tensors, key=training), expected)


def test_autocast_around_a_step_is_traced_and_not_applied_twice() -> None:
    def loss(x: Tensor, tensors: Tensors) -> tuple[Tensor, Tensors]:
        (inputs,) = tensors
        hidden = (inputs @ x.view(6, 6)).tanh()
        with torch.autocast("cpu", enabled=False):
            return (inputs @ x.view(6, 6) @ hidden.float().t()).square().mean(), ()

    g = torch.Generator().manual_seed(0)
    traced, eager = Traced(eager_of(loss)), eager_of(loss)
    for enabled in (True, False, True):
        x, u, inputs = torch.randn(3, 36, generator=g)
        example = (x, (inputs.view(6, 6),), u)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            found, expected = traced.product(*example), eager.product(*example)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert len(traced.kinds) == 2


def test_one_tensor_given_twice_is_two_inputs() -> None:
    def loss(x: Tensor, tensors: Tensors) -> tuple[Tensor, Tensors]:
        a, b = tensors
        return (x.square() * a).sum() + 5 * (x.square() * b).sum(), ()

    x, a, b, u = torch.randn(4, 3, dtype=torch.double)
    traced = Traced(eager_of(loss, wrt=(0, 1)))
    traced.product(x, (a, a), u)
    close(traced.product(x, (a, b), u), eager_of(loss, wrt=(0, 1)).product(x, (a, b), u))


def test_the_callers_settings_are_left_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    problem, backends = build("LSTM"), torch.backends
    monkeypatch.setattr(backends.mkldnn, "enabled", True)
    monkeypatch.setattr(backends.cudnn, "enabled", True)
    with torch.no_grad():
        Traced(problem.eager()).product(*problem.example(0))
        assert not torch.is_grad_enabled()
    assert backends.mkldnn.enabled
    assert backends.cudnn.enabled

"""Traced derivatives against autograd's, and autograd's against a dense Hessian."""

import gc
import weakref
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hyperopt_dl.hypergrad.traces.eager import Eager, saved_bytes
from hyperopt_dl.hypergrad.traces.traced import Traced
from hyperopt_dl.seeds import seeded
from tests.hypergrad.step_losses import (
    CPU,
    NETS,
    Problem,
    Tensors,
    build,
    chosen,
    close,
    eager_of,
    trace_of,
    vectors,
)


@pytest.fixture(params=NETS, scope="module")
def problem(request: pytest.FixtureRequest) -> Problem:
    return build(request.param)


@pytest.fixture(scope="module")
def traced(problem: Problem) -> Traced:
    """A trace of one example; the tests replay it on others."""
    return trace_of(problem)


# ---------------------------------------------------------------------------- traced against eager


@pytest.mark.parametrize("seed", [1, 2])
def test_traced_gradients_are_those_of_autograd(
    problem: Problem, traced: Traced, seed: int
) -> None:
    results = []
    for derivatives in (traced, problem.eager()):
        x, tensors, _ = problem.example(seed)
        with seeded(seed, CPU):
            results.append(derivatives.gradient(x, tensors))
    close(*results)


@pytest.mark.parametrize("seed", [1, 2])
def test_traced_linearizations_are_those_of_autograd(
    problem: Problem, traced: Traced, seed: int
) -> None:
    results = []
    for derivatives in (traced, problem.eager()):
        x, tensors, u = problem.example(seed)
        with seeded(seed, CPU):
            g, aux, saved = derivatives.linearize(x, tensors)
        results.append((g, aux, derivatives.pull(saved, u)))
    close(*results)


@pytest.mark.parametrize("seed", [1, 2])
def test_traced_products_are_those_of_autograd(problem: Problem, traced: Traced, seed: int) -> None:
    results = []
    for derivatives in (traced, problem.eager()):
        x, tensors, u = problem.example(seed)
        with seeded(seed, CPU):
            results.append(derivatives.product(x, tensors, u))
    close(*results)


@pytest.mark.parametrize("eager", [True, False])
def test_the_four_calls_agree_with_each_other(
    problem: Problem, traced: Traced, eager: bool
) -> None:
    derivatives = problem.eager() if eager else traced
    with seeded(3, CPU):
        g, aux, saved = derivatives.linearize(*problem.example(3)[:2])
    with seeded(3, CPU):
        close(derivatives.gradient(*problem.example(3)[:2]), (g, aux))
    u = problem.example(3)[2]
    with seeded(3, CPU):
        close(derivatives.product(*problem.example(3)), derivatives.pull(saved, u))


@pytest.mark.parametrize("eager", [True, False])
def test_pulling_again_gives_the_same_and_is_linear_in_u(
    problem: Problem, traced: Traced, eager: bool
) -> None:
    derivatives = problem.eager() if eager else traced
    x, tensors, u = problem.example(1)
    with seeded(1, CPU):
        saved = derivatives.linearize(x, tensors)[2]
    Hu, mixed = derivatives.pull(saved, u)
    H2, mixed2 = derivatives.pull(saved, -2 * u)
    torch.testing.assert_close(derivatives.pull(saved, u), (Hu, mixed), rtol=0, atol=0)
    close((H2, mixed2), (-2 * Hu, tuple(-2 * each for each in mixed)))


@pytest.mark.parametrize("eager", [True, False])
def test_results_hold_no_graph(problem: Problem, traced: Traced, eager: bool) -> None:
    derivatives = problem.eager() if eager else traced
    x, tensors, u = problem.example(1)
    g, aux, saved = derivatives.linearize(x.requires_grad_(), tensors)
    Hu, mixed = derivatives.pull(saved, u)
    assert not any(t.requires_grad for t in (g, *aux, Hu, *mixed))


@pytest.mark.parametrize("name", ["dropout", "GRU with dropout", "transformer", "unused draw"])
def test_a_replay_draws_what_the_eager_step_draws(name: str) -> None:
    problem = build(name)
    derivatives: dict[bool, Eager | Traced] = {True: problem.eager(), False: trace_of(problem)}
    after: dict[bool, list[Any]] = {True: [], False: []}
    for eager, each in derivatives.items():
        x, tensors, u = problem.example(1)
        with seeded(7, CPU):
            after[eager] += [each.gradient(x, tensors)[0], torch.rand(3)]
        with seeded(7, CPU):
            saved = each.linearize(x, tensors)[2]
            after[eager] += [torch.rand(3)]
            state = torch.get_rng_state()
            each.pull(saved, u)
            assert torch.equal(torch.get_rng_state(), state)
        with seeded(7, CPU):
            each.product(x, tensors, u)
            after[eager] += [torch.rand(3)]
    torch.testing.assert_close(after[False][1:], after[True][1:], rtol=0, atol=0)
    close(after[False][0], after[True][0])


def test_tracing_in_the_middle_of_a_sweep_does_not_move_the_generator() -> None:
    problem = build("dropout")
    x, tensors, _ = problem.example(1)
    with seeded(7, CPU):
        expected = [problem.eager().gradient(x, tensors)[0], torch.rand(3)]
    with seeded(7, CPU):
        close([Traced(problem.eager()).gradient(x, tensors)[0], torch.rand(3)], expected)


def test_masks_follow_the_seed() -> None:
    problem = build("dropout")
    traced, (x, tensors, _) = trace_of(problem), problem.example(1)
    gradients = []
    for seed in (1, 2, 1):
        with seeded(seed, CPU):
            gradients.append(traced.gradient(x, tensors)[0])
    assert torch.equal(gradients[0], gradients[2])
    assert not torch.allclose(gradients[0], gradients[1])


def test_buffers_after_the_step_are_those_of_the_module() -> None:
    problem = build("BatchNorm2d")
    traced, (x, tensors, _) = trace_of(problem), problem.example(1)
    norm = nn.BatchNorm2d(4).double()
    norm.running_mean, norm.running_var, norm.num_batches_tracked = (
        buffer.clone() for buffer in tensors[:3]
    )
    conv = nn.Conv2d(2, 4, 3).double()
    conv.weight.data, conv.bias = x[:72].view(4, 2, 3, 3), nn.Parameter(x[72:76])
    norm(conv(tensors[3]))
    close(traced.gradient(x, tensors)[1], tuple(norm.buffers()))


@pytest.mark.parametrize("name", ["relu", "BatchNorm2d", "LSTM", "transformer"])
def test_float32_agrees_to_its_precision(name: str) -> None:
    problem = replace(build(name), dtype=torch.float32)
    examples = [problem.example(seed) for seed in range(3)]
    traced = chosen(problem.loss, examples, [0, 1, 2], wrt=problem.wrt, recurrent=problem.recurrent)
    assert isinstance(traced, Traced)
    with seeded(4, CPU):
        Hu, mixed = traced.product(*problem.example(4))
    with seeded(4, CPU):
        torch.testing.assert_close(
            problem.eager().product(*problem.example(4)), (Hu, mixed), rtol=1e-4, atol=1e-5
        )
    assert Hu.dtype == torch.float32


# ---------------------------------------------------------------------- eager against first sources


def small() -> Problem:
    return Problem(nn.Sequential(nn.Linear(6, 2), nn.Tanh(), nn.Linear(2, 3)), vectors)


def test_the_product_is_that_of_the_dense_hessian() -> None:
    problem = small()
    x, tensors, u = problem.example(0)
    autograd: Any = torch.autograd.functional
    H = autograd.hessian(lambda y: problem.loss(y, tensors)[0], x)
    Hu, mixed = problem.eager().product(x, tensors, u)
    close(Hu, H @ u)
    for i, found in zip(problem.wrt, mixed, strict=True):

        def slope(value: Tensor, i: int = i) -> Tensor:
            changed = (*tensors[:i], value, *tensors[i + 1 :])
            leaf = x.detach().requires_grad_()
            loss = problem.loss(leaf, changed)[0]
            return torch.autograd.grad(loss, leaf, create_graph=True)[0] @ u

        close(found, autograd.jacobian(slope, tensors[i]))


def test_gradient_and_products_are_central_differences() -> None:
    problem, step = small(), 1e-5
    eager, (x, tensors, u) = problem.eager(), problem.example(0)
    v = problem.example(1)[2]
    g, _ = eager.gradient(x, tensors)
    Hu, mixed = eager.product(x, tensors, u)
    ahead, behind = (problem.loss(x + s * step * v, tensors)[0] for s in (1, -1))
    torch.testing.assert_close(g @ v, (ahead - behind) / (2 * step), rtol=1e-7, atol=1e-9)
    ahead, behind = (eager.gradient(x + s * step * v, tensors)[0] @ u for s in (1, -1))
    torch.testing.assert_close(Hu @ v, (ahead - behind) / (2 * step), rtol=1e-7, atol=1e-9)
    for i, found in zip(problem.wrt, mixed, strict=True):
        ahead, behind = (
            eager.gradient(x, (*tensors[:i], tensors[i] + s * step, *tensors[i + 1 :]))[0] @ u
            for s in (1, -1)
        )
        torch.testing.assert_close(found.sum(), (ahead - behind) / (2 * step), rtol=1e-7, atol=1e-9)


def linear(x: Tensor, tensors: Tensors) -> tuple[Tensor, Tensors]:
    return x @ tensors[0], ()


def indifferent(x: Tensor, tensors: Tensors) -> tuple[Tensor, Tensors]:
    return (x**3).sum() + 0 * tensors[0].sum(), ()


@pytest.mark.parametrize("make", [eager_of, lambda loss, wrt: Traced(eager_of(loss, wrt=wrt))])
def test_what_does_not_matter_has_a_derivative_of_zero(make: Any) -> None:
    x, c, u = torch.randn(3, 4, dtype=torch.double, generator=torch.Generator().manual_seed(0))
    bent, flat, other = make(indifferent, wrt=(0, 1)), make(linear, wrt=()), make(linear, wrt=(0,))
    close(
        bent.product(x, (c, c[:2]), u), (6 * x * u, (torch.zeros_like(c), torch.zeros_like(c[:2])))
    )
    close(flat.product(x, (c,), u), (torch.zeros_like(x), ()))
    close(other.product(x, (c,), u), (torch.zeros_like(x), (u,)))


# ------------------------------------------------------------------------------------------ memory


@pytest.mark.parametrize("eager", [True, False])
def test_what_an_mlp_saves_is_about_its_state(eager: bool) -> None:
    problem = Problem(
        nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10)),
        lambda g, size: torch.randn(size, 64, generator=g),
        dtype=torch.float32,
    )
    derivatives = problem.eager() if eager else Traced(problem.eager())
    x, tensors, _ = problem.example(0, size=64)
    saved = derivatives.linearize(x, tensors)[2]
    assert saved_bytes(saved) - saved_bytes(saved, [x]) == x.nbytes
    assert 64 * 128 * 4 < saved_bytes(saved, [x, *tensors]) < 1.2 * x.nbytes


def test_memory_is_counted_once() -> None:
    x, c = torch.randn(2, 100, dtype=torch.double)
    for derivatives in (eager_of(cubes), Traced(eager_of(cubes))):
        saved = derivatives.linearize(x.clone(), (c.clone(),))[2]
        held = {t.data_ptr() for t in saved.tensors() if t.numel() == 100}
        assert saved_bytes(saved) < 800 * len(held) + 100


def cubes(x: Tensor, tensors: Tensors) -> tuple[Tensor, Tensors]:
    return (tensors[0] * x.pow(3)).sum(), ()


@pytest.mark.parametrize("create", [eager_of, lambda loss: Traced(eager_of(loss))])
def test_a_gradient_keeps_no_activation(create: Any) -> None:
    kept = []

    def loss(x: Tensor, tensors: Tensors) -> tuple[Tensor, Tensors]:
        activation = x.exp()
        kept.append(weakref.ref(activation))
        return activation.square().sum(), ()

    derivatives = create(loss)
    result = derivatives.gradient(torch.ones(3), ())
    gc.collect()
    assert kept
    assert all(reference() is None for reference in kept)
    assert not result[0].requires_grad

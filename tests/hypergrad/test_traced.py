"""Traced derivatives against autograd's, and autograd's against a dense Hessian."""

import gc
import random
import warnings
import weakref
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from hyperopt_dl.errors import TrainingError
from hyperopt_dl.hypergrad import traced as engine
from hyperopt_dl.hypergrad.eager import Eager, Loss, saved_bytes
from hyperopt_dl.hypergrad.traced import Traced, choose, probe
from hyperopt_dl.network import Network, Weights
from hyperopt_dl.seeds import seeded

CPU = torch.device("cpu")
Tensors = tuple[Tensor, ...]


# ------------------------------------------------------------------------------------- the problems


@dataclass
class Problem:
    """A classifier's weighted, smoothed cross-entropy with an L2 term, as a pure function.

    ``tensors`` are the frozen parameters, the buffers, then: input, target, example weights,
    smoothing, L2 coefficient.
    """

    module: nn.Module
    inputs: Callable[[torch.Generator, int], Tensor]
    recurrent: bool = False
    dtype: torch.dtype = torch.float64

    def __post_init__(self) -> None:
        self.network = Network(self.module.to(self.dtype))
        self.weights = self.network.weights()

    @property
    def wrt(self) -> tuple[int, ...]:
        fixed = len(self.weights.frozen) + len(self.weights.buffers)
        return (fixed + 2, fixed + 3, fixed + 4)

    def loss(self, x: Tensor, tensors: Tensors) -> tuple[Tensor, Tensors]:
        frozen, buffers = self.weights.frozen, self.weights.buffers
        given = iter(tensors)
        weights = Weights(
            x, {name: next(given) for name in frozen}, {name: next(given) for name in buffers}
        )
        inputs, target, importance, smoothing, l2 = given
        output, after = self.network(weights, (inputs,), training=True)
        logp = functional.log_softmax(output, -1)
        hit = logp.gather(1, target[:, None])[:, 0]
        each = (1 - smoothing) * hit + smoothing * logp.mean(-1)
        return l2 * (x * x).sum() - (importance * each).mean(), tuple(after.values())

    def example(self, seed: int, size: int = 5) -> tuple[Tensor, Tensors, Tensor]:
        g = torch.Generator().manual_seed(seed)

        def noise(like: Tensor) -> Tensor:
            return torch.randn(like.shape, generator=g, dtype=like.dtype)

        x, frozen, buffers = self.weights
        moved = [
            b + noise(b).square() if b.is_floating_point() else b + seed for b in buffers.values()
        ]
        inputs = self.inputs(g, size)
        tensors = (
            *(q + 0.1 * noise(q) for q in frozen.values()),
            *moved,
            inputs.to(self.dtype) if inputs.is_floating_point() else inputs,
            torch.randint(3, (size,), generator=g),
            torch.rand(size, generator=g, dtype=self.dtype),
            torch.rand((), generator=g, dtype=self.dtype) / 5,
            torch.rand((), generator=g, dtype=self.dtype),
        )
        return x + 0.1 * noise(x), tensors, noise(x)

    def eager(self) -> Eager:
        return Eager(self.loss, wrt=self.wrt, recurrent=self.recurrent)


def vectors(g: torch.Generator, size: int) -> Tensor:
    return torch.randn(size, 6, generator=g)


def images(g: torch.Generator, size: int) -> Tensor:
    return torch.randn(size, 2, 6, 6, generator=g)


def series(g: torch.Generator, size: int) -> Tensor:
    return torch.randn(size, 4, 6, generator=g)


def words(g: torch.Generator, size: int) -> Tensor:
    return torch.randint(7, (size, 4), generator=g)


def mlp(*middle: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), *middle, nn.Linear(8, 3))


class Last(nn.Module):
    """The last output of a recurrent layer."""

    def forward(self, output: tuple[Tensor, Any]) -> Tensor:
        return output[0][:, -1]


class Transformer(nn.Module):
    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 8, padding_idx=0)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, dropout, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        result: Tensor = self.head(self.layer(self.embedding(tokens)).mean(1))
        return result


def tied() -> nn.Module:
    first, second = nn.Linear(6, 6), nn.Linear(6, 6)
    second.weight = first.weight
    return nn.Sequential(first, nn.Tanh(), second, nn.Tanh(), nn.Linear(6, 3))


def partly_frozen() -> nn.Module:
    module = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3))
    module[2].requires_grad_(False)
    return module


class Branch(nn.Module):
    """A head with statistics that the loss does not see."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(6, 3)
        self.other = nn.BatchNorm1d(6)

    def forward(self, inputs: Tensor) -> Tensor:
        self.other(inputs)
        result: Tensor = self.head(inputs)
        return result


class Draws(nn.Module):
    """Two masks, of which the loss sees the second."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(6, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        functional.dropout(inputs, 0.5)
        result: Tensor = self.head(functional.dropout(inputs, 0.5))
        return result


def cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(16, 3),
    )  # fmt: skip


NETS: dict[str, Callable[[], Problem]] = {
    "relu": lambda: Problem(mlp(nn.ReLU()), vectors),
    "tanh": lambda: Problem(mlp(nn.Tanh()), vectors),
    "relu in place": lambda: Problem(mlp(nn.ReLU(inplace=True)), vectors),
    "in place on the batch": lambda: Problem(
        nn.Sequential(nn.ReLU(inplace=True), nn.Linear(6, 3)), vectors
    ),
    "BatchNorm2d": lambda: Problem(cnn(), images),
    "dropout": lambda: Problem(mlp(nn.Dropout(0.4), nn.ReLU(), nn.Dropout(0.2)), vectors),
    "AlphaDropout and RReLU": lambda: Problem(mlp(nn.AlphaDropout(0.3), nn.RReLU()), vectors),
    "LayerNorm": lambda: Problem(mlp(nn.LayerNorm(8), nn.GELU()), vectors),
    "GroupNorm": lambda: Problem(mlp(nn.GroupNorm(2, 8), nn.Tanh()), vectors),
    "LSTM": lambda: Problem(
        nn.Sequential(nn.LSTM(6, 5, batch_first=True), Last(), nn.Linear(5, 3)), series, True
    ),
    "GRU with dropout": lambda: Problem(
        nn.Sequential(
            nn.GRU(6, 5, num_layers=2, dropout=0.3, batch_first=True), Last(), nn.Linear(5, 3)
        ),
        series,
        True,
    ),
    "transformer": lambda: Problem(Transformer(0.2), words),
    "fused attention": lambda: Problem(Transformer(0.0), words),
    "tied weights": lambda: Problem(tied(), vectors),
    "frozen parameters": lambda: Problem(partly_frozen(), vectors),
    "unused branch": lambda: Problem(Branch(), vectors),
    "unused draw": lambda: Problem(Draws(), vectors),
    "linear": lambda: Problem(nn.Linear(6, 3), vectors),
}


def build(name: str) -> Problem:
    with seeded(0, CPU):
        return NETS[name]()


@pytest.fixture(params=NETS, scope="module")
def problem(request: pytest.FixtureRequest) -> Problem:
    return build(request.param)


@pytest.fixture(scope="module")
def traced(problem: Problem) -> Traced:
    """A trace of one example; the tests replay it on others."""
    return trace_of(problem)


def trace_of(problem: Problem) -> Traced:
    result = Traced(problem.eager())
    x, tensors, _ = problem.example(0)
    result.trace(x, tensors)
    return result


def close(found: Any, expected: Any) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-13)


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
    traced = choose(problem.loss, examples, [0, 1, 2], wrt=problem.wrt, recurrent=problem.recurrent)
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


@pytest.mark.parametrize("make", [Eager, lambda loss, wrt: Traced(Eager(loss, wrt=wrt))])
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
    for derivatives in (Eager(cubes), Traced(Eager(cubes))):
        saved = derivatives.linearize(x.clone(), (c.clone(),))[2]
        held = {t.data_ptr() for t in saved.tensors() if t.numel() == 100}
        assert saved_bytes(saved) < 800 * len(held) + 100


def cubes(x: Tensor, tensors: Tensors) -> tuple[Tensor, Tensors]:
    return (tensors[0] * x.pow(3)).sum(), ()


@pytest.mark.parametrize("create", [Eager, lambda loss: Traced(Eager(loss))])
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


# ------------------------------------------------------------------------------- the kinds of input


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
    traced = choose(mean_by_length, [batch(8, seed) for seed in range(3)], [0, 1, 2], wrt=(1,))
    assert isinstance(traced, Traced)
    for size in (8, 3, 8, 3):
        example = batch(size, seed=5)
        close(traced.product(*example), Eager(mean_by_length, wrt=(1,)).product(*example))
    assert len(traced._kinds) == 2


def test_many_sizes_are_computed_eagerly_in_the_end() -> None:
    traced, eager = Traced(Eager(mean_by_length, wrt=(1,))), Eager(mean_by_length, wrt=(1,))
    for size in (1, 2, 3, 4, 5, 6, 5, 1):
        example = batch(size)
        close(traced.product(*example), eager.product(*example))
    assert len(traced._kinds) == engine.MAX_TRACES


def test_other_strides_are_another_kind() -> None:
    traced, eager = Traced(Eager(mean_by_length)), Eager(mean_by_length)
    x, (inputs, weight), u = batch(8)
    for given in (inputs, inputs.t().contiguous().t(), inputs[:1].expand(8, 4)):
        example = (x, (given, weight), u)
        close(traced.product(*example), eager.product(*example))
    assert len(traced._kinds) == 3


def test_the_key_tells_apart_what_the_tensors_do_not_show() -> None:
    module = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5)).double()

    def loss(x: Tensor, tensors: Tensors) -> tuple[Tensor, Tensors]:
        given = {"0.weight": x.outer(x), "0.bias": x}
        return torch.func.functional_call(module, given, tensors[:1]).square().mean(), ()

    traced, (x, tensors, _) = Traced(Eager(loss)), batch(8)
    for training in (True, False, True):
        module.train(training)
        with seeded(3, CPU):
            expected = Eager(loss).gradient(x, tensors)
        with seeded(3, CPU):
            close(traced.gradient(x, tensors, key=training), expected)


def test_autocast_around_a_step_is_traced_and_not_applied_twice() -> None:
    def loss(x: Tensor, tensors: Tensors) -> tuple[Tensor, Tensors]:
        (inputs,) = tensors
        hidden = (inputs @ x.view(6, 6)).tanh()
        with torch.autocast("cpu", enabled=False):
            return (inputs @ x.view(6, 6) @ hidden.float().t()).square().mean(), ()

    g = torch.Generator().manual_seed(0)
    traced, eager = Traced(Eager(loss)), Eager(loss)
    for enabled in (True, False, True):
        x, u, inputs = torch.randn(3, 36, generator=g)
        example = (x, (inputs.view(6, 6),), u)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            found, expected = traced.product(*example), eager.product(*example)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert len(traced._kinds) == 2


def test_one_tensor_given_twice_is_two_inputs() -> None:
    def loss(x: Tensor, tensors: Tensors) -> tuple[Tensor, Tensors]:
        a, b = tensors
        return (x.square() * a).sum() + 5 * (x.square() * b).sum(), ()

    x, a, b, u = torch.randn(4, 3, dtype=torch.double)
    traced = Traced(Eager(loss, wrt=(0, 1)))
    traced.product(x, (a, a), u)
    close(traced.product(x, (a, b), u), Eager(loss, wrt=(0, 1)).product(x, (a, b), u))


def test_the_callers_settings_are_left_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    problem, backends = build("LSTM"), torch.backends
    monkeypatch.setattr(backends.mkldnn, "enabled", True)
    monkeypatch.setattr(backends.cudnn, "enabled", True)
    with torch.no_grad():
        Traced(problem.eager()).product(*problem.example(0))
        assert not torch.is_grad_enabled()
    assert backends.mkldnn.enabled
    assert backends.cudnn.enabled


# -------------------------------------------------------------------------------- what cannot be


def cube(scale: Callable[[Tensor], Any]) -> Loss:
    def loss(x: Tensor, tensors: Tensors) -> tuple[Tensor, Tensors]:
        return (scale(x) * x**3).sum(), ()

    return loss


def three() -> list[tuple[Tensor, Tensors, Tensor]]:
    rows = torch.randn(3, 2, 5, dtype=torch.double, generator=torch.Generator().manual_seed(1))
    return [(x, (), u) for x, u in rows]


calls = iter(range(1, 10**6))
OWN = torch.Generator()
HIDDEN: dict[str, Callable[[Tensor], Any]] = {
    "numpy": lambda x: np.random.default_rng().random(),
    "random": lambda x: random.random(),
    "counter": lambda x: next(calls),
    "coin": lambda x: 1.0 if next(calls) % 2 else 2.0,
    "generator": lambda x: torch.rand(5, generator=OWN, dtype=x.dtype),
}


@pytest.mark.parametrize("source", HIDDEN)
def test_a_step_that_does_not_replay_is_an_error(source: str) -> None:
    with pytest.raises(TrainingError, match=r"computed again .* numpy\.random") as caught:
        choose(cube(HIDDEN[source]), three(), [0, 1, 2])
    assert "the gradient by" in str(caught.value)


BRANCHES: dict[str, tuple[Callable[[Tensor], Any], str]] = {
    "branch": (lambda x: 2 if x.sum() > 0 else 3, "RuntimeError"),
    "item": (lambda x: x.sum().item(), "RuntimeError"),
    "list": (lambda x: 1 + sum(x.detach().abs().tolist()), "the gradient by"),
    "numpy": (lambda x: 1 + float(np.abs(x.detach().numpy()).sum()), ""),
    "unique": (lambda x: 1 + len(torch.unique((3 * x.detach()).round())), "the gradient by"),
}


@pytest.mark.parametrize("name", BRANCHES)
def test_a_step_that_looks_at_values_runs_eagerly_with_one_warning(name: str) -> None:
    scale, fragment = BRANCHES[name]
    with pytest.warns(UserWarning, match="without tracing") as caught:
        derivatives = choose(cube(scale), three(), [0, 1, 2])
    assert isinstance(derivatives, Eager)
    assert len(caught) == 1
    assert fragment in str(caught[0].message)


def test_a_trace_that_fails_later_is_replaced_by_the_eager_step_and_a_warning() -> None:
    traced = Traced(Eager(cube(BRANCHES["branch"][0])))
    x, tensors, u = three()[0]
    with pytest.warns(UserWarning, match="without tracing") as caught:
        close(traced.product(x, tensors, u)[0], (12 if x.sum() > 0 else 18) * x * u)
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        close(traced.product(-x, tensors, u)[0], (12 if x.sum() < 0 else 18) * -x * u)


def test_a_trace_made_in_a_sweep_is_compared_once() -> None:
    loss = cube(lambda x: 1 + sum(x.detach().abs().tolist()))
    x, tensors, u = three()[0]
    with pytest.warns(UserWarning, match="does not give the numbers"):
        found = Traced(Eager(loss)).product(x, tensors, u)
    close(found, Eager(loss).product(x, tensors, u))


def test_the_probe_says_what_differs() -> None:
    loss = cube(lambda x: 1 + sum(x.detach().abs().tolist()))
    eager = Eager(loss)
    assert probe(eager, Traced(eager), three()[:1], [0]) is None
    reason = probe(eager, Traced(eager), three(), [0, 1, 2])
    assert reason is not None
    assert "the gradient by" in reason


class Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.exp()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        x: Tensor = ctx.saved_tensors[0]
        return grad * x.exp()


def pairs(x: Tensor) -> Tensor:
    result: Tensor = functional.pdist(x.view(2, 2))
    return result


def bags(x: Tensor) -> Tensor:
    return functional.embedding_bag(torch.tensor([[0, 1]]), x.view(2, 2), mode="sum").square()


def once(x: Tensor) -> Tensor:
    apply: Any = Once.apply
    result: Tensor = apply(x)
    return result


def distance(x: Tensor) -> Tensor:
    result: Tensor = torch.cdist(x.view(2, 2), x.view(2, 2).square() + 1)
    return result.square()


@pytest.mark.parametrize(
    ("function", "operator", "remedy"),
    [
        (pairs, "_pdist_backward", "elementary operations"),
        (bags, "_embedding_bag_backward", "nn.Embedding"),
        (distance, "_cdist_backward", "Write the distance out"),
        (lambda x: once(x).square(), "once_differentiable", "undecorated"),
        (once, "Once, once_differentiable", "undecorated"),
    ],
)
def test_an_operator_without_a_second_derivative_is_an_error_that_names_it(
    function: Any, operator: str, remedy: str
) -> None:
    def loss(x: Tensor, tensors: Tensors) -> tuple[Tensor, Tensors]:
        return function(x).sum(), ()

    x, u = torch.rand(2, 4, dtype=torch.double)
    with pytest.raises(TrainingError) as caught:
        choose(loss, [(x, (), u)], [0])
    assert operator in str(caught.value)
    assert remedy in str(caught.value)


def test_a_loss_without_the_parameters_is_an_error() -> None:
    with pytest.raises(TrainingError, match="must depend on the model's parameters"):
        choose(lambda x, tensors: (x.detach().sum(), ()), three(), [0, 1, 2])

"""Second derivatives that are not those of the gradient: found in the graph, or by `check`."""

import copy
import functools
import itertools
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils import parametrizations

import hyperopt_dl as hd
from hyperopt_dl.online import ForwardTuner
from hyperopt_dl.online.fingerprints import due

RATE = hd.Float(1e-6, 10, log=True)
Case = tuple[nn.Module, Callable[[Any], Tensor]]
X, Y = torch.randn(16, 6, generator=torch.Generator().manual_seed(0)), torch.arange(16) % 3
WORDS = torch.randint(0, 9, (16, 5), generator=torch.Generator().manual_seed(1))


def tuner_of(model: nn.Module, **settings: Any) -> ForwardTuner:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    return ForwardTuner(optimizer, {"lr": RATE}, hyper_lr=0.0, **settings)


def of_vectors(*layers: nn.Module) -> Case:
    model = nn.Sequential(*layers)
    return model, lambda m: functional.cross_entropy(m(X.to(m[-1].weight.dtype)), Y)


class Words(nn.Module):
    def __init__(self, **settings: Any) -> None:
        super().__init__()
        self.embedding, self.last = nn.Embedding(9, 6, **settings), nn.Linear(6, 3)

    def forward(self, words: Tensor) -> Tensor:
        scores: Tensor = self.last(torch.tanh(self.embedding(words)).mean(1))
        return scores


def of_words(**settings: Any) -> Case:
    return Words(**settings), lambda m: functional.cross_entropy(m(WORDS), Y)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.last = (
            nn.TransformerEncoderLayer(6, 2, 8, batch_first=True),
            nn.Linear(6, 3),
        )

    def forward(self, x: Tensor) -> Tensor:
        with sdpa_kernel(SDPBackend.MATH):
            scores: Tensor = self.last(self.layer(x.view(4, 4, 6)).view(16, 6))
        return scores


def attention() -> Case:
    return Attention(), lambda m: functional.cross_entropy(m(X.to(m.last.weight.dtype)), Y)


def pictures() -> Case:
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(4, 3),
    )  # fmt: skip
    x = torch.randn(16, 1, 5, 5, generator=torch.Generator().manual_seed(2))
    return model, lambda m: functional.cross_entropy(m(x.to(m[-1].weight.dtype)), Y)


HONEST: Mapping[str, Callable[[], Case]] = {
    "tanh": lambda: of_vectors(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3)),
    "relu": lambda: of_vectors(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3)),
    "gelu": lambda: of_vectors(nn.Linear(6, 16), nn.LayerNorm(16), nn.GELU(), nn.Linear(16, 3)),
    "dropout": lambda: of_vectors(nn.Linear(6, 16), nn.SiLU(), nn.Dropout(0.3), nn.Linear(16, 3)),
    "linear": lambda: (nn.Linear(6, 1), lambda m: m(X.to(m.weight.dtype)).mean()),
    "words": of_words,
    "padding": lambda: of_words(padding_idx=0),
    "attention": attention,
    "pictures": pictures,
}


def apply(function: Any, x: Tensor) -> Tensor:
    found: Tensor = function.apply(x)
    return found


class Cube(torch.autograd.Function):
    """Whose backward holds a part for constant, or all of it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        (x,) = ctx.saved_tensors
        return 3 * x.detach() ** 2 * g


class OnceCube(torch.autograd.Function):
    forward = Cube.forward

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, g: Tensor) -> Any:
        (x,) = ctx.saved_tensors
        return 3 * x**2 * g


class WrongTwice(torch.autograd.Function):
    """Half of the second derivative."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        (x,) = ctx.saved_tensors
        return 3 * x * x.detach() * g * WrongTwice.one(g)

    @staticmethod
    def one(g: Tensor) -> Tensor:
        return 1 + (g - g.detach())


def with_loss(loss: Callable[[Any, Tensor], Tensor]) -> Case:
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 6), nn.Linear(6, 3))
    return model, lambda m: loss(m, X.to(m[0].weight.dtype))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.middle = nn.Embedding(9, 6, padding_idx=0), nn.Linear(6, 6)

    def forward(self, words: Tensor) -> Tensor:
        middle = torch.tanh(self.middle(self.embedding(words).mean(1)))
        scores: Tensor = middle @ self.embedding.weight.T
        return scores


def tied() -> Case:
    model = Tied()
    nn.init.normal_(model.embedding.weight)
    return model, lambda m: functional.cross_entropy(m(WORDS), WORDS[:, 0])


def weight_norm() -> Case:
    model = nn.Sequential(parametrizations.weight_norm(nn.Linear(6, 8)), nn.Tanh(), nn.Linear(8, 3))
    return model, lambda m: functional.cross_entropy(m(X.to(m[2].weight.dtype)), Y)


IN_GRAPH: Mapping[str, tuple[Callable[[], Case], str]] = {
    "weight_norm": (weight_norm, r"fused weight_norm.*g \* v / v\.norm"),
    "scale_grad_by_freq": (lambda: of_words(scale_grad_by_freq=True), "with scale_grad_by_freq"),
    "tied padding": (tied, "padding_idx keeps its part from a row of a weight that something"),
    "once": (
        lambda: with_loss(
            lambda m, x: functional.cross_entropy(m[2:](apply(OnceCube, m[:2](x))), Y)
        ),
        "OnceCube is marked as once_differentiable",
    ),
    "wrong": (
        lambda: with_loss(
            lambda m, x: functional.cross_entropy(m[2:](apply(WrongTwice, m[:2](x))), Y)
        ),
        "must be symmetric.*Function WrongTwice",
    ),
}


def focal(m: Any, x: Tensor) -> Tensor:
    losses = functional.cross_entropy(m(x), Y, reduction="none")
    value: Tensor = ((1 - (-losses).exp()).detach() ** 2 * losses).mean()
    return value


def own_error(m: Any, x: Tensor) -> Tensor:
    value: Tensor = (((m(x) - 1) ** 2).detach() * (m(x) - 1) ** 2).mean()
    return value


def similar(m: Any, x: Tensor) -> Tensor:
    target = m[:3](x + 0.1).detach()
    return -functional.cosine_similarity(m[:3](x), target).mean()


def straight_through(m: Any, x: Tensor) -> Tensor:
    hidden = m[:3](x)
    return functional.cross_entropy(m[3](hidden + (hidden.square() - hidden).detach()), Y)


def without_grad(m: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        weights = m(x).softmax(1).amax(1)
    value: Tensor = (weights * functional.cross_entropy(m(x), Y, reduction="none")).mean()
    return value


STOPPED: Mapping[str, Callable[[], Case]] = {
    "focal weights": lambda: with_loss(focal),
    "weights by the error": lambda: with_loss(own_error),
    "a target of its own": lambda: with_loss(similar),
    "straight through": lambda: with_loss(straight_through),
    "no_grad": lambda: with_loss(without_grad),
    "a function": lambda: with_loss(
        lambda m, x: functional.cross_entropy(m[2:](apply(Cube, m[:2](x))), Y)
    ),
}
DTYPES = [torch.double, torch.float]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", HONEST.values(), ids=HONEST)
def test_honest_networks_pass_and_keep_their_weights(
    case: Callable[[], Case], dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    model, loss = case()
    model.to(dtype)
    before = [param.detach().clone() for param in model.parameters()]
    tuner = tuner_of(model)
    tuner.check(lambda: loss(model))
    tuner.backward(loss(model))
    for param, value in zip(model.parameters(), before, strict=True):
        assert torch.equal(param, value)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("case", "message"), IN_GRAPH.values(), ids=IN_GRAPH)
def test_what_the_graph_shows_is_refused_each_time(
    case: Callable[[], Case], message: str, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    model, loss = case()
    model.to(dtype)
    with torch.no_grad():
        for param in model.parameters():
            param.mul_(1.1)
    tuner = tuner_of(model)
    for _ in range(2):
        with pytest.raises(hd.TrainingError, match=message):
            tuner.backward(loss(model))
    assert all(param.grad is None for param in model.parameters())
    tuner_of(model, discount=0.0).backward(loss(model))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", STOPPED.values(), ids=STOPPED)
def test_what_a_loss_holds_for_constant_is_found_by_computing_it_again(
    case: Callable[[], Case], dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    model, loss = case()
    model.to(dtype)
    tuner = tuner_of(model)
    before = copy.deepcopy(model.state_dict())
    for _ in range(2):
        with pytest.raises(hd.TrainingError, match="stop-gradients make the training loss no pot"):
            tuner.check(lambda: loss(model))
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


def test_a_check_in_mid_run_changes_nothing() -> None:
    histories = []
    for checks in (False, True):
        torch.manual_seed(0)
        model, loss = HONEST["tanh"]()
        tuner = tuner_of(model)
        for _ in range(4):
            tuner.optimizer.zero_grad()
            tuner.backward(loss(model))
            tuner.optimizer.step()
            if checks:
                tuner.check(functools.partial(loss, model))
            tuner.step(loss(model))
        histories.append(tuner.history)
    assert histories[0] == histories[1]


def test_a_loss_that_is_another_one_each_time_cannot_be_checked() -> None:
    model, _ = HONEST["tanh"]()
    draws = torch.Generator().manual_seed(0)

    def loss() -> Tensor:
        x: Tensor = model(torch.randn(4, 6, generator=draws))
        return x.square().mean()

    with pytest.raises(hd.TrainingError, match="the same loss from each call"):
        tuner_of(model).check(loss)


def test_a_loss_in_half_precision_cannot_be_checked_and_is_looked_at_all_the_same() -> None:
    torch.manual_seed(0)
    model, loss = HONEST["tanh"]()

    def half() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return loss(model)

    tuner = tuner_of(model)
    with pytest.raises(hd.TrainingError, match="half precision has too few digits"):
        tuner.check(half)
    tuner.backward(half())


def test_one_step_in_a_hundred_is_looked_at() -> None:
    later = [step for step in range(5, 10_005) if due(step, "symmetry")]
    assert all(due(step, "symmetry") for step in range(5))
    assert len(later) == pytest.approx(100, abs=10)
    assert max(b - a for a, b in itertools.pairwise(later)) < 1000


def test_a_second_derivative_that_goes_wrong_later_is_found_in_the_end() -> None:
    torch.manual_seed(0)
    model, loss = HONEST["tanh"]()
    bad, wrong = IN_GRAPH["wrong"][0]()
    assert isinstance(bad, nn.Sequential)
    tuner = tuner_of(nn.ModuleList([model, bad]))

    def train(steps: range) -> None:
        for t in steps:
            tuner.optimizer.zero_grad()
            tuner.backward(loss(model) + 0.0 * sum(p.sum() for p in bad.parameters())
                           if t == 0 else loss(model) + wrong(bad))  # fmt: skip
            tuner.optimizer.step()

    train(range(1))
    with pytest.raises(hd.TrainingError, match="must be symmetric"):
        train(range(1, 1000))
    assert tuner.steps > 1

"""Which losses want the hyperparameters, and what a loss without its reduction is."""

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from hyperopt_dl import losses
from hyperopt_dl.errors import TrainingError

N, CLASSES = 5, 3


def batch() -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    output = torch.randn(N, CLASSES, generator=g, dtype=torch.double)
    return output, torch.randint(0, CLASSES, (N,), generator=g)


def two(output: Tensor, target: Tensor) -> Tensor:
    return functional.cross_entropy(output, target)


def three(output: Tensor, target: Tensor, anything: float) -> Tensor:
    return anything * two(output, target)


def optional_hp(output: Tensor, target: Tensor, hp: float = 1.0) -> Tensor:
    return two(output, target) * hp


def optional_hparams(output: Tensor, target: Tensor, hparams: float = 1.0) -> Tensor:
    return two(output, target) * hparams


def optional_other(output: Tensor, target: Tensor, smoothing: float = 0.0) -> Tensor:
    return functional.cross_entropy(output, target, label_smoothing=smoothing)


def keyword_only(output: Tensor, target: Tensor, *, hp: float = 1.0) -> Tensor:
    return two(output, target)


def variadic(*args: Any, **kwargs: Any) -> Tensor:
    return two(*args, **kwargs)


class Callee:
    def __call__(self, output: Tensor, target: Tensor, hp: float) -> Tensor:
        return two(output, target) * hp

    def method(self, output: Tensor, target: Tensor) -> Tensor:
        return two(output, target)


class OwnModule(nn.Module):
    def forward(self, output: Tensor, target: Tensor, hp: float) -> Tensor:
        return two(output, target) * hp


class OldModule(nn.Module):
    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        return two(output, target)


WANTS: list[tuple[str, Callable[..., Any], bool]] = [
    ("function of two", two, False),
    ("function of three", three, True),
    ("lambda of two", lambda o, t: o.mean(), False),
    ("lambda of three", lambda o, t, h: o.mean(), True),
    ("optional hp", optional_hp, True),
    ("optional hparams", optional_hparams, True),
    ("other option", optional_other, False),
    ("keyword only", keyword_only, False),
    ("variadic", variadic, False),
    ("cross_entropy", functional.cross_entropy, False),
    ("mse_loss", functional.mse_loss, False),
    ("nll_loss", functional.nll_loss, False),
    ("CrossEntropyLoss", nn.CrossEntropyLoss(), False),
    ("MSELoss", nn.MSELoss(), False),
    ("own module of three", OwnModule(), True),
    ("own module of two", OldModule(), False),
    ("object", Callee(), True),
    ("method", Callee().method, False),
    ("partial with a keyword", functools.partial(functional.cross_entropy, reduction="sum"), False),
    ("partial of three", functools.partial(three), True),
    ("partial of three, bound", functools.partial(three, anything=2.0), False),
    ("builtin with a signature", torch.dist, False),
    ("builtin without a signature", torch._C._nn.l1_loss, False),
]


@pytest.mark.parametrize(
    ("loss", "wants"), [row[1:] for row in WANTS], ids=[row[0].replace(" ", "_") for row in WANTS]
)
def test_a_loss_of_three_arguments_wants_the_hyperparameters(
    loss: Callable[..., Any], wants: bool
) -> None:
    assert losses.takes_hparams(loss) is wants


@pytest.mark.parametrize(
    ("loss", "factor"),
    [
        (two, 1),
        (three, 7),
        (optional_hp, 7),
        (functional.cross_entropy, 1),
        (nn.CrossEntropyLoss(), 1),
        (OwnModule(), 7),
        (Callee(), 7),
        (functools.partial(three, anything=2.0), 2),
    ],
)
def test_every_loss_can_be_called_with_hyperparameters(
    loss: Callable[..., Any], factor: int
) -> None:
    output, target = batch()
    found = losses.with_hparams(loss)(output, target, 7)
    torch.testing.assert_close(found, factor * two(output, target))


@pytest.mark.parametrize(
    "loss",
    [
        functional.cross_entropy,
        nn.CrossEntropyLoss(),
        nn.CrossEntropyLoss(reduction="sum"),
        functools.partial(functional.cross_entropy, reduction="mean"),
        lambda output, target, reduction="mean": functional.cross_entropy(
            output, target, reduction=reduction
        ),
        lambda output, target: functional.cross_entropy(output, target, reduction="none"),
    ],
)
def test_a_loss_without_its_reduction_has_one_value_for_each_example(
    loss: Callable[..., Any],
) -> None:
    output, target = batch()
    each = losses.per_example(loss)(output, target)
    expected = -output.log_softmax(1)[torch.arange(N), target]
    torch.testing.assert_close(each, expected)


def test_options_of_a_loss_survive_without_its_reduction() -> None:
    output, target = batch()
    loss = nn.CrossEntropyLoss(label_smoothing=0.2)
    expected = functional.cross_entropy(output, target, reduction="none", label_smoothing=0.2)
    torch.testing.assert_close(losses.per_example(loss)(output, target), expected)


def test_a_loss_module_is_not_changed_itself() -> None:
    loss = nn.CrossEntropyLoss()
    losses.per_example(loss)
    assert loss.reduction == "mean"


def test_a_loss_with_hyperparameters_may_have_a_reduction() -> None:
    def loss(output: Tensor, target: Tensor, hp: float, reduction: str = "mean") -> Tensor:
        return functional.cross_entropy(output, target, reduction=reduction) * hp

    output, target = batch()
    each = losses.with_hparams(losses.per_example(loss))(output, target, 7)
    expected = 7 * functional.cross_entropy(output, target, reduction="none")
    torch.testing.assert_close(each, expected)


@pytest.mark.parametrize("shape", [(N,), (N, 1), (N, 4), (N, 2, 3)], ids=str)
def test_a_weighted_mean_is_a_sum_over_the_batch_size(shape: tuple[int, ...]) -> None:
    each = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.double)
    weights = torch.linspace(0, 2, N, dtype=torch.double)
    rows = [float(weights[i]) * float(each[i].mean()) for i in range(N)]
    found = losses.weighted_mean(each, weights)
    assert found.shape == ()
    assert float(found) == pytest.approx(sum(rows) / N, rel=1e-12)


def test_a_weighted_mean_keeps_the_dtype_of_the_losses() -> None:
    found = losses.weighted_mean(torch.ones(N), torch.ones(N, dtype=torch.double))
    assert found.dtype == torch.float32


@pytest.mark.parametrize("shape", [(), (N - 1,), (1, N)], ids=str)
def test_losses_that_are_not_one_for_each_example_are_an_error(shape: tuple[int, ...]) -> None:
    with pytest.raises(TrainingError) as caught:
        losses.weighted_mean(torch.ones(shape), torch.ones(N))
    assert f"one value for each of the {N} examples" in str(caught.value)
    assert f"got shape {shape}" in str(caught.value)

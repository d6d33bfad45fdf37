"""Small networks, data and losses that the rows share."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from tests.zoo.row import Case, Model

TRAIN, HELD_OUT, CLASSES = 12, 8, 3


class Net(nn.Module):
    """Parts by name, and a forward pass that is given them as its first argument."""

    def __init__(self, run: Callable[..., Any], **parts: Any) -> None:
        super().__init__()
        self.run = run
        for name, part in parts.items():
            if isinstance(part, Tensor) and not isinstance(part, nn.Parameter):
                self.register_buffer(name, part)
            else:
                setattr(self, name, part)

    def forward(self, *inputs: Any) -> Any:
        return self.run(self, *inputs)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=generator(seed), dtype=torch.double)


def integers(high: int, *shape: int, seed: int = 0, low: int = 0) -> Tensor:
    return torch.randint(low, high, shape, generator=generator(seed))


def case_of(model: Model, inputs: Tensor | tuple[Tensor, ...], y: Tensor, **more: Any) -> Case:
    """Return a case of 20 examples, of which 8 are held out."""
    xs = inputs if isinstance(inputs, tuple) else (inputs,)
    train = (*(x[:TRAIN] for x in xs), y[:TRAIN])
    held_out = (*(x[TRAIN:] for x in xs), y[TRAIN:])
    return Case(model, train, held_out, more.pop("loss", F.cross_entropy), **more)


def classify(model: Model, *shape: int, **more: Any) -> Case:
    """Three classes of random tensors; vectors of 4 unless a shape is given."""
    x = normal(TRAIN + HELD_OUT, *(shape or (4,)))
    return case_of(model, x, integers(CLASSES, TRAIN + HELD_OUT, seed=1), **more)


def regress(model: Model, *shape: int, out: tuple[int, ...] = (1,), **more: Any) -> Case:
    """Random targets of random tensors."""
    x, y = normal(TRAIN + HELD_OUT, *(shape or (4,))), normal(TRAIN + HELD_OUT, *out, seed=1)
    return case_of(model, x, y, **{"loss": F.mse_loss, **more})


def tokens(model: Model, length: int = 4, words: int = 7, **more: Any) -> Case:
    """Three classes of sequences of words; word 0 is padding, at the ends of some."""
    n = TRAIN + HELD_OUT
    x = integers(words, n, length, low=1)
    x[::3, -1] = 0
    return case_of(model, x, integers(CLASSES, n, seed=1), **more)


def mlp(*middle: nn.Module, hidden: int = 5, inputs: int = 4) -> nn.Sequential:
    """Two layers, with modules between them."""
    between = middle or (nn.Tanh(),)
    return nn.Sequential(nn.Linear(inputs, hidden), *between, nn.Linear(hidden, CLASSES))


def conv(*body: nn.Module, features: int) -> nn.Sequential:
    """A body, flattened, and a linear head on so many features."""
    return nn.Sequential(*body, nn.Flatten(), nn.Linear(features, CLASSES))

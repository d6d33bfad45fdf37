"""The work that hypergradients are timed on: networks, data, hyperparameters.

What each is, the script ``hypergradients.py`` says.
"""

from collections.abc import Callable

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from hyperopt_dl.batches import Batches
from studies.data import fashion_mnist

WORKS = ("A", "B", "C", "cnn", "cnn+bn", "gru", "transformer", "5000 weights", "3 scalars")
BATCH, EPS = 64, 1e-12  # a tiny eps: higher adds it before Adam's bias correction, torch after it
SCALARS = {"lr": 0.1, "momentum": 0.9, "l2": 1e-3}
VALUES = {
    **dict.fromkeys(WORKS, SCALARS),
    "B": {"w": 0.5},
    "C": {"lr": 1e-3, "momentum": 0.9, "l2": 1e-3},
    "5000 weights": {"w": 0.5},
}
BATCHES: dict[str, int | None] = {
    **dict.fromkeys(("A", "C", "cnn", "cnn+bn", "gru"), BATCH),
    "transformer": 32, "B": None, "5000 weights": None, "3 scalars": None,
}  # fmt: skip
Gradient = dict[str, Tensor]


class GRU(nn.Module):
    """Reads a picture row by row."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.GRU(28, 64, batch_first=True), nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of pictures ``[n, 28, 28]``."""
        out: Tensor = self.head(self.layer(x)[0][:, -1])
        return out


class Transformer(nn.Module):
    """Reads a picture as a sequence of rows."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(64, 4, 128, dropout=0.0, batch_first=True)
        self.embed, self.head = nn.Linear(28, 64), nn.Linear(64, 10)
        self.body = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of pictures ``[n, 28, 28]``."""
        out: Tensor = self.head(self.body(self.embed(x)).mean(1))
        return out


def convolutions(norm: Callable[[int], nn.Module]) -> nn.Module:
    """Return a network of two convolutions."""
    return nn.Sequential(
        nn.Unflatten(1, (1, 28)), nn.Conv2d(1, 16, 3, padding=1), norm(16), nn.ReLU(),
        nn.MaxPool2d(2), nn.Conv2d(16, 32, 3, padding=1), norm(32), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(32 * 49, 10),
    )  # fmt: skip


NETS: dict[str, Callable[[], nn.Module]] = {
    "cnn": lambda: convolutions(lambda _: nn.Identity()),
    "cnn+bn": lambda: convolutions(nn.BatchNorm2d),
    "gru": GRU,
    "transformer": Transformer,
    "5000 weights": lambda: nn.Sequential(nn.Flatten(), nn.Linear(784, 10)),
    "3 scalars": lambda: nn.Sequential(nn.Flatten(), nn.Linear(784, 10)),
}


class Work:
    """One workload; a contestant maps it to the derivatives by the names in ``VALUES``."""

    def __init__(self, name: str, steps: int, dtype: torch.dtype = torch.float32) -> None:
        self.name, self.steps, self.dtype = name, steps, dtype
        self.weighted = "w" in VALUES[name]
        noise = torch.Generator().manual_seed(1)
        if name in NETS:
            x, y = fashion_mnist.read().train
            x, size = x.view(-1, 28, 28).to(dtype), 2000 if BATCHES[name] else 5000
            y = y.clone()
        else:
            x, y = (torch.as_tensor(part) for part in load_digits(return_X_y=True))
            x, size = x.to(dtype) / 16, 1000
        last = size + (797 if name not in NETS else 500)
        if self.weighted:
            wrong = torch.rand(len(y), generator=noise) < 0.3
            wrong[size:] = False
            y = torch.where(wrong, torch.randint(0, 10, y.shape, generator=noise), y)
        self.train, self.validation = (x[:size], y[:size]), (x[size:last], y[size:last])
        self.batches = Batches(self.train, name="train", batch_size=BATCHES[name])

    def model(self) -> nn.Module:
        """Return the same network at every call."""
        with torch.random.fork_rng():
            torch.random.manual_seed(0)
            if self.name in NETS:
                return NETS[self.name]().to(self.dtype)
            return nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10)).to(self.dtype)

    def batch(self, t: int) -> tuple[Tensor, Tensor]:
        """Return the batch of a step."""
        (x,), y, _ = self.batches.at(0, t, torch.device("cpu"))
        return x, y

    def hparams(self) -> Gradient:
        """Return the hyperparameters as leaves."""
        values = VALUES[self.name]
        full = {n: torch.tensor(v, dtype=self.dtype) for n, v in values.items()}
        if self.weighted:
            full["w"] = full["w"].expand(len(self.train[1])).clone()
        return {name: value.requires_grad_() for name, value in full.items()}

    def loss(self, output: Tensor, target: Tensor, hp: Gradient, params: list[Tensor]) -> Tensor:
        """Return the training loss, the L2 term in it."""
        if self.weighted:
            return (hp["w"] * cross_entropy(output, target, reduction="none")).mean()
        penalty = sum(p.square().sum() for p in params) / 2
        return cross_entropy(output, target) + hp["l2"] * penalty

    def outer(self, call: Callable[[Tensor], Tensor], module: nn.Module) -> Tensor:
        """Return the validation loss, by a call of the module in evaluation mode."""
        x, y = self.validation
        module.eval()
        return cross_entropy(call(x), y)

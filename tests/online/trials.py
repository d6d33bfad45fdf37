"""A training for tests of `Supervised(online=...)`, and one that a sampler tunes as well."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import hyperopt_dl as hd
from hyperopt_dl.online import Forward
from hyperopt_dl.optimizers import SGD

LR = hd.Float(1e-5, 10, log=True)
STEPS = 12


def data(seed: int, n: int = 20) -> tuple[Tensor, Tensor]:
    x = torch.randn(n, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.double)
    return x, (x[:, 0] * x[:, 1] > 0).long()


TRAIN, VALIDATION, TEST = data(0), data(1), data(2)


def network(hp: Mapping[str, Any]) -> nn.Module:
    width = int(hp.get("width", 6))
    layers = (nn.Linear(4, width), nn.BatchNorm1d(width), nn.Tanh(), nn.Dropout(0.3))
    return nn.Sequential(*layers, nn.Linear(width, 2)).double()


def accuracy(output: Tensor, target: Tensor) -> float:
    return float((output.argmax(1) == target).double().mean())


def training(**settings: Any) -> hd.Supervised:
    return hd.Supervised(**{
        "model": network,
        "loss": cross_entropy,
        "optimizer": SGD(lr=0.05, momentum=0.5),
        "train": TRAIN,
        "validation": VALIDATION,
        "test": TEST,
        "steps": STEPS,
        "batch_size": 8,
        "metrics": {"accuracy": accuracy},
        **settings,
    })  # fmt: skip


SPACE: dict[str, Any] = {
    "width": hd.Int(2, 8),
    "lr": hd.Float(1e-3, 1e-1, log=True),
    "hyper_lr": hd.Float(1e-2, 0.5, log=True),
}


def tuned() -> hd.Supervised:
    online = Forward({"lr": LR}, hyper_lr="hyper_lr", every=3)
    return training(optimizer=SGD(lr="lr", momentum=0.5), online=online)

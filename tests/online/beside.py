"""A loop with something else in it that moves, by itself and with a tuner beside it."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import hyperopt_dl as hd
from hyperopt_dl.online import ForwardTuner
from tests.online.runs import loss_of, network

RATE = hd.Float(1e-6, 10, log=True)
Build = Callable[[Any, float], torch.optim.Optimizer]
Edit = Callable[[nn.Sequential, torch.optim.Optimizer, int], Any]


def sgd(params: Any, lr: float) -> torch.optim.Optimizer:
    return torch.optim.SGD(params, lr=lr, momentum=0.8)


def nothing(*_: Any) -> None:
    """Nothing happens beside."""


def run(
    lr: float,
    *,
    tuned: bool = False,
    build: Build = sgd,
    start: Edit = nothing,
    before: Edit = nothing,
    after: Edit = nothing,
    loss: Callable[[Any, int], Tensor] = loss_of,
    steps: int = 8,
) -> float:
    """The validation loss at the end, or its derivative in log lr as the tuner has it."""
    model = network()
    optimizer = build(model.parameters(), lr)
    start(model, optimizer, 0)
    tuner = ForwardTuner(optimizer, {"lr": RATE}, hyper_lr=0.0) if tuned else None
    for t in range(steps):
        before(model, optimizer, t)
        optimizer.zero_grad()
        if tuner is None:
            loss(model, t).backward()  # type: ignore[no-untyped-call]
        else:
            tuner.backward(loss(model, t))
        optimizer.step()
        after(model, optimizer, t)
    end = loss_of(model, -1)
    if tuner is None:
        return float(end.detach())
    tuner.step(end)
    return tuner.history[-1].gradient["lr"]


def difference(lr: float, **beside: Any) -> float:
    h = 1e-5
    ahead, behind = (run(lr * math.exp(sign * h), **beside) for sign in (1, -1))
    return (ahead - behind) / (2 * h)

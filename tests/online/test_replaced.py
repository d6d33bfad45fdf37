"""A tuner that is made for an optimizer that has one already."""

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

import hyperopt_dl as hd
from hyperopt_dl.online import DeltaBarDelta, ForwardTuner, HypergradientDescent
from tests.online.runs import loss_of, network, train

LR = {"lr": hd.Float(1e-5, 10, log=True)}
Tuner = ForwardTuner | HypergradientDescent | DeltaBarDelta
Make = Callable[[torch.optim.Optimizer], Tuner]
TUNERS: dict[str, Make] = {
    "forward": lambda optimizer: ForwardTuner(optimizer, LR),
    "last step": lambda optimizer: ForwardTuner(optimizer, LR, discount=0.0),
    "descent": lambda optimizer: HypergradientDescent(optimizer, hyper_lr=0.1),
    "agreement": lambda optimizer: DeltaBarDelta(optimizer, kappa=0.01),
}


def advance(tuner: Tuner, model: nn.Module, t: int) -> None:
    """One step of the user's loop, with a move."""
    if isinstance(tuner, ForwardTuner):
        train(tuner, model, [t], every=1)
    else:
        tuner.optimizer.zero_grad()
        loss_of(model, t).backward()  # type: ignore[no-untyped-call]
        tuner.step()
        tuner.optimizer.step()


def cells(make: Make, runs: int) -> tuple[list[Tensor], list[Any]]:
    """Weights and moves after a cell that makes a tuner and trains, of which only the last does."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.5)
    scheduler = LambdaLR(optimizer, lambda t: 0.9**t)
    tuners = [make(optimizer) for _ in range(runs)]
    for t in range(6):
        advance(tuners[-1], model, t)
        scheduler.step()
    return [param.detach() for param in model.parameters()], tuners[-1].history


@pytest.mark.parametrize("make", TUNERS.values(), ids=TUNERS)
def test_a_tuner_made_again_trains_as_if_it_were_the_first(make: Make) -> None:
    (once, moves), (again, same_moves) = cells(make, 1), cells(make, 3)
    assert same_moves == moves
    assert all(torch.equal(a, b) for a, b in zip(again, once, strict=True))


@pytest.mark.parametrize("after", TUNERS.values(), ids=TUNERS)
@pytest.mark.parametrize("before", TUNERS.values(), ids=TUNERS)
def test_a_tuner_that_was_replaced_says_so(before: Make, after: Make) -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.5)
    old = before(optimizer)
    advance(old, model, 0)
    new = after(optimizer)
    advance(new, model, 1)
    assert (old.steps, new.steps) == (1, 1)
    with pytest.raises(hd.TrainingError, match="An optimizer has one tuner"):
        advance(old, model, 2)


def test_a_forward_tuner_that_was_replaced_does_not_move() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    old, new = (ForwardTuner(optimizer, LR) for _ in range(2))
    train(new, model, [0])
    with pytest.raises(hd.TrainingError, match="An optimizer has one tuner"):
        old.step(loss_of(model, -1))


@pytest.mark.parametrize("make", TUNERS.values(), ids=TUNERS)
def test_an_optimizer_is_not_kept_alive(make: Make) -> None:
    optimizer = torch.optim.SGD(network().parameters(), lr=0.05)
    gone = weakref.ref(optimizer)
    make(optimizer)
    del optimizer
    gc.collect()
    assert gone() is None

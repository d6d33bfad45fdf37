"""Running statistics, which a `ForwardTuner` holds for constants: a limit, and its size."""

import functools

import pytest
import torch
from torch import Tensor, nn

import hyperopt_dl as hd
from hyperopt_dl.online import ForwardTuner
from tests.zoo import oracle, rows_norms

(ROW,) = (row for row in rows_norms.ROWS if row.name == "BatchNorm1d")
LR = 0.1


def trained(lr: float, *, tuned: bool = False) -> tuple[nn.Module, ForwardTuner | None]:
    """A network after a plain loop, or after a tuner's."""
    case = ROW.case()
    model = oracle.built(case, case.hp)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.5)
    dimension = hd.Float(1e-5, 10, log=True)
    tuner = ForwardTuner(optimizer, {"lr": dimension}, hyper_lr=0.0) if tuned else None
    for t in range(ROW.steps):
        inputs, target = oracle.batch(case, t)
        optimizer.zero_grad()
        loss = oracle.training_loss(case, model(*inputs), target, case.hp, t)
        if tuner is None:
            loss.backward()
        else:
            tuner.backward(loss)
        optimizer.step()
    return model, tuner


def validated(model: nn.Module, statistics: dict[str, Tensor] | None = None) -> Tensor:
    case = ROW.case()
    model.load_state_dict(statistics or {}, strict=False)
    return oracle.validation(case, model, case.hp)


def quotient(statistics: dict[str, Tensor] | None = None, h: float = 1e-6) -> float:
    """d/dlr of the plain loop, its statistics its own or given ones."""
    ends = [float(validated(trained(LR + sign * h)[0], statistics).detach()) for sign in (1, -1)]
    return (ends[0] - ends[1]) / (2 * h)


@functools.cache
def seen() -> tuple[float, dict[str, Tensor]]:
    """d/dlr as a tuner sees it, and the statistics in the end."""
    model, tuner = trained(LR, tuned=True)
    assert tuner is not None
    tuner.step(validated(model))
    statistics = {name: buffer.clone() for name, buffer in model.named_buffers()}
    return tuner.history[-1].gradient["lr"] / LR, statistics


def test_running_statistics_are_constants_to_a_tuner() -> None:
    got, statistics = seen()
    assert statistics
    assert got == pytest.approx(quotient(statistics), rel=1e-6)


def test_the_limit_is_as_large_as_the_documentation_says() -> None:
    assert seen()[0] == pytest.approx(0.2115, abs=5e-5)
    assert quotient() == pytest.approx(0.2152, abs=5e-5)

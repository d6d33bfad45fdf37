"""Which way the tests of reverse mode differentiate a training loss."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from hyperopt_dl.hypergrad.steps import step_loss
from hyperopt_dl.hypergrad.traces.graphs import trace


@pytest.fixture
def second_derivatives() -> Iterator[None]:
    """What the engine does: fused recurrent kernels are not traced, or not differentiated."""
    library: Any = torch.backends.mkldnn
    before = library.enabled
    library.enabled = False
    yield
    library.enabled = before


@pytest.fixture(params=["eager", "traced"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways to differentiate the training loss."""
    way: str = request.param
    monkeypatch.setattr(step_loss, "TRACED_FROM", 1 if way == "traced" else 10**9)
    return way


@pytest.fixture
def trace_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_loss, "TRACED_FROM", 1)


@pytest.fixture
def traces(monkeypatch: pytest.MonkeyPatch, trace_everything: None) -> list[int]:
    """One entry for each trace that is made: the number of parameters."""
    made = []

    def counted(joint: Any, u: Tensor, x: Tensor, tensors: tuple[Tensor, ...]) -> Any:
        made.append(x.numel())
        return trace(joint, u, x, tensors)

    monkeypatch.setattr("hyperopt_dl.hypergrad.traces.traced.trace", counted)
    return made

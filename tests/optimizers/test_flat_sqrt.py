"""The square root that is flat at 0."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from hyperopt_dl.optimizers.flat_sqrt import flat_sqrt

# The first use of forward mode makes torch script its own decompositions.
TORCH_LOADS_ITS_RULES = pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")

jvp: Any = torch.func.jvp


@given(st.lists(st.floats(0, 2.0**100, width=32), min_size=1, max_size=20))
@settings(deadline=None)
def test_its_value_is_the_square_root_to_the_last_bit(values: list[float]) -> None:
    v = torch.tensor(values)
    assert torch.equal(flat_sqrt(v), v.sqrt())
    assert torch.equal(flat_sqrt(v.clone().requires_grad_()), v.sqrt())


@pytest.mark.parametrize("bad", [-1.0, float("nan")])
def test_what_has_no_square_root_is_nan_as_in_torch(bad: float) -> None:
    assert flat_sqrt(torch.tensor([bad], requires_grad=True)).isnan().all()


def test_its_derivative_is_0_at_0_and_exact_elsewhere() -> None:
    v = torch.tensor([0.0, 4.0, 0.25], requires_grad=True)
    (slope,) = torch.autograd.grad(flat_sqrt(v).sum(), v)
    assert slope.tolist() == [0.0, 0.25, 1.0]


def test_its_second_derivative_is_0_at_0_and_exact_elsewhere() -> None:
    v = torch.tensor([0.0, 4.0], requires_grad=True)
    (slope,) = torch.autograd.grad(flat_sqrt(v).sum(), v, create_graph=True)
    (curvature,) = torch.autograd.grad(slope.sum(), v)
    assert curvature.tolist() == [0.0, -1 / 32]


@TORCH_LOADS_ITS_RULES
def test_forward_mode_agrees() -> None:
    v = torch.tensor([0.0, 4.0])
    value, tangent = jvp(flat_sqrt, (v,), (torch.ones(2),))
    assert (value.tolist(), tangent.tolist()) == ([0.0, 2.0], [0.0, 0.25])


@TORCH_LOADS_ITS_RULES
def test_batched_forward_mode_agrees() -> None:
    v, directions = torch.tensor([0.0, 4.0]), torch.eye(2)

    def tangent(d: torch.Tensor) -> Any:
        return jvp(flat_sqrt, (v,), (d,))[1]

    assert torch.func.vmap(tangent)(directions).tolist() == [[0.0, 0.0], [0.0, 0.25]]


class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """The names of the operations that run inside."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operations: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.operations.append(str(func))
        return func(*args, **(kwargs or {}))


def operations(v: torch.Tensor) -> list[str]:
    recorder = Recorder()
    with recorder:
        flat_sqrt(v)
    return recorder.operations


def test_without_a_graph_it_is_one_operation() -> None:
    v = torch.ones(3, requires_grad=True)
    assert operations(v.detach()) == ["aten.sqrt.default"]
    with torch.no_grad():
        assert operations(v) == ["aten.sqrt.default"]
    assert len(operations(v)) > 1

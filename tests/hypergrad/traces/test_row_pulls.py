"""Several pulls of one linearisation at once: the numbers of one by one, for nets of all kinds."""

import pytest
import torch
from torch import Tensor, nn

from hyperopt_dl.hypergrad.memory import size_of
from hyperopt_dl.hypergrad.traces import row_pulls
from hyperopt_dl.hypergrad.traces.graphs import Activations
from hyperopt_dl.hypergrad.traces.over_rows import over_rows
from hyperopt_dl.hypergrad.traces.program import Program
from hyperopt_dl.hypergrad.traces.row_pulls import MOST, RowPulls
from hyperopt_dl.seeds import seeded
from tests.hypergrad.step_losses import CPU, NETS, Problem, build, mlp, trace_of, vectors

SLOW = {"LSTM", "GRU with dropout", "transformer", "fused attention"}


def linearized(problem: Problem) -> tuple[Activations, int]:
    """Return what one step saved, and the number of parameters."""
    x, tensors, _ = problem.example(1)
    traced = trace_of(problem)
    with seeded(0, CPU):
        saved = traced.linearize(x, tensors)[2]
    assert isinstance(saved, Activations)
    return saved, len(x)


def some_rows(m: int, p: int, dtype: torch.dtype = torch.double) -> Tensor:
    return torch.randn(m, p, generator=torch.Generator().manual_seed(m), dtype=torch.double).to(
        dtype
    )


def one_by_one(saved: Activations, rows: Tensor) -> Tensor:
    return torch.stack([saved.pull(row)[0] for row in rows])


def made(pulls: RowPulls) -> dict[int, Program | None]:
    return pulls._graphs


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in NETS]
)
def test_rows_at_once_are_pulled_as_one_by_one(name: str) -> None:
    saved, p = linearized(build(name))
    rows = some_rows(3, p)
    for _ in range(2):  # where the graph is made, and where it is replayed
        found = saved.pull_rows(rows)
        torch.testing.assert_close(found, one_by_one(saved, rows), rtol=1e-12, atol=1e-13)
    graph = made(saved.rows)[3]
    assert graph is not None
    assert len(graph.operators) < 2 * len(saved.B.operators)


def test_single_precision_is_kept() -> None:
    saved, p = linearized(Problem(mlp(nn.ReLU()), vectors, dtype=torch.float32))
    rows = some_rows(2, p, torch.float32)
    found = saved.pull_rows(rows)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, one_by_one(saved, rows))


def test_one_row_and_more_than_fit_into_a_block() -> None:
    saved, p = linearized(build("tanh"))
    for m in (1, MOST + 3):
        rows = some_rows(m, p)
        expected = one_by_one(saved, rows)
        torch.testing.assert_close(saved.pull_rows(rows), expected, rtol=1e-12, atol=1e-13)
    graphs = made(saved.rows)
    assert [m for m, graph in graphs.items() if graph] == [MOST, 3]


def test_a_graph_is_made_once_for_each_number_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    saved, p = linearized(build("relu"))
    for m in (2, 4):
        saved.pull_rows(some_rows(m, p))
    monkeypatch.setattr(row_pulls, "record", None)
    for m in (2, 4):
        rows = 2 * some_rows(m, p)
        expected = one_by_one(saved, rows)
        torch.testing.assert_close(saved.pull_rows(rows), expected, rtol=1e-12, atol=1e-13)


def test_a_graph_of_other_numbers_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        row_pulls, "over_rows", lambda *given: tuple(1.001 * out for out in over_rows(*given))
    )
    saved, p = linearized(build("relu"))
    rows = some_rows(3, p)
    torch.testing.assert_close(saved.pull_rows(rows), one_by_one(saved, rows), rtol=0, atol=0)
    assert made(saved.rows) == {3: None}


def test_an_operator_without_rows_is_pulled_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise RuntimeError("no batching rule")

    monkeypatch.setattr(row_pulls, "over_rows", refuse)
    saved, p = linearized(build("relu"))
    rows = some_rows(3, p)
    torch.testing.assert_close(saved.pull_rows(rows), one_by_one(saved, rows), rtol=0, atol=0)
    assert made(saved.rows) == {3: None}


def test_casts_are_not_made_twice_under_autocast() -> None:
    saved, p = linearized(build("relu"))
    rows = some_rows(3, p)
    expected = one_by_one(saved, rows)
    with torch.autocast("cpu", torch.bfloat16):
        found = saved.pull_rows(rows)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-13)
    assert made(saved.rows)[3] is not None


def test_rows_of_a_large_step_are_pulled_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    saved, p = linearized(build("relu"))
    monkeypatch.setattr(row_pulls, "ROOM", size_of(dict(enumerate(saved.tensors()))) - 1)
    rows = some_rows(3, p)
    torch.testing.assert_close(saved.pull_rows(rows), one_by_one(saved, rows), rtol=0, atol=0)
    assert made(saved.rows) == {3: None}


def test_a_compiled_step_has_no_graph_of_its_rows() -> None:
    saved, p = linearized(build("relu"))
    rows, apart = some_rows(3, p), RowPulls(saved.B, together=False)
    torch.testing.assert_close(apart(rows, saved.saved), one_by_one(saved, rows), rtol=0, atol=0)
    assert made(apart) == {3: None}

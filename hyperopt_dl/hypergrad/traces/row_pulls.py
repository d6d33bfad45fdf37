"""The second backward pass of a step for m adjoints of its gradient, as one graph.

On a small network a pull takes longer to reach its operators than to run them, and m pulls m times
as long. One graph for all rows has about as many operators as that of one.

Letters: u an adjoint of the gradient, a row; Hu its product with the Hessian; m rows.
"""

import torch
from torch import Tensor

from hyperopt_dl.hypergrad.memory import size_of
from hyperopt_dl.hypergrad.traces.agreement import close, copied
from hyperopt_dl.hypergrad.traces.over_rows import over_rows
from hyperopt_dl.hypergrad.traces.program import Program, program, replay
from hyperopt_dl.hypergrad.traces.recording import record
from hyperopt_dl.hypergrad.traces.simplify import simplify

MOST = 16
"""Rows that are pulled at once: what lies between takes memory for each of them."""
ROOM = 4 * 2**20
"""Bytes that a step has saved up to which its rows are pulled at once.

A pull through more has work enough by itself, and what several have in hand leaves the cache: two
convolutions on 64 pictures, with 4.5 MiB, took 1.5 times as long for eight rows at once.
"""


class RowPulls:
    """Hu for the rows of a matrix, by graphs that are made where a number of rows is first met.

    Rows are pulled one by one where there is one only, where a step saves more than ``ROOM``, and
    where they cannot be pulled together.

    Args:
        one: The graph of one row: ``u, *saved -> Hu, ...``.
        together: Whether rows may be pulled together. A graph that is compiled waits for nothing on
            the way to its operators, and another one to compile would take longer than it saves.
    """

    def __init__(self, one: Program, *, together: bool = True) -> None:
        self._one = one
        self._together = together
        self._graphs: dict[int, Program | None] = {}

    def __call__(self, rows: Tensor, saved: tuple[Tensor, ...]) -> Tensor:
        """Return Hu of each row, `m x p`."""
        blocks = [self._pulled(block, saved) for block in torch.split(rows, MOST)]
        return blocks[0] if len(blocks) == 1 else torch.cat(blocks)

    def _pulled(self, rows: Tensor, saved: tuple[Tensor, ...]) -> Tensor:
        m = len(rows)
        if m not in self._graphs:
            apart = not self._together or m == 1 or size_of(dict(enumerate(saved))) > ROOM
            self._graphs[m] = None if apart else self._checked(rows, saved)
        graph = self._graphs[m]
        return self._one_by_one(rows, saved) if graph is None else replay(graph, rows, *saved)[0]

    def _one_by_one(self, rows: Tensor, saved: tuple[Tensor, ...]) -> Tensor:
        # Rows of odd length begin where no view as complex numbers may, every other one.
        apart = (row.clone() if row.storage_offset() % 2 else row for row in rows)
        return torch.stack([replay(self._one, row, *saved)[0] for row in apart])

    def _checked(self, rows: Tensor, saved: tuple[Tensor, ...]) -> Program | None:
        """Return a graph for so many rows that gives the numbers of one by one, if there is one."""
        try:
            graph = _traced(self._one, rows, saved)
            (found,) = replay(graph, rows, *saved)
        except Exception:  # an operator that takes no dimension in front
            return None
        return graph if close(found, self._one_by_one(rows, saved)) else None


def _traced(one: Program, rows: Tensor, saved: tuple[Tensor, ...]) -> Program:
    graph, device = one.graph(), rows.device.type
    with torch.no_grad(), torch.autocast(device, enabled=False):  # the graph has the casts in it
        root, traced = record(
            lambda rows, *saved: over_rows(graph, rows, *saved)[0],
            copied(rows),
            *map(copied, saved),
        )
    traced.eliminate_dead_code()
    simplify(traced)
    *nodes, output = traced.nodes
    inputs = [node for node in nodes if node.op == "placeholder"]
    return program(root, nodes, inputs, [output.args[0]])

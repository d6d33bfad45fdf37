"""Where a chain moves next, and which chain."""

import functools

import pytest
import torch
from torch import Tensor

from hyperopt_dl.tuners.chain import (
    MOST_FAILURES,
    Descent,
    Optimizer,
    Visit,
    alive,
    turn,
)


def vector(*entries: float) -> Tensor:
    return torch.tensor(entries, dtype=torch.double)


def after(
    *visits: Visit, optimizer: Optimizer = "sgd", lr: float = 0.1, failures: int = 0
) -> Tensor:
    """The point that follows the visits of a chain."""
    descent = Descent(optimizer, lr, visits[0])
    for visit in visits[1:]:
        descent.follow(visit)
    return descent.ahead(failures)


def slope(u: Tensor) -> Tensor:
    """The gradient of a bowl whose axes differ and whose centre is off the middle."""
    return vector(1.0, 4.0) * (u - vector(0.3, 0.8))


def descend(optimizer: Optimizer, lr: float, moves: int) -> list[Tensor]:
    """The points of a chain that never fails."""
    point = vector(0.6, 0.5)
    descent = Descent(optimizer, lr, Visit(point, slope(point)))
    points = [point, descent.ahead(0)]
    for _ in range(moves - 1):
        descent.follow(Visit(points[-1], slope(points[-1])))
        points.append(descent.ahead(0))
    return points


def close(got: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-14)


def test_sgd_moves_against_the_gradient() -> None:
    close(after(Visit(vector(0.5), vector(2.0))), vector(0.3))


@pytest.mark.parametrize(
    ("optimizer", "torchs"),
    [
        ("adam", torch.optim.Adam),
        ("sgd", torch.optim.SGD),
        (torch.optim.RMSprop, torch.optim.RMSprop),
        (
            functools.partial(torch.optim.SGD, momentum=0.9),
            functools.partial(torch.optim.SGD, momentum=0.9),
        ),
    ],
    ids=["adam", "sgd", "rmsprop", "momentum"],
)
def test_a_chain_is_the_descent_of_torchs_optimizer(optimizer: Optimizer, torchs: type) -> None:
    x = torch.nn.Parameter(vector(0.6, 0.5))
    descent = torchs([x], lr=0.01)
    wanted = [x.detach().clone()]
    for _ in range(6):
        x.grad = slope(x.detach())
        descent.step()
        wanted.append(x.detach().clone())
    close(torch.stack(descend(optimizer, 0.01, 6)), torch.stack(wanted))


def test_a_descent_goes_on_from_where_a_move_has_ended() -> None:
    # The first step would end at -0.8; the trial was at the bound, at 0.
    visits = Visit(vector(0.1), vector(9.0)), Visit(vector(0.0), vector(-2.0))
    close(after(*visits), vector(0.2))


@pytest.mark.parametrize("failures", [1, 2, 5])
def test_each_failure_halves_the_step_from_the_last_good_point(failures: int) -> None:
    first = Visit(vector(0.5), vector(2.0))
    close(after(first, lr=0.2, failures=failures), vector(0.5 - 0.4 / 2**failures))


def test_looking_ahead_changes_nothing() -> None:
    visits = [Visit(vector(0.5), vector(2.0)), Visit(vector(0.45), vector(-1.0))]
    descent = Descent("adam", 0.1, visits[0])
    for failures in (0, 1, 2):
        descent.ahead(failures)
    descent.follow(visits[1])
    assert torch.equal(descent.ahead(0), after(*visits, optimizer="adam"))


def test_the_visits_are_not_written_to() -> None:
    visit = Visit(vector(0.5), vector(2.0))
    after(visit, visit, optimizer=functools.partial(torch.optim.SGD, weight_decay=0.1))
    assert (visit.point.item(), visit.gradient.item()) == (0.5, 2.0)


@pytest.mark.parametrize(
    ("trail", "lives"),
    [
        ([], False),
        ([None], False),
        (["good"], True),
        (["good", *[None] * (MOST_FAILURES - 1)], True),
        (["good", *[None] * MOST_FAILURES], False),
        ([None, "good"], True),
    ],
)
def test_a_chain_lives_on_a_recent_good_point(trail: list[str | None], lives: bool) -> None:
    assert alive(trail) is lives


@pytest.mark.parametrize(
    ("last", "busy", "chains", "chain"),
    [
        ({}, [], 1, 0),
        ({0: 4}, [], 1, 0),
        ({0: 0}, [], 3, 1),
        ({0: 3, 1: 4, 2: 2}, [], 3, 2),  # the one that waits longest
        ({0: 3, 1: 4, 2: 2}, [2], 3, 0),
        ({0: 0}, [0], 1, 1),  # a new spare one
        ({0: 0, 1: 1}, [0], 1, 1),  # an old spare one
        ({0: 2, 1: 1}, [1], 1, 0),
        ({0: 2, 1: 1}, [], 1, 0),  # a spare one waits for when it is needed
        ({0: 2, 1: 1}, [0, 1], 1, 2),
    ],
)
def test_chains_take_turns_and_none_moves_while_it_runs(
    last: dict[int, int], busy: list[int], chains: int, chain: int
) -> None:
    assert turn(last, busy, chains) == chain

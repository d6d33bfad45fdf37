"""The choice between a trace and autograd, on networks whose times were measured."""

from typing import NamedTuple

import pytest

from hyperopt_dl.hypergrad.traces.worth import pays


class Measured(NamedTuple):
    """CPU seconds on one core: of an eager and of a replayed step, and to trace and compare."""

    nodes: int
    eager: float
    replayed: float
    traced: float

    def seconds(self, steps: int, *, trace: bool) -> float:
        return self.traced + steps * self.replayed if trace else steps * self.eager


MEASURED = {
    "MLP, 16": Measured(50, 1.64e-3, 0.88e-3, 0.068),
    "MLP, 128": Measured(50, 2.59e-3, 1.15e-3, 0.129),
    "CNN, 16": Measured(43, 5.01e-3, 3.96e-3, 0.132),
    "CNN, 128": Measured(43, 19.10e-3, 14.83e-3, 0.258),
    "CNN with BatchNorm, 16": Measured(55, 7.99e-3, 7.63e-3, 0.185),
    "CNN with BatchNorm, 128": Measured(55, 26.59e-3, 27.58e-3, 0.622),
    "transformer, 16": Measured(382, 17.53e-3, 13.98e-3, 0.450),
    "transformer, 128": Measured(382, 67.37e-3, 60.55e-3, 1.706),
    "LSTM, 16": Measured(229, 6.52e-3, 3.86e-3, 0.226),
    "LSTM, 128": Measured(229, 8.60e-3, 6.16e-3, 0.575),
    "LSTM, 2 layers, both ways, 16": Measured(857, 19.55e-3, 13.75e-3, 0.697),
    "LSTM, 2 layers, both ways, 128": Measured(857, 40.06e-3, 30.20e-3, 2.531),
    "LSTM of length 40, 16": Measured(6177, 198.24e-3, 126.34e-3, 7.904),
    "LSTM of length 40, 128": Measured(6177, 295.17e-3, 238.61e-3, 14.141),
    "ResNet, 16": Measured(967, 81.31e-3, 76.30e-3, 2.009),
    "ResNet, 128": Measured(967, 417.29e-3, 453.21e-3, 8.197),
}


@pytest.mark.parametrize("name", MEASURED)
@pytest.mark.parametrize("steps", [20, 50, 100, 200, 500, 1000, 3000])
def test_the_choice_takes_little_more_time_than_the_better_one(name: str, steps: int) -> None:
    each = MEASURED[name]
    chosen = each.seconds(steps, trace=pays(each.nodes, each.eager, steps))
    best = min(each.seconds(steps, trace=trace) for trace in (False, True))
    assert chosen <= 1.25 * best


@pytest.mark.parametrize("name", MEASURED)
def test_no_run_of_some_dozens_of_steps_is_traced(name: str) -> None:
    assert not pays(MEASURED[name].nodes, MEASURED[name].eager, 50)


@pytest.mark.parametrize("name", [name for name in MEASURED if "LSTM" in name or "MLP" in name])
def test_long_runs_of_many_small_operators_are_traced(name: str) -> None:
    assert pays(MEASURED[name].nodes, MEASURED[name].eager, 500)


def test_the_heavier_a_step_of_as_many_nodes_the_longer_a_run_has_to_be() -> None:
    def first(seconds: float) -> int:
        return next(steps for steps in range(10_000) if pays(100, seconds, steps))

    light, heavy, heavier = first(1e-4), first(1e-2), first(5e-2)
    assert light < heavy < heavier

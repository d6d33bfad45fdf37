"""When a step is traced, and which runs a trace serves."""

import copy
from collections.abc import Mapping
from typing import Any

import cloudpickle
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from hyperopt_dl.hypergrad import Reverse, hypergradient
from hyperopt_dl.hypergrad.reverse import steps_of
from hyperopt_dl.optimizers import (
    SGD,
    Schedule,
)
from hyperopt_dl.supervised import Supervised
from hyperopt_dl.training import rollout
from tests.contracts.estimator import assert_same_answer, drawn
from tests.hypergrad.runs import (
    ALL,
    CLASSES,
    DOUBLE,
    FEATURES,
    NETS,
    Answer,
    all_together,
    assert_close,
    fresh,
    mlp,
    supervised,
    unroll,
    vectors,
)


def by_width(hp: Mapping[str, Any]) -> nn.Module:
    return mlp(hidden=int(hp["hidden"])).double()


def test_a_second_call_traces_nothing_and_gives_the_same_bits(traces: list[int]) -> None:
    training = all_together("mlp")
    first = hypergradient(training, ALL, seed=2)
    assert len(traces) == 2  # whole batches, and the last and smaller ones
    assert_same_answer(hypergradient(training, ALL, seed=2), first)
    assert len(traces) == 2


def test_other_values_and_seeds_use_the_same_traces(traces: list[int]) -> None:
    training = all_together("mlp")
    hypergradient(training, ALL, seed=2)
    del traces[:]
    others = {name: 0.7 * value for name, value in ALL.items()}
    found = hypergradient(training, others, seed=3)
    assert not traces
    assert_close(found, unroll(training, others, seed=3), 1e-10)


def test_another_width_is_traced_anew_and_both_stay_right(traces: list[int]) -> None:
    training = supervised(by_width, vectors(), vectors(1), batch_size=None)
    points = [{"hidden": 3, "lr": 0.3}, {"hidden": 6, "lr": 0.3}]
    for hparams in points * 2:
        found = hypergradient(training, hparams, seed=2)
        assert_close(found, unroll(training, hparams, seed=2), 1e-10)
    sizes = [(FEATURES + 1) * width + (width + 1) * CLASSES for width in (3, 6)]
    assert traces == sizes


class Late(nn.Module):
    """Looks at a hyperparameter only when it is called."""

    def __init__(self, hp: Mapping[str, Any]) -> None:
        super().__init__()
        self.hp, self.body = hp, mlp().double()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.body(x) * self.hp["scale"]
        return out


STRUCTURES: dict[str, tuple[Any, list[dict[str, Any]]]] = {
    "width": (by_width, [{"hidden": 3, "lr": 0.3}, {"hidden": 6, "lr": 0.3}]),
    "forward": (Late, [{"scale": 1, "lr": 0.3}, {"scale": 2, "lr": 0.3}]),
}


@pytest.mark.parametrize("name", STRUCTURES)
def test_interleaved_runs_of_other_structures_do_not_mix(name: str, path: str) -> None:
    factory, points = STRUCTURES[name]
    training = supervised(factory, vectors(), vectors(1), batch_size=None)
    cpu = torch.device("cpu")
    runs = [steps_of(training, point, seed=2, device=cpu) for point in points]
    states, tapes = [run.initial() for run in runs], [[], []]  # type: ignore[var-annotated]
    for t in range(training.steps):
        for i, run in enumerate(runs):
            states[i], recorded = run.record(states[i], t)
            tapes[i].append(recorded)
    ends = [run.pull_loss(state) for run, state in zip(runs, states, strict=True)]
    adjoints = [adjoint for _, adjoint in ends]
    for _ in range(training.steps):
        for i, run in enumerate(runs):
            adjoints[i] = run.pull(tapes[i].pop(), adjoints[i])
    for run, point, (value, _) in zip(runs, points, ends, strict=True):
        expected = unroll(training, {"lr": 0.3, **point}, seed=2)
        assert_close((value, run.gradient(set())), expected, 1e-10)


def switched(output: Tensor, target: Tensor, hp: Mapping[str, Any]) -> Tensor:
    loss = cross_entropy(output, target)
    return loss + output.square().mean() if hp["penalised"] else loss


def held(output: Tensor, target: Tensor, hp: Mapping[str, Any]) -> Tensor:
    """Uses the learning rate, and not its derivative."""
    penalty: Tensor = hp["lr"].detach() * output.square().mean()
    return cross_entropy(output, target) + penalty


def masked(output: Tensor, target: Tensor, hp: Mapping[str, Any]) -> Tensor:
    """Counts a class as often as a long table says."""
    each: Tensor = cross_entropy(output, target, reduction="none") * hp["table"][1500 + target]
    return each.mean()


def table(*entries: int) -> Tensor:
    long = torch.zeros(3000, dtype=torch.int64)
    long[1500:1503] = torch.tensor(entries)
    return long


OTHERS: dict[str, tuple[Any, list[dict[str, Any]]]] = {
    "flag": (switched, [{"lr": 0.3, "penalised": True}, {"lr": 0.3, "penalised": False}]),
    "detached": (held, [{"lr": 0.3}, {"lr": 0.1}]),
    "long table": (
        masked,
        [{"lr": 0.3, "table": table(1, 2, 3)}, {"lr": 0.3, "table": table(3, 1, 0)}],
    ),
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_trace_does_not_hold_what_the_loss_reads_for_the_runs_to_come(
    name: str, path: str
) -> None:
    loss, points = OTHERS[name]
    training = supervised(fresh(mlp), vectors(), vectors(1), loss=loss, batch_size=None)
    for hparams in points:
        expected = reference(training, hparams)
        assert_close(hypergradient(training, hparams, seed=2), expected, 1e-10)


def reference(training: Supervised, hparams: Mapping[str, Any]) -> Answer:
    lr = torch.tensor(hparams["lr"], dtype=DOUBLE, requires_grad=True)
    given = {**hparams, "lr": lr}
    value = training.loss(rollout(training, given, seed=2), given)
    return value.detach(), {"lr": torch.autograd.grad(value, lr)[0]}


def of_names(output: Tensor, target: Tensor, hp: Mapping[str, Any]) -> Tensor:
    return cross_entropy(output, target) * (2.0 if "a" in hp else 1.0)


def test_a_trace_is_not_used_for_hyperparameters_of_other_names(path: str) -> None:
    rule = SGD(lr=Schedule(1.0, lambda t, hp: hp["a"] if "a" in hp else hp["b"]))
    settings: dict[str, Any] = {"loss": of_names, "optimizer": rule, "batch_size": None}
    training = supervised(fresh(mlp), vectors(), vectors(1), **settings)
    for hparams in ({"a": 0.3}, {"b": 0.3}):
        expected = unroll(training, hparams, seed=2)
        assert_close(hypergradient(training, hparams, seed=2), expected, 1e-10)


class Loose(nn.Module):
    """Scales by a random tensor that is neither a parameter nor a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.scale = mlp().double(), torch.rand(CLASSES, dtype=DOUBLE)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.body(x) * self.scale
        return out


def test_tensors_that_a_module_just_holds_are_those_of_the_run(path: str) -> None:
    training = supervised(lambda hp: Loose(), vectors(), vectors(1), batch_size=None)
    for seed in (2, 3):
        expected = unroll(training, {"lr": 0.3}, seed=seed)
        assert_close(hypergradient(training, {"lr": 0.3}, seed=seed), expected, 1e-10)


def test_data_and_masks_that_are_drawn_anew_are_drawn_again_on_the_way_back(path: str) -> None:
    training = drawn()
    found = hypergradient(training, {"lr": 0.1}, estimator=Reverse(2), seed=3)
    assert_close(found, unroll(training, {"lr": 0.1}, seed=3), 1e-10)


@pytest.mark.usefixtures("trace_everything")
def test_to_trace_moves_no_global_randomness() -> None:
    before = torch.get_rng_state()
    hypergradient(drawn(), {"lr": 0.1}, seed=3)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    "duplicate",
    [lambda training: cloudpickle.loads(cloudpickle.dumps(training)), copy.deepcopy],
    ids=["pickle", "deepcopy"],
)
def test_a_copy_made_after_a_hypergradient_gives_the_same_bits(duplicate: Any, path: str) -> None:
    training = all_together("dropout", batch_size=None)
    expected = hypergradient(training, ALL, seed=2)
    assert_same_answer(hypergradient(duplicate(training), ALL, seed=2), expected)


@pytest.mark.parametrize("net", ["lstm", "transformer"])
def test_a_subclass_is_differentiated_by_kernels_that_can_be(net: str) -> None:
    class Own(Supervised):
        pass

    make, data_of = NETS[net]
    settings: dict[str, Any] = {"loss": cross_entropy, "optimizer": SGD(lr="lr"), "steps": 3}
    pair = [
        kind(
            model=fresh(make, torch.float32),
            train=data_of(0, torch.float32),
            validation=data_of(1, torch.float32),
            **settings,
        )
        for kind in (Own, Supervised)
    ]
    (value, gradient), (expected, exact) = (hypergradient(each, {"lr": 0.1}) for each in pair)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(gradient["lr"], exact["lr"], rtol=1e-4, atol=1e-7)

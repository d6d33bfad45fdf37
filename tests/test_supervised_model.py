"""The model of a ``Supervised``: a module or a factory, and its seed."""

import copy
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hyperopt_dl.optimizers import SGD
from hyperopt_dl.training import rollout
from tests.contracts.training import (
    assert_same_bits,
)
from tests.supervised_runs import (
    CLASSES,
    FEATURES,
    NETS,
    by_width,
    fresh,
    mlp,
    supervised,
    vectors,
)


@pytest.mark.parametrize("net", ["cnn with batch norm", "tied weights", "tied buffers", "lstm"])
def test_a_module_instance_is_never_written_to(net: str) -> None:
    make, data_of = NETS[net]
    model = fresh(make).eval()
    before, ids = copy.deepcopy(model.state_dict()), [id(q) for q in model.parameters()]
    training = supervised(model, data_of())
    training.loss(rollout(training, {}, seed=5), {})
    assert [id(q) for q in model.parameters()] == ids
    assert all(q.grad is None for q in model.parameters())
    assert not model.training
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)


@pytest.mark.parametrize("seed", [0, 1])
def test_every_run_of_a_module_instance_starts_from_its_weights(seed: int) -> None:
    model = fresh(mlp)
    training = supervised(model, vectors())
    rollout(training, {}, seed=3)
    state = training.init({}, seed=seed, device="cpu")
    expected = torch.cat([q.detach().reshape(-1) for q in model.parameters()])
    assert torch.equal(state["params"], expected)


def test_a_state_does_not_share_memory_with_the_module() -> None:
    model = fresh(lambda: nn.Linear(FEATURES, CLASSES, bias=False))
    state = supervised(model, vectors()).init({}, seed=0, device="cpu")
    state["params"].zero_()
    assert model.get_parameter("weight").abs().sum() > 0


def test_a_factory_gives_the_same_weights_under_the_same_seed() -> None:
    training = supervised(lambda hp: mlp().double(), vectors())
    a, b = (training.init({}, seed=4, device="cpu") for _ in range(2))
    assert_same_bits(a, b)


def test_a_factory_gives_other_weights_under_another_seed() -> None:
    training = supervised(lambda hp: mlp().double(), vectors())
    a, b = (training.init({}, seed=seed, device="cpu")["params"] for seed in (4, 5))
    assert not torch.isclose(a, b).any()


@pytest.mark.parametrize(
    ("value", "seen"),
    [
        (torch.tensor(0.5, requires_grad=True), 0.5),
        (torch.tensor(3), 3),
        (torch.tensor(True), True),
        (7, 7),
        ("relu", "relu"),
    ],
    ids=str,
)
def test_a_factory_sees_plain_values(value: Any, seen: Any) -> None:
    found = []

    def factory(hp: Mapping[str, Any]) -> nn.Module:
        found.append(hp["a"])
        return mlp().double()

    supervised(factory, vectors()).init({"a": value}, seed=0, device="cpu")
    assert found == [seen]
    assert type(found[0]) is type(seen)


def test_a_factory_sees_arrays_detached() -> None:
    found = []

    def factory(hp: Mapping[str, Any]) -> nn.Module:
        found.append(hp["w"])
        return mlp().double()

    w = torch.ones(3, requires_grad=True)
    supervised(factory, vectors()).init({"w": w}, seed=0, device="cpu")
    assert torch.equal(found[0], w)
    assert not found[0].requires_grad


def by_activation(hp: Mapping[str, Any]) -> nn.Module:
    activation = {"relu": nn.ReLU, "gelu": nn.GELU}[hp["activation"]]
    return nn.Sequential(nn.Linear(FEATURES, 5), activation(), nn.Linear(5, CLASSES)).double()


def by_default(hp: Mapping[str, Any]) -> nn.Module:
    return mlp(hp.get("hidden", 4)).double()


def by_membership(hp: Mapping[str, Any]) -> nn.Module:
    return mlp(hp["hidden"] if "hidden" in hp else 4).double()  # noqa: SIM401


def by_list(hp: Mapping[str, Any]) -> nn.Module:
    widths = [int(hp[name]) for name in sorted(hp) if name.startswith("width")]
    sizes = [FEATURES, *widths, CLASSES]
    return nn.Sequential(*map(nn.Linear, sizes, sizes[1:])).double()


def by_count(hp: Mapping[str, Any]) -> nn.Module:
    return mlp(3 + len(hp)).double()


def by_items(hp: Mapping[str, Any]) -> nn.Module:
    return mlp(sum(dict(**hp).values())).double()


class Late(nn.Module):
    """Looks at a hyperparameter only when it is called."""

    def __init__(self, hp: Mapping[str, Any]) -> None:
        super().__init__()
        self.hp, self.head = hp, nn.Linear(FEATURES, CLASSES).double()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(x * self.hp["scale"])
        return out


@pytest.mark.parametrize(
    ("factory", "points"),
    [
        (by_width, [{"hidden": 3}, {"hidden": 5}]),
        (by_width, [{"hidden": torch.tensor(3)}, {"hidden": torch.tensor(5)}]),
        (by_width, [{"hidden": width} for width in range(2, 13)]),
        (by_activation, [{"activation": "relu"}, {"activation": "gelu"}]),
        (by_default, [{}, {"hidden": 7}]),
        (by_membership, [{}, {"hidden": 7}]),
        (by_list, [{"width1": 3}, {"width1": 3, "width2": 3}]),
        (by_count, [{"a": 1}, {"a": 1, "b": 1}]),
        (by_items, [{"a": 3}, {"a": 3, "b": 1}]),
        (Late, [{"scale": 0.5}, {"scale": 2.0}]),
    ],
    ids=lambda value: value.__name__ if callable(value) else str(len(value)),
)
def test_interleaved_runs_of_other_structures_do_not_mix(
    factory: Any, points: list[dict[str, Any]]
) -> None:
    together = supervised(factory, vectors())
    states = [together.init(point, seed=2, device="cpu") for point in points]
    for t in range(3):
        states = [
            together.step(state, point, t) for state, point in zip(states, points, strict=True)
        ]
    for state, point in zip(states, points, strict=True):
        alone = supervised(factory, vectors())
        assert_same_bits(state, rollout(alone, point, seed=2, stop=3))
        assert torch.equal(together.loss(state, point), alone.loss(state, point))
    if factory is not Late:
        assert len({len(state["params"]) for state in states}) in (1, len(points))


def test_a_factory_is_called_once_for_a_run() -> None:
    calls = []

    def factory(hp: Mapping[str, Any]) -> nn.Module:
        calls.append(hp["hidden"])
        return by_width(hp)

    training = supervised(factory, vectors(), optimizer=SGD(lr="lr"))
    rollout(training, {"hidden": 3, "lr": 0.1}, seed=2)
    assert calls == [3]


@pytest.mark.parametrize("batch_size", [4, None])
def test_a_model_that_writes_into_its_input_leaves_the_data_as_they_were(
    batch_size: int | None,
) -> None:
    x, y = vectors()
    before = x.clone()
    model = nn.Sequential(nn.ReLU(inplace=True), fresh(mlp))
    training = supervised(model, (x, y), batch_size=batch_size)
    training.loss(rollout(training, {}, seed=2), {})
    assert torch.equal(x, before)

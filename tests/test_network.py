"""A module as a function of one flat vector, against the module itself."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hyperopt_dl.errors import TrainingError
from hyperopt_dl.network import Held, Network
from hyperopt_dl.reads import Reads
from hyperopt_dl.second_derivatives.first_pass import FirstPass
from hyperopt_dl.weights import Weights


def net() -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Dropout(0.5), nn.Linear(3, 2))


def inputs() -> Tensor:
    return torch.randn(6, 4, generator=torch.Generator().manual_seed(1))


def test_the_layout_names_the_trainable_parameters_in_the_order_of_the_module() -> None:
    module = net()
    module.get_parameter("1.weight").requires_grad_(False)
    assert Network(module).layout == (
        ("0.weight", 12),
        ("0.bias", 3),
        ("1.bias", 3),
        ("3.weight", 6),
        ("3.bias", 2),
    )


def test_a_shared_parameter_is_laid_out_once() -> None:
    module = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    module[1].weight = module[0].weight
    assert Network(module).layout == (("0.weight", 9), ("0.bias", 3), ("1.bias", 3))


def test_weights_are_copies_of_those_of_the_module() -> None:
    module = net()
    module.get_parameter("3.bias").requires_grad_(False)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    weights = Network(module).weights()
    for tensor in (weights.params, *weights.frozen.values(), *weights.buffers.values()):
        tensor.zero_()
    for name, value in module.state_dict().items():
        assert torch.equal(value, before[name])
    assert weights.frozen.keys() == {"3.bias"}
    assert weights.buffers.keys() == {"1.running_mean", "1.running_var", "1.num_batches_tracked"}


def test_unflattening_gives_views_in_the_shapes_of_the_module() -> None:
    module = nn.Sequential(nn.Linear(4, 2), nn.Linear(2, 2))
    network = Network(module)
    params = network.weights().params
    named = network.unflatten(params)
    for name, value in module.named_parameters():
        assert torch.equal(named[name], value)
        assert named[name].untyped_storage().data_ptr() == params.untyped_storage().data_ptr()


Call = Callable[[Network, Weights, bool], tuple[Tensor, Weights]]


def by_holding(network: Network, weights: Weights, training: bool) -> tuple[Tensor, Weights]:
    with network.holding(weights, training=training):
        output, after = network.module(inputs()), network.after()
        frozen, buffers = ({n: v.detach() for n, v in part.items()} for part in after[1:])
        return output.detach(), Weights(after.params, frozen, buffers)


def by_recording(network: Network, weights: Weights, training: bool) -> tuple[Tensor, Weights]:
    held = Held(network, network.unflatten(weights.params.clone()).values())
    with network.recording(weights, FirstPass(), held, training=training):
        return network.module(inputs()), network.after()


def by_standing_in(network: Network, weights: Weights, training: bool) -> tuple[Tensor, Weights]:
    def body() -> tuple[Tensor, Weights]:
        return network.module(inputs()), network.after()

    return network.standing_in(weights, body, FirstPass(), training=training)


CALLS = [by_holding, by_recording, by_standing_in]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("call", CALLS)
def test_a_module_with_other_weights_computes_what_it_does_with_them(
    call: Call, training: bool
) -> None:
    module, network = net(), Network(other := net())
    weights = network.weights()
    with torch.no_grad():
        for each in other.parameters():
            each.fill_(9.0)
    module.train(training)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        expected = module(inputs())
        torch.manual_seed(3)
        output, after = call(network, weights, training)
    torch.testing.assert_close(output, expected, rtol=0, atol=0, check_device=False)
    assert dict(module.named_buffers()).keys() == after.buffers.keys()
    for name, value in module.named_buffers():
        torch.testing.assert_close(after.buffers[name], value, rtol=0, atol=0)
    assert int(weights.buffers["1.num_batches_tracked"]) == 0


@pytest.mark.parametrize("call", CALLS)
def test_a_module_gets_its_own_weights_and_flags_back(call: Call) -> None:
    module = net().train(False)
    module.get_parameter("3.bias").requires_grad_(False)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    own = {name: value.data_ptr() for name, value in module.state_dict().items()}
    network = Network(module)
    weights = network.weights()
    call(network, weights._replace(params=torch.zeros_like(weights.params)), True)
    for name, value in module.state_dict().items():
        assert torch.equal(value, before[name])
        assert value.data_ptr() == own[name]
    assert not any(part.training for part in module.modules())
    assert all(isinstance(each, nn.Parameter) for each in module.parameters())


def test_whoever_knows_a_parameter_finds_what_the_module_holds() -> None:
    module = net()
    network, kept = Network(module), list(module.parameters())
    weights = network.weights()
    with network.holding(weights._replace(params=weights.params + 1), training=True) as held:
        for param, piece in zip(kept, network.unflatten(weights.params).values(), strict=True):
            assert torch.equal(param.detach(), piece + 1)
        assert held.written() is None
        with torch.no_grad():
            kept[1].zero_()
        assert held.written() == "0.bias"
        assert torch.equal(held.vector()[12:15], torch.zeros(3))


def test_a_module_has_its_own_weights_inside_of_a_step_with_other_ones() -> None:
    network = Network(net())
    weights = network.weights()
    zeros = weights._replace(params=torch.zeros_like(weights.params))

    def body() -> tuple[Tensor, Tensor, Tensor]:
        with network.holding(weights, training=False):
            inside = network.module(inputs()).detach()
        return inside, network.module(inputs()), by_holding(network, weights, False)[0]

    inside, outside, again = network.standing_in(zeros, body, FirstPass(), training=False)
    assert torch.equal(inside, by_holding(network, weights, False)[0])
    assert torch.equal(again, inside)
    assert torch.equal(outside, torch.zeros(6, 2))


class Remembering(nn.Module):
    """Assigns what it computed to a buffer, with its graph."""

    last: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("last", torch.zeros(2))
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        self.last = self.head(x).mean(0)
        return self.last.sum()


@pytest.mark.parametrize("call", CALLS)
def test_a_buffer_that_is_assigned_to_is_the_assigned_one_after_the_step(call: Call) -> None:
    module = Remembering()
    network = Network(module)
    output, after = call(network, network.weights(), True)
    assert torch.equal(after.buffers["last"].sum(), output)
    assert torch.equal(module.last, torch.zeros(2))


def lazy() -> nn.Module:
    return nn.Sequential(nn.LazyLinear(3), nn.ReLU())


def mixed() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).double())


def overlapping() -> nn.Module:
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    module.get_parameter("1.weight").data = module.get_parameter("0.weight").data
    return module


def waiting() -> nn.Module:
    module = nn.Linear(2, 2)
    weight: Any = module.weight
    weight.register_post_accumulate_grad_hook(lambda param: None)
    return module


def all_frozen() -> nn.Module:
    return nn.Linear(2, 2).requires_grad_(False)


@pytest.mark.parametrize(
    ("make", "fragment"),
    [
        (nn.ReLU, "a parameter that requires a gradient, ReLU has none"),
        (all_frozen, "a parameter that requires a gradient, Linear has none"),
        (lazy, "must have shapes, ['0.weight', '0.bias'] have none yet"),
        (overlapping, "'0.weight' and '1.weight' share some, as after a.data = b.data"),
        (waiting, "'weight' with a hook of register_post_accumulate_grad_hook"),
        (mixed, "share one floating dtype, got ['torch.float32', 'torch.float64']"),
    ],
)
def test_a_module_that_is_no_function_of_a_flat_vector_is_an_error(
    make: Any, fragment: str
) -> None:
    with pytest.raises(TrainingError) as caught:
        Network(make())
    assert fragment in str(caught.value)


# --------------------------------------------------------------------------------------- reads


@pytest.mark.parametrize(
    ("look", "then", "agree"),
    [
        (lambda hp: hp["a"], {"a": 1, "b": 9}, True),
        (lambda hp: hp["a"], {"a": 2, "b": 2}, False),
        (lambda hp: hp["a"], {"a": 1.0, "b": 2}, False),
        (lambda hp: hp["a"], {"a": torch.tensor(1), "b": 2}, True),
        (lambda hp: hp["a"], {"b": 2}, False),
        (lambda hp: None, {}, True),
        (lambda hp: hp.get("c"), {"a": 1, "b": 2, "d": 3}, True),
        (lambda hp: hp.get("c"), {"a": 1, "b": 2, "c": None}, False),
        (lambda hp: "c" in hp, {"a": 1, "b": 2, "c": 3}, False),
        (list, {"b": 3, "a": 3}, True),
        (list, {"a": 1, "b": 2, "c": 3}, False),
        (len, {"a": 1}, False),
        (dict, {"a": 1, "b": 2}, True),
        (dict, {"a": 1, "b": 3}, False),
        (lambda hp: hp["w"], {"w": torch.tensor([1.0, 2.0])}, True),
        (lambda hp: hp["w"], {"w": torch.tensor([1.0, 2.5])}, False),
        (lambda hp: hp["w"], {"w": torch.tensor(1.0)}, False),
    ],
)
def test_reads_agree_with_hyperparameters_in_which_they_would_see_the_same(
    look: Any, then: dict[str, Any], agree: bool
) -> None:
    first: dict[str, Any] = {"a": 1, "b": 2}
    reads = Reads({"w": torch.tensor([1.0, 2.0])} if "w" in then else first)
    look(reads)
    assert reads.agree(then) is agree


def test_reads_are_a_mapping_of_the_hyperparameters() -> None:
    reads = Reads({"a": torch.tensor(1.5), "b": "relu"})
    assert {**reads} == {"a": 1.5, "b": "relu"}
    assert reads.get("c", 7) == 7
    assert len(reads) == 2


def test_a_missing_hyperparameter_is_a_key_error_that_names_it() -> None:
    with pytest.raises(KeyError, match="hidden"):
        Reads({"a": 1})["hidden"]


def test_a_part_in_two_places_is_put_back() -> None:
    module = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
    module.append(module[0])  # a shared part
    module[2].weight = module[0].weight  # a shared parameter of another part
    before = {name: id(each) for name, each in module.named_parameters()}
    network = Network(module)
    weights = network.weights()
    moved = weights._replace(params=weights.params + 1)
    outputs = [call(network, moved, True)[0] for call in CALLS]
    torch.testing.assert_close(outputs[1], outputs[0], rtol=0, atol=0)
    torch.testing.assert_close(outputs[2], outputs[0], rtol=0, atol=0)
    assert {name: id(each) for name, each in module.named_parameters()} == before

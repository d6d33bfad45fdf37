"""The hyperparameters as leaves, and the sums of their derivatives."""

from typing import Any

import pytest
import torch
from torch import Tensor

from hyperopt_dl.errors import TrainingError
from hyperopt_dl.hypergrad.steps.leaves import Gathered

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("value", "dtype"),
    [
        (0.1, torch.double),
        (torch.tensor(0.1), torch.float32),
        (torch.tensor(0.1, dtype=torch.double), torch.double),
        (torch.tensor([[0.1, 0.2]], dtype=torch.bfloat16), torch.bfloat16),
    ],
    ids=["float", "float32", "float64", "array"],
)
def test_a_number_with_a_fraction_is_a_leaf_of_the_same_value(
    value: Any, dtype: torch.dtype
) -> None:
    gathered = Gathered({"a": value}, CPU)
    leaf = gathered.leaves["a"]
    assert gathered.hparams["a"] is leaf
    assert leaf.requires_grad
    assert leaf.is_leaf
    assert leaf.dtype == dtype
    assert torch.equal(leaf.detach(), torch.as_tensor(value, dtype=dtype))


@pytest.mark.parametrize(
    "value", [3, True, "relu", None, torch.tensor(3), torch.tensor([True])], ids=repr
)
def test_anything_else_stays_the_object_that_it_is(value: Any) -> None:
    gathered = Gathered({"a": value, "lr": 0.1}, CPU)
    assert gathered.hparams["a"] is value
    assert gathered.leaves.keys() == {"lr"}


def test_a_leaf_does_not_share_memory_with_what_was_given() -> None:
    given = torch.ones(3, requires_grad=True)
    leaf = Gathered({"a": given}, CPU).leaves["a"]
    with torch.no_grad():
        leaf.zero_()
    assert torch.equal(given.detach(), torch.ones(3))


def test_a_number_does_not_widen_what_it_is_mixed_with() -> None:
    leaf = Gathered({"a": 0.1}, CPU).leaves["a"]
    assert (leaf * torch.ones(2)).dtype == torch.float32


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_an_array_is_put_on_the_device_and_a_number_stays_on_the_host() -> None:
    gathered = Gathered(
        {"a": torch.ones(3), "b": torch.tensor(1.0), "c": 0.1}, torch.device("cuda")
    )
    assert {n: leaf.device.type for n, leaf in gathered.leaves.items()} == {
        "a": "cuda",
        "b": "cpu",
        "c": "cpu",
    }


@pytest.mark.parametrize("hparams", [{}, {"n": 3, "on": True}, {"k": torch.tensor([1, 2])}])
def test_nothing_to_differentiate_is_an_error_that_lists_the_kinds(hparams: dict[str, Any]) -> None:
    with pytest.raises(TrainingError, match="float or a floating tensor, got") as caught:
        Gathered(hparams, CPU)
    assert str({name: type(value).__name__ for name, value in hparams.items()}) in str(caught.value)


def test_the_adjoints_of_inputs_are_returned_and_those_of_hyperparameters_added_up() -> None:
    gathered = Gathered({"a": 2.0, "b": torch.tensor([3.0, 5.0], dtype=torch.double)}, CPU)
    a, b = gathered.leaves.values()
    x = torch.tensor([7.0, 11.0], dtype=torch.double, requires_grad=True)
    unused = torch.ones(2, requires_grad=True)
    for adjoint in (torch.tensor([1.0, 10.0]).double(), torch.tensor([100.0, 0.0]).double()):
        back = gathered.pull([a * b * x], [adjoint], {"x": x, "unused": unused})
        assert back.keys() == {"x"}
        assert torch.equal(back["x"], adjoint * 2 * b.detach())
    gradient = gathered.gradient(set())
    assert float(gradient["a"]) == 101 * 3 * 7 + 10 * 5 * 11
    assert gradient["b"].tolist() == [101 * 2 * 7, 10 * 2 * 11]


def test_to_pull_back_nothing_changes_nothing() -> None:
    gathered = Gathered({"a": 2.0}, CPU)
    assert gathered.pull([], [], {"x": torch.ones(1, requires_grad=True)}) == {}
    assert gathered.gradient({"a"}) == {"a": torch.zeros((), dtype=torch.double)}


def test_terms_in_float32_are_added_in_float64() -> None:
    gathered = Gathered({"a": torch.tensor(1.0)}, CPU)
    for term in [2.0**30, *[1.0] * 8, -(2.0**30)]:
        gathered.add("a", torch.tensor(term))
    assert float(gathered.gradient(set())["a"]) == 8


def test_a_name_that_is_known_to_be_used_may_have_the_derivative_zero() -> None:
    gathered = Gathered({"a": torch.ones(2, 3), "b": 1.0}, CPU)
    gathered.add("b", torch.tensor(4.0))
    gradient = gathered.gradient({"a"})
    assert torch.equal(gradient["a"], torch.zeros(2, 3, dtype=torch.double))
    assert float(gradient["b"]) == 4


def test_names_that_nothing_reaches_are_an_error_that_sorts_them() -> None:
    gathered = Gathered({"c": 1.0, "b": 1.0, "a": 1.0}, CPU)
    gathered.add("b", torch.tensor(4.0))
    with pytest.raises(TrainingError, match=r"hyperparameter\(s\) \['a', 'c'\]: nothing uses"):
        gathered.gradient(set())


def test_a_derivative_has_no_graph() -> None:
    gathered = Gathered({"a": 1.0}, CPU)
    term: Tensor = gathered.leaves["a"] * 2
    gathered.add("a", term)
    assert not gathered.gradient(set())["a"].requires_grad

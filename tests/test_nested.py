"""Tensors in nested structures."""

from collections import UserDict
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from hyperopt_dl.nested import joined, mapped, only_tensors, tensors_in, with_tensors


class Pair(NamedTuple):
    a: Tensor
    b: Tensor


A, B = torch.zeros(2), torch.ones(2, 3)
VALUES: list[Any] = [A, (A, B), [A, (B,)], {"x": A, "y": {"z": B}}, Pair(A, B), UserDict(x=A, y=B)]


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_tensors_come_out_in_order_and_go_back_into_the_same_structure(value: Any) -> None:
    found = tensors_in(value)
    assert [id(each) for each in found] == [id(each) for each in (A, B)[: len(found)]]
    assert only_tensors(value)
    moved = with_tensors(value, iter([each + 1 for each in found]))
    assert type(moved) is type(value)
    for before, after in zip(found, tensors_in(moved), strict=True):
        assert torch.equal(after, before + 1)
    assert all(torch.equal(a, b) for a, b in zip(tensors_in(value), found, strict=True))


def test_what_is_no_tensor_stays_where_it_is() -> None:
    value = {"x": A, "name": "a", "ids": [1, 2]}
    assert not only_tensors(value)
    moved = mapped(value, torch.Tensor.double)
    assert moved["name"] == "a"
    assert moved["ids"] == [1, 2]
    assert moved["x"].dtype == torch.double


def test_values_are_joined_along_the_first_dimension() -> None:
    whole = joined([{"x": (A, B)}, {"x": (A, B)}])
    assert [each.shape[0] for each in tensors_in(whole)] == [4, 4]


@pytest.mark.parametrize("value", [{"x": torch.tensor(1.0)}, (A, "text")])
def test_what_has_no_first_dimension_cannot_be_joined(value: Any) -> None:
    with pytest.raises(ValueError, match="first dimension"):
        joined([value, value])

"""Which options a parameter gets."""

from typing import Any

import pytest
import torch
from torch import Tensor

from hyperopt_dl.errors import TrainingError
from hyperopt_dl.optimizers import SGD, Adam, Optimizer
from hyperopt_dl.optimizers.groups import Groups
from hyperopt_dl.optimizers.resolve import resolve
from tests.optimizers.twins import LAYOUT, start


def resolved(optimizer: Optimizer, dtype: torch.dtype = torch.double, **hparams: Any) -> Any:
    return resolve(optimizer, hparams, 0, LAYOUT, start(dtype))


def vector(*runs: tuple[float, int]) -> Tensor:
    return torch.tensor([x for x, n in runs for _ in range(n)], dtype=torch.double)


def test_a_pattern_sets_its_options_on_its_parameters_only() -> None:
    options = resolved(SGD(lr=0.1, groups={"*.bias": {"lr": 0.3}}))
    torch.testing.assert_close(options["lr"], vector((0.1, 4), (0.3, 2), (0.1, 3), (0.3, 1)))
    assert options["weight_decay"] == 0.0
    assert isinstance(options["weight_decay"], float)


def test_the_first_matching_pattern_decides_every_option() -> None:
    groups = {"body.*": {"lr": 0.3}, "*.bias": {"lr": 0.7, "weight_decay": 0.5}}
    options = resolved(SGD(lr=0.1, weight_decay=0.2, groups=groups))
    torch.testing.assert_close(options["lr"], vector((0.3, 6), (0.1, 3), (0.7, 1)))
    torch.testing.assert_close(options["weight_decay"], vector((0.2, 9), (0.5, 1)))


def test_an_empty_group_keeps_later_patterns_away() -> None:
    groups: dict[str, dict[str, float]] = {"body.bias": {}, "*.bias": {"lr": 0.7}}
    options = resolved(SGD(lr=0.1, groups=groups))
    torch.testing.assert_close(options["lr"], vector((0.1, 9), (0.7, 1)))


def test_the_order_of_groups_is_part_of_their_value() -> None:
    a, b = {"lr": 0.3}, {"lr": 0.7}
    assert Groups({"a": a, "b": b}) == Groups({"a": a, "b": b})
    assert Groups({"a": a, "b": b}) != Groups({"b": b, "a": a})


def test_an_option_that_all_parameters_share_stays_one_number() -> None:
    options = resolved(SGD(lr=0.1, groups={"*": {"lr": "lr", "momentum": 0.9}}), lr=0.4)
    assert (options["lr"], options["momentum"]) == (0.4, 0.9)


def test_betas_of_a_group_may_be_given_as_a_pair_or_alone() -> None:
    pair = resolved(Adam(groups={"head.*": {"betas": ("b", 0.99)}}), b=0.5)
    torch.testing.assert_close(pair["beta1"], vector((0.9, 6), (0.5, 4)))
    torch.testing.assert_close(pair["beta2"], vector((0.999, 6), (0.99, 4)))
    alone = resolved(Adam(groups={"head.*": {"beta2": 0.99}}))
    assert alone["beta1"] == 0.9
    torch.testing.assert_close(alone["beta2"], pair["beta2"])


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        (torch.float64, torch.float64),
        (torch.float32, torch.float32),
        (torch.bfloat16, torch.float32),
    ],
    ids=str,
)
def test_a_vector_has_the_dtype_of_the_parameters_but_at_least_float32(
    dtype: torch.dtype, expected: torch.dtype
) -> None:
    hparams = {"beta2": torch.tensor(0.999, dtype=torch.double)}
    options = resolved(
        Adam(groups={"head.*": {"beta2": "beta2"}}, betas=(0.9, 0.9)), dtype, **hparams
    )
    assert options["beta2"].dtype == expected
    assert float(options["beta2"][-1]) == pytest.approx(0.999, abs=1e-7)


def test_one_number_passes_through_untouched() -> None:
    lr = torch.tensor(0.1, dtype=torch.double, requires_grad=True)
    assert resolved(SGD(lr="lr"), torch.float32, lr=lr)["lr"] is lr


def test_the_gradient_of_a_group_counts_its_entries() -> None:
    lr = torch.tensor(0.1, dtype=torch.double, requires_grad=True)
    options = resolved(SGD(groups={"*.bias": {"lr": "lr"}}), torch.float32, lr=lr)
    (slope,) = torch.autograd.grad(options["lr"].sum(), lr)
    assert float(slope) == 3.0


def test_a_pattern_without_parameter_is_refused() -> None:
    with pytest.raises(TrainingError, match=r"must match a parameter, got 'tail\.\*' for the"):
        resolved(SGD(groups={"tail.*": {"lr": 0.1}}))


def test_a_pattern_behind_a_wider_one_is_refused() -> None:
    groups = {"body.*": {"lr": 0.1}, "body.bias": {"lr": 0.2}}
    with pytest.raises(TrainingError, match=r"got 'body\.bias' after patterns that take all"):
        resolved(SGD(groups=groups))


def test_patterns_mind_the_case() -> None:
    with pytest.raises(TrainingError, match="must match a parameter"):
        resolved(SGD(groups={"Body.*": {"lr": 0.1}}))


def test_an_optimizer_with_unfrozen_groups_is_refused() -> None:
    optimizer = SGD()
    object.__setattr__(optimizer, "groups", {"*": {"lr": 0.1}})
    with pytest.raises(TrainingError, match="must hold its groups as `Groups`"):
        resolved(optimizer)


def test_a_layout_of_another_size_is_refused() -> None:
    optimizer = SGD(groups={"body.*": {"lr": 0.1}})
    with pytest.raises(TrainingError, match="got 10 for a vector of 3"):
        resolve(optimizer, {}, 0, LAYOUT, torch.zeros(3))


@pytest.mark.parametrize("groups", [{}, {"*.bias": {"momentum": 0.5}}], ids=["plain", "grouped"])
@pytest.mark.parametrize(
    ("hparams", "message"),
    [
        ({"decay": 0.1}, r"option lr needs the hyperparameter 'rate', got only \['decay'\]"),
        (
            {"rate": torch.ones(3)},
            r"'rate' must be one number .* option lr uses it; got shape \(3,",
        ),
        ({"rate": torch.ones(1)}, r"'rate' must be one number .*got shape \(1,\)"),
        ({"rate": "adam"}, r"'rate' must be one number .*got 'adam'"),
    ],
    ids=["missing", "vector", "one-entry", "text"],
)
def test_a_hyperparameter_that_is_missing_or_no_scalar_is_named(
    hparams: dict[str, Any], message: str, groups: dict[str, dict[str, float]]
) -> None:
    with pytest.raises(TrainingError, match=message):
        resolved(SGD(lr="rate", groups=groups), **hparams)


def test_a_missing_hyperparameter_of_a_group_is_named() -> None:
    with pytest.raises(TrainingError, match="option weight_decay needs the hyperparameter 'l2'"):
        resolved(SGD(groups={"*.bias": {"weight_decay": "l2"}}))

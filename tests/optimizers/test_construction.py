"""What a constructor refuses, and how it says so; the rest is in the contract."""

from typing import Any

import pytest

from hyperopt_dl.errors import TrainingError
from hyperopt_dl.optimizers import SGD, Adagrad, Adam, AdamW, RMSprop, Schedule
from tests.optimizers.twins import wave


@pytest.mark.parametrize(
    ("rule", "arguments", "message"),
    [
        (SGD, {"nesterov": True}, "needs a momentum and no dampening, got momentum=0.0"),
        (SGD, {"nesterov": True, "momentum": 0.9, "dampening": 0.1}, "dampening=0.1"),
        (SGD, {"nesterov": True, "momentum": "m", "dampening": "d"}, "dampening='d'"),
        (
            SGD,
            {"nesterov": True, "momentum": 0.9, "groups": {"*": {"dampening": 0.2}}},
            "groups={'*': {'dampening': 0.2}}",
        ),
        (SGD, {"groups": {"*": {"nesterov": True}}}, "got 'nesterov'"),
        (SGD, {"groups": {"*": {"betas": (0.9, 0.99)}}}, "got 'betas'"),
        (SGD, {"groups": {"*.bias": 0.1}}, "groups['*.bias'] must map options to values, got 0.1"),
        (SGD, {"groups": [{"lr": 0.1}]}, "SGD.groups must map patterns to options"),
        (Adam, {"betas": (0.9, 1.0)}, "Adam needs beta2 >= 0 and beta2 < 1, got beta2=1.0"),
        (AdamW, {"betas": (1.5, 0.9)}, "AdamW needs beta1 >= 0 and beta1 < 1, got beta1=1.5"),
        (Adam, {"betas": 0.9}, "needs a pair as betas, got betas=0.9"),
        (AdamW, {"betas": (0.9, 0.99, 0.999)}, "needs a pair as betas"),
        (Adam, {"groups": {"*": {"betas": "beta"}}}, "Adam.groups['*'] needs a pair as betas"),
        (Adam, {"groups": {"*": {"betas": (0.9, 1.0)}}}, "Adam.groups['*'] needs beta2 >= 0"),
        (RMSprop, {"alpha": 1.2}, "RMSprop needs alpha >= 0 and alpha < 1, got alpha=1.2"),
        (Adagrad, {"initial_accumulator_value": "start"}, "It is spent before the first step"),
        (Adagrad, {"initial_accumulator_value": Schedule(1.0, wave)}, "It is spent before"),
        (Adagrad, {"initial_accumulator_value": -0.1}, "needs initial_accumulator_value >= 0"),
        (Adagrad, {"groups": {"*": {"initial_accumulator_value": 1.0}}}, "Adagrad.groups['*'] may"),
    ],
)
def test_a_description_that_cannot_run_is_refused(
    rule: Any, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(TrainingError) as refusal:
        rule(**arguments)
    assert message in str(refusal.value)


def test_nesterov_allows_a_group_without_momentum() -> None:
    optimizer = SGD(momentum="momentum", nesterov=True, groups={"*.bias": {"momentum": 0.0}})
    assert optimizer.groups["*.bias"]["momentum"] == 0.0


def test_dampening_may_be_negative_as_in_torch() -> None:
    assert SGD(momentum=0.9, dampening=-0.5).options()["dampening"] == -0.5


def test_betas_given_as_a_list_are_the_pair() -> None:
    betas: Any = [0.8, "beta2"]
    assert Adam(betas=betas) == Adam(betas=(0.8, "beta2"))
    assert hash(Adam(betas=betas)) == hash(Adam(betas=(0.8, "beta2")))

"""The tangents that go along with training, against a differentiated unroll of the twins."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

import hyperopt_dl as hd
from hyperopt_dl.online import ForwardTuner
from tests.online.runs import derivative, groups_of, loss_of, network, tangents, train
from tests.optimizers.twins import TWINS, Twin, public

STEPS = 12
MORE: dict[str, list[dict[str, Any]]] = {
    "SGD": [{"nesterov": True}, {"maximize": True}],
    "Adagrad": [{"maximize": True}, {"initial_accumulator_value": 0.7}],
}
CASES = [
    pytest.param(row, flags, id="-".join([row.name, *flags]))
    for row in TWINS
    for flags in [*row.flags, *MORE.get(row.name, [{"maximize": True}])]
]
WRITTEN = {"beta1": "betas[0]", "beta2": "betas[1]"}


def options_of(row: Twin, flags: Mapping[str, Any]) -> list[dict[str, float]]:
    """Two groups with different options, all of them away from 0."""
    first = {k: v for k, v in row.interior.items() if k != "dampening" or not flags.get("nesterov")}
    second = {option: 0.8 * value for option, value in first.items()}
    return [first, second]


def tuner_of(row: Twin, flags: Mapping[str, Any], names: list[str], **settings: Any) -> Any:
    model = network()
    options = options_of(row, flags)
    optimizer = row.reference(groups_of(model, options), **public(options[0]), **flags)
    dimension = hd.Float(1e-6, 0.999, log=True)
    return model, ForwardTuner(optimizer, dict.fromkeys(names, dimension), hyper_lr=0.0, **settings)


@pytest.mark.parametrize(("row", "flags"), CASES)
def test_tangents_are_the_derivative_of_the_whole_run(row: Twin, flags: Mapping[str, Any]) -> None:
    options = options_of(row, flags)
    coordinates: list[tuple[str, tuple[int, ...]]] = [(option, (0, 1)) for option in options[0]]
    names = [WRITTEN.get(option, option) for option in options[0]]
    model, tuner = tuner_of(row, flags, names)
    train(tuner, model, range(STEPS))
    expected = derivative(
        lambda o, **groups: row.build(o, **flags, **groups), options, coordinates, STEPS
    )
    assert (expected.norm(dim=1) > 1e-6).all()
    torch.testing.assert_close(tangents(tuner), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("row", TWINS, ids=lambda row: row.name)
def test_a_name_with_a_group_moves_that_group_alone(row: Twin) -> None:
    options = options_of(row, {})
    model, tuner = tuner_of(row, {}, ["lr@1", "weight_decay", "lr@0"])
    train(tuner, model, range(STEPS))
    coordinates = [("lr", (1,)), ("weight_decay", (0, 1)), ("lr", (0,))]
    expected = derivative(row.build, options, coordinates, STEPS)
    torch.testing.assert_close(tangents(tuner), expected, rtol=1e-10, atol=1e-10)


def test_a_coordinate_of_a_linear_dimension_is_a_tenth_of_its_interval() -> None:
    found = []
    for dimension in (hd.Float(0.1, 0.9), hd.Float(0.1, 0.9, log=True)):
        model = network()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.5)
        tuner = ForwardTuner(optimizer, {"momentum": dimension}, hyper_lr=0.0)
        train(tuner, model, range(5))
        found.append(tangents(tuner))
    torch.testing.assert_close(found[0] / 0.08, found[1] / 0.5, rtol=1e-12, atol=0)


def _clipped(g: Tensor, most: float = 1.3) -> Tensor:
    scale: Tensor = (most / (g.norm() + 1e-6)).clamp(max=1.0)
    return scale * g


@pytest.mark.parametrize("row", TWINS, ids=lambda row: row.name)
def test_clipping_through_the_tuner_is_differentiated(row: Twin) -> None:
    options = options_of(row, {})
    model, tuner = tuner_of(row, {}, ["lr", "weight_decay"])
    norms = []
    for t in range(STEPS):
        tuner.optimizer.zero_grad()
        tuner.backward(loss_of(model, t))
        norms.append(float(tuner.clip_grad_norm_(1.3)))
        tuner.optimizer.step()
    assert min(norms) < 1.3 < max(norms)
    coordinates = [("lr", (0, 1)), ("weight_decay", (0, 1))]
    expected = derivative(row.build, options, coordinates, STEPS, edit=_clipped)
    torch.testing.assert_close(tangents(tuner), expected, rtol=1e-9, atol=1e-10)

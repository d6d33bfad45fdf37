"""The scale of the initial parameters."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import hyperopt_dl as hd
from hyperopt_dl.errors import TrainingError
from hyperopt_dl.hypergrad import hypergradient

ONE = torch.ones(1, 1, dtype=torch.double)


def training(init_scale: Any, steps: int = 6) -> hd.Supervised:
    """w[t + 1] = w[t] - 0.2 (w[t] - 1) from w[0] = 3 scale, and a bias that stays."""
    model = nn.Linear(1, 1).double()
    nn.init.constant_(model.weight, 3.0)
    nn.init.constant_(model.bias, 0.0)
    return hd.Supervised(
        model=model,
        loss=nn.functional.mse_loss,
        optimizer=hd.optimizers.SGD(0.1, groups={"bias": {"lr": 0.0}}),
        train=(ONE, ONE),
        validation=(ONE, ONE),
        init_scale=init_scale,
        steps=steps,
    )


@pytest.mark.parametrize("steps", [6, 60])
@pytest.mark.parametrize("init_scale", ["gain", {"weight": "gain"}, {"w*": "gain", "*": "other"}])
def test_the_loss_and_its_derivative_have_their_closed_form(init_scale: Any, steps: int) -> None:
    hparams = {"gain": 0.7, "other": 1.3} if "*" in init_scale else {"gain": 0.7}
    value, gradient = hypergradient(training(init_scale, steps), hparams)
    shrink = 0.8**steps
    error = (3 * 0.7 - 1) * shrink
    torch.testing.assert_close(value, torch.tensor(error**2, dtype=torch.double))
    expected = torch.tensor(2 * error * shrink * 3, dtype=torch.double)
    torch.testing.assert_close(gradient["gain"], expected, rtol=1e-12, atol=1e-15)


def test_only_what_a_pattern_decides_for_is_scaled() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    plain, scaled = (
        hd.Supervised(
            model=model,
            loss=nn.functional.mse_loss,
            optimizer=hd.optimizers.SGD("lr"),
            train=(torch.ones(4, 2), torch.ones(4, 1)),
            validation=(torch.ones(4, 2), torch.ones(4, 1)),
            init_scale=scales,
            steps=1,
        ).init({"a": 2.0, "b": torch.tensor(0.5)}, seed=0, device="cpu")["params"]
        for scales in (None, {"0.weight": "a", "*.weight": "b"})
    )
    factors = torch.cat([torch.full((n,), f) for n, f in ((6, 2.0), (3, 1.0), (3, 0.5), (1, 1.0))])
    assert torch.equal(scaled, plain * factors)
    assert scaled.dtype == torch.float32


def test_the_names_are_among_those_of_the_training() -> None:
    assert training({"weight": "gain", "bias": "other"}).hparams == {"gain", "other"}


@pytest.mark.parametrize(
    ("init_scale", "hparams", "message"),
    [
        (2.0, {}, "must be the name of a hyperparameter, or map patterns"),
        ({"weight": 2.0}, {}, "must be the name of a hyperparameter, or map patterns"),
        ("gain", {"lr": 0.1}, r"needs the hyperparameter 'gain', got only \['lr'\]"),
        ({"body*": "gain"}, {"gain": 1.0}, r"must decide for a parameter, got 'body\*'"),
        ({"*": "gain", "bias": "gain"}, {"gain": 1.0}, "must decide for a parameter, got 'bias'"),
    ],
)
def test_what_cannot_scale_is_an_error(init_scale: Any, hparams: Any, message: str) -> None:
    def start() -> Tensor:
        return training(init_scale).init(hparams, seed=0, device="cpu")["params"]

    with pytest.raises(TrainingError, match=message):
        start()

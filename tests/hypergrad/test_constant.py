"""A float that is not differentiated."""

import pickle
from typing import Any

import pytest
import torch
from torch import nn

import hyperopt_dl as hd
from hyperopt_dl.hypergrad.constant import Constant
from tests.problems import Spiral

AT: dict[str, Any] = {
    "start": torch.tensor([1.2, -0.7], dtype=torch.double),
    "decay": Constant(0.4),
    "frequency": 2.5,
}


def test_a_constant_has_no_derivative_and_the_others_have_theirs() -> None:
    value, gradient = hd.hypergradient(Spiral(), AT)
    exact = Spiral().exact_gradient(0.4, 2.5, AT["start"])
    assert gradient.keys() == {"start", "frequency"}
    for name, derivative in gradient.items():
        torch.testing.assert_close(derivative, exact[name], rtol=1e-10, atol=1e-12)
    assert value == hd.hypergradient(Spiral(), {**AT, "decay": 0.4})[0]


def test_the_training_sees_a_plain_float() -> None:
    class Looking(Spiral):
        def init(self, hparams: Any, **options: Any) -> Any:
            assert type(hparams["decay"]) is float
            return super().init(hparams, **options)

    hd.hypergradient(Looking(), AT)


def test_a_structural_float_is_a_constant_of_a_network() -> None:
    x = torch.randn(20, 3, generator=torch.Generator().manual_seed(0), dtype=torch.double)

    def model(hp: Any) -> nn.Module:
        return nn.Sequential(nn.Linear(3, 4), nn.Dropout(hp["dropout"]), nn.Linear(4, 1)).double()

    training = hd.Supervised(
        model=model,
        loss=nn.functional.mse_loss,
        optimizer=hd.optimizers.SGD(lr="lr"),
        train=(x, x[:, :1]),
        validation=(x, x[:, :1]),
        steps=4,
    )
    _, gradient = hd.hypergradient(training, {"lr": 0.1, "dropout": Constant(0.3)})
    assert gradient.keys() == {"lr"}
    with pytest.raises(hd.TrainingError, match=r"Hypergradient\(fixed=\['dropout'\]\)"):
        hd.hypergradient(training, {"lr": 0.1, "dropout": 0.3})


def test_a_constant_travels() -> None:
    again = pickle.loads(pickle.dumps(Constant(0.5)))
    assert (type(again), again, repr(again)) == (Constant, 0.5, "0.5")

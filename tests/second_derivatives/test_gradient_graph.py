"""Where the graph of a step ends, and what lies beyond it."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import hyperopt_dl as hd
from hyperopt_dl.network import Network
from hyperopt_dl.recorded_step import record_step
from hyperopt_dl.weights import flat

X = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
Y = torch.arange(8) % 3


def test_a_graph_is_pulled_through_after_the_module_has_held_weights_of_another_dtype() -> None:
    module = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    network = Network(module)
    weights = network.weights()
    wide = weights._replace(params=weights.params.double())
    found = []
    for params in (wide.params, weights.params):
        pieces = [*network.unflatten(params).values()]
        x = X.to(params.dtype)

        def loss(x: Tensor = x) -> Tensor:
            return cross_entropy(module(x), Y)

        step = record_step(network, weights, pieces, loss)
        with network.holding(weights, training=True):
            module(X)
        found.append(flat(step.graph.pull([torch.ones_like(g) for g in step.graph.g])))
    assert found[0].dtype == torch.double
    assert float(found[0].norm()) > 0.1
    torch.testing.assert_close(found[1].double(), found[0], rtol=1e-4, atol=1e-5)
    assert all(p.dtype == torch.float32 for p in module.parameters())


def test_a_third_derivative_is_refused() -> None:
    training = hd.Supervised(
        model=nn.Linear(4, 3),
        loss=cross_entropy,
        optimizer=hd.optimizers.SGD(lr="lr"),
        train=(X, Y),
        validation=(X, Y),
        steps=2,
    )
    lr = torch.tensor(0.1, requires_grad=True)
    value = training.loss(hd.rollout(training, {"lr": lr}), {"lr": lr})
    (first,) = torch.autograd.grad(value, lr, create_graph=True)
    with pytest.raises(hd.TrainingError, match="no third time"):
        torch.autograd.grad(first, lr)

"""Hyperparameters stay on the CPU while the parameter vector is on a CUDA device."""

import pytest
import torch
from torch import Tensor

from hyperopt_dl.optimizers.resolve import resolve
from tests.optimizers.twins import LAYOUT, TWINS, Twin, start

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def path(row: Twin, grouped: bool, device: str) -> tuple[Tensor, list[Tensor]]:
    groups = {"*.bias": dict.fromkeys(row.interior, 0.01)} if grouped else {}
    optimizer = row.build({name: name for name in row.interior}, groups=groups)
    hparams = {
        name: torch.tensor(value, dtype=torch.double, requires_grad=True)
        for name, value in row.interior.items()
    }
    params = start().to(device)
    slots = optimizer.slots(params)
    for t in range(4):
        grad = torch.cos(params + t)
        options = resolve(optimizer, hparams, t, LAYOUT, params)
        params, slots = optimizer.update(params, grad, slots, options, t)
    slopes = torch.autograd.grad(params.square().sum(), list(hparams.values()))
    return params.detach().cpu(), list(slopes)


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("row", TWINS, ids=lambda row: row.name)
def test_values_and_derivatives_are_those_of_the_cpu(row: Twin, grouped: bool) -> None:
    found, expected = path(row, grouped, "cuda"), path(row, grouped, "cpu")
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)

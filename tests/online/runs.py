"""Small training runs in float64: a user's loop with a tuner, and the same run as a function."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

import hyperopt_dl as hd
from hyperopt_dl.online import ForwardTuner
from hyperopt_dl.optimizers.resolve import resolve
from tests.optimizers.twins import public

GROUPS = 2
"""The first parameter group holds the first layer, the second the other."""


def network(seed: int = 0) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.random.manual_seed(seed)
        return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()


def batch(t: int) -> tuple[Tensor, Tensor]:
    """Ten examples, other ones at each step; t < 0 for validation."""
    generator = torch.Generator().manual_seed(t + 1000)
    x = torch.randn(10, 3, generator=generator, dtype=torch.double)
    return x, torch.stack([x[:, 0] * x[:, 1], torch.sin(2 * x[:, 2])], dim=1)


def loss_of(model: Callable[[Tensor], Tensor], t: int) -> Tensor:
    x, y = batch(t)
    return 3 * (model(x) - y).square().mean()


def groups_of(model: nn.Sequential, options: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [
        {"params": list(layer.parameters()), **public(own)}
        for layer, own in zip((model[0], model[2]), options, strict=True)
    ]


def train(
    tuner: ForwardTuner, model: nn.Module, steps: Sequence[int], every: int | None = None
) -> None:
    """The user's loop; ``every`` so many steps the hyperparameters move."""
    for t in steps:
        tuner.optimizer.zero_grad()
        tuner.backward(loss_of(model, t))
        tuner.optimizer.step()
        if every and tuner.steps % every == 0:
            tuner.step(loss_of(model, -1))


def tangents(tuner: ForwardTuner) -> Tensor:
    """The tangents of all parameters, `m x p`, groups one after the other."""
    return torch.cat([tangents["x"] for tangents in tuner.state_dict()["tangents"]], dim=1)


def derivative(
    build: Callable[..., hd.optimizers.Optimizer],
    options: Sequence[Mapping[str, float]],
    coordinates: Sequence[tuple[str, Sequence[int]]],
    steps: int,
    edit: Callable[[Tensor], Tensor] = lambda g: g,
) -> Tensor:
    """Unroll the twin and differentiate the whole run: d(parameters)/d(log option), `m x p`.

    Args:
        build: The twin, given its internal options by group.
        options: The options of each group.
        coordinates: By coordinate, the option and the groups that it moves.
        steps: The steps.
        edit: What happens to the gradient between backward and step.
    """
    model = network()
    names = [name for name, _ in model.named_parameters()]
    shapes = [param.shape for param in model.parameters()]
    sizes = [param.numel() for param in model.parameters()]
    layout = list(zip(names, sizes, strict=True))

    def call(params: Tensor) -> Callable[[Tensor], Tensor]:
        pieces = zip(names, torch.split(params, sizes), shapes, strict=True)
        weights = {name: piece.view(shape) for name, piece, shape in pieces}
        return lambda x: functional_call(model, weights, x)

    rule = build(
        {option: f"{option}@1" for option in options[1]},
        groups={"0.*": public({option: f"{option}@0" for option in options[0]})},
    )

    def run(u: Tensor) -> Tensor:
        hparams = {
            f"{option}@{number}": torch.tensor(value, dtype=torch.double)
            for number, own in enumerate(options)
            for option, value in own.items()
        }
        for (option, numbers), by in zip(coordinates, u, strict=True):
            for number in numbers:
                hparams[f"{option}@{number}"] = hparams[f"{option}@{number}"] * (1 + by)
        params = torch.cat([p.reshape(-1) for p in model.parameters()])
        slots = rule.slots(params)
        for t in range(steps):
            (g,) = torch.autograd.grad(loss_of(call(params), t), params, create_graph=True)
            settings = resolve(rule, hparams, t, layout, params)
            params, slots = rule.update(params, edit(g), slots, settings, t)
        return params

    u = torch.zeros(len(coordinates), dtype=torch.double, requires_grad=True)
    rows = [torch.autograd.grad(param, u, retain_graph=True)[0] for param in run(u)]
    return torch.stack(rows, dim=1)

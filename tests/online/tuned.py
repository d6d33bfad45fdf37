"""A small training whose hyperparameters tune themselves, and the same run as a user's own loop."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import hyperopt_dl as hd
from hyperopt_dl.online import ForwardTuner, TunedRun
from hyperopt_dl.optimizers import SGD, Adam, AdamW, Optimizer, RMSprop

AT = {"lr": 0.05, "m": 0.6, "decay": 0.05, "b2": 0.8}
DIMENSIONS = {
    "lr": hd.Float(1e-5, 10, log=True),
    "m": hd.Float(0.1, 0.9),
    "decay": hd.Float(1e-6, 1.0, log=True),
    "b2": hd.Float(0.1, 0.999),
}
Rules = Mapping[str, tuple[Optimizer, type[torch.optim.Optimizer], Mapping[str, Any]]]
RULES: Rules = {
    "descent": (SGD("lr", weight_decay="decay"), torch.optim.SGD, {}),
    "momentum": (SGD("lr", "m", weight_decay="decay"), torch.optim.SGD, {}),
    "nesterov": (SGD("lr", "m", nesterov=True), torch.optim.SGD, {"nesterov": True}),
    "adam": (Adam("lr", ("m", "b2"), 1e-2, weight_decay="decay"), torch.optim.Adam, {"eps": 1e-2}),
    "adamw": (AdamW("lr", ("m", "b2"), 1e-2, "decay"), torch.optim.AdamW, {"eps": 1e-2}),
    "rmsprop": (RMSprop("lr", "b2", 1e-2), torch.optim.RMSprop, {"eps": 1e-2}),
}
"""The twin, the optimizer of torch that it is a twin of, and what that is told beside its names."""
_WRITTEN = {"descent": {}, "momentum": {"m": "momentum"}, "nesterov": {"m": "momentum"}}
_ADAM = {"m": "betas[0]", "b2": "betas[1]"}
NAMES: Mapping[str, Mapping[str, str]] = {**_WRITTEN, "rmsprop": {"b2": "alpha"}}
"""By rule, what `ForwardTuner` calls a hyperparameter where it has another name."""


def data(seed: int, dtype: torch.dtype, n: int = 24) -> tuple[Tensor, Tensor]:
    x = torch.randn(n, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.double)
    return x.to(dtype), (x[:, 0] * x[:, 1] > 0).long()


def training(rule: Optimizer, dtype: torch.dtype = torch.double, **settings: Any) -> hd.Supervised:
    def model(_: Mapping[str, Any]) -> nn.Module:
        return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2)).to(dtype)

    return hd.Supervised(**{
        "model": model,
        "loss": cross_entropy,
        "optimizer": rule,
        "train": data(0, dtype),
        "validation": data(1, dtype),
        "steps": 12,
        "batch_size": 8,
        **settings,
    })  # fmt: skip


def tuned(made: hd.Supervised, *names: str, **settings: Any) -> TunedRun:
    """A run that tunes the hyperparameters of these names, or all that the training has."""
    tune = {name: DIMENSIONS[name] for name in names or sorted(made.hparams)}
    hparams = {name: AT[name] for name in sorted(made.hparams)}
    return ForwardTuner.from_training(made, hparams, tune, **{"every": 3, "seed": 3, **settings})


def tangents(run: TunedRun) -> Tensor:
    """The tangents of the parameters, `m x p`."""
    Z: Tensor = run.state_dict()["tangents"]["params"]
    return Z


def in_a_loop(
    name: str, made: hd.Supervised, every: int, steps: int, **settings: Any
) -> ForwardTuner:
    """The same run, by an unmodified module and an optimizer of torch, on the same batches."""
    _, kind, told = RULES[name]
    written = NAMES.get(name, _ADAM)
    hparams = {n: AT[n] for n in sorted(made.hparams)}
    options: dict[str, Any] = {"lr": hparams["lr"], **told}
    for n, value in hparams.items():
        if n == "decay":
            options["weight_decay"] = value
        elif written.get(n, n) in ("momentum", "alpha"):
            options[written[n]] = value
    if written is _ADAM:
        options["betas"] = (hparams["m"], hparams["b2"])
    state = made.init(hparams, seed=3, device="cpu")
    model = made.module(state, hparams).train()
    tune = {"weight_decay" if n == "decay" else written.get(n, n): DIMENSIONS[n] for n in hparams}
    optimizer: Callable[..., torch.optim.Optimizer] = kind
    tuner = ForwardTuner(optimizer(model.parameters(), **options), tune, **settings)
    held_out = made.held_out(None).at(0, 0, torch.device("cpu"))
    for t in range(steps):
        batch = made.batch(state, t)
        tuner.optimizer.zero_grad()
        tuner.backward(cross_entropy(model(*batch.inputs), batch.target))
        tuner.optimizer.step()
        if tuner.steps % every == 0:
            tuner.step(cross_entropy(model(*held_out.inputs), held_out.target))
    return tuner

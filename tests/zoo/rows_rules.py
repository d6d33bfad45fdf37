"""Optimizers and schedules of a ``Supervised``, beside the loop of ``torch.optim``."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

import hyperopt_dl as hd
from hyperopt_dl import optimizers as twins
from tests.zoo.nets import classify, mlp
from tests.zoo.row import Case, Kind

RULES = Kind("Optimizers of a Supervised")
Rule = Callable[[Any, Mapping[str, Any]], torch.optim.Optimizer]


def _with(
    rule: twins.Optimizer, optimizer: Rule, hp: Mapping[str, float], **more: Any
) -> Callable[[], Case]:
    return lambda: classify(mlp(), rule=rule, optimizer=optimizer, hp=hp, **more)


def _scheduled(name: str, make: Any) -> Rule:
    """A torch scheduler, stepped by the optimizer itself."""

    def build(params: Any, hp: Mapping[str, Any]) -> torch.optim.Optimizer:
        optimizer = torch.optim.SGD(params, lr=hp["lr"], momentum=0.5)
        scheduler = make(optimizer, hp)
        optimizer.register_step_post_hook(lambda *_: scheduler.step())
        return optimizer

    return build


LR = {"lr": 0.05}
ADAM = {"lr": 0.02, "beta1": 0.8, "beta2": 0.95, "eps": 1e-3, "decay": 0.1}


def _adam(kind: Any) -> Rule:
    return lambda params, hp: kind(
        params,
        lr=hp["lr"],
        betas=(hp["beta1"], hp["beta2"]),
        eps=hp["eps"],
        weight_decay=hp["decay"],
    )


def _options(**more: Any) -> dict[str, Any]:
    return {"betas": ("beta1", "beta2"), "eps": "eps", "weight_decay": "decay", "lr": "lr", **more}


WARM = "Detected call of `lr_scheduler.step"
for name, rule, optimizer, hp in (
    (
        "SGD, all options",
        twins.SGD(lr="lr", momentum="momentum", dampening="dampening", weight_decay="decay"),
        lambda params, hp: torch.optim.SGD(
            params, hp["lr"], hp["momentum"], hp["dampening"], hp["decay"]
        ),
        {"lr": 0.1, "momentum": 0.6, "dampening": 0.1, "decay": 0.05},
    ),
    (
        "SGD, nesterov",
        twins.SGD(lr="lr", momentum="momentum", nesterov=True),
        lambda params, hp: torch.optim.SGD(params, hp["lr"], hp["momentum"], nesterov=True),
        {"lr": 0.1, "momentum": 0.6},
    ),
    ("Adam", twins.Adam(**_options()), _adam(torch.optim.Adam), ADAM),
    (
        "Adam, amsgrad",
        twins.Adam(**_options(amsgrad=True)),
        lambda params, hp: torch.optim.Adam(
            params, hp["lr"], (hp["beta1"], hp["beta2"]), hp["eps"], hp["decay"], True
        ),
        ADAM,
    ),
    ("AdamW", twins.AdamW(**_options()), _adam(torch.optim.AdamW), ADAM),
    (
        "RMSprop",
        twins.RMSprop(lr="lr", alpha="alpha", eps="eps", momentum="momentum", weight_decay="decay"),
        lambda params, hp: torch.optim.RMSprop(
            params, hp["lr"], hp["alpha"], hp["eps"], hp["decay"], hp["momentum"]
        ),
        {"lr": 0.01, "alpha": 0.9, "eps": 1e-3, "momentum": 0.3, "decay": 0.1},
    ),
    (
        "RMSprop, centered",
        twins.RMSprop(lr="lr", alpha="alpha", eps=1e-2, centered=True),
        lambda params, hp: torch.optim.RMSprop(params, hp["lr"], hp["alpha"], 1e-2, centered=True),
        {"lr": 0.01, "alpha": 0.9},
    ),
    (
        "Adagrad",
        twins.Adagrad(lr="lr", lr_decay="slower", eps="eps", weight_decay="decay"),
        lambda params, hp: torch.optim.Adagrad(
            params, hp["lr"], hp["slower"], hp["decay"], eps=hp["eps"]
        ),
        {"lr": 0.05, "slower": 0.1, "eps": 1e-3, "decay": 0.1},
    ),
    (
        "LambdaLR as a Schedule",
        twins.SGD(lr=hd.Schedule("lr", lambda t: 0.9**t), momentum=0.5),
        _scheduled("", lambda o, hp: torch.optim.lr_scheduler.LambdaLR(o, lambda t: 0.9**t)),
        LR,
    ),
    (
        "a cosine as a Schedule",
        twins.SGD(
            lr=hd.Schedule("lr", lambda t: 0.5 * (1 + math.cos(math.pi * t / 60))), momentum=0.5
        ),
        _scheduled("", lambda o, hp: torch.optim.lr_scheduler.CosineAnnealingLR(o, 60)),
        LR,
    ),
    (
        "an exponential decay that is tuned",
        twins.SGD(lr=hd.Schedule("lr", lambda t, hp: hp["gamma"] ** t), momentum=0.5),
        _scheduled("", lambda o, hp: torch.optim.lr_scheduler.ExponentialLR(o, hp["gamma"])),
        {**LR, "gamma": 0.95},
    ),
):
    RULES.exact(name, _with(rule, optimizer, hp), unroll=False, quiet=(WARM,))


def _grouped() -> Case:
    """A rate for the first layer, and no decay on biases."""

    def optimizer(params: Any, hp: Mapping[str, Any]) -> torch.optim.Optimizer:
        w, b, v, c = params
        groups = [
            {"params": [w, b], "lr": hp["lr/first"]},
            {"params": [v, c]},
        ]
        return torch.optim.SGD(groups, lr=hp["lr"], momentum=0.5)

    rule = twins.SGD(lr="lr", momentum=0.5, groups={"0.*": {"lr": "lr/first"}})
    return classify(mlp(), rule=rule, optimizer=optimizer, hp={"lr": 0.1, "lr/first": 0.05})


def _clipped() -> Case:
    hp = {"lr": 0.2, "momentum": 0.5}
    rule = twins.ClipNorm(twins.SGD(lr="lr", momentum="momentum"), max_norm=0.1)
    return classify(mlp(), rule=rule, clip=0.1, hp=hp)


def _clipped_by_hp() -> Case:
    hp = {"lr": 0.2, "momentum": 0.5, "limit": 0.1}
    rule = twins.ClipNorm(twins.SGD(lr="lr", momentum="momentum"), max_norm="limit")
    return classify(mlp(), rule=rule, clip="limit", hp=hp)


def _scaled() -> Case:
    """The scale of the first weights."""

    def model(hp: Mapping[str, Any]) -> nn.Module:
        return mlp()

    def optimizer(params: Any, hp: Mapping[str, Any]) -> torch.optim.Optimizer:
        with torch.no_grad():
            for param in params:
                param.mul_(hp["gain"])
        return torch.optim.SGD(params, lr=hp["lr"], momentum=0.5)

    rule = twins.SGD(lr="lr", momentum=0.5)
    more = {"init_scale": "gain"}
    return classify(model, rule=rule, optimizer=optimizer, hp={"lr": 0.1, "gain": 1.2}, more=more)


RULES.exact("groups of parameters", _grouped, unroll=False)
RULES.exact("clipping by the norm", _clipped, unroll=False)
RULES.exact("clipping, its limit tuned", _clipped_by_hp, unroll=False)
RULES.exact("the scale of the first weights", _scaled, unroll=False)
RULES.refused(
    "an optimizer of torch.optim itself",
    lambda: classify(
        (net := mlp()), rule=torch.optim.SGD(net.parameters(), lr=0.1), hp={"lr": 0.1}
    ),
    match="twin such as hyperopt_dl.optimizers.SGD",
    says="give a twin such as hyperopt_dl.optimizers.SGD(lr='lr')",
)
RULES.refused(
    "a DataLoader",
    lambda: _loader(),
    match="give the data set behind it",
    says="give the data set behind it: a loader cannot be replayed by step",
)


def _loader() -> Case:
    from torch.utils.data import DataLoader, TensorDataset  # noqa: PLC0415

    made = classify(mlp())
    loader = DataLoader(TensorDataset(*made.train), batch_size=5, shuffle=True)
    return Case(made.model, loader, made.held_out, made.loss)


ROWS = RULES.rows

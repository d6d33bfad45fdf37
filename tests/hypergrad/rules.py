"""The optimizers that hypergradients are tested with, and what else a training may be made of."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from hyperopt_dl.optimizers import (
    SGD,
    Adagrad,
    Adam,
    AdamW,
    ClipNorm,
    Optimizer,
    RMSprop,
    Schedule,
)
from hyperopt_dl.optimizers.groups import NO_GROUPS, GroupsLike
from hyperopt_dl.optimizers.options import Option, Value
from hyperopt_dl.supervised import Supervised
from hyperopt_dl.training import HParams, State
from tests.hypergrad.runs import DOUBLE, fresh, mlp, supervised, vectors

RULES: dict[str, Optimizer] = {
    "sgd": SGD(lr="lr"),
    "dampening": SGD(lr="lr", momentum="m", dampening="tau", weight_decay="decay"),
    "nesterov": SGD(lr="lr", momentum="m", weight_decay="decay", nesterov=True),
    "adam": Adam(lr="lr", betas=("b1", "b2"), eps="eps", weight_decay="decay"),
    "amsgrad": Adam(lr="lr", betas=("b1", "b2"), eps="eps", amsgrad=True),
    "adamw": AdamW(lr="lr", betas=("b1", "b2"), eps="eps", weight_decay="decay"),
    "rmsprop": RMSprop(lr="lr", alpha="b2", eps="eps", weight_decay="decay"),
    "centered": RMSprop(lr="lr", alpha="b2", eps="eps", momentum="m", centered=True),
    "adagrad": Adagrad(lr="lr", lr_decay="tau", eps="eps", weight_decay="decay"),
    "groups": Adam(
        lr="lr", betas=("b1", 0.9), groups={"0.*": {"lr": "first", "betas": ("b2", 0.95)}}
    ),
    "schedule": SGD(lr=Schedule("lr", lambda t: 0.8**t), momentum=Schedule("m", lambda t: t / 5)),
    "learned schedule": SGD(lr=Schedule("lr", lambda t, hp: 1 / (1 + hp["decay"] * t))),
    "knots": SGD(lr=Schedule(1.0, lambda t, hp: hp["knots"][t // 2]), momentum="m"),
    "clipped": ClipNorm(SGD(lr="lr", momentum="m", weight_decay="decay"), max_norm="limit"),
    "clipped adam": ClipNorm(Adam(lr="lr", betas=("b1", "b2"), eps="eps"), max_norm="limit"),
    "clipped rmsprop": ClipNorm(RMSprop(lr="lr", alpha="b2", eps="eps"), max_norm="limit"),
    "not clipped": ClipNorm(SGD(lr="lr", momentum="m"), max_norm=1e3),
}
VALUES: dict[str, Any] = {
    "lr": 0.05,
    "first": 0.02,
    "m": 0.6,
    "tau": 0.2,
    "decay": 0.05,
    "limit": 0.3,
    "b1": 0.7,
    "b2": 0.8,
    "eps": 1e-2,
    "knots": torch.tensor([0.3, 0.1, 0.2], dtype=DOUBLE),
}


def of_rule(rule: str) -> tuple[Supervised, dict[str, Any]]:
    training = supervised(fresh(mlp), vectors(), vectors(1), optimizer=RULES[rule])
    read = {"learned schedule": {"decay"}, "knots": {"knots"}}.get(rule, set())
    return training, {name: VALUES[name] for name in sorted(training.hparams | read)}


SMOOTH = [rule for rule in RULES if rule != "amsgrad"]  # two runs may keep different maxima


class Softsign:
    """A rule of one's own: ``x - lr * g / (scale + sqrt(g^2 + s^2))``, s the gradient before."""

    groups: GroupsLike = NO_GROUPS

    def options(self) -> dict[str, Option]:
        return {"lr": "lr", "scale": "scale"}

    def names(self) -> frozenset[str]:
        return frozenset({"lr", "scale"})

    def slots(self, params: Tensor) -> dict[str, Tensor]:
        return {"before": torch.ones_like(params)}

    def update(
        self,
        params: Tensor,
        grad: Tensor,
        slots: Mapping[str, Tensor],
        options: Mapping[str, Value],
        t: int,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        size = (grad.square() + slots["before"].square()).sqrt() + options["scale"]
        return params - options["lr"] * grad / size, {"before": grad.clone()}


class Averaged(Supervised):
    """Goes only half the way of each step."""

    def step(self, state: State, hparams: HParams, t: int) -> State:
        after = super().step(state, hparams, t)
        return {**after, "params": (state["params"] + after["params"]) / 2}


def square_of_penalty(output: Tensor, target: Tensor, hp: Mapping[str, Any]) -> Tensor:
    square: Tensor = hp["penalty"] ** 2
    return square

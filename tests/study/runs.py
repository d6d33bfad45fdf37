"""A space, objectives and trainings for tests of the study."""

from collections.abc import Callable
from typing import Any

import torch
from optuna.trial import FrozenTrial
from torch import Tensor

import hyperopt_dl as hd

SPACE = hd.Space(x=hd.Float(2.0, 6.0), n=hd.Int(1, 9), kind=hd.Categorical(["a", "b"]))


def bowl(trial: hd.Trial) -> float:
    offset = 1.0 if trial.params["kind"] == "a" else 0.0
    return float((trial.params["x"] - 3.0) ** 2 + trial.params["n"] + offset)


def run(study: hd.Study, objective: Callable[[hd.Trial], Any], n: int, **options: Any) -> None:
    study.optimize(objective, n_trials=n, progress=False, **options)


def states(study: hd.Study) -> list[str]:
    return [trial.state.name for trial in study.trials]


class Shrinking:
    """A training whose loss after t steps is ``lr ** t``."""

    steps = 6
    report_every = 2

    def init(
        self, hparams: hd.HParams, *, seed: int, device: torch.device | str
    ) -> dict[str, Tensor]:
        return {"w": torch.ones((), dtype=torch.double, device=device), "seed": torch.tensor(seed)}

    def step(self, state: dict[str, Tensor], hparams: hd.HParams, t: int) -> dict[str, Tensor]:
        return {**state, "w": state["w"] * hparams["lr"]}

    def loss(self, state: dict[str, Tensor], hparams: hd.HParams) -> Tensor:
        return state["w"]


def hd_trial(frozen: FrozenTrial) -> Any:
    """Return something with the parameters of a finished trial, to evaluate it again."""
    return type("Seen", (), {"params": frozen.params})


def suggestions(study: hd.Study) -> list[dict[str, Any]]:
    return [trial.params for trial in study.trials]


TUNED = hd.Space(lr=hd.Float(0.1, 0.9, step=0.1), momentum=hd.Float(0.0, 0.75, step=0.25))


def supervised() -> hd.Supervised:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(60, 3, generator=generator)
    y = x @ torch.tensor([1.0, -2.0, 0.5])
    return hd.Supervised(
        model=torch.nn.Sequential(torch.nn.Linear(3, 1), torch.nn.Flatten(0)),
        loss=torch.nn.functional.mse_loss,
        optimizer=hd.optimizers.SGD(lr="lr", momentum="momentum"),
        train=(x[:40], y[:40]),
        validation=(x[40:], y[40:]),
        steps=5,
        batch_size=8,
    )

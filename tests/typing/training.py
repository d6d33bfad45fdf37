"""A user's script: a network as a training, under a sampler of Optuna's."""

import optuna
import torch
from torch import Tensor, nn

import hyperopt_dl as hd

generator = torch.Generator().manual_seed(0)
x = torch.randn(120, 4, generator=generator)
y = (x.sum(1) > 0).long()


def model(hp: hd.HParams) -> nn.Module:
    """Return a network of the width that the hyperparameters ask for."""
    return nn.Sequential(nn.Linear(4, hp["width"]), nn.ReLU(), nn.Linear(hp["width"], 2))


def accuracy(output: Tensor, target: Tensor) -> float:
    """Return the share of right answers."""
    return float((output.argmax(1) == target).double().mean())


training = hd.Supervised(
    model=model,
    loss=nn.functional.cross_entropy,
    optimizer=hd.optimizers.AdamW(
        lr=hd.Schedule("lr", lambda t: 1 / (1 + t)),
        weight_decay="wd",
        groups={"*.bias": {"lr": 0.1}},
    ),
    train=(x[:80], y[:80]),
    validation=(x[80:], y[80:]),
    epochs=2,
    batch_size=16,
    metrics={"accuracy": accuracy},
    early_stopping=hd.EarlyStopping("accuracy", mode="max"),
)
space = hd.Space(
    {"lr": hd.Float(1e-3, 1.0, log=True), "wd": hd.Float(0, 0.1), "width": hd.Int(2, 8)}
)
study = hd.Study(space, tuner=optuna.samplers.RandomSampler(), seed=0)
study.optimize(training, n_trials=3, progress=False)
assert 0 <= study.best.user_attrs["metrics"]["accuracy"] <= 1

lr = torch.tensor(0.1, dtype=torch.double, requires_grad=True)
hparams: hd.HParams = {"lr": lr, "wd": 0.0, "width": 4}
state: hd.State = hd.rollout(training, hparams, seed=1)
training.loss(state, hparams).backward()  # type: ignore[no-untyped-call]
assert lr.grad is not None

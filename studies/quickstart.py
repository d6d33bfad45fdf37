"""Tune a small network on Fashion-MNIST: TPE, median pruning, two worker processes, one journal.

    python studies/quickstart.py                  30 trials, about a minute on two cores
    python studies/quickstart.py                  again: nothing is left to do, shows the result
    python studies/quickstart.py --trials 60      goes on to 60
    python studies/quickstart.py --smoke          a tiny run in memory that leaves no file

The pictures come from Debian's package ``dataset-fashion-mnist`` or from ``--data``; without either
the handwritten digits of scikit-learn take their place.
"""

import argparse
from pathlib import Path
from typing import Any, NamedTuple

import optuna
import torch
from optuna.trial import FrozenTrial, TrialState
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import hyperopt_dl as hd
from studies.data import fashion_mnist

WORKERS = 2
TRAINING, VALIDATION = 24_000, 4_000  # of the 60,000 pictures; the test set is whole
EPOCHS, BATCH_SIZE = 8, 128
SPACE = hd.Space(
    lr=hd.Float(1e-4, 1.0, log=True),
    momentum=hd.Float(0.0, 0.99),
    weight_decay=hd.Float(1e-6, 1e-2, log=True),
    hidden=hd.Int(16, 256, log=True),
    activation=hd.Categorical(["relu", "gelu", "tanh"]),
)
# What torch.optim.SGD does if it is not told otherwise, in a network from the middle of the space.
# A log scale has no 0: the smallest weight decay stands for none.
UNTUNED = {"lr": 1e-3, "momentum": 0.0, "weight_decay": 1e-6, "hidden": 64, "activation": "relu"}
ACTIVATIONS = {"relu": nn.ReLU, "gelu": nn.GELU, "tanh": nn.Tanh}

parser = argparse.ArgumentParser(description="Tune a small network on Fashion-MNIST.")
parser.add_argument("--data", type=Path, help="folder with the four .gz files of Fashion-MNIST")
parser.add_argument("--trials", type=int, default=30, help="how many the study has in the end")
parser.add_argument("--storage", type=Path, default=Path("runs/quickstart.log"))
parser.add_argument("--smoke", action="store_true", help="see that it works: tiny, leaves no file")
arguments = parser.parse_args()
trials: int = 4 if arguments.smoke else arguments.trials
storage: Path | None = None if arguments.smoke else arguments.storage
console = Console(highlight=False, soft_wrap=True)


class Data(NamedTuple):
    """What is learned from, what is tuned on, and what is looked at in the end; pairs of x, y."""

    name: str
    train: tuple[Tensor, Tensor]
    validation: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]


def read_fashion_mnist(folder: Path) -> Data:
    (x, y), test = fashion_mnist.read(folder)
    end = TRAINING + VALIDATION
    return Data(
        "fashion-mnist", (x[:TRAINING], y[:TRAINING]), (x[TRAINING:end], y[TRAINING:end]), test
    )


def read_digits() -> Data:
    from sklearn.datasets import load_digits  # noqa: PLC0415 (only where nothing else is there)

    digits = load_digits()
    x, y = torch.tensor(digits.data / 16, dtype=torch.float32), torch.tensor(digits.target)
    return Data("digits", (x[:1000], y[:1000]), (x[1000:1400], y[1000:1400]), (x[1400:], y[1400:]))


def read_data(folder: Path | None) -> Data:
    if folder is not None or fashion_mnist.DEBIAN.is_dir():
        return read_fashion_mnist(folder or fashion_mnist.DEBIAN)
    console.print(
        f"There is no {fashion_mnist.DEBIAN} and no --data: using scikit-learn's digits instead. "
        "Fashion-MNIST is Debian's package dataset-fashion-mnist."
    )
    return read_digits()


def accuracy(output: Tensor, target: Tensor) -> Tensor:
    return (output.argmax(dim=1) == target).float().mean()


data = read_data(arguments.data)
if arguments.smoke:
    data = data._replace(train=(data.train[0][:512], data.train[1][:512]))
inputs = data.train[0].shape[1]


def network(hp: Any) -> nn.Module:
    hidden = hp["hidden"]
    return nn.Sequential(
        nn.Linear(inputs, hidden), ACTIVATIONS[hp["activation"]](), nn.Linear(hidden, 10)
    )


training = hd.Supervised(
    model=network,
    loss=nn.functional.cross_entropy,
    optimizer=hd.optimizers.SGD(lr="lr", momentum="momentum", weight_decay="weight_decay"),
    train=data.train,
    validation=data.validation,
    test=data.test,
    epochs=EPOCHS,
    batch_size=BATCH_SIZE,
    metrics={"accuracy": accuracy},
)
study = hd.Study(
    SPACE,
    tuner=optuna.samplers.TPESampler(),
    pruner=optuna.pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=training.steps // 4),
    storage=storage,
    name=f"quickstart-{data.name}",
    seed=0,
)


def find_untuned() -> FrozenTrial | None:
    complete = (trial for trial in study.trials if trial.state == TrialState.COMPLETE)
    return next((trial for trial in complete if trial.params == UNTUNED), None)


sizes = [f"{len(y):,}" for _, y in (data.train, data.validation, data.test)]
console.print(f"{data.name}: {' + '.join(sizes)} pictures to train, validate and test on.")
if find_untuned() is None:
    study.enqueue(UNTUNED)
study.optimize(training, total_trials=trials, executor=hd.executors.Processes(per_device=WORKERS))

ranking = sorted(
    (trial for trial in study.trials if trial.state == TrialState.COMPLETE),
    key=lambda trial: trial.value or 0.0,
)
table = Table(title="The best trials, by validation loss", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
for heading in ("trial", *SPACE, "loss", "accuracy"):
    table.add_column(heading, justify="right")
for trial in ranking[:5]:
    values = [trial.params[name] for name in SPACE]
    settings = [f"{value:.2g}" if isinstance(value, float) else str(value) for value in values]
    validated = f"{trial.user_attrs['metrics']['accuracy']:.1%}"
    table.add_row(str(trial.number), *settings, f"{trial.value:.4f}", validated)
console.print(table)

untuned = find_untuned()
console.print(
    "Accuracy on the test set, which no choice was made on: "
    f"[bold]tuned {study.best.user_attrs['test']['accuracy']:.1%}[/bold]"
    + (f", untuned {untuned.user_attrs['test']['accuracy']:.1%}." if untuned else ".")
)
if storage is not None:
    console.print(
        f"The record is {storage}; to look at it: optuna-dashboard {storage} "
        "(pip install optuna-dashboard)."
    )

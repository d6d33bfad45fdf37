"""Train an LSTM on long sequences, whose gradient is cut short or telescoped.

    python studies/telescoping_rnn.py              3 seeds: some minutes of CPU time
    python studies/telescoping_rnn.py              again: goes on where it was, shows the table
    python studies/telescoping_rnn.py --chunk 1    by single pixels, 784 steps: 14 times as long
    python studies/telescoping_rnn.py --smoke      a tiny run that leaves no file

An LSTM with 32 units reads the pictures of Fashion-MNIST from top to bottom, 14 pixels a step, and
then says what they show. One trial is one step of Adam on one batch: here the *training* that a
hypergradient goes through is the reading of a batch, its state what the LSTM remembers, and the
hyperparameters are the weights, one ``Array``. Levels are how much of a picture has been read.

To read a part only is a bias, since what lies below matters; so is to go back through the last
steps only (truncated back-propagation). Compute is counted in steps of the LSTM, forward and back.
The data come from Debian's package ``dataset-fashion-mnist`` or from ``--data``.
"""

import argparse
import math
import statistics
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import optuna
import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn import functional

import hyperopt_dl as hd
from studies.data import fashion_mnist
from studies.shared.curves import over_seeds, picture, save
from studies.shared.record import Record

parser = argparse.ArgumentParser(description="Telescoping through the length of a sequence.")
parser.add_argument("--data", type=Path, help="folder with the four .gz files of Fashion-MNIST")
parser.add_argument("--chunk", type=int, default=14, help="pixels a step, a divisor of 784")
parser.add_argument("--seeds", type=int, default=3, help="how many")
parser.add_argument("--budget", type=int, default=96, help="whole readings with gradients")
parser.add_argument("--smoke", action="store_true", help="see that it works: tiny, leaves no file")
parser.add_argument("--record", type=Path, default=Path("runs/telescoping_rnn.jsonl"))
parser.add_argument("--figures", type=Path, help="folder for the picture")
arguments = parser.parse_args()

CHUNK: int = 98 if arguments.smoke else arguments.chunk
LENGTH = 784 // CHUNK
LEVELS = (LENGTH // 8, LENGTH // 4, LENGTH // 2)
BUDGET: int = 4 if arguments.smoke else arguments.budget
SEEDS = range(1, 2 if arguments.smoke else 1 + arguments.seeds)
MARKS = tuple(BUDGET * k / 4 for k in range(5))
UNITS, CLASSES, BATCH, TRAINING, TEST = 32, 10, 50, 10_000, 1000
OUTER_LR = 0.01
SHAPES = ((CHUNK + UNITS + 1, 4 * UNITS), (UNITS + 1, CLASSES))
SIZES = [rows * columns for rows, columns in SHAPES]
torch.set_num_threads(1)
optuna.logging.set_verbosity(optuna.logging.WARNING)
console = Console(highlight=False, soft_wrap=True, width=110)
record = Record(None if arguments.smoke else arguments.record)

pictures = fashion_mnist.read(arguments.data or fashion_mnist.DEBIAN)
order = torch.randperm(len(pictures.train.y), generator=torch.Generator().manual_seed(0))
kept = order[:TRAINING]
x_train, y_train = pictures.train.x[kept], pictures.train.y[kept]
x_test, y_test = pictures.test.x[:TEST], pictures.test.y[:TEST]


def matrices(weights: Tensor) -> tuple[Tensor, Tensor]:
    """Return the LSTM's and the classifier's weights; the last row of each are biases."""
    lstm, classifier = torch.split(weights.float(), SIZES)
    return lstm.reshape(SHAPES[0]), classifier.reshape(SHAPES[1])


def read_chunk(pixels: Tensor, h: Tensor, c: Tensor, lstm: Tensor) -> tuple[Tensor, Tensor]:
    """Return h and c ``[n, units]`` after a chunk ``[n, chunk]``."""
    gates = torch.addmm(lstm[-1], torch.cat([pixels, h], dim=1), lstm[:-1])
    i, f, g, o = gates.chunk(4, dim=1)
    c = (f + 1).sigmoid() * c + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


def logits(h: Tensor, classifier: Tensor) -> Tensor:
    return torch.addmm(classifier[-1], h, classifier[:-1])


class Reading:
    """The reading of a batch, chunk by chunk, so far."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def init(
        self,
        hparams: Mapping[str, Any],  # noqa: ARG002
        *,
        seed: int,
        device: torch.device | str,
    ) -> dict[str, Tensor]:
        """Return an empty memory, and which pictures are read."""
        generator = torch.Generator().manual_seed(seed)
        empty = torch.zeros(BATCH, UNITS, device=device)
        batch = torch.randint(TRAINING, (BATCH,), generator=generator)
        return {"h": empty, "c": empty, "batch": batch}

    def step(
        self, state: dict[str, Tensor], hparams: Mapping[str, Any], t: int
    ) -> dict[str, Tensor]:
        """Read the next chunk."""
        pixels = x_train[state["batch"], t * CHUNK : (t + 1) * CHUNK]
        h, c = read_chunk(pixels, state["h"], state["c"], matrices(hparams["weights"])[0])
        return {"h": h, "c": c, "batch": state["batch"]}

    def loss(self, state: dict[str, Tensor], hparams: Mapping[str, Any]) -> Tensor:
        """Return the cross-entropy of what is said after what has been read."""
        said = logits(state["h"], matrices(hparams["weights"])[1])
        loss: Tensor = functional.cross_entropy(said, y_train[state["batch"]])
        return loss


def start(seed: int) -> Tensor:
    """Return initial weights."""
    generator = torch.Generator().manual_seed(seed)
    return (2 * torch.rand(sum(SIZES), generator=generator, dtype=torch.double) - 1) / math.sqrt(
        UNITS
    )


def reverse(**settings: Any) -> hd.hypergrad.Reverse:
    return hd.hypergrad.Reverse(memory="activations", **settings)


class Method(NamedTuple):
    """An estimator, how much is read, and the steps of a trial that notes none."""

    estimator: Any
    steps: int = LENGTH
    cost: int = 2 * LENGTH


METHODS = {
    "whole pictures": Method(reverse()),
    "top quarter": Method(reverse(), LENGTH // 4, 2 * (LENGTH // 4)),
    "back through 1/8": Method(
        hd.hypergrad.Reverse(memory="all", last=LENGTH // 8), cost=LENGTH + LENGTH // 8
    ),
    "single sample": Method(
        hd.hypergrad.Telescoping("single_sample", levels=LEVELS, mode=reverse())
    ),
    "Russian roulette": Method(
        hd.hypergrad.Telescoping("russian_roulette", levels=LEVELS, mode=reverse())
    ),
}


def test(weights: Tensor) -> tuple[float, float]:
    """Return cross-entropy and accuracy, in percent, on whole pictures of the test set."""
    lstm, classifier = matrices(weights)
    h = c = torch.zeros(TEST, UNITS)
    with torch.no_grad():
        for t in range(LENGTH):
            h, c = read_chunk(x_test[:, t * CHUNK : (t + 1) * CHUNK], h, c, lstm)
        said = logits(h, classifier)
        right = (said.argmax(1) == y_test).float().mean()
        return float(functional.cross_entropy(said, y_test)), 100 * float(right)


def descend(name: str, seed: int) -> dict[str, Any]:
    """Return the test loss at each mark, and the accuracy at the end."""
    method, spent = METHODS[name], 0
    tuner = hd.Hypergradient(estimator=method.estimator, lr=OUTER_LR, seed=seed)
    space = hd.Space(weights=hd.Array(sum(SIZES), init=start(seed)))
    study = hd.Study(space, tuner=tuner, seed=seed)
    found: list[tuple[float, float]] = []

    def count(inner: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
        nonlocal spent
        note = trial.user_attrs.get("estimator", {})
        spent += int(note.get("steps", method.cost))
        # The point of this trial is where the descent is until the next one has been paid for.
        while len(found) < len(MARKS) and spent > 2 * LENGTH * MARKS[len(found)]:
            found.append(test(study.params(trial.number)["weights"]))
        if len(found) == len(MARKS):
            inner.stop()

    study.optimize(Reading(method.steps), 100_000, callbacks=[count], progress=False)
    return {
        "losses": [loss for loss, _ in found],
        "accuracy": found[-1][1],
        "trials": len(study.trials),
    }


results = {}
for seed in SEEDS:
    for name in METHODS:
        key = [name, seed, CHUNK, BUDGET, OUTER_LR]
        results[name, seed] = record.get(key, partial(descend, name, seed))
        console.print(name, seed, results[name, seed])

table = Table(title="median over seeds (least to greatest)", box=SIMPLE_HEAD)
for column in ("gradient", "trials", "test loss", "test accuracy, %"):
    table.add_column(column, justify="left" if column == "gradient" else "right")
for name in METHODS:
    runs = [results[name, seed] for seed in SEEDS]
    ends = [run["losses"][-1] for run in runs]
    hits = [run["accuracy"] for run in runs]
    table.add_row(
        name,
        f"{statistics.median(run['trials'] for run in runs):.0f}",
        f"{statistics.median(ends):.3f} ({min(ends):.3f} to {max(ends):.3f})",
        f"{statistics.median(hits):.1f} ({min(hits):.1f} to {max(hits):.1f})",
    )
console.print(table)
console.print(f"Sequences of {LENGTH} chunks of {CHUNK}. torch {torch.__version__}.")
drawing = picture(
    {n: over_seeds(MARKS, [results[n, s]["losses"] for s in SEEDS]) for n in METHODS},
    x="compute, in whole readings with their gradients",
    y="test loss on whole pictures",
)
if arguments.figures:
    path = arguments.figures / "telescoping_rnn.svg"
    save(drawing, path)
    console.print(f"Drawn: {path}")

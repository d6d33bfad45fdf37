"""What a step of ``Supervised`` costs beside an ordinary loop of ``nn.Module`` and ``torch.optim``.

    python studies/benchmarks/supervised.py            about two minutes on one core
    python studies/benchmarks/supervised.py --smoke    a few steps, to see that it works

Both take the same steps on the same batches; that they end at the same weights is checked. They
take turns, on one thread, and CPU time is counted, so that neighbours on the machine matter little.
"""

import argparse
import copy
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import hyperopt_dl as hd
from hyperopt_dl.seeds import derive

REPEATS = 15
SECONDS = 0.5  # of one turn of one contestant, about
EXAMPLES = 1280
SEED = 0
LR, MOMENTUM, ADAM_LR = 0.01, 0.9, 1e-3

parser = argparse.ArgumentParser(description="Time a step of Supervised against an ordinary loop.")
parser.add_argument("--smoke", action="store_true", help="see that it works: a few steps only")
smoke: bool = parser.parse_args().smoke
torch.set_num_threads(1)


@dataclass(frozen=True)
class Row:
    """One comparison: a network, the shape of an example, and how it is trained."""

    name: str
    model: nn.Module
    shape: tuple[int, ...]
    batch_size: int
    adam: bool = False


def mlp(*widths: int) -> nn.Module:
    inputs, hidden, outputs = widths
    return nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, outputs))


def cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(16 * 7 * 7, 10),
    )


def ordinary(row: Row, x: Tensor, y: Tensor) -> Callable[[int, int], Tensor]:
    """Return a function that takes the steps from ``start`` to ``stop`` in the usual way."""
    model = copy.deepcopy(row.model).train()
    optimizer: torch.optim.Optimizer = (
        torch.optim.Adam(model.parameters(), lr=ADAM_LR)
        if row.adam
        else torch.optim.SGD(model.parameters(), lr=LR, momentum=MOMENTUM)
    )
    batches = EXAMPLES // row.batch_size
    order = torch.empty(0)

    def run(start: int, stop: int) -> Tensor:
        nonlocal order
        for t in range(start, stop):
            epoch, position = divmod(t, batches)
            if position == 0:
                generator = torch.Generator().manual_seed(derive(SEED, "epoch", epoch))
                order = torch.randperm(EXAMPLES, generator=generator)
            index = order[position * row.batch_size : (position + 1) * row.batch_size]
            optimizer.zero_grad()
            loss = cross_entropy(model(x[index]), y[index])
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        return torch.cat([q.detach().reshape(-1) for q in model.parameters()])

    return run


def supervised(row: Row, x: Tensor, y: Tensor) -> Callable[[int, int], Tensor]:
    """Return the same of ``Supervised``."""
    training = hd.Supervised(
        model=row.model,
        loss=cross_entropy,
        optimizer=hd.optimizers.Adam(lr="lr")
        if row.adam
        else hd.optimizers.SGD(lr="lr", momentum="momentum"),
        train=(x, y),
        validation=(x, y),
        steps=1,
        batch_size=row.batch_size,
        drop_last=True,
    )
    hparams = {"lr": ADAM_LR if row.adam else LR, "momentum": MOMENTUM}
    state = training.init(hparams, seed=SEED, device="cpu")

    def run(start: int, stop: int) -> Tensor:
        nonlocal state
        with torch.no_grad():
            state = hd.rollout(training, hparams, state=state, start=start, stop=stop)
        return state["params"]

    return run


def cpu_seconds(run: Callable[[int, int], Tensor], start: int, stop: int) -> tuple[float, Tensor]:
    begun = time.process_time()
    params = run(start, stop)
    return (time.process_time() - begun) / (stop - start), params


def compare(row: Row) -> tuple[list[float], list[float]]:
    """Return the seconds of a step, turn by turn: of the ordinary loop and of ``Supervised``."""
    generator = torch.Generator().manual_seed(SEED)
    x = torch.randn(EXAMPLES, *row.shape, generator=generator)
    y = torch.randint(0, 10, (EXAMPLES,), generator=generator)
    contestants = [ordinary(row, x, y), supervised(row, x, y)]
    done = 3
    for run in contestants:  # the first steps allocate
        run(0, done)
    length = 3 if smoke else 20
    seconds: tuple[list[float], list[float]] = ([], [])
    for turn in range(2 if smoke else REPEATS + 1):
        ends = []
        for run, times in zip(contestants, seconds, strict=True):
            second, params = cpu_seconds(run, done, done + length)
            times.append(second)
            ends.append(params)
        if turn == 0:
            torch.testing.assert_close(*ends, rtol=1e-3, atol=1e-4)
        done += length
        length = length if smoke else max(20, int(SECONDS / seconds[0][0]))
    return seconds[0][1:], seconds[1][1:]


torch.manual_seed(SEED)
ROWS = [
    Row("MLP 784-64-10, SGD", mlp(784, 64, 10), (784,), 128),
    Row("MLP 784-64-10, Adam", mlp(784, 64, 10), (784,), 128, adam=True),
    Row("MLP 64-128-10, SGD", mlp(64, 128, 10), (64,), 64),
    Row("MLP 64-128-10, Adam", mlp(64, 128, 10), (64,), 64, adam=True),
    Row("CNN 28x28, SGD", cnn(), (1, 28, 28), 64),
]

table = Table(box=SIMPLE_HEAD, title="CPU time of a training step, one thread")
for column in ("network", "batch", "torch, us", "Supervised, us", "ratio", "quartiles"):
    table.add_column(column, justify="left" if column == "network" else "right", no_wrap=True)
for row in ROWS:
    before, now = compare(row)
    ratios = sorted(b / a for a, b in zip(before, now, strict=True))
    table.add_row(
        row.name,
        str(row.batch_size),
        f"{1e6 * median(before):.0f}",
        f"{1e6 * median(now):.0f}",
        f"{median(ratios):.2f}",
        f"{ratios[len(ratios) // 4]:.2f}-{ratios[-1 - len(ratios) // 4]:.2f}",
    )
console = Console(highlight=False)
console.print(table)
console.print(
    f"Medians of {len(before)} turns; the quartiles are those of the ratio.\n"
    f"torch {torch.__version__}, {platform.machine()}."
)

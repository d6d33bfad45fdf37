"""How far online tuners recover from a wrong learning rate: a CNN on Fashion-MNIST.

    python studies/online_fashion.py            3 seeds, under ten minutes on one core
    python studies/online_fashion.py --smoke    one seed and few steps, to see that it works

The best fixed rate of a grid of 12 is found on the validation set. Then SGD with momentum starts
100 times too low and 10 times too high, alone and with each tuner at its defaults. The validation
pictures that the tuners differentiate on are those that the grid is judged by; the test pictures
are looked at once, after training. A network whose accuracy is 10 % has died.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import hyperopt_dl as hd
from studies.data import fashion_mnist

parser = argparse.ArgumentParser(description="Start CNNs with wrong learning rates.")
parser.add_argument("--data", type=Path, default=fashion_mnist.DEBIAN, help="folder of the data")
parser.add_argument("--smoke", action="store_true", help="see that it works: a few steps only")
options = parser.parse_args()

SEEDS = range(1) if options.smoke else range(3)
TRAINING, VALIDATION = (320, 256) if options.smoke else (12_000, 4_000)
EPOCHS, BATCH, VALIDATION_BATCH, EVERY = 6, 64, 256, 5
GRID = [10 ** (-3.5 + 0.3 * k) for k in range(12)]  # 3e-4 to 0.6
MOMENTUM = 0.9
LR = hd.Float(1e-5, 10, log=True)
torch.set_num_threads(1)

Tuner = Any  # the three have no common type: one of them needs a validation loss
TUNERS: dict[str, Callable[[torch.optim.Optimizer], Tuner]] = {
    "none": lambda _: None,
    "ForwardTuner": lambda o: hd.online.ForwardTuner(o, {"lr": LR}),
    "ForwardTuner, discount 0.99": lambda o: hd.online.ForwardTuner(o, {"lr": LR}, discount=0.99),
    "ForwardTuner, adaptive": lambda o: hd.online.ForwardTuner(o, {"lr": LR}, discount="adaptive"),
    "ForwardTuner, discount 0": lambda o: hd.online.ForwardTuner(o, {"lr": LR}, discount=0.0),
    "HypergradientDescent": hd.online.HypergradientDescent,
    "DeltaBarDelta": lambda o: hd.online.DeltaBarDelta(o, kappa=o.param_groups[0]["lr"] / 100),
}


class Run(NamedTuple):
    """How a run ended: accuracies, and the last learning rate."""

    validation: float
    test: float
    lr: float


def pictures(x: Tensor) -> Tensor:
    return x.view(-1, 1, 28, 28)


data = fashion_mnist.read(options.data)
x_train, y_train = pictures(data.train.x[:TRAINING]), data.train.y[:TRAINING]
held_out = slice(TRAINING, TRAINING + VALIDATION)
x_val, y_val = pictures(data.train.x[held_out]), data.train.y[held_out]
x_test, y_test = pictures(data.test.x), data.test.y


def network(seed: int) -> nn.Module:
    with torch.random.fork_rng():
        torch.random.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, 8, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(8, 16, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(784, 10),
        )


def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    with torch.no_grad():
        return float((model(x).argmax(dim=1) == y).float().mean())


def train(lr: float, seed: int, tuner_of: Callable[[torch.optim.Optimizer], Tuner]) -> Run:
    model, draws = network(seed), torch.Generator().manual_seed(seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=MOMENTUM)
    tuner = tuner_of(optimizer)
    forward = isinstance(tuner, hd.online.ForwardTuner)
    for _ in range(EPOCHS):
        for rows in torch.split(torch.randperm(TRAINING, generator=draws), BATCH):
            optimizer.zero_grad()
            loss = cross_entropy(model(x_train[rows]), y_train[rows])
            if forward:
                tuner.backward(loss)
            else:
                loss.backward()  # type: ignore[no-untyped-call]
                if tuner is not None:
                    tuner.step()
            optimizer.step()
            if forward and tuner.steps % EVERY == 0:
                rows = torch.randint(VALIDATION, (VALIDATION_BATCH,), generator=draws)
                tuner.step(cross_entropy(model(x_val[rows]), y_val[rows]))
    last = optimizer.param_groups[0]["lr"]
    return Run(accuracy(model, x_val, y_val), accuracy(model, x_test, y_test), last)


def report(start: str, lr: float, name: str, runs: list[Run], seconds: float) -> None:
    tests = [100 * run.test for run in runs]
    spread = f"{statistics.mean(tests):.2f} ({min(tests):.2f}-{max(tests):.2f})"
    last = ", ".join(f"{run.lr:.2g}" for run in runs)
    print(f"| {start} | {lr:.2g} | {name} | {spread} | {last} | {seconds:.1f} |", flush=True)


print("| start | lr | tuner | test accuracy %, mean (range) | last lr | CPU s a run |")
print("|---|---|---|---|---|---|")
validation: dict[float, float] = {}
for lr in GRID:
    began = time.process_time()
    runs = [train(lr, seed, TUNERS["none"]) for seed in SEEDS]
    validation[lr] = statistics.mean(run.validation for run in runs)
    report("grid", lr, "none", runs, (time.process_time() - began) / len(SEEDS))
best = max(GRID, key=validation.__getitem__)
print(f"Best on the validation set: {best:.2g}", flush=True)
for start, lr in (("100 x too low", best / 100), ("10 x too high", best * 10)):
    for name, tuner_of in TUNERS.items():
        began = time.process_time()
        runs = [train(lr, seed, tuner_of) for seed in SEEDS]
        report(start, lr, name, runs, (time.process_time() - began) / len(SEEDS))
print(f"{EPOCHS} epochs of {TRAINING} pictures, batch {BATCH}. torch {torch.__version__}.")

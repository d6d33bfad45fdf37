"""What an exact hypergradient costs, beside ordinary training and beside other packages.

    python studies/benchmarks/hypergradients.py            about half an hour on one core
    python studies/benchmarks/hypergradients.py --smoke    a few steps, to see that it works

The network is an MLP 64-128-10 on scikit-learn's digits (1000 for training, 797 for validation):

* A: SGD with momentum, batches of 64; derivatives in learning rate, momentum and L2 coefficient;
* B: the same on the full batch with 30 % wrong labels; derivatives in a weight for each example;
* C: Adam, batches of 64; derivatives in learning rate, beta1 and L2 coefficient.

The unit is ordinary training of the same work: ``nn.Module`` and ``torch.optim``. Contestants take
turns in one process, on one thread; CPU time is counted, after one run to warm up (a trace, where
there is one). Memory is the growth of the peak of a fresh process. The error is that of float64
against a plain unroll, over 60 steps. ``higher`` and ``torchopt`` take part where they are
installed (``pip install 'hyperopt_dl[peers]'``); torchopt cannot differentiate in beta1.
"""

import argparse
import importlib.util
import math
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import hyperopt_dl as hd
from hyperopt_dl.batches import Batches
from hyperopt_dl.hypergrad import Reverse, hypergradient

parser = argparse.ArgumentParser(description="Time hypergradients, against training and peers.")
parser.add_argument("--smoke", action="store_true", help="see that it works: a few steps only")
parser.add_argument("--memory-of", nargs=3, metavar=("CONTESTANT", "WORK", "STEPS"))
options = parser.parse_args()

REPEATS = 1 if options.smoke else 7
HORIZONS = {"A": (5,), "B": (5,), "C": (5,)} if options.smoke else {
    "A": (100, 400, 1600), "B": (400,), "C": (400,)
}  # fmt: skip
CHECKED = 5 if options.smoke else 60  # steps of the comparison in float64
BATCH, EPS = 64, 1e-12  # a tiny eps: higher adds it before Adam's bias correction, torch after it
VALUES = {
    "A": {"lr": 0.1, "momentum": 0.9, "l2": 1e-3},
    "B": {"w": 0.5},
    "C": {"lr": 1e-3, "momentum": 0.9, "l2": 1e-3},
}
torch.set_num_threads(1)
Gradient = dict[str, Tensor]


class Work:
    """One workload; a contestant maps it to the derivatives by the names in ``VALUES``."""

    def __init__(self, name: str, steps: int, dtype: torch.dtype = torch.float32) -> None:
        self.name, self.steps, self.dtype = name, steps, dtype
        x, y = (torch.as_tensor(part) for part in load_digits(return_X_y=True))
        x, noise = x.to(self.dtype) / 16, torch.Generator().manual_seed(1)
        if self.name == "B":
            wrong = torch.rand(len(y), generator=noise) < 0.3
            wrong[1000:] = False
            y = torch.where(wrong, torch.randint(0, 10, y.shape, generator=noise), y)
        self.train, self.validation = (x[:1000], y[:1000]), (x[1000:], y[1000:])
        size = None if self.name == "B" else BATCH
        self.batches = Batches(self.train, name="train", batch_size=size)

    def model(self) -> nn.Module:
        """Return the same network at every call."""
        with torch.random.fork_rng():
            torch.random.manual_seed(0)
            return nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10)).to(self.dtype)

    def batch(self, t: int) -> tuple[Tensor, Tensor]:
        """Return the batch of a step."""
        (x,), y, _ = self.batches.at(0, t, torch.device("cpu"))
        return x, y

    def hparams(self) -> Gradient:
        """Return the hyperparameters as leaves."""
        values = VALUES[self.name]
        full = {n: torch.tensor(v, dtype=self.dtype) for n, v in values.items()}
        if self.name == "B":
            full["w"] = full["w"].expand(1000).clone()
        return {name: value.requires_grad_() for name, value in full.items()}

    def loss(self, output: Tensor, target: Tensor, hp: Gradient, params: list[Tensor]) -> Tensor:
        """Return the training loss, the L2 term in it."""
        if self.name == "B":
            return (hp["w"] * cross_entropy(output, target, reduction="none")).mean()
        penalty = sum(p.square().sum() for p in params) / 2
        return cross_entropy(output, target) + hp["l2"] * penalty

    def outer(self, model: Callable[[Tensor], Tensor]) -> Tensor:
        """Return the validation loss."""
        x, y = self.validation
        return cross_entropy(model(x), y)


def training(work: Work) -> Gradient:
    """Train in the ordinary way: the unit."""
    model, values = work.model(), VALUES[work.name]
    decay = values.get("l2", 0.0)
    optimizer: torch.optim.Optimizer = (
        torch.optim.Adam(model.parameters(), lr=values["lr"], weight_decay=decay, eps=EPS)
        if work.name == "C"
        else torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=decay)
    )
    for t in range(work.steps):
        x, y = work.batch(t)
        optimizer.zero_grad()
        if work.name == "B":
            (0.5 * cross_entropy(model(x), y, reduction="none")).mean().backward()  # type: ignore[no-untyped-call]
        else:
            cross_entropy(model(x), y).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    with torch.no_grad():
        work.outer(model)
    return {}


def unroll(work: Work) -> Gradient:
    """Keep the graph of the whole run, in a dozen lines of torch."""
    model, hp = work.model(), work.hparams()
    names = [name for name, _ in model.named_parameters()]
    params = [p.detach().clone().requires_grad_() for p in model.parameters()]
    first, second = ([torch.zeros_like(p) for p in params] for _ in range(2))
    lr, beta = hp.get("lr", 0.1), hp.get("momentum", 0.9)

    def call(x: Tensor) -> Tensor:
        output: Tensor = torch.func.functional_call(model, dict(zip(names, params, strict=True)), x)
        return output

    for t in range(work.steps):
        x, y = work.batch(t)
        g = torch.autograd.grad(work.loss(call(x), y, hp, params), params, create_graph=True)
        if work.name == "C":
            first = [beta * m + (1 - beta) * d for m, d in zip(first, g, strict=True)]
            second = [0.999 * v + 0.001 * d * d for v, d in zip(second, g, strict=True)]
            c1, c2 = 1 - beta ** (t + 1), 1 - 0.999 ** (t + 1)
            params = [
                p - lr * (m / c1) / (torch.where(v > 0, v / c2, 1).sqrt() * (v > 0) + EPS)
                for p, m, v in zip(params, first, second, strict=True)
            ]
        else:
            first = [beta * v + d if t else d for v, d in zip(first, g, strict=True)]
            params = [p - lr * v for p, v in zip(params, first, strict=True)]
    found = torch.autograd.grad(work.outer(call), list(hp.values()))
    return dict(zip(hp, found, strict=True))


def higher_(work: Work) -> Gradient:
    """Let ``higher`` unroll a ``torch.optim`` optimizer."""
    higher = importlib.import_module("higher")
    model, hp = work.model(), work.hparams()
    override: dict[str, list[object]] = {}
    if work.name == "C":
        optimizer: torch.optim.Optimizer = torch.optim.Adam(model.parameters(), eps=EPS)
        override = {"lr": [hp["lr"]], "betas": [(hp["momentum"], 0.999)]}
    else:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        if work.name == "A":
            override = {"lr": [hp["lr"]], "momentum": [hp["momentum"]]}
    with higher.innerloop_ctx(model, optimizer, copy_initial_weights=False, override=override) as (
        fmodel,
        diffopt,
    ):
        for t in range(work.steps):
            x, y = work.batch(t)
            diffopt.step(work.loss(fmodel(x), y, hp, list(fmodel.parameters())))
        found = torch.autograd.grad(work.outer(fmodel), list(hp.values()))
    return dict(zip(hp, found, strict=True))


def torchopt_(work: Work) -> Gradient:
    """Let ``torchopt`` unroll its own optimizer; it has no derivative in beta1."""
    torchopt = importlib.import_module("torchopt")
    model, hp = work.model(), work.hparams()
    lr = hp.get("lr", 0.1)
    optimizer = (
        torchopt.MetaAdam(model, lr=lr, betas=(0.9, 0.999), eps=EPS)
        if work.name == "C"
        else torchopt.MetaSGD(model, lr=lr, momentum=hp.get("momentum", 0.9))
    )
    for t in range(work.steps):
        x, y = work.batch(t)
        optimizer.step(work.loss(model(x), y, hp, list(model.parameters())))
    known = {n: v for n, v in hp.items() if not (work.name == "C" and n == "momentum")}
    return dict(
        zip(known, torch.autograd.grad(work.outer(model), list(known.values())), strict=True)
    )


def ours(memory: str) -> Callable[[Work], Gradient]:
    """Return our reverse mode with this memory."""
    kept: dict[Work, hd.Supervised] = {}

    def gradient(work: Work) -> Gradient:
        if work not in kept:
            kept[work] = supervised(work)
        values: dict[str, object] = dict(VALUES[work.name])
        if work.name == "B":
            values = {"w": torch.full((1000,), 0.5, dtype=torch.double)}
        return hypergradient(kept[work], values, estimator=Reverse(memory=memory))[1]

    return gradient


def supervised(work: Work) -> hd.Supervised:
    """Return the work as a ``Supervised``."""
    rule: hd.optimizers.Optimizer = hd.optimizers.SGD(lr=0.1, momentum=0.9)
    if work.name == "A":
        rule = hd.optimizers.SGD(lr="lr", momentum="momentum", weight_decay="l2")
    elif work.name == "C":
        rule = hd.optimizers.Adam("lr", betas=("momentum", 0.999), weight_decay="l2", eps=EPS)
    return hd.Supervised(
        model=work.model(),
        loss=cross_entropy,
        optimizer=rule,
        train=work.train,
        validation=work.validation,
        steps=work.steps,
        batch_size=None if work.name == "B" else BATCH,
        weights="w" if work.name == "B" else None,
    )


CONTESTANTS: dict[str, Callable[[Work], Gradient]] = {"training": training, "unroll": unroll}
for package, peer in (("higher", higher_), ("torchopt", torchopt_)):
    if importlib.util.find_spec(package) is not None:
        CONTESTANTS[package] = peer
CONTESTANTS |= {f"Reverse({m!r})": ours(m) for m in ("activations", "all", "sqrt")}


def milliseconds(contestant: Callable[[Work], Gradient], work: Work) -> float:
    """Return the CPU milliseconds of one step of one run."""
    start = time.process_time()
    contestant(work)
    return 1e3 * (time.process_time() - start) / work.steps


def error(contestant: str, name: str) -> float | None:
    """Return the relative error in float64, over all derivatives together."""
    if contestant == "training":
        return None
    work = Work(name, CHECKED, torch.float64)
    exact, found = unroll(work), CONTESTANTS[contestant](work)
    wrong = sum(float((found[n] - exact[n]).square().sum()) for n in found)
    size = sum(float(exact[n].square().sum()) for n in found)
    return math.sqrt(wrong / size)


def peak(*, reset: bool = False) -> float:
    """Return the peak of this process's memory in MB, since the last reset; Linux tells it."""
    if reset:  # a child starts with its parent's peak
        Path("/proc/self/clear_refs").write_text("5")
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1e3 for line in lines if line.startswith("VmHWM"))


def memory_of(contestant: str, name: str, steps: int) -> float:
    """Return the MB by which the peak of a fresh process grows over a run."""
    command = [sys.executable, __file__, "--memory-of", contestant, name, str(steps)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


if options.memory_of:
    measured, of, length = options.memory_of
    CONTESTANTS[measured](Work(of, 50))  # imports, and a trace where there is one
    before = peak(reset=True)
    CONTESTANTS[measured](Work(of, int(length)))
    print(peak() - before)
    sys.exit()

table = Table(
    "work", "steps", "contestant", "CPU ms a step", "x training", "quartiles", "memory MB", "error",
    box=SIMPLE_HEAD,
)  # fmt: skip
for name, horizons in HORIZONS.items():
    errors = {contestant: error(contestant, name) for contestant in CONTESTANTS}
    for steps in horizons:
        work = Work(name, steps)
        times: dict[str, list[float]] = {contestant: [] for contestant in CONTESTANTS}
        for turn in range(REPEATS + 1):
            for contestant, run in CONTESTANTS.items():
                spent = milliseconds(run, work)
                if turn:  # the first one warms up
                    times[contestant].append(spent)
        for contestant, column in times.items():
            ratios = sorted(a / b for a, b in zip(column, times["training"], strict=True))
            median = statistics.median(column) / statistics.median(times["training"])
            low, high = ratios[len(ratios) // 4], ratios[3 * len(ratios) // 4]
            wrong = errors[contestant]
            table.add_row(
                name,
                str(steps),
                contestant,
                f"{statistics.median(column):.2f}",
                f"{median:.2f}",
                f"{low:.2f}-{high:.2f}",
                f"{memory_of(contestant, name, steps):.0f}",
                "" if wrong is None else f"{wrong:.0e}",
            )
        table.add_section()
Console(width=110).print(table)
print(f"Medians of {REPEATS} turns. torch {torch.__version__}, {platform.machine()}.")

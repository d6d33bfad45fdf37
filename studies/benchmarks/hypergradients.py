"""What an exact hypergradient costs, beside ordinary training and beside other packages.

    python studies/benchmarks/hypergradients.py              about three quarters of an hour
    python studies/benchmarks/hypergradients.py --only A C   some of the workloads
    python studies/benchmarks/hypergradients.py --compile    with compiled steps too; compiles first
    python studies/benchmarks/hypergradients.py --only A --contestants "Forward()" torch.func.jvp
    python studies/benchmarks/hypergradients.py --long       the memory of up to 100,000 steps
    python studies/benchmarks/hypergradients.py --smoke      a few steps, to see that it works

An MLP 64-128-10 on scikit-learn's digits (1000 for training, 797 for validation):

* A: SGD with momentum, batches of 64; derivatives in learning rate, momentum and L2 coefficient;
* B: the same on the full batch with 30 % wrong labels; derivatives in a weight for each example;
* C: Adam, batches of 64; derivatives in learning rate, beta1 and L2 coefficient.

As A, on 2000 pictures of Fashion-MNIST, which the last two read row by row:

* cnn: two convolutions with pooling and a linear layer; cnn+bn: the same with BatchNorm;
* gru: one layer of 64 units; transformer: two layers of width 64, batches of 32.

And the softmax regression of data cleaning, 5000 pictures at every step:

* 5000 weights: derivatives in a weight for each example; 3 scalars: as in A.

The unit is ordinary training of the same work: ``nn.Module`` and ``torch.optim``. Contestants take
turns in one process, on one thread; CPU time is counted, after one run to warm up (a trace, where
there is one). Memory is the growth of the peak of a fresh process. The error is that of float64
against a plain unroll, over 60 steps, with BatchNorm's statistics as constants: autograd takes them
for such, while ``Supervised`` carries their derivative on where times and memory are measured.
``higher`` and ``torchopt`` take part where they are installed (``pip install
'hyperopt_dl[peers]'``); torchopt cannot differentiate in beta1. Forward mode takes part where there
are three hyperparameters, beside the same in a dozen lines of ``torch.func.jvp``.
"""

import argparse
import ctypes
import importlib.util
import math
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import cross_entropy
from torch.utils._pytree import tree_map

import hyperopt_dl as hd
from hyperopt_dl.hypergrad import Estimator, Forward, Reverse, hypergradient
from studies.data import fashion_mnist
from studies.shared.hypergradient_work import BATCHES, EPS, NETS, VALUES, Gradient, Work

parser = argparse.ArgumentParser(description="Time hypergradients, against training and peers.")
parser.add_argument("--smoke", action="store_true", help="see that it works: a few steps only")
parser.add_argument("--only", nargs="+", metavar="WORK", help="only these workloads")
parser.add_argument("--contestants", nargs="+", metavar="WHO", help="training, and only these")
parser.add_argument("--steps", type=int, help="this length of all runs")
parser.add_argument("--turns", type=int, default=7, help="runs of each contestant, in turns")
parser.add_argument("--compile", action="store_true", help="have compiled steps take part")
parser.add_argument("--long", action="store_true", help="only the memory of 100,000 steps")
parser.add_argument("--memory-of", nargs=3, metavar=("CONTESTANT", "WORK", "STEPS"))
options = parser.parse_args()
if options.contestants:
    options.contestants.append("training")

REPEATS = 1 if options.smoke else options.turns
HORIZONS: dict[str, tuple[int, ...]] = {
    "A": (100, 400, 1600), "B": (400,), "C": (400,),
    "cnn": (60,), "cnn+bn": (60,), "gru": (60,), "transformer": (60,),
    "5000 weights": (60,), "3 scalars": (60,),
}  # fmt: skip
if not fashion_mnist.DEBIAN.is_dir():
    print(f"There is no {fashion_mnist.DEBIAN}: the workloads on Fashion-MNIST are left out.")
    HORIZONS = {name: HORIZONS[name] for name in "ABC"}
if options.smoke:
    HORIZONS = dict.fromkeys(HORIZONS, (3,))
elif options.steps:
    HORIZONS = dict.fromkeys(HORIZONS, (options.steps,))
if options.only:
    HORIZONS = {name: HORIZONS[name] for name in options.only}
CHECKED = 3 if options.smoke else 60  # steps of the comparison in float64
CHECKED_NET = 3 if options.smoke else 10
torch.set_num_threads(1)


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
        if work.weighted:
            (0.5 * cross_entropy(model(x), y, reduction="none")).mean().backward()  # type: ignore[no-untyped-call]
        else:
            cross_entropy(model(x), y).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    with torch.no_grad():
        work.outer(model, model)
    return {}


Vectors = tuple[Tensor, ...]


def update(
    work: Work, t: int, params: Vectors, g: Vectors, slots: tuple[Vectors, Vectors], hp: Gradient
) -> tuple[Vectors, tuple[Vectors, Vectors]]:
    """Return parameters and slots after a step of SGD with momentum, or of Adam."""
    first, second = slots
    lr, beta = hp.get("lr", 0.1), hp.get("momentum", 0.9)
    if work.name != "C":
        first = tuple(beta * v + d if t else d for v, d in zip(first, g, strict=True))
        return tuple(p - lr * v for p, v in zip(params, first, strict=True)), (first, second)
    first = tuple(beta * m + (1 - beta) * d for m, d in zip(first, g, strict=True))
    second = tuple(0.999 * v + 0.001 * d * d for v, d in zip(second, g, strict=True))
    c1, c2 = 1 - beta ** (t + 1), 1 - 0.999 ** (t + 1)
    moved = (
        p - lr * (m / c1) / (torch.where(v > 0, v / c2, 1).sqrt() * (v > 0) + EPS)
        for p, m, v in zip(params, first, second, strict=True)
    )
    return tuple(moved), (first, second)


def unroll(work: Work) -> Gradient:
    """Keep the graph of the whole run, in a dozen lines of torch."""
    model, hp = work.model(), work.hparams()
    names = [name for name, _ in model.named_parameters()]
    params = tuple(p.detach().clone().requires_grad_() for p in model.parameters())
    zeros = tuple(torch.zeros_like(p) for p in params)
    slots = (zeros, zeros)

    def call(x: Tensor) -> Tensor:
        output: Tensor = torch.func.functional_call(model, dict(zip(names, params, strict=True)), x)
        return output

    for t in range(work.steps):
        x, y = work.batch(t)
        g = torch.autograd.grad(work.loss(call(x), y, hp, list(params)), params, create_graph=True)
        params, slots = update(work, t, params, g, slots, hp)
    found = torch.autograd.grad(work.outer(call, model), list(hp.values()))
    return dict(zip(hp, found, strict=True))


def jvp(work: Work) -> Gradient:
    """Carry the tangents of all hyperparameters along, by ``torch.func``."""
    model = work.model()
    hp = {name: value.detach() for name, value in work.hparams().items()}
    names = [name for name, _ in model.named_parameters()]
    params = tuple(p.detach() for p in model.parameters())
    zeros = tuple(torch.zeros_like(p) for p in params)
    state = (params, (zeros, zeros))
    unit = torch.eye(len(hp), dtype=work.dtype)
    parts: Any = (None, 0)  # one state, and its tangents
    along = {name: unit[k] for k, name in enumerate(hp)}
    tangents = tree_map(lambda v: v.new_zeros(len(hp), *v.shape), state)

    def call(params: Vectors, x: Tensor) -> Tensor:
        output: Tensor = torch.func.functional_call(model, dict(zip(names, params, strict=True)), x)
        return output

    for t in range(work.steps):
        x, y = work.batch(t)

        def step(state: Any, hp: Gradient) -> Any:
            params, slots = state
            g = torch.func.grad(lambda p: work.loss(call(p, x), y, hp, list(p)))(params)  # noqa: B023
            return update(work, t, params, g, slots, hp)  # noqa: B023

        def push(tangent: Any, direction: Gradient) -> Any:
            return torch.func.jvp(step, (state, hp), (tangent, direction))  # noqa: B023

        state, tangents = torch.func.vmap(push, out_dims=parts)(tangents, along)
    gradient = torch.func.grad(lambda params: work.outer(lambda x: call(params, x), model))(
        state[0]
    )
    pairs = zip(gradient, tangents[0], strict=True)
    found = sum(z.flatten(1) @ g.flatten() for g, z in pairs)
    assert isinstance(found, Tensor)
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
        if not work.weighted:
            override = {"lr": [hp["lr"]], "momentum": [hp["momentum"]]}
    with higher.innerloop_ctx(model, optimizer, copy_initial_weights=False, override=override) as (
        fmodel,
        diffopt,
    ):
        for t in range(work.steps):
            x, y = work.batch(t)
            diffopt.step(work.loss(fmodel(x), y, hp, list(fmodel.parameters())))
        found = torch.autograd.grad(work.outer(fmodel, fmodel), list(hp.values()))
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
    found = torch.autograd.grad(work.outer(model, model), list(known.values()))
    return dict(zip(known, found, strict=True))


def ours(estimator: Estimator) -> Callable[[Work], Gradient]:
    """Return what an estimator of ours makes of a work."""

    def gradient(work: Work) -> Gradient:
        if work not in KEPT:
            KEPT[work] = supervised(work)
        values: dict[str, object] = dict(VALUES[work.name])
        if work.weighted:
            values = {"w": torch.full((len(work.train[1]),), 0.5, dtype=torch.double)}
        return hypergradient(KEPT[work], values, estimator=estimator)[1]

    return gradient


KEPT: dict[Work, hd.Supervised] = {}  # so that a work is traced once


def supervised(work: Work) -> hd.Supervised:
    """Return the work as a ``Supervised``."""
    rule: hd.optimizers.Optimizer = hd.optimizers.SGD("lr", "momentum", weight_decay="l2")
    if work.weighted:
        rule = hd.optimizers.SGD(lr=0.1, momentum=0.9)
    elif work.name == "C":
        rule = hd.optimizers.Adam("lr", betas=("momentum", 0.999), weight_decay="l2", eps=EPS)
    return hd.Supervised(
        model=work.model(),
        loss=cross_entropy,
        optimizer=rule,
        train=work.train,
        validation=work.validation,
        steps=work.steps,
        batch_size=BATCHES[work.name],
        weights="w" if work.weighted else None,
        buffers="constant" if work.dtype == torch.float64 else "state",
    )


def differentiable(contestant: Callable[[Work], Gradient]) -> Callable[[Work], Gradient]:
    """Let a peer use the kernel of attention that has a second derivative."""

    def run(work: Work) -> Gradient:
        with sdpa_kernel(SDPBackend.MATH):
            return contestant(work)

    return run


CONTESTANTS: dict[str, Callable[[Work], Gradient]] = {
    "training": training,
    "unroll": differentiable(unroll),
}
for package, peer in (("higher", higher_), ("torchopt", torchopt_)):
    if importlib.util.find_spec(package) is not None:
        CONTESTANTS[package] = differentiable(peer)
CONTESTANTS |= {f"Reverse({m!r})": ours(Reverse(m)) for m in ("auto", "activations", "all", "sqrt")}
CONTESTANTS |= {"torch.func.jvp": differentiable(jvp), "Forward()": ours(Forward())}
if options.compile or (options.memory_of and "compile" in options.memory_of[0]):
    CONTESTANTS |= {
        f"Reverse({m!r}, compile=True)": ours(Reverse(m, compile=True)) for m in ("all", "sqrt")
    }
    CONTESTANTS["Forward(compile=True)"] = ours(Forward(compile=True))
FORWARD = [name for name in CONTESTANTS if name.startswith(("Forward", "torch.func"))]


def contestants(name: str) -> dict[str, Callable[[Work], Gradient]]:
    """Return who takes part in a work.

    Forward mode is not for thousands of hyperparameters, and ``torch.func.jvp`` not for the larger
    networks: it takes neither modules that write into their buffers nor every operator.
    """
    absent = set(FORWARD) if "w" in VALUES[name] else set()
    absent |= {"torch.func.jvp"} if name in NETS else set()
    chosen = {who: run for who, run in CONTESTANTS.items() if who not in absent}
    if options.contestants:
        chosen = {who: run for who, run in chosen.items() if who in options.contestants}
    return chosen


def milliseconds(contestant: Callable[[Work], Gradient], work: Work) -> float:
    """Return the CPU milliseconds of one step of one run."""
    start = time.process_time()
    contestant(work)
    return 1e3 * (time.process_time() - start) / work.steps


def error(contestant: str, name: str) -> float | None:
    """Return the relative error in float64, over all derivatives together."""
    if contestant == "training":
        return None
    work = Work(name, CHECKED_NET if name in NETS else CHECKED, torch.float64)
    exact, found = CONTESTANTS["unroll"](work), CONTESTANTS[contestant](work)
    wrong = sum(float((found[n] - exact[n]).square().sum()) for n in found)
    size = sum(float(exact[n].square().sum()) for n in found)
    return math.sqrt(wrong / size)


def peak(*, reset: bool = False) -> float:
    """Return the peak of this process's memory in MB, since the last reset; Linux tells it."""
    if reset:  # a child starts with its parent's peak, and what is free hides what is taken
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1e3 for line in lines if line.startswith("VmHWM"))


def memory_of(contestant: str, name: str, steps: int) -> float:
    """Return the MB by which the peak of a fresh process grows over a run."""
    command = [sys.executable, __file__, "--memory-of", contestant, name, str(steps)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


if options.memory_of:
    measured, of, length = options.memory_of
    CONTESTANTS.setdefault("Reverse(20)", ours(Reverse(20)))
    CONTESTANTS[measured](Work(of, 50))  # imports, and a trace where there is one
    work = Work(of, int(length))
    before = peak(reset=True)
    CONTESTANTS[measured](work)
    print(peak() - before)
    sys.exit()

if options.long:
    for steps in (1_000, 10_000, 100_000):
        print(f"A, {steps} steps, Reverse(20): {memory_of('Reverse(20)', 'A', steps):.1f} MB")
    sys.exit()

table = Table(
    "work", "steps", "contestant", "CPU ms a step", "x training", "quartiles", "memory MB", "error",
    box=SIMPLE_HEAD,
)  # fmt: skip
for name, horizons in HORIZONS.items():
    racing = contestants(name)
    checked = () if options.smoke and name in NETS else racing
    errors = {contestant: error(contestant, name) for contestant in checked}
    for steps in horizons:
        work = Work(name, steps)
        times: dict[str, list[float]] = {contestant: [] for contestant in racing}
        for turn in range(REPEATS + 1):
            for contestant, run in racing.items():
                spent = milliseconds(run, work)
                if turn:  # the first one warms up
                    times[contestant].append(spent)
        for contestant, column in times.items():
            ratios = sorted(a / b for a, b in zip(column, times["training"], strict=True))
            median = statistics.median(column) / statistics.median(times["training"])
            low, high = ratios[len(ratios) // 4], ratios[3 * len(ratios) // 4]
            wrong = errors.get(contestant)
            table.add_row(
                name,
                str(steps),
                contestant,
                f"{statistics.median(column):.2f}",
                f"{median:.2f}",
                f"{low:.2f}-{high:.2f}",
                ""
                if options.smoke and name != "A"
                else f"{memory_of(contestant, name, steps):.0f}",
                "" if wrong is None else f"{wrong:.0e}",
            )
        table.add_section()
Console(width=110).print(table)
print(f"Medians of {REPEATS} turns. torch {torch.__version__}, {platform.machine()}.")

"""What tuning inside a training loop costs, in multiples of the loop without a tuner.

    python studies/benchmarks/online.py                  about four minutes on one core
    python studies/benchmarks/online.py --only digits    those whose names begin so
    python studies/benchmarks/online.py --compile        with compiled steps too; compiles first
    python studies/benchmarks/online.py --smoke          a few steps, to see that it works

An MLP 784-256-256-10 on random pictures, batches of 128, SGD with momentum (and Adam); a validation
loss on 128 more pictures every 10 steps for those that take one. And an MLP 64-128-10 on
scikit-learn's digits, batches of 64, SGD with momentum, with a validation loss on 64 more at every
step: there the training is handed over (``ForwardTuner.from_training``). Contestants take turns in
one process, on one thread, and CPU time is counted. ``torch.func.jvp`` is what one would write
without this package: the forward-mode derivative of the whole step, ``vmap``ped over the
hyperparameters.
"""

import argparse
import functools
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp, vmap
from torch.nn.functional import cross_entropy

import hyperopt_dl as hd

parser = argparse.ArgumentParser(description="Time online tuners against plain training.")
parser.add_argument("--smoke", action="store_true", help="see that it works: a few steps only")
parser.add_argument("--only", default="", metavar="NAME", help="only those that begin so")
parser.add_argument("--compile", action="store_true", help="have compiled steps take part")
parser.add_argument("--turns", type=int, default=9, help="runs of each contestant, in turns")
options = parser.parse_args()

TURNS, STEPS = (1, 10) if options.smoke else (options.turns, 20)
RATE = hd.Float(1e-5, 10, log=True)
SMALL = hd.Float(1e-7, 0.1, log=True)
FRACTION = hd.Float(0.1, 0.9999)
STARTS: dict[str, Any] = {"lr": 0.01, "momentum": 0.9, "weight_decay": 1e-4, "dampening": 0.1}
HALF = {"lr@0": RATE, "momentum@0": FRACTION, "weight_decay@0": SMALL, "dampening@0": FRACTION}
TUNED: dict[int, dict[str, hd.Float]] = {
    1: {"lr": RATE},
    3: {"lr": RATE, "momentum": FRACTION, "weight_decay": SMALL},
    8: HALF | {name.replace("0", "1"): dimension for name, dimension in HALF.items()},
}
torch.set_num_threads(1)
draws = torch.Generator().manual_seed(0)
Pair = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Work:
    """Layers, batches by step, and how often which validation examples are looked at."""

    widths: tuple[int, ...]
    batch: Callable[[int], Pair]
    validation: Callable[[int], Pair]
    every: int
    steps: int

    def network(self) -> nn.Sequential:
        """Return a new network, always the same."""
        with torch.random.fork_rng():
            torch.random.manual_seed(0)
            pairs = zip(self.widths[:-1], self.widths[1:], strict=True)
            layers = [layer for pair in pairs for layer in (nn.Linear(*pair), nn.ReLU())]
            return nn.Sequential(*layers[:-1])


def pictures() -> Pair:
    return torch.rand(128, 784, generator=draws), torch.randint(10, (128,), generator=draws)


def rows_of(data: Pair, batch: int) -> Callable[[int], Pair]:
    """Return batches of the data, in an order of their own."""
    order = torch.randperm(len(data[0]), generator=draws)

    def at(t: int) -> Pair:
        begin = batch * t % (len(order) - batch + 1)
        rows = order[begin : begin + batch]
        return data[0][rows], data[1][rows]

    return at


first, second = pictures(), pictures()
RANDOM = Work((784, 256, 256, 10), lambda _: first, lambda _: second, 10, STEPS)
digits = load_digits()
x, y = torch.tensor(digits.data / 16, dtype=torch.float), torch.tensor(digits.target)
TRAIN, VALIDATION = (x[:1000], y[:1000]), (x[1000:], y[1000:])
DIGITS = Work((64, 128, 10), rows_of(TRAIN, 64), rows_of(VALIDATION, 64), 1, 5 * STEPS)


def sgd(model: nn.Sequential) -> torch.optim.Optimizer:
    """Two groups: the first layer, and the rest."""
    groups = [{"params": model[0].parameters()}, {"params": model[1:].parameters()}]
    return torch.optim.SGD(groups, **STARTS)


def adam(model: nn.Sequential) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), lr=1e-4)


class Loop:
    """A user's loop; ``run`` goes on for some steps."""

    def __init__(
        self,
        work: Work,
        optimizer_of: Callable[[nn.Sequential], torch.optim.Optimizer],
        tuner_of: Callable[[torch.optim.Optimizer], Any] = lambda _: None,
    ) -> None:
        self.work, self.model = work, work.network()
        self.optimizer = optimizer_of(self.model)
        self.tuner = tuner_of(self.optimizer)

    def run(self) -> int:
        """Train, and return the number of steps."""
        forward = isinstance(self.tuner, hd.online.ForwardTuner)
        for t in range(self.work.steps):
            x, y = self.work.batch(t)
            self.optimizer.zero_grad()
            loss = cross_entropy(self.model(x), y)
            if forward:
                self.tuner.backward(loss)
            else:
                loss.backward()  # type: ignore[no-untyped-call]
                if self.tuner is not None:
                    self.tuner.step()
            self.optimizer.step()
            if forward and self.tuner.steps % self.work.every == 0:
                x, y = self.work.validation(t)
                self.tuner.step(cross_entropy(self.model(x), y))
        return self.work.steps


class HandedOver:
    """The digits, as a training that is handed over."""

    def __init__(self, m: int, *, compile: bool) -> None:  # noqa: A002
        names = [name.replace("@", "_") for name in TUNED[m]]
        tune = dict(zip(names, TUNED[m].values(), strict=True))
        groups: dict[str, Any] = {}
        first: dict[str, Any] = {
            name: name if name in names else value for name, value in STARTS.items()
        }
        if m == 8:
            first = {name: f"{name}_0" for name in STARTS}
            groups = {"2.*": {name: f"{name}_1" for name in STARTS}}
        training = hd.Supervised(
            model=DIGITS.network(),
            loss=cross_entropy,
            optimizer=hd.optimizers.SGD(**first, groups=groups),
            train=TRAIN,
            validation=VALIDATION,
            steps=1_000_000,
            batch_size=64,
            drop_last=True,
        )
        starts = {name: STARTS[name.removesuffix("_0").removesuffix("_1")] for name in names}
        self.tuned = hd.online.ForwardTuner.from_training(
            training, starts, tune, hyper_lr=1e-4, every=1, batch_size=64, compile=compile
        )

    def run(self) -> int:
        """Train, and return the number of steps."""
        for _ in range(DIGITS.steps):
            self.tuned.step()
        return DIGITS.steps


class Jvp:
    """RTHO by ``torch.func``: tangents of weights and buffers by ``vmap(jvp)`` of the step."""

    def __init__(self, work: Work, m: int) -> None:
        self.work, self.model = work, work.network()
        params = {name: param.detach().clone() for name, param in self.model.named_parameters()}
        self.state = (params, {name: torch.zeros_like(p) for name, p in params.items()})
        self.hparams = torch.tensor([0.01, 0.9, 1e-4] * 3)[: max(m, 3)]
        self.dot = tuple(
            {name: torch.zeros(m, *p.shape) for name, p in part.items()} for part in self.state
        )
        self.seeds = torch.eye(len(self.hparams))[:m]

    def loss(self, params: dict[str, Tensor], inputs: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of the network with these weights."""
        loss: Tensor = cross_entropy(functional_call(self.model, params, (inputs,)), targets)
        return loss

    def step(self, params: Any, buffers: Any, hparams: Tensor, batch: Pair) -> Any:
        """Return the weights and buffers after a step of SGD with momentum and weight decay."""
        lr, momentum, decay = hparams[:3]
        g = grad(self.loss)(params, *batch)
        buffers = {n: momentum * b + g[n] + decay * params[n] for n, b in buffers.items()}
        return {n: p - lr * buffers[n] for n, p in params.items()}, buffers

    def run(self) -> int:
        """Train, and return the number of steps."""
        for t in range(self.work.steps // 2):
            batch = self.work.batch(t)

            def along(p: Any, b: Any, seed: Tensor, batch: Pair = batch) -> Any:
                step = functools.partial(self.step, batch=batch)
                return jvp(step, (*self.state, self.hparams), (p, b, seed))[1]

            along_all: Any = vmap(along)
            dot = along_all(*self.dot, self.seeds)
            self.state, self.dot = self.step(*self.state, self.hparams, batch), dot
            if t % self.work.every == 0:
                e = grad(self.loss)(self.state[0], *self.work.validation(t))
                sum((self.dot[0][n].flatten(1) @ e[n].flatten()) for n in e)
        return self.work.steps // 2


def forward(m: int, discount: float = 1.0) -> Callable[[torch.optim.Optimizer], Any]:
    return lambda optimizer: hd.online.ForwardTuner(
        optimizer, TUNED[m], hyper_lr=1e-4, discount=discount
    )


make = functools.partial
baydin = hd.online.HypergradientDescent
CONTESTANTS: dict[str, Callable[[], Any]] = {
    "SGD": make(Loop, RANDOM, sgd),
    "SGD, HypergradientDescent": make(Loop, RANDOM, sgd, baydin),
    "SGD, DeltaBarDelta": make(Loop, RANDOM, sgd, make(hd.online.DeltaBarDelta, kappa=1e-7)),
    "SGD, ForwardTuner(1), discount 0": make(Loop, RANDOM, sgd, forward(1, 0.0)),
    **{f"SGD, ForwardTuner({m})": make(Loop, RANDOM, sgd, forward(m)) for m in TUNED},
    **{f"SGD, torch.func.jvp ({m})": make(Jvp, RANDOM, m) for m in TUNED},
    "Adam": make(Loop, RANDOM, adam),
    "Adam, HypergradientDescent": make(Loop, RANDOM, adam, baydin),
    "Adam, ForwardTuner(1), discount 0": make(Loop, RANDOM, adam, forward(1, 0.0)),
    "Adam, ForwardTuner(1)": make(Loop, RANDOM, adam, forward(1)),
    "digits": make(Loop, DIGITS, sgd),
    **{f"digits, from_training({m})": make(HandedOver, m, compile=False) for m in TUNED},
    **{f"digits, torch.func.jvp ({m})": make(Jvp, DIGITS, m) for m in TUNED},
}
if options.compile:
    CONTESTANTS |= {
        f"digits, from_training({m}), compiled": make(HandedOver, m, compile=True) for m in TUNED
    }
racing = {name: of() for name, of in CONTESTANTS.items() if name.startswith(options.only)}
times: dict[str, list[float]] = {name: [] for name in racing}
for turn in range(TURNS + 1):
    for name, contestant in racing.items():
        start = time.process_time()
        steps = contestant.run()
        if turn or options.smoke:  # the first one warms up
            times[name].append(1e3 * (time.process_time() - start) / steps)

table = Table("loop", "CPU ms a step", "x plain", "quartiles", box=SIMPLE_HEAD)
for name, column in times.items():
    plain = times[name.split(",")[0]]
    ratios = sorted(a / b for a, b in zip(column, plain, strict=True))
    ratio = statistics.median(column) / statistics.median(plain)
    low, high = ratios[len(ratios) // 4], ratios[3 * len(ratios) // 4]
    table.add_row(name, f"{statistics.median(column):.2f}", f"{ratio:.2f}", f"{low:.2f}-{high:.2f}")
Console(width=100).print(table)
print(f"Medians of {TURNS} turns. torch {torch.__version__}, {platform.machine()}.")

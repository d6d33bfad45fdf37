"""What tuning inside a training loop costs, in multiples of the loop without a tuner.

    python studies/benchmarks/online.py            about three minutes on one core
    python studies/benchmarks/online.py --smoke    a few steps, to see that it works

An MLP 784-256-256-10 on random pictures, batches of 128, SGD with momentum (and Adam); a validation
loss on 128 more pictures every 10 steps for those that take one. Contestants take turns in one
process, on one thread, and CPU time is counted. ``torch.func.jvp`` is what one would write without
this package: the forward-mode derivative of the whole step, ``vmap``ped over the hyperparameters.
"""

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp, vmap
from torch.nn.functional import cross_entropy

import hyperopt_dl as hd

parser = argparse.ArgumentParser(description="Time online tuners against plain training.")
parser.add_argument("--smoke", action="store_true", help="see that it works: a few steps only")
options = parser.parse_args()

TURNS, STEPS, EVERY, BATCH = (1, 10, 10, 128) if options.smoke else (9, 20, 10, 128)
JVP_STEPS = 2 if options.smoke else 10
RATE = hd.Float(1e-5, 10, log=True)
SMALL = hd.Float(1e-7, 0.1, log=True)
FRACTION = hd.Float(0.1, 0.9999)
HALF = {"lr@0": RATE, "momentum@0": FRACTION, "weight_decay@0": SMALL, "dampening@0": FRACTION}
TUNED: dict[int, dict[str, hd.Float]] = {
    1: {"lr": RATE},
    3: {"lr": RATE, "momentum": FRACTION, "weight_decay": SMALL},
    8: HALF | {name.replace("0", "1"): dimension for name, dimension in HALF.items()},
}
torch.set_num_threads(1)
draws = torch.Generator().manual_seed(0)
x, x_val = (torch.rand(BATCH, 784, generator=draws) for _ in range(2))
y, y_val = (torch.randint(10, (BATCH,), generator=draws) for _ in range(2))


def network() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.random.manual_seed(0)
        return nn.Sequential(
            nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10)
        )


def sgd(model: nn.Sequential) -> torch.optim.Optimizer:
    """Two groups: the first layer, and the rest."""
    groups = [{"params": model[0].parameters()}, {"params": model[1:].parameters()}]
    return torch.optim.SGD(groups, lr=0.01, momentum=0.9, dampening=0.1, weight_decay=1e-4)


def adam(model: nn.Sequential) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), lr=1e-4)


class Loop:
    """A user's loop; ``run`` goes on for some steps."""

    def __init__(
        self,
        optimizer_of: Callable[[nn.Sequential], torch.optim.Optimizer],
        tuner_of: Callable[[torch.optim.Optimizer], Any] = lambda _: None,
    ) -> None:
        self.model = network()
        self.optimizer = optimizer_of(self.model)
        self.tuner = tuner_of(self.optimizer)

    def run(self) -> int:
        """Train, and return the number of steps."""
        forward = isinstance(self.tuner, hd.online.ForwardTuner)
        for _ in range(STEPS):
            self.optimizer.zero_grad()
            loss = cross_entropy(self.model(x), y)
            if forward:
                self.tuner.backward(loss)
            else:
                loss.backward()  # type: ignore[no-untyped-call]
                if self.tuner is not None:
                    self.tuner.step()
            self.optimizer.step()
            if forward and self.tuner.steps % EVERY == 0:
                self.tuner.step(cross_entropy(self.model(x_val), y_val))
        return STEPS


class Jvp:
    """RTHO by ``torch.func``: tangents of weights and buffers by ``vmap(jvp)`` of the step."""

    def __init__(self, m: int) -> None:
        model = network()
        params = {name: param.detach().clone() for name, param in model.named_parameters()}
        self.model = model
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

    def step(self, params: Any, buffers: Any, hparams: Tensor) -> Any:
        """Return the weights and buffers after a step of SGD with momentum and weight decay."""
        lr, momentum, decay = hparams[:3]
        g = grad(self.loss)(params, x, y)
        buffers = {n: momentum * b + g[n] + decay * params[n] for n, b in buffers.items()}
        return {n: p - lr * buffers[n] for n, p in params.items()}, buffers

    def run(self) -> int:
        """Train, and return the number of steps."""
        for t in range(JVP_STEPS):

            def along(p: Any, b: Any, seed: Tensor) -> Any:
                return jvp(self.step, (*self.state, self.hparams), (p, b, seed))[1]

            along_all: Any = vmap(along)
            dot = along_all(*self.dot, self.seeds)
            self.state, self.dot = self.step(*self.state, self.hparams), dot
            if t % EVERY == 0:
                e = grad(self.loss)(self.state[0], x_val, y_val)
                sum((self.dot[0][n].flatten(1) @ e[n].flatten()) for n in e)
        return JVP_STEPS


def forward(m: int, discount: float = 1.0) -> Callable[[torch.optim.Optimizer], Any]:
    return lambda optimizer: hd.online.ForwardTuner(
        optimizer, TUNED[m], hyper_lr=1e-4, discount=discount
    )


CONTESTANTS: dict[str, Any] = {
    "SGD": Loop(sgd),
    "SGD, HypergradientDescent": Loop(sgd, hd.online.HypergradientDescent),
    "SGD, DeltaBarDelta": Loop(sgd, lambda o: hd.online.DeltaBarDelta(o, kappa=1e-7)),
    "SGD, ForwardTuner(1), discount 0": Loop(sgd, forward(1, 0.0)),
    **{f"SGD, ForwardTuner({m})": Loop(sgd, forward(m)) for m in TUNED},
    **{f"SGD, torch.func.jvp ({m})": Jvp(m) for m in TUNED},
    "Adam": Loop(adam),
    "Adam, HypergradientDescent": Loop(adam, hd.online.HypergradientDescent),
    "Adam, ForwardTuner(1), discount 0": Loop(adam, forward(1, 0.0)),
    "Adam, ForwardTuner(1)": Loop(adam, forward(1)),
}
times: dict[str, list[float]] = {name: [] for name in CONTESTANTS}
for turn in range(TURNS + 1):
    for name, contestant in CONTESTANTS.items():
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

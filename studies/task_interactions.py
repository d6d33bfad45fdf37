"""Learn which tasks belong together, from 50 examples (Franceschi et al. 2017, section 5.2).

    python studies/task_interactions.py            about ten minutes on one core; resumes if killed
    python studies/task_interactions.py --smoke    made-up pictures, seconds, leaves no file

The tasks are the ten classes of Fashion-MNIST, each a column w_k of a linear model, trained on 50
pictures with the penalty

    Ω(W) = Σ_jk C_jk ||w_j - w_k||² + ρ Σ_k ||w_k||².

Its coefficients are tuned by the hypergradient of the loss on 50 other pictures: ρ alone
(single-task), ρ and one number a for all pairs (naive), ρ and the matrix C (learned), and the same
with a bound R on the sum of C (bounded). With what was tuned the model is trained on all 100
pictures and tested on 10,000, which nothing was chosen on.

Letters: n pictures; p features, the last of them 1; K tasks; T steps; W weights, p x K; V velocity;
Y targets, n x K, 0 or 1.
"""

import argparse
import itertools
import json
import math
import statistics
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import torch
from optuna.trial import FrozenTrial
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn import functional

import hyperopt_dl as hd
from hyperopt_dl.constraints import nonnegative_symmetric
from studies.data import fashion_mnist
from studies.shared.figures import Axes, Figure, Rectangle, save

parser = argparse.ArgumentParser(description="Learn which tasks belong together.")
parser.add_argument("--data", type=Path, default=fashion_mnist.DEBIAN, help="the four .gz files")
parser.add_argument("--results", type=Path, default=Path("runs/task_interactions.jsonl"))
parser.add_argument("--smoke", action="store_true", help="see that it works: tiny, leaves no file")
options = parser.parse_args()

SEEDS = range(1) if options.smoke else range(5)  # of the draw of the pictures; nothing else is
EXAMPLES = 50  # to train on, and as many to validate on
FEATURES = 50  # principal components of all training pictures; no label is used
STEPS = 20 if options.smoke else 200
LR, MOMENTUM = 4.0, 0.9  # of the training: gradient descent on all pictures at once
TRIALS = 3 if options.smoke else 80
HYPER_LR = 0.05  # of the tuning, as a part of each range: Adam, projected
RHO = hd.Float(1e-6, 1e-1, log=True)
START = {"rho": 1e-3, "a": 0.0}  # an Array starts at its init, which is 0 here
STRONGEST = 1e-3  # bound of C_jk; at this strength the run makes w_j and w_k one
SUM = 5e-4  # R
K = 10
SPACES: dict[str, hd.Space] = {
    "single-task": hd.Space(rho=RHO),
    "naive": hd.Space(rho=RHO, a=hd.Float(0.0, 0.1 * STRONGEST)),
    "learned": hd.Space(
        rho=RHO,
        C=hd.Array((K, K), low=0.0, high=STRONGEST, constraint=nonnegative_symmetric()),
    ),
    "bounded": hd.Space(
        rho=RHO,
        C=hd.Array(
            (K, K), low=0.0, high=STRONGEST, constraint=nonnegative_symmetric(sum_at_most=SUM)
        ),
    ),
}
CLASSES = ("T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag",
           "boot")  # fmt: skip
TOPS, FOOTWEAR, REST = (0, 2, 3, 4, 6), (5, 7, 9), (1, 8)

Rows: TypeAlias = dict[tuple[str, str, int], dict[str, Any]]
"""Lines of the results, by loss, method and seed."""

torch.set_num_threads(1)
console = Console(highlight=False, width=180)


class TaskLoss(NamedTuple):
    """A mean over examples whose derivative in the scores, n x K, is (predict(scores) - Y) / n."""

    of: Callable[[Tensor, Tensor], Tensor]
    predict: Callable[[Tensor], Tensor]


def one_vs_rest(scores: Tensor, targets: Tensor) -> Tensor:
    """Return the logistic losses of the K tasks, added up."""
    total = functional.binary_cross_entropy_with_logits(scores, targets, reduction="sum")
    return total / len(targets)


LOSSES = {
    "one-vs-rest": TaskLoss(one_vs_rest, torch.sigmoid),
    "softmax": TaskLoss(functional.cross_entropy, lambda scores: scores.softmax(dim=1)),
}


class Examples(NamedTuple):
    """Features, n x p, and targets, n x K."""

    x: Tensor
    y: Tensor


@dataclass(frozen=True)
class Tasks:
    """The training of the K tasks: T steps of gradient descent with momentum, from zero."""

    task_loss: TaskLoss
    train: Examples
    validation: Examples
    steps: int = STEPS

    def init(self, hparams: hd.HParams, *, seed: int, device: torch.device | str) -> hd.State:
        """Return weights and velocities of zero."""
        del hparams, seed  # nothing of it is tuned, and nothing random
        W = torch.zeros(self.train.x.shape[1], K, dtype=self.train.x.dtype, device=device)
        return {"W": W, "V": W.clone()}

    def step(self, state: hd.State, hparams: hd.HParams, t: int) -> hd.State:
        """Return the state after a step, the same at every t."""
        del t
        V = MOMENTUM * state["V"] + self.slope(state["W"], hparams)
        return {"W": state["W"] - LR * V, "V": V}

    def loss(self, state: hd.State, hparams: hd.HParams) -> Tensor:
        """Return the validation loss, without the penalty."""
        del hparams
        return self.task_loss.of(self.validation.x @ state["W"], self.validation.y)

    def objective(self, W: Tensor, hparams: hd.HParams) -> Tensor:
        """Return what the training minimizes. The last row of W, the biases, is free."""
        w, rho = W[:-1], hparams["rho"]
        apart = (w.unsqueeze(2) - w.unsqueeze(1)).square().sum(dim=0)
        penalty: Tensor = (coupling(hparams) * apart).sum() + rho * w.square().sum()
        return self.task_loss.of(self.train.x @ W, self.train.y) + penalty

    def slope(self, W: Tensor, hparams: hd.HParams) -> Tensor:
        """Return the derivative of the objective, written out: half the cost of autograd's."""
        x, y = self.train
        pairs = coupling(hparams)
        pairs = pairs + pairs.mT
        w = torch.cat([W[:-1], torch.zeros_like(W[-1:])])
        penalty: Tensor = 2 * (w * (pairs.sum(dim=0) + hparams["rho"]) - w @ pairs)
        return x.mT @ (self.task_loss.predict(x @ W) - y) / len(x) + penalty


def coupling(hparams: hd.HParams) -> Tensor:
    """Return the matrix C, given as it is, or as a for all pairs, or not at all."""
    C: Tensor = hparams.get("C", hparams.get("a", 0.0) * torch.ones(K, K, dtype=torch.double))
    return C


def check_slope(training: Tasks) -> None:
    """Compare the derivative that is written out with autograd's."""
    generator = torch.Generator().manual_seed(0)
    W = torch.randn(training.train.x.shape[1], K, generator=generator, dtype=torch.double)
    C = torch.rand(K, K, generator=generator, dtype=torch.double)  # not even symmetric
    hparams, W = {"rho": 0.3, "C": C}, W.requires_grad_()
    (expected,) = torch.autograd.grad(training.objective(W, hparams), W)
    torch.testing.assert_close(training.slope(W, hparams).detach(), expected)


class Pictures(NamedTuple):
    """All that is drawn from, and all that is tested on."""

    train: Examples
    test: Examples


def read_pictures() -> Pictures:
    """Return the data with its principal components as features, of mean squared norm 1."""
    if options.smoke:
        train, test = make_up_pictures()
    else:
        train, test = fashion_mnist.read(options.data)
    middle = train.x.mean(dim=0)
    _, axes = torch.linalg.eigh((train.x - middle).mT @ (train.x - middle))
    axes = axes[:, -FEATURES:]
    size = ((train.x - middle) @ axes).square().sum(dim=1).mean().sqrt()

    def examples(images: fashion_mnist.Images) -> Examples:
        x = (images.x - middle) @ axes / size
        x = torch.cat([x, torch.ones(len(x), 1)], dim=1)
        return Examples(x.double(), functional.one_hot(images.y, K).double())

    return Pictures(examples(train), examples(test))


def make_up_pictures() -> fashion_mnist.FashionMNIST:
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(500) % K
    x = torch.randn(K, 784, generator=generator)[y] + torch.randn(500, 784, generator=generator)
    return fashion_mnist.FashionMNIST(
        fashion_mnist.Images(x[:400], y[:400]), fashion_mnist.Images(x[400:], y[400:])
    )


def draw(pictures: Pictures, loss: str, seed: int) -> Tasks:
    """Return the training on 50 pictures of a seed, validated on 50 others."""
    x, y = pictures.train
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    first, second = order[:EXAMPLES], order[EXAMPLES : 2 * EXAMPLES]
    return Tasks(LOSSES[loss], Examples(x[first], y[first]), Examples(x[second], y[second]))


def together(training: Tasks) -> Tasks:
    """Return the training on the validation pictures too."""
    x, y = (torch.cat(pair) for pair in zip(training.train, training.validation, strict=True))
    return replace(training, train=Examples(x, y))


def tune(training: Tasks, space: hd.Space) -> FrozenTrial:
    """Return the trial of the lowest validation loss along a descent from START."""
    study = hd.Study(space, tuner=hd.Hypergradient(lr=HYPER_LR), seed=0)
    study.enqueue({name: START[name] for name in space if name in START})
    study.optimize(training, n_trials=TRIALS, progress=False)
    return study.best


def accuracy(training: Tasks, hparams: hd.HParams, examples: Examples) -> float:
    """Return the part of the examples that a training gets right."""
    scores = examples.x @ hd.rollout(training, hparams)["W"]
    return float((scores.argmax(dim=1) == examples.y.argmax(dim=1)).double().mean())


def measure(pictures: Pictures, loss: str, method: str, seed: int) -> dict[str, Any]:
    """Return one line of the results."""
    training = draw(pictures, loss, seed)
    check_slope(training)
    best = tune(training, SPACES[method])
    hparams = best.params
    return {
        "loss": loss,
        "method": method,
        "seed": seed,
        "value": best.value,
        "rho": float(hparams["rho"]),
        "C": coupling(hparams).tolist(),
        "test_50": accuracy(training, hparams, pictures.test),
        "test_100": accuracy(together(training), hparams, pictures.test),
    }


def within(groups: tuple[tuple[int, ...], ...]) -> list[tuple[int, int]]:
    """Return the pairs of tasks that share a group."""
    return [pair for group in groups for pair in itertools.combinations(group, 2)]


def groupings() -> Iterator[tuple[tuple[int, ...], ...]]:
    """Yield all 2520 ways to part the tasks into groups of 5, 3 and 2."""
    for tops in itertools.combinations(range(K), len(TOPS)):
        others = sorted(set(range(K)) - set(tops))
        for footwear in itertools.combinations(others, len(FOOTWEAR)):
            yield tops, footwear, tuple(sorted(set(others) - set(footwear)))


PAIRS = torch.tensor(within((TOPS, FOOTWEAR, REST)))
ALL_PAIRS = torch.tensor([within(groups) for groups in groupings()])


class Grouping(NamedTuple):
    """How well a matrix knows tops, footwear and the rest.

    ``ratio`` is the mean of C within the groups over that between them; ``rank`` is how many of the
    2520 groupings have at least as much of C within, this one among them.
    """

    ratio: float
    rank: int


def grouping(C: Tensor) -> Grouping:
    inside = C[PAIRS[:, 0], PAIRS[:, 1]]
    total = C.triu(diagonal=1).sum()
    outside = (total - inside.sum()) / (K * (K - 1) // 2 - len(PAIRS))
    rivals = C[ALL_PAIRS[..., 0], ALL_PAIRS[..., 1]].sum(dim=1)
    rank = int((rivals >= inside.sum() - 1e-9 * total).sum())  # equal but for rounding is equal
    return Grouping(float(inside.mean() / outside) if outside > 0 else math.inf, rank)


def spread(numbers: list[float], form: str) -> str:
    """Return mean and standard deviation as text."""
    deviation = statistics.stdev(numbers) if len(numbers) > 1 else 0.0
    return f"{statistics.fmean(numbers):{form}} ± {deviation:{form.lstrip('+')}}"


def tabulate(rows: Rows) -> Table:
    """Return a line for each loss and method, over the seeds."""
    table = Table(
        box=SIMPLE_HEAD,
        title="Mean ± standard deviation over the seeds; accuracies in %, gains over single-task",
    )
    for heading in ("loss", "method", "validation loss", "test, of 50", "gain (won)",
                    "test, of 100", "gain (won)", "C within / between",
                    "rank of 2520"):  # fmt: skip
        table.add_column(heading, justify="left" if heading in ("loss", "method") else "right")
    for loss, method in itertools.product(LOSSES, SPACES):
        runs = [rows[loss, method, seed] for seed in SEEDS]
        cells = [spread([run["value"] for run in runs], ".3f")]
        for test in ("test_50", "test_100"):
            single = [100 * rows[loss, "single-task", seed][test] for seed in SEEDS]
            found = [100 * run[test] for run in runs]
            gains = [a - b for a, b in zip(found, single, strict=True)]
            won = sum(gain > 0 for gain in gains)
            cells += [spread(found, ".2f"), f"{spread(gains, '+.2f')} ({won})"]
        if "C" in SPACES[method]:
            groups = [grouping(matrix(run)) for run in runs]
            cells.append(", ".join(f"{one.ratio:.1f}" for one in groups))
            cells.append(", ".join(str(one.rank) for one in groups))
        table.add_row(loss, method, *cells, end_section=method == "bounded")
    return table


def matrix(row: Mapping[str, Any]) -> Tensor:
    return torch.tensor(row["C"], dtype=torch.double)


def heat_map(axes: Axes, C: Tensor, title: str) -> None:
    """Draw a matrix: tasks in the order of their groups, white 0, dark the largest."""
    order, found = (*TOPS, *FOOTWEAR, *REST), grouping(C)
    axes.imshow(C[order, :][:, order], cmap="Blues", vmin=0)
    axes.set_title(f"{title}\nwithin / between {found.ratio:.1f}, rank {found.rank}")
    axes.set_xticks(range(K), [CLASSES[task] for task in order], rotation=90)
    axes.set_yticks(range(K), [CLASSES[task] for task in order])
    start = -0.5
    for size in map(len, (TOPS, FOOTWEAR, REST)):
        square = Rectangle((start, start), size, size, fill=False, edgecolor="tab:orange")
        axes.add_patch(square)
        start += size


def picture(rows: Rows) -> Figure:
    """Return the means over the seeds of the matrices found."""
    figure = Figure(figsize=(7.5, 8), layout="constrained")
    maps = itertools.product(LOSSES, ("learned", "bounded"))
    for axes, (loss, method) in zip(figure.subplots(len(LOSSES), 2).flat, maps, strict=True):
        C = torch.stack([matrix(rows[loss, method, seed]) for seed in SEEDS]).mean(dim=0)
        heat_map(axes, C, f"{method}, {loss}")
    return figure


def run(results: Path | None) -> Rows:
    """Return all lines of the results; those that are not in the file yet are measured."""
    kept = results.read_text().splitlines() if results is not None and results.is_file() else []
    rows = {(row["loss"], row["method"], row["seed"]): row for row in map(json.loads, kept)}
    pictures = read_pictures()
    for seed, loss, method in itertools.product(SEEDS, LOSSES, SPACES):
        if (loss, method, seed) in rows:
            continue
        row = rows[loss, method, seed] = measure(pictures, loss, method, seed)
        console.print(
            f"seed {seed}, {loss}, {method}: validation loss {row['value']:.4f}, "
            f"test {row['test_50']:.2%}, trained on 100 {row['test_100']:.2%}"
        )
        if results is not None:
            results.parent.mkdir(parents=True, exist_ok=True)
            with results.open("a") as file:
                file.write(json.dumps(row) + "\n")
    return rows


rows = run(None if options.smoke else options.results)
console.print(tabulate(rows))
drawn = picture(rows)
if not options.smoke:
    figure = options.results.with_suffix(".svg")
    save(drawn, figure)
    console.print(f"The lines are in {options.results}, the matrices in {figure}.")

"""Find wrong labels by the derivative of the validation loss in a weight for each example.

    python studies/data_cleaning.py                 4 bounds, 3 seeds: some minutes of CPU time
    python studies/data_cleaning.py                 again: goes on where it was, shows the table
    python studies/data_cleaning.py --hidden 64 --bounds 1500 --seeds 1      a two-layer network
    python studies/data_cleaning.py --paper         the published lengths: days on a CPU
    python studies/data_cleaning.py --smoke         a tiny run that leaves no file

The experiment of Franceschi, Donini, Frasconi and Pontil 2017, section 5.1, on Fashion-MNIST. Of
5000 training examples, half get a different label at random. Each has a weight in [0, 1], and the
weights sum to R at most. Adam moves them, from R / 5000 each, along the derivative of the
cross-entropy on 5000 clean validation examples after a whole training run; then those with a weight
below 0.001 are discarded, and what is left is joined with the validation set to train once more.

Other trainings are there to compare with: on the labels as they were (the oracle), on the wrong
ones (the baseline), on the validation set alone, and on what is left if a network trained on the
validation set discards what it doubts. The gap is from the baseline to the oracle; F1 is that of
"discarded" as a guess of "wrong".

``--figures FOLDER`` draws the run with the first seed and the bound nearest to 1500. The data come
from Debian's package ``dataset-fashion-mnist`` or from ``--data``.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from math import nan
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import hyperopt_dl as hd
from studies.data import fashion_mnist
from studies.shared.figures import Figure, save

CLASSES = ("t-shirt", "trousers", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag",
           "ankle boot")  # fmt: skip
GROUPS = ("t-shirt", "pullover", "dress", "coat", "shirt"), ("sandal", "sneaker", "ankle boot")
DISCARD_BELOW = 1e-3


class Lengths(NamedTuple):
    """How long everything runs: the training that is differentiated, the descent, the last one."""

    steps: int
    lr: float
    momentum: float
    moves: int
    hyper_lr: float
    final_steps: int
    final_momentum: float
    final_lr: float = 0.1


# Momentum 0.9 takes steps that are ten times as long in the end: 400 of 0.1 go as far as 4000.
SHORT = Lengths(50, 0.05, 0.9, moves=20, hyper_lr=0.1, final_steps=400, final_momentum=0.9)
PAPER = Lengths(4000, 0.1, 0.0, moves=500, hyper_lr=0.005, final_steps=4000, final_momentum=0.0)
SMOKE = SHORT._replace(steps=5, moves=5, final_steps=5)

parser = argparse.ArgumentParser(description="Find wrong labels by hypergradients.")
parser.add_argument("--data", type=Path, help="folder with the four .gz files of Fashion-MNIST")
parser.add_argument("--bounds", type=float, nargs="+", default=[1000, 1500, 2000, 2500])
parser.add_argument("--seeds", type=int, default=3, help="how many")
parser.add_argument("--hidden", type=int, default=0, help="units; 0 is softmax regression")
parser.add_argument("--paper", action="store_true", help="the lengths of the paper")
parser.add_argument("--smoke", action="store_true", help="see that it works: tiny, leaves no file")
parser.add_argument("--record", type=Path, default=Path("runs/data_cleaning.jsonl"))
parser.add_argument("--figures", type=Path, help="folder for the two pictures")
arguments = parser.parse_args()
lengths = SMOKE if arguments.smoke else PAPER if arguments.paper else SHORT
EXAMPLES = 200 if arguments.smoke else 5000
SEEDS = range(1, 2 if arguments.smoke else 1 + arguments.seeds)  # on seed 0, SHORT was chosen
# With fewer examples the bounds keep their meaning as a share of them.
BOUNDS: list[float] = [bound * EXAMPLES / 5000 for bound in arguments.bounds]
record: Path | None = None if arguments.smoke else arguments.record
torch.set_num_threads(1)
console = Console(highlight=False, soft_wrap=True, width=110)


class Data(NamedTuple):
    """The examples of a seed: ``labels`` are there to train on, ``wrong`` where not ``truth``."""

    x: Tensor
    truth: Tensor
    labels: Tensor
    wrong: Tensor
    validation: tuple[Tensor, Tensor]


pictures = fashion_mnist.read(arguments.data or fashion_mnist.DEBIAN)


def draw(seed: int) -> Data:
    """Draw training and validation set, and give half of the training set wrong labels."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(pictures.train.y), generator=generator)
    first, second = order[:EXAMPLES], order[EXAMPLES : 2 * EXAMPLES]
    truth = pictures.train.y[first]
    wrong = torch.zeros(EXAMPLES, dtype=torch.bool)
    wrong[torch.randperm(EXAMPLES, generator=generator)[: EXAMPLES // 2]] = True
    shift = torch.randint(1, len(CLASSES), truth.shape, generator=generator)
    labels = torch.where(wrong, (truth + shift) % len(CLASSES), truth)
    validation = pictures.train.x[second], pictures.train.y[second]
    return Data(pictures.train.x[first], truth, labels, wrong, validation)


def network(_hp: Any) -> nn.Module:
    inputs = pictures.train.x.shape[1]
    if arguments.hidden:
        hidden = nn.Linear(inputs, arguments.hidden)
        return nn.Sequential(hidden, nn.ReLU(), nn.Linear(arguments.hidden, len(CLASSES)))
    regression = nn.Linear(inputs, len(CLASSES))
    for parameter in regression.parameters():
        nn.init.zeros_(parameter)
    return regression


def clean(data: Data, bound: float, seed: int) -> Tensor:
    """Return the weights ``[n]`` that the descent ends with."""
    training = hd.Supervised(
        model=network,
        loss=nn.functional.cross_entropy,
        optimizer=hd.optimizers.SGD(lr=lengths.lr, momentum=lengths.momentum),
        train=(data.x, data.labels),
        validation=data.validation,
        steps=lengths.steps,
        weights="weights",
    )
    weights = hd.Array(
        EXAMPLES,
        low=0.0,
        high=1.0,
        init=bound / EXAMPLES,
        constraint=hd.constraints.sum_at_most(bound),
    )
    tuner = hd.Hypergradient(optimizer="adam", lr=lengths.hyper_lr)
    study = hd.Study(hd.Space(weights=weights), tuner=tuner, seed=seed)
    study.optimize(training, n_trials=1 + lengths.moves)
    last: Tensor = study.params(lengths.moves)["weights"]
    return last


def accuracy(output: Tensor, target: Tensor) -> Tensor:
    return (output.argmax(dim=1) == target).float().mean()


def train(x: Tensor, y: Tensor, seed: int) -> tuple[nn.Module, float]:
    """Train on these examples; return the network and its accuracy on the test set, in percent."""
    training = hd.Supervised(
        model=network,
        loss=nn.functional.cross_entropy,
        optimizer=hd.optimizers.SGD(lr=lengths.final_lr, momentum=lengths.final_momentum),
        train=(x, y),
        validation=pictures.test,  # only measured on: nothing is chosen here
        steps=lengths.final_steps,
        metrics={"accuracy": accuracy},
    )
    state = hd.rollout(training, {}, seed=seed)
    return training.module(state, {}), 100 * training.metrics(state, {})["accuracy"]


def accuracy_with(data: Data, labels: Tensor, kept: Tensor, seed: int) -> float:
    """Train on the kept examples and the validation set together."""
    x, y = data.validation
    return train(torch.cat([data.x[kept], x]), torch.cat([labels[kept], y]), seed)[1]


def f1(guessed: Tensor, wrong: Tensor) -> float:
    """Return the harmonic mean of precision and recall, two boolean tensors ``[n]`` compared."""
    return 2 * float((guessed & wrong).sum()) / float(guessed.sum() + wrong.sum())


def references(seed: int) -> dict[str, Any]:
    """Return the accuracies that cleaning is compared with."""
    data, everything = draw(seed), torch.ones(EXAMPLES, dtype=torch.bool)
    return {
        "oracle": accuracy_with(data, data.truth, everything, seed),
        "baseline": accuracy_with(data, data.labels, everything, seed),
        "validation": train(*data.validation, seed)[1],
    }


def doubted(seed: int) -> dict[str, Any]:
    """Discard without a hypergradient: what a network of the validation set finds improbable.

    With half the labels wrong, a label of probability p is right with odds ``p : (1 - p) / 9``.
    """
    data, start = draw(seed), time.process_time()
    network, _ = train(*data.validation, seed)
    with torch.no_grad():
        probability = network(data.x).softmax(dim=1).gather(1, data.labels[:, None])[:, 0]
    return judged(data, probability < 1 / len(CLASSES), seed, time.process_time() - start)


def cleaned(bound: float, seed: int) -> dict[str, Any]:
    """Discard by the weights of a descent."""
    data, start = draw(seed), time.process_time()
    weights = clean(data, bound, seed)
    seconds = time.process_time() - start
    return {
        **judged(data, weights < DISCARD_BELOW, seed, seconds),
        "weights": [round(weight, 6) for weight in weights.tolist()],
    }


def judged(data: Data, discarded: Tensor, seed: int, seconds: float) -> dict[str, Any]:
    """Return how good it was to discard these."""
    return {
        "accuracy": accuracy_with(data, data.labels, ~discarded, seed),
        "f1": f1(discarded, data.wrong),
        "discarded": int(discarded.sum()),
        "seconds": seconds,
    }


def known() -> dict[str, dict[str, Any]]:
    if record is None or not record.exists():
        return {}
    lines = [json.loads(line) for line in record.read_text().splitlines()]
    return {line["key"]: line["result"] for line in lines}


def remember(key: str, result: dict[str, Any]) -> None:
    results[key] = result
    if record is not None:
        record.parent.mkdir(parents=True, exist_ok=True)
        with record.open("a") as file:
            file.write(json.dumps({"key": key, "result": result}) + "\n")


def key_of(what: str, seed: int) -> str:
    """Name a result by everything that it depends on."""
    return json.dumps([what, seed, arguments.hidden, EXAMPLES, *lengths])


def draw_examples(data: Data, discarded: Tensor) -> Figure:
    """Draw the first examples of each of the four cases, each above the label that it came with."""
    cases = {
        "wrong label, discarded": data.wrong & discarded,
        "wrong label, kept": data.wrong & ~discarded,
        "right label, kept": ~data.wrong & ~discarded,
        "right label, discarded": ~data.wrong & discarded,
    }
    figure = Figure(figsize=(9.6, 5), layout="constrained")
    grid = figure.add_gridspec(len(cases), 1)
    for k, (title, case) in enumerate(cases.items()):
        row = figure.add_subfigure(grid[k])
        row.suptitle(f"{title}: {int(case.sum())}", x=0.01, ha="left", weight="bold")
        places = row.subplots(1, 12)
        for axes, i in zip(places, case.nonzero().flatten().tolist(), strict=False):
            axes.imshow(data.x[i].reshape(28, 28), cmap="gray_r", vmin=0, vmax=1)
            axes.set_title(CLASSES[int(data.labels[i])], y=-0.35, size="small")
        for axes in places:
            axes.set_axis_off()
    return figure


def draw_histogram(weights: Tensor, wrong: Tensor) -> Figure:
    """Draw how many examples have which weight; those that are discarded have bars of their own."""
    bins = 20
    place = torch.where(weights < DISCARD_BELOW, 0, 2 + (bins * weights).long().clamp(max=bins - 1))
    figure = Figure(figsize=(7, 3), layout="constrained")
    axes = figure.subplots()
    for shift, kind, label in ((0.3, ~wrong, "right label"), (0.7, wrong, "wrong label")):
        counts = place[kind].bincount(minlength=bins + 2)
        axes.bar(torch.arange(-2, bins) + shift, counts, width=0.4, label=label)
    axes.set_xticks([-1.5, bins / 2, bins], ["discarded", "weight 0.5", "1"])
    axes.set_ylabel("examples")
    axes.legend()
    return figure


def weights_of(bound: float, seed: int) -> Tensor:
    return torch.tensor(results[key_of(f"R={bound}", seed)]["weights"])


def draw_figures(folder: Path, bound: float, seed: int) -> None:
    data, weights = draw(seed), weights_of(bound, seed)
    for name, drawing in {
        "examples": draw_examples(data, weights < DISCARD_BELOW),
        "weights": draw_histogram(weights, data.wrong),
    }.items():
        path = folder / f"data_cleaning_{name}.svg"
        save(drawing, path)
        console.print(f"Drawn: {path}")


def print_mistakes(bound: float) -> None:
    """Print which wrong labels are kept and which right ones are discarded, over all seeds."""
    data = [draw(seed) for seed in SEEDS]
    discarded = torch.cat([weights_of(bound, seed) for seed in SEEDS]) < DISCARD_BELOW
    wrong = torch.cat([part.wrong for part in data])
    truth, label = torch.cat([part.truth for part in data]), torch.cat([d.labels for d in data])
    alike = torch.zeros_like(wrong)
    for group in GROUPS:
        members = torch.tensor([CLASSES.index(name) for name in group])
        alike |= torch.isin(truth, members) & torch.isin(label, members)
    console.print(
        f"R = {bound:g}. Wrong labels that are kept: {share(~discarded, wrong & alike)} where both "
        f"classes are tops or both shoes, {share(~discarded, wrong & ~alike)} of the others.\n"
        "Right labels that are discarded: "
        + ", ".join(
            f"{name} {share(discarded, ~wrong & (truth == i))}" for i, name in enumerate(CLASSES)
        )
        + "."
    )


def share(chosen: Tensor, among: Tensor) -> str:
    return f"{100 * float((chosen & among).sum()) / max(1, int(among.sum())):.0f} %"


def spread(values: Sequence[float], digits: int) -> str:
    mean = f"{statistics.mean(values):.{digits}f}"
    return f"{mean} ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else mean


def closed(runs: Sequence[dict[str, Any]]) -> list[float]:
    """Return the part of each seed's gap that is closed, in percent."""
    gaps = [gap["oracle"] - gap["baseline"] for gap in base]
    gains = [run["accuracy"] - gap["baseline"] for run, gap in zip(runs, base, strict=True)]
    return [100 * gain / gap if gap else nan for gain, gap in zip(gains, gaps, strict=True)]


WAYS: dict[str, Callable[[int], dict[str, Any]]] = {"references": references, "doubt": doubted}
WAYS |= {f"R={bound}": partial(cleaned, bound) for bound in BOUNDS}
results = known()
for way, run in WAYS.items():
    for seed in SEEDS:
        if key_of(way, seed) not in results:
            remember(key_of(way, seed), run(seed))

base = [results[key_of("references", seed)] for seed in SEEDS]
rows = {
    label: [{"accuracy": gap[name]} for gap in base]
    for name, label in {
        "oracle": "true labels + validation",
        "baseline": "wrong labels + validation",
        "validation": "validation alone",
    }.items()
}
rows["kept + validation: by its doubt"] = [results[key_of("doubt", seed)] for seed in SEEDS]
for bound in BOUNDS:
    runs = [results[key_of(f"R={bound}", seed)] for seed in SEEDS]
    rows[f"kept + validation: R = {bound:g}"] = runs

title = f"two layers, {arguments.hidden} hidden" if arguments.hidden else "softmax regression"
table = Table(title=f"Fashion-MNIST, half the labels wrong: {title}", box=SIMPLE_HEAD)
for heading in ("trained on", "test accuracy, %", "gap closed, %", "F1", "discarded", "CPU s"):
    table.add_column(heading, justify="left" if heading == "trained on" else "right", no_wrap=True)
for label, runs in rows.items():
    cells = [spread([run["accuracy"] for run in runs], 2), spread(closed(runs), 0)]
    if "f1" in runs[0]:
        cells += [spread([run["f1"] for run in runs], 3)]
        cells += [spread([run["discarded"] for run in runs], 0)]
        cells += [f"{statistics.mean(run['seconds'] for run in runs):.0f}"]
    table.add_row(label, *cells)
console.print(table)
console.print(f"Mean ± standard deviation, {len(SEEDS)} seed(s). {lengths}")

shown = min(BOUNDS, key=lambda bound: abs(bound - 0.3 * EXAMPLES))
print_mistakes(shown)
if arguments.figures is not None:
    draw_figures(arguments.figures, shown, SEEDS[0])

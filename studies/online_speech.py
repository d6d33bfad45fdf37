"""Learning rate, momentum and the weight of a second task, tuned while a network learns phones.

    python studies/online_speech.py            3 seeds, some nine CPU minutes
    python studies/online_speech.py --smoke    few steps on a few frames; made-up ones for want
                                               of espeak-ng

The experiment of Franceschi et al. 2017, section 5.3, on synthetic speech. A network of four layers
says of a frame of 10 ms, seen with its neighbours, which phone it is in. A second head gives the
context: embeddings of the phones before and after. The training loss is L + ρ L', cross-entropy
and squared error; what counts is the first task alone.

By hand: the defaults below. Random search and TPE look for lr, momentum and ρ with trainings of
the same length, and end with the one that is best on the validation speakers. RTHO is
`ForwardTuner`: one training, which moves all three against the derivative of L on validation
frames. It runs first, and everybody else gets the CPU seconds that it took from the defaults.
"""

import argparse
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import optuna
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss

import hyperopt_dl as hd
from studies.data import espeak, spoken_phones
from studies.data.spoken_phones import Frames, Speech
from studies.shared.figures import Figure, save

parser = argparse.ArgumentParser(description="Tune a network for phones while it trains.")
parser.add_argument("--cache", type=Path, default=Path("runs/spoken_phones.pt"))
parser.add_argument("--figure", type=Path, default=Path("runs/online_speech.svg"))
parser.add_argument("--smoke", action="store_true", help="see that it works: leaves no file")
options = parser.parse_args()

SEEDS = range(1) if options.smoke else range(3)
STEPS, BATCH = (20, 32) if options.smoke else (1000, 128)
WIDTH, AROUND, EMBEDDING = 256, 5, 16  # hidden units; frames on each side; numbers for a phone
EVERY, VALIDATION_BATCH, HYPER_LR = 5, 512, 0.05  # of RTHO
TUNE = {
    "lr": hd.Float(1e-4, 1.0, log=True),
    "momentum": hd.Float(0.001, 0.95),
    "rho": hd.Float(0.0, 4.0),
}
DEFAULTS = {"lr": 0.01, "momentum": 0.9, "rho": 0.0}
NULL = {"lr": 1e-4, "momentum": 0.001, "rho": 0.0}  # the lowest of all three
FROM_DEFAULTS, FROM_NULL = "RTHO from the defaults", "RTHO from a null start"
STARTS, COLOURS = {FROM_DEFAULTS: DEFAULTS, FROM_NULL: NULL}, ("tab:blue", "tab:orange")
LEVELS = {"lr": (1e-4, 1e-3, 1e-2, 1e-1, 1.0), "momentum": (0.2, 0.5, 0.8, 0.95), "rho": (0, 2, 4)}
torch.set_num_threads(1)
optuna.logging.set_verbosity(optuna.logging.WARNING)

Hparams = dict[str, float]


class Run(NamedTuple):
    """How a training ended: accuracies in %, the last hyperparameters, and how they moved."""

    validation: float
    test: float
    hparams: Hparams
    history: Sequence[hd.online.Move]


class Row(NamedTuple):
    """A method on a seed."""

    run: Run
    trainings: int
    seconds: float


class TwoHeads(nn.Module):
    """Three hidden layers, and as the fourth the phone and the context side by side."""

    def __init__(self, phones: int) -> None:
        super().__init__()
        inputs = spoken_phones.BANDS * (2 * AROUND + 1)
        self.hidden = nn.Sequential(
            *(nn.Linear(inputs, WIDTH), nn.ReLU()),
            *(nn.Linear(WIDTH, WIDTH), nn.ReLU()),
            *(nn.Linear(WIDTH, WIDTH), nn.ReLU()),
        )
        self.phone = nn.Linear(WIDTH, phones)
        self.context = nn.Linear(WIDTH, 2 * EMBEDDING)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the scores of the phones, and the context."""
        h = self.hidden(x)
        return self.phone(h), self.context(h)


def stand_in() -> Speech:
    """Return made-up frames: a random spectrum for each of five phones, with noise."""
    draws = torch.Generator().manual_seed(0)
    spectra = torch.randn(5, spoken_phones.BANDS, generator=draws)

    def frames(n: int) -> Frames:
        y = torch.randint(5, (n // 8,), generator=draws).repeat_interleave(8)
        x = spectra[y] + torch.randn(len(y), spoken_phones.BANDS, generator=draws)
        return Frames(x, y, *spoken_phones.neighbours(y))

    return Speech(frames(2000), frames(400), frames(400), list("_aeio"))


def speech() -> Speech:
    if not options.smoke:
        return spoken_phones.read(options.cache)
    if espeak.is_here():
        return spoken_phones.synthesized(speakers=1, sentences=1)
    print("espeak-ng is not here: these are made-up frames. Debian's package is libespeak-ng1.")
    return stand_in()


def embeddings(frames: Frames, phones: int) -> Tensor:
    """Return a vector for each phone from what stands beside it in training, `phones x EMBEDDING`.

    The leading singular vectors of the positive pointwise mutual information of neighbours, scaled
    to unit variance over the training frames.
    """
    counts = torch.zeros(phones, 2 * phones)
    for shift, beside in ((0, frames.before), (phones, frames.after)):
        counts.index_put_((frames.y, beside + shift), torch.ones(1), accumulate=True)
    share = counts / counts.sum()
    expected = share.sum(dim=1, keepdim=True) * share.sum(dim=0, keepdim=True)
    information = (share / expected.clamp(min=1e-12)).clamp(min=1.0).log()
    left, size, _ = torch.linalg.svd(information, full_matrices=False)
    found = torch.zeros(phones, EMBEDDING)
    width = min(EMBEDDING, phones)
    found[:, :width] = left[:, :width] * size[:width].sqrt()
    return found / found[frames.y].std().clamp(min=1e-6)


data = speech()
vectors = embeddings(data.train, len(data.phones))


def inputs(frames: Frames, rows: Tensor) -> Tensor:
    """Return frames with those on both sides of them, `n x (2 AROUND + 1) BANDS`."""
    beside = rows[:, None] + torch.arange(-AROUND, AROUND + 1)
    return frames.x[beside.clamp(0, len(frames.x) - 1)].flatten(1)


def loss_of(model: TwoHeads, frames: Frames, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return L and L' on some frames."""
    phone, context = model(inputs(frames, rows))
    target = torch.cat([vectors[frames.before[rows]], vectors[frames.after[rows]]], dim=1)
    return cross_entropy(phone, frames.y[rows]), mse_loss(context, target)


@torch.no_grad()
def accuracy(model: TwoHeads, frames: Frames) -> float:
    right = 0
    for rows in torch.split(torch.arange(len(frames.y)), 4096):
        scores, _ = model(inputs(frames, rows))
        right += int((scores.argmax(dim=1) == frames.y[rows]).sum())
    return 100 * right / len(frames.y)


def train(hparams: Hparams, seed: int, *, steps: int = STEPS, online: bool = False) -> Run:
    """Train a network, with its hyperparameters fixed or tuned online."""
    draws = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng():
        torch.random.manual_seed(seed)
        model = TwoHeads(len(data.phones))
    optimizer = torch.optim.SGD(model.parameters(), lr=hparams["lr"], momentum=hparams["momentum"])
    rho, tuner = torch.tensor(hparams["rho"], requires_grad=online), None
    if online:
        tuner = hd.online.ForwardTuner(optimizer, TUNE, HYPER_LR, in_loss={"rho": rho})
    for _ in range(steps):
        rows = torch.randint(len(data.train.y), (BATCH,), generator=draws)
        optimizer.zero_grad()
        first, second = loss_of(model, data.train, rows)
        if tuner is None:
            (first + rho * second).backward()  # type: ignore[no-untyped-call]
        else:
            tuner.backward(first + rho * second)
        optimizer.step()
        if tuner is not None and tuner.steps % EVERY == 0:
            rows = torch.randint(len(data.validation.y), (VALIDATION_BATCH,), generator=draws)
            tuner.step(loss_of(model, data.validation, rows)[0])
    group = optimizer.param_groups[0]
    last = {"lr": group["lr"], "momentum": group["momentum"], "rho": float(rho.detach())}
    scores = accuracy(model, data.validation), accuracy(model, data.test)
    return Run(*scores, last, tuner.history if tuner else [])


def once(hparams: Hparams, seed: int, *, steps: int = STEPS, online: bool = False) -> Row:
    began = time.process_time()
    run = train(hparams, seed, steps=steps, online=online)
    return Row(run, 1, time.process_time() - began)


def search(sampler: optuna.samplers.BaseSampler, seed: int, budget: float) -> Row:
    """Return the best of the trainings that end within the CPU seconds, at least one."""
    study = hd.Study(hd.Space(**TUNE), tuner=sampler, direction="maximize", seed=seed)
    began, runs = time.process_time(), list[Run]()
    while not runs or (spent := time.process_time() - began) * (1 + 1 / len(runs)) <= budget:
        trial = study.ask()
        runs.append(train(dict(trial.params), seed))
        study.tell(trial, runs[-1].validation)
    best = max(runs, key=lambda run: run.validation)
    return Row(best, len(runs), spent)


def main() -> None:
    rows: dict[str, list[Row]] = {}
    for seed in SEEDS:
        online = {method: once(start, seed, online=True) for method, start in STARTS.items()}
        budget = online[FROM_DEFAULTS].seconds
        by_hand = once(DEFAULTS, seed)
        longer = int(STEPS * budget / by_hand.seconds)
        found = {
            "defaults": by_hand,
            "defaults, for as long": once(DEFAULTS, seed, steps=longer),
            "random search": search(optuna.samplers.RandomSampler(), seed, budget),
            "TPE": search(optuna.samplers.TPESampler(n_startup_trials=3), seed, budget),
            **online,
        }
        for name, row in found.items():
            rows.setdefault(name, []).append(row)
            print(seed, name, row.run[:3], row.trainings, f"{row.seconds:.1f}", flush=True)
    report(rows)
    drawn = picture(rows)
    if not options.smoke:
        save(drawn, options.figure)
        print(f"The figure is {options.figure}.")


def report(rows: dict[str, list[Row]]) -> None:
    head = (
        "method | test accuracy, mean (range) | validation | trainings | CPU s | last lr momentum ρ"
    )
    print(f"\n| {head} |")
    print("|---|---|---|---|---|---|")
    for name, own in rows.items():
        test = [row.run.test for row in own]
        spread = f"{statistics.mean(test):.2f} % ({min(test):.2f}-{max(test):.2f})"
        validation = f"{statistics.mean(row.run.validation for row in own):.2f} %"
        trainings = ", ".join(str(row.trainings) for row in own)
        seconds = f"{statistics.mean(row.seconds for row in own):.0f}"
        ends = "; ".join(" ".join(f"{v:.2g}" for v in row.run.hparams.values()) for row in own)
        print(f"| {name} | {spread} | {validation} | {trainings} | {seconds} | {ends} |")
    sizes = "/".join(str(len(part.y)) for part in data[:3])
    print(f"{sizes} frames, {len(data.phones)} phones, {STEPS} steps of {BATCH}, "
          f"torch {torch.__version__}.")  # fmt: skip


def picture(rows: dict[str, list[Row]]) -> Figure:
    """Return how RTHO moved the hyperparameters: a panel for each, a line for each seed."""
    figure = Figure(figsize=(7, 5), layout="constrained")
    panels = figure.subplots(len(TUNE), 1, sharex=True)
    for axes, (name, dimension) in zip(panels, TUNE.items(), strict=True):
        for (method, start), colour in zip(STARTS.items(), COLOURS, strict=True):
            for k, row in enumerate(rows[method]):
                history = row.run.history
                values = [start[name], *(move.values[name] for move in history)]
                u = [float(dimension.to_unit(value)) for value in values]
                steps = [0, *(move.step for move in history)]
                axes.plot(steps, u, color=colour, linewidth=1, label=None if k else method)
        at = [float(dimension.to_unit(level)) for level in LEVELS[name]]
        axes.set_yticks(at, [f"{level:g}" for level in LEVELS[name]])
        axes.set(ylabel=name, ylim=(-0.05, 1.05))
        axes.grid(axis="y")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=2)
    panels[-1].set_xlabel("steps of the optimizer")
    return figure


main()

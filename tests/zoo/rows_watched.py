"""Networks of other rows in a loop of one's own, watched by a ForwardTuner."""

import copy
import functools
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from hyperopt_dl.online import ForwardTuner
from tests.zoo import (
    oracle,
    rows_activations,
    rows_architectures,
    rows_convolutions,
    rows_losses,
    rows_mechanics,
    rows_norms,
    rows_sequences,
)
from tests.zoo.loops import FRACTION, RATE, Loop
from tests.zoo.row import Kind, Row

WATCHED = Kind("ForwardTuner in a loop: networks")
OTHERS = {
    row.id: row
    for rows in (
        rows_norms.ROWS,
        rows_convolutions.ROWS,
        rows_activations.ROWS,
        rows_sequences.ROWS,
        rows_architectures.ROWS,
        rows_losses.ROWS,
        rows_mechanics.ROWS,
    )
    for row in rows
}


def watch(row: Row, *, checks: bool = True) -> None:
    """Check the derivatives that a tuner sees in a plain loop on a case against its quotients.

    Where it ``checks``, the tuner looks at the loss of a batch before the loop.
    """
    case = row.case()
    model = oracle.built(case, case.hp)
    trained = [param for param in model.parameters() if param.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=case.hp["lr"], momentum=case.hp["momentum"])
    dimensions = {"lr": RATE, "momentum": FRACTION}
    tuner = ForwardTuner(optimizer, dimensions, hyper_lr=0.0, explosion=float("inf"))
    with sdpa_kernel(SDPBackend.MATH):
        if checks:
            inputs, target = oracle.batch(case, 0)
            tuner.check(
                lambda: oracle.training_loss(case, model(*inputs), target, case.hp, 0),
            )
        for t in range(row.steps):
            with oracle.drawn(t):
                inputs, target = oracle.batch(case, t)
                optimizer.zero_grad()
                output = model(*inputs)
                tuner.backward(oracle.training_loss(case, output, target, case.hp, t))
            optimizer.step()
        tuner.step(oracle.validation(case, model, case.hp))
    found = tuner.history[-1].gradient
    known = [oracle.quotients(row.case, row.steps, size) for size in (1e-4, 1e-6)]
    for name in dimensions:
        got, right = found[name] / case.hp[name], [float(each[name]) for each in known]
        error = min(abs(got - each) for each in right)
        assert error <= 1e-7 + 1e-5 * abs(got), f"d/d{name}: got {got}, right {right}"


def _names(kind: str, *names: str) -> list[str]:
    return [f"{kind}: {name}" for name in names]


for name in (
    *_names(
        "Normalisation",
        "BatchNorm without running statistics",
        "BatchNorm kept in evaluation mode",
        "GroupNorm",
    ),
    *_names("Reparametrised weights", "orthogonal weights", "weight_norm, dim=None"),
    *_names("Convolutions and resampling", "Conv2d"),
    *_names("Pooling", "MaxPool2d behind a ReLU, with ties"),
    *_names("Dropout", "Dropout"),
    *_names("Attention", "a small GPT with tied output", "a vision transformer"),
    *_names("Recurrence", "LSTM", "a bidirectional GRU of packed sequences"),
    *_names("Architectures", "a U-Net", "a graph convolution, sparse"),
    *_names("Losses", "TripletMarginLoss", "InfoNCE"),
    *_names("Checkpoints and compilers", "checkpoint(use_reentrant=False)"),
    *_names("Hooks", "a mask on a weight's gradient (register_hook)", "hooks that only look"),
    *_names(
        "Parameters and buffers",
        "a penalty over net.parameters() in the loss",
        "a layer in two places, and its transpose",
        "LoRA",
        "a kept list(self.parameters())",
    ),
):
    row = OTHERS[name]
    WATCHED.loop(
        name.split(": ", 1)[1], lambda row=row: watch(row), quiet=row.quiet, fast=len(name) % 3 == 0
    )


def _in_training_mode() -> None:
    """BatchNorm whose validation loss is that of the validation batch's own statistics."""

    def model() -> nn.Sequential:
        first = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
        return nn.Sequential(first, nn.Tanh(), nn.Linear(4, 2)).double()

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = model()
    loop = Loop(lambda g: torch.optim.SGD(g, 0.05, 0.5), model=lambda: copy.deepcopy(made))
    loop.check("lr", "momentum")


WATCHED.loop(
    "BatchNorm1d, validated in training mode (in evaluation mode the running statistics are "
    "constants to the tuner: docs/online.md)",
    _in_training_mode,
)


def _refused(name: str, match: str, says: str, *, checks: bool = False, **more: Any) -> None:
    row = OTHERS[name]
    loop = functools.partial(watch, row, checks=checks)
    WATCHED.refused_loop(name.split(": ", 1)[1], loop, match, says, quiet=row.quiet, **more)


for name, match, says in (
    (
        "Reparametrised weights: weight_norm, dim=0",
        "weight_norm.*Write the weight out",
        "write it out",
    ),
    (
        "Embeddings: embedding tied to the output, with padding_idx",
        "padding_idx",
        "leave padding_idx out, or do not tie",
    ),
    ("Embeddings: scale_grad_by_freq", "scale_grad_by_freq", "leave it out"),
    ("Embeddings: sparse=True", "sparse=False", "use sparse=False"),
    ("Embeddings: max_norm", "another write", "leave it out"),
    ("Embeddings: EmbeddingBag, sum", "second derivatives", "use Embedding, and take the sum"),
    (
        "Checkpoints and compilers: checkpoint(use_reentrant=True)",
        "use_reentrant=False",
        "pass use_reentrant=False",
    ),
    (
        "Functions of one's own: once_differentiable",
        "once_differentiable",
        "write its backward() with differentiable operations, undecorated",
    ),
    (
        "Functions of one's own: a Function that clips the gradient",
        "autograd.Function Clamped",
        "write it with differentiable operations",
    ),
    ("Hooks: a full backward hook that changes the gradient", "hook", "change the loss instead"),
):
    _refused(name, match, says, fast=len(name) % 3 == 0)

ASKED = "by `tuner.check(closure)`, which one has to call before the loop: without it, wrong. "
FOLLOWED = ASKED + "Use `ForwardTuner.from_training`, which follows it, or `discount=0`"
WRITTEN = ASKED + "Write its backward() with differentiable operations, or use `discount=0`"
STOPPED = r"but along a random direction they differ.*stop-gradients.*from_training"
FUNCTION = r"but along a random direction they differ.*autograd\.Function.*from_training"
MOVED = "the same loss from each call.*buffer with a moving average.*from_training"
for name, match in (
    ("Reparametrised weights: spectral_norm", STOPPED),
    ("Functions of one's own: a Function whose backward detaches", FUNCTION),
    ("Functions of one's own: gradient reversal", FUNCTION),
    ("Functions of one's own: a sign with a straight-through Function", FUNCTION),
    ("Stopped gradients: SimSiam", STOPPED),
    ("Stopped gradients: a target under no_grad (TD)", STOPPED),
    ("Stopped gradients: a VQ-VAE", STOPPED),
    ("Stopped gradients: a moving average in a buffer", MOVED),
    ("Stopped gradients: a momentum teacher inside the module (BYOL)", STOPPED),
):
    _refused(name, match, WRITTEN if match == FUNCTION else FOLLOWED, checks=True)
ROWS = WATCHED.rows

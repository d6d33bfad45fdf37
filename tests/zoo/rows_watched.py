"""Networks of other rows in a loop of one's own, watched by a ForwardTuner."""

from typing import Any

import torch
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
from tests.zoo.loops import FRACTION, RATE
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


def watch(row: Row) -> None:
    """Check the derivatives that a tuner sees in a plain loop on a case against its quotients."""
    case = row.case()
    model = oracle.built(case, case.hp)
    trained = [param for param in model.parameters() if param.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=case.hp["lr"], momentum=case.hp["momentum"])
    dimensions = {"lr": RATE, "momentum": FRACTION}
    tuner = ForwardTuner(optimizer, dimensions, hyper_lr=0.0, explosion=float("inf"))
    with sdpa_kernel(SDPBackend.MATH):
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


def _refused(name: str, match: str, says: str, **more: Any) -> None:
    row = OTHERS[name]
    WATCHED.refused_loop(
        name.split(": ", 1)[1], lambda: watch(row), match, says, quiet=row.quiet, **more
    )


STATISTICS = "norm without running statistics, or leave the tuner's validation in training mode"
STOPPED = "what is cut off moves with the weights: use a Supervised, which follows it"
for name, match, says in (
    ("Normalisation: BatchNorm1d", "statistic|buffer", STATISTICS),
    ("Reparametrised weights: spectral_norm", "buffer|symmetric", STATISTICS),
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
    ("Functions of one's own: a Function whose backward detaches", "Function", STOPPED),
    ("Functions of one's own: gradient reversal", "Function", STOPPED),
    ("Functions of one's own: a sign with a straight-through Function", "Function", STOPPED),
    ("Hooks: a full backward hook that changes the gradient", "hook", "change the loss instead"),
    ("Stopped gradients: SimSiam", "detach", STOPPED),
    ("Stopped gradients: a target under no_grad (TD)", "detach", STOPPED),
    ("Stopped gradients: a VQ-VAE", "detach", STOPPED),
    ("Stopped gradients: a moving average in a buffer", "buffer", STOPPED),
    (
        "Stopped gradients: a momentum teacher inside the module (BYOL)",
        "detach|buffer|write",
        STOPPED,
    ),
):
    _refused(name, match, says, fast=len(name) % 3 == 0)
ROWS = WATCHED.rows

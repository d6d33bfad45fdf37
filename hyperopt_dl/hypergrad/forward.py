"""Forward mode: the exact hypergradient by tangents that go along with the run.

Letters: T the steps; s[t] the state before step t; Z[t] = ds[t]/dλ, a row for each of the m entries
of λ; E the outer loss; A, B the derivatives of a step in the state and in λ:
``Z[t + 1] = A[t] Z[t] + B[t]``, ``dE/dλ = ∂E/∂s Z[T] + ∂E/∂λ`` (Franceschi, Donini, Frasconi,
Pontil 2017, section 3.3).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hyperopt_dl.errors import TrainingError
from hyperopt_dl.hypergrad.estimator import Observer
from hyperopt_dl.hypergrad.memory import available_bytes, size_of
from hyperopt_dl.hypergrad.pushes.push import SplitPush, WholePush
from hyperopt_dl.supervised import Supervised
from hyperopt_dl.training import State, Training

COPIES = 4
"""Tangents of a whole state alive at a time: before and after a step, and what lies between."""


@dataclass(frozen=True)
class Forward:
    """The exact hypergradient by forward mode, in memory that does not grow with the steps.

    A tangent of the state is carried along for each of the m entries of the hyperparameters: so the
    memory is that of m states or so, however many the steps, and a step costs about a Hessian
    product for each entry. It suits a few hyperparameters and long runs; for more, and for many,
    ``Reverse`` costs the same for all of them together. The result is the same number.

    Args:
        compile: Whether TorchInductor compiles the step of a ``Supervised``, as for ``Reverse``. Of
            SGD, Adam and AdamW without a schedule, and up to 16 entries of the hyperparameters, all
            of a step is compiled, unless it draws random numbers or moves buffers; else the graphs
            of the loss are.

    Raises:
        TrainingError: In the call, where the tangents need more memory than is free.

    Example:
        >>> import hyperopt_dl as hd
        >>> hd.hypergrad.Forward()
        Forward(compile=False)
    """

    compile: bool = False

    def __call__(
        self,
        training: Training,
        hparams: Mapping[str, Any],
        *,
        seed: int,
        device: torch.device | str,
        observe: Observer | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the outer loss (0-dim) and its derivative by name, as ``Estimator`` says."""
        place = torch.device(device)
        tangents = tangents_of(training, hparams, seed=seed, device=place, compile=self.compile)
        check_room(tangents)
        state, Z = tangents.initial()
        for t in range(training.steps):
            state, Z, *_ = tangents.push(state, Z, t)
        value = tangents.finish(state, Z)
        if observe is not None:
            observe(state)
        return value, tangents.run.gradient(getattr(training, "hparams", frozenset()))


def tangents_of(
    training: Training,
    hparams: Mapping[str, Any],
    *,
    seed: int,
    device: torch.device,
    discount: float = 1.0,
    compile: bool = False,  # noqa: A002
) -> WholePush:
    """Return the steps of a run and their tangents, split at the gradient where that can be.

    Raises:
        TrainingError: ``compile`` for a training that is not split, or a step that gives other
            numbers when it is computed again.
    """
    if type(training) is Supervised:  # a subclass may have a step of its own
        split = SplitPush(
            training, hparams, seed=seed, device=device, discount=discount, compile=compile
        )
        if split.symmetric:
            return split
    elif compile:
        raise TrainingError(
            f"compile=True is for a Supervised, got a {type(training).__name__}, whose steps are "
            f"differentiated as a whole. Leave compile out."
        )
    tangents = WholePush(training, hparams, seed=seed, device=device, discount=discount)
    tangents.run.check()
    return tangents


def needed_bytes(m: int, state: State) -> int:
    """Return the bytes that the tangents of a state take in m coordinates, at their most."""
    moving = {n: v for n, v in state.items() if v.is_floating_point() or v.is_complex()}
    return COPIES * m * size_of(moving)


def check_room(tangents: WholePush) -> None:
    """Raise a TrainingError unless the tangents fit into the memory that is free."""
    m, state = tangents.directions.m, tangents.run.initial()
    needed, free = needed_bytes(m, state), available_bytes(tangents.run.device)
    if needed > free:
        raise TrainingError(
            f"Forward() carries {m} tangents of the state, one for each entry of the "
            f"hyperparameters, which need {needed} bytes, got {free} bytes free. Use Reverse(), "
            f"whose memory does not depend on the number of hyperparameters."
        )

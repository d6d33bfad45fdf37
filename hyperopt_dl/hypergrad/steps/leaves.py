"""The hyperparameters that a derivative is taken in, and the derivative gathered so far."""

from collections.abc import Mapping, Sequence, Set
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hyperopt_dl.errors import TrainingError
from hyperopt_dl.hypergrad.constant import Constant


class Gathered:
    """Hyperparameters as leaves of graphs, and dE/dλ as it adds up over the steps.

    Numbers with a fraction are differentiated, but for a ``Constant``; integers, flags and names
    are structure, and stay what they are. A Python float becomes a 0-dim float64 tensor on the CPU,
    which mixes with tensors of any dtype and device without widening them; a floating tensor with
    dimensions is put on ``device``.

    The sums are float64: a run adds up one term a step, and the order of additions must not show.

    Args:
        hparams: Hyperparameters by name.
        device: Device of the run.

    Raises:
        TrainingError: None of them is floating.

    Attributes:
        hparams: All of them, the differentiated ones as leaves.
    """

    def __init__(self, hparams: Mapping[str, Any], device: torch.device) -> None:
        self._leaves: dict[str, Tensor] = {
            name: _leaf(value, device) for name, value in hparams.items() if _floating(value)
        }
        if not self._leaves:
            kinds = {name: type(value).__name__ for name, value in hparams.items()}
            raise TrainingError(
                f"A hypergradient needs a hyperparameter that is a float or a floating tensor, got "
                f"{kinds}."
            )
        plain = {n: float(v) if isinstance(v, Constant) else v for n, v in hparams.items()}
        self.hparams: dict[str, Any] = {**plain, **self._leaves}
        self._sums: dict[str, Tensor] = {}

    @property
    def leaves(self) -> Mapping[str, Tensor]:
        """The differentiated hyperparameters."""
        return self._leaves

    def add(self, name: str, term: Tensor) -> None:
        """Add a term to the derivative in a hyperparameter, of its shape."""
        if name in self._sums:
            self._sums[name] += term
        else:
            self._sums[name] = term.to(torch.double, copy=True)

    def pull(
        self, outputs: Sequence[Tensor], adjoints: Sequence[Tensor], inputs: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Pull adjoints of outputs back through their graph.

        Returns:
            The adjoints of ``inputs`` that the graph reaches; those of the hyperparameters are
            added to their sums.
        """
        if not outputs:
            return {}
        sources = [*inputs.values(), *self._leaves.values()]
        found = torch.autograd.grad(outputs, sources, adjoints, allow_unused=True)
        for name, term in zip(self._leaves, found[len(inputs) :], strict=True):
            if term is not None:
                self.add(name, term)
        pulled = zip(inputs, found[: len(inputs)], strict=True)
        return {name: adjoint for name, adjoint in pulled if adjoint is not None}

    def forget(self) -> None:
        """Begin the sums anew."""
        self._sums = {}

    def gradient(self, used: Set[str]) -> dict[str, Tensor]:
        """Return dE/dλ by name, float64, each of its hyperparameter's shape.

        Args:
            used: Names that are known to be used, whose derivative may well be zero.

        Raises:
            TrainingError: Nothing that was differentiated uses one of the others.
        """
        lost = sorted(self._leaves.keys() - self._sums.keys() - used)
        if lost:
            raise TrainingError(
                f"No derivative reaches the hyperparameter(s) {lost}: nothing uses them, or only "
                f"what cannot be differentiated, such as the structure of a model, or, with last=, "
                f"only earlier steps. Leave them out, hold them where they are with "
                f"Hypergradient(fixed={lost}), or tune them with a black-box tuner."
            )
        zeros = {n: torch.zeros_like(leaf, dtype=torch.double) for n, leaf in self._leaves.items()}
        return {name: self._sums.get(name, zero).detach() for name, zero in zeros.items()}


def _floating(value: Any) -> bool:
    if isinstance(value, Tensor):
        return value.is_floating_point()
    return isinstance(value, (float, np.floating)) and not isinstance(value, Constant)


def _leaf(value: float | Tensor, device: torch.device) -> Tensor:
    if isinstance(value, Tensor):
        copy = value.detach().clone()
        return (copy.to(device) if copy.ndim else copy).requires_grad_()
    return torch.tensor(value, dtype=torch.double, requires_grad=True)

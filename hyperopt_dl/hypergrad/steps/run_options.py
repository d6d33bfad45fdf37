"""The options of an optimizer along a run, and the derivative in them.

A rule works on plain numbers: with them it runs the kernels of ``torch.optim``. The adjoints of
the options are gathered in float64, and go back through the formulas that made the options out of
hyperparameters: once for a run, or once a step where a schedule makes them differ.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from hyperopt_dl.hypergrad.steps.leaves import Gathered
from hyperopt_dl.optimizers import Optimizer, Schedule
from hyperopt_dl.optimizers.groups import everywhere
from hyperopt_dl.optimizers.options import Value
from hyperopt_dl.optimizers.resolve import Layout, resolve


class Options(NamedTuple):
    """The options of a step: as the rule takes them, and as functions of the hyperparameters."""

    plain: Mapping[str, Value]
    """Numbers, or ``[p]`` tensors without a graph."""
    wanted: frozenset[str]
    """Those that depend on a differentiated hyperparameter."""
    recorded: Mapping[str, Tensor]
    """The wanted ones, with the graph that they come from."""


class RunOptions:
    """The options of a run.

    Args:
        optimizer: The rule.
        layout: The names and sizes of the parameters.
        like: The ``[p]`` parameter vector.
        gathered: The hyperparameters, and where their derivative adds up.

    Attributes:
        scheduled: Whether a schedule makes the options of steps differ.
    """

    def __init__(
        self, optimizer: Optimizer, layout: Layout, like: Tensor, gathered: Gathered
    ) -> None:
        self._optimizer, self._layout, self._like = optimizer, layout, like
        self._gathered = gathered
        self.scheduled = _is_scheduled(optimizer)
        self._constant = None if self.scheduled else self._resolve(0)
        self._sums: dict[str, Tensor] = {}

    def at(self, t: int) -> Options:
        """Return the options of step ``t``."""
        return self._resolve(t) if self._constant is None else self._constant

    def refresh(self) -> None:
        """Take up hyperparameters that have been moved where they are."""
        constant = self._constant
        if constant is None:
            return
        if any(value.ndim for value in constant.recorded.values()):  # put together from several
            self._constant = self._resolve(0)
            return
        numbers = {name: float(value.detach()) for name, value in constant.recorded.items()}
        self._constant = constant._replace(plain={**constant.plain, **numbers})

    def add(self, options: Options, adjoints: Mapping[str, Tensor]) -> None:
        """Add what a step has shown of dE/d option, by name."""
        if self._constant is None:
            self._pull(options, adjoints)
            return
        for name, term in adjoints.items():
            if name in self._sums:
                self._sums[name] += term
            else:
                self._sums[name] = term.to(torch.double, copy=True)

    def finish(self) -> None:
        """Hand what has been gathered on to the hyperparameters."""
        if self._constant is not None:
            self._pull(self._constant, self._sums)
            self._sums = {}

    def _resolve(self, t: int) -> Options:
        hparams = self._gathered.hparams
        with torch.enable_grad():
            values = resolve(self._optimizer, hparams, t, self._layout, self._like)
        plain = {name: _plain(value) for name, value in values.items()}
        recorded = {
            name: value
            for name, value in values.items()
            if isinstance(value, Tensor) and value.requires_grad
        }
        return Options(plain, frozenset(recorded), recorded)

    def _pull(self, options: Options, adjoints: Mapping[str, Tensor]) -> None:
        outputs = [options.recorded[name] for name in adjoints]
        bars = [adjoints[name].to(out) for name, out in zip(adjoints, outputs, strict=True)]
        self._gathered.pull(outputs, bars, {})


def _is_scheduled(optimizer: Optimizer) -> bool:
    own = optimizer.options()
    values = (value for name in own for value in everywhere(name, own, optimizer.groups))
    return any(isinstance(value, Schedule) for value in values)


def _plain(value: Value) -> Value:
    if not isinstance(value, Tensor):
        return value
    return value.detach() if value.ndim else float(value.detach())

"""A whole step of forward mode as one compiled graph: gradient, products, rule and tangents.

On a small network the kernels of a step are so short that the way to them counts, and the rule's
dozen vector operations on m tangents count like the network. The compiler fuses these, and the m
products are one batched pull. What differs between runs (options, how they move with λ) and between
steps (t) goes in as tensors, so that one graph serves all runs.

Letters: s the state, x its p parameters; Z the tangents, with m rows; t the step; λ the
hyperparameters.
"""

from collections.abc import Hashable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from hyperopt_dl.hypergrad.closed_forms.rule_tangents import push_rule
from hyperopt_dl.hypergrad.closed_forms.tangents import Seeds, Step, Vectors
from hyperopt_dl.hypergrad.steps.step_loss import StepLoss
from hyperopt_dl.hypergrad.traces.agreement import close, copied
from hyperopt_dl.hypergrad.traces.compiled import Compiled
from hyperopt_dl.hypergrad.traces.graphs import Graphs
from hyperopt_dl.hypergrad.traces.over_rows import over_rows
from hyperopt_dl.optimizers import SGD, Adam, AdamW, Optimizer
from hyperopt_dl.optimizers.options import Value
from hyperopt_dl.training import State

RULES = (SGD, Adam, AdamW)
"""The rules whose steps after the first one are all the same function of ``(s, λ, t)``."""


class Made(NamedTuple):
    """What a step has made, and the training loss that it began at."""

    x: Tensor
    slots: dict[str, Tensor]
    dot: dict[str, Tensor]
    loss: Tensor
    others: tuple[Tensor, ...]
    skipped: Tensor | None = None

    def agrees(self, other: "Made") -> bool:
        """Return whether two ways to make a step differ by no more than two ways to add up."""
        pairs = zip(self._tensors(), other._tensors(), strict=True)
        return all(close(a, b) for a, b in pairs)

    def _tensors(self) -> tuple[Tensor, ...]:
        return (self.x, *self.slots.values(), *self.dot.values(), self.loss, *self.others)


class FusedPush:
    """The steps of one run, each as one graph.

    Args:
        loss: The training loss of the run, as a function of x̃.
        rule: The optimizer, one of ``RULES``.
        inside: The tangents of the hyperparameters that the loss reads, ``m x q``.
        step: A step of the run: its options and seeds are those of every step, until `turn_to`.
        discount: What the tangents are multiplied with before each step.
    """

    def __init__(
        self,
        loss: StepLoss,
        rule: Optimizer,
        inside: Tensor,
        step: Step,
        discount: float,
    ) -> None:
        self._loss, self._rule, self._step, self._discount = loss, rule, step, discount
        self._rows = tuple((n, row) for n, pairs in step.seeds.items() for row, _ in pairs)
        self.turn_to(step.options, step.seeds, inside)

    def turn_to(self, options: Mapping[str, Any], seeds: Seeds, inside: Tensor) -> None:
        """Make the steps to come with these options and tangents of λ."""
        slopes = (slope for pairs in seeds.values() for _, slope in pairs)
        self._values: list[Value] = [*options.values(), *slopes]
        numbers = [value for value in self._values if not isinstance(value, Tensor)]
        self._vectors = [value for value in self._values if isinstance(value, Tensor)]
        self._numbers = torch.tensor([*numbers, self._discount], dtype=torch.double)
        self._inside = inside

    def __call__(self, state: State, dot: Vectors, slots: Vectors, t: int) -> Made | None:
        """Return what step t > 0 makes; ``None`` for another kind of batch than was compiled."""
        tensors = self._loss.tensors(state, t)
        clock = torch.tensor(float(t), dtype=torch.double)
        inputs = (
            *(state["params"], *slots.values(), *dot.values(), self._inside),
            *(self._numbers, clock, *self._vectors, *tensors),
        )
        function = self._compiled(inputs, tensors)
        if function is None:
            return None
        with torch.no_grad():
            x, *rest = function(*inputs)
        n = len(slots)
        after = dict(zip(slots, rest[:n], strict=True))
        dot_after = dict(zip(dot, rest[n : 2 * n + 1], strict=True))
        value, *others = rest[2 * n + 1 :]
        return Made(x, after, dot_after, value, tuple(others))

    def _compiled(self, inputs: tuple[Tensor, ...], tensors: tuple[Tensor, ...]) -> Compiled | None:
        """Return the function for a kind of inputs; a first kind is traced, others have none."""
        kinds = tuple(isinstance(value, Tensor) for value in self._values)
        names = tuple(self._step.options)
        damped = self._discount != 1
        key: Hashable = ("fused", self._loss.key, self._rule, names, self._rows, kinds, damped)
        shapes = tuple(each.shape for each in inputs)
        known = self._loss.network.derived
        if key not in known:
            graphs = self._loss.graphs(inputs[0], tensors)
            known[key] = shapes, None if graphs is None else self._traced(graphs, inputs)
        first, function = known[key]
        return function if first == shapes else None

    def _traced(self, graphs: Graphs, inputs: tuple[Tensor, ...]) -> Compiled:
        device = inputs[0].device.type
        with torch.no_grad(), torch.autocast(device, enabled=False):  # the graphs have the casts
            module = make_fx(lambda *given: self._whole(graphs, *given))(*map(copied, inputs))
        module.graph.eliminate_dead_code()
        module.recompile()
        return Compiled(module)

    def _whole(self, graphs: Graphs, x: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        """Make a step from its inputs, in their order in ``__call__``."""
        parts = iter(rest)
        slots = {name: next(parts) for name in self._step.slots}
        dot = {name: next(parts) for name in ("x", *slots)}
        inside, numbers, clock = next(parts), iter(next(parts).unbind()), next(parts)
        given = [next(parts) for _ in self._vectors]
        values = (given.pop(0) if isinstance(v, Tensor) else next(numbers) for v in self._values)
        options = {name: next(values) for name in self._step.options}
        seeds: dict[str, list[tuple[int, Value]]] = {}
        for name, row in self._rows:
            seeds.setdefault(name, []).append((row, next(values)))
        if self._discount != 1:
            discount = next(numbers)
            dot = {name: (discount * z).to(z.dtype) for name, z in dot.items()}
        p, both = len(x), torch.cat([dot["x"], inside], 1)
        g, *others = graphs.A.graph()(self._loss.at(x), *parts)
        aux, saved = others[: graphs.outputs - 1], others[graphs.outputs - 1 :]
        g_dot = over_rows(graphs.B.graph(), both, *saved)[0][:, :p]
        t: Any = 1 if type(self._rule) is SGD else clock  # SGD only asks whether it is the first
        step = replace(
            self._step,
            x=x,
            g=g[:p],
            g_dot=g_dot,
            slots=slots,
            t=t + 1,
            options=options,
            seeds=seeds,
        )
        dot_after = push_rule(self._rule, dot, step)
        x_after, after = self._rule.update(x, g[:p], slots, options, t)
        ordered = [*(after[name] for name in slots), *(dot_after[name] for name in dot)]
        return (x_after, *ordered, *aux)

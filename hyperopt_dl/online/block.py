"""The tangents of one parameter group: memory, views, and their advance by one step.

The parameters of a group lie end to end in rows of length p, one row a coordinate. A step advances
runs of parameters that the optimizer treats alike: usually the whole group is one run. A parameter
without a gradient is left alone by the optimizer, and its tangent by the tuner.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hyperopt_dl.errors import TrainingError
from hyperopt_dl.hypergrad.closed_forms.tangents import Seeds, Step
from hyperopt_dl.online.discount import Factor
from hyperopt_dl.online.rules import Rule


class Run(NamedTuple):
    """Neighbouring parameters with the same number of steps; columns ``begin`` to ``end``."""

    begin: int
    end: int
    params: list[Tensor]
    t: int


class Block:
    """The tangents of a group's parameters and slots, and of the gradients gathered for a step.

    Args:
        params: The parameters that are trained.
        rule: The optimizer's rule.
        m: The number of coordinates.

    Raises:
        TrainingError: The parameters differ in dtype or device, or are not floating.

    Attributes:
        dot: Tangents by name, each `m x p`: ``"x"`` and the rule's slots as far as they are used.
        g_dot: Tangents of the gradients gathered so far, `m x p`, along discounted ones of the
            parameters.
    """

    def __init__(self, params: Sequence[Tensor], rule: Rule, m: int) -> None:
        kinds = {(param.dtype, param.device) for param in params}
        if len(kinds) > 1 or any(not param.is_floating_point() for param in params):
            raise TrainingError(
                f"The trained parameters of a group must be floating and share dtype and device, "
                f"got {sorted(map(str, kinds))}. Put each kind into a group of its own."
            )
        self.params = list(params)
        self._rule = rule
        self._sizes = [param.numel() for param in params]
        dtype, device = next(iter(kinds), (torch.get_default_dtype(), torch.device("cpu")))
        self.g_dot = torch.zeros(m, sum(self._sizes), dtype=dtype, device=device)
        self._zero = self.g_dot.new_zeros(())
        self._fresh = True
        self.reset()

    def reset(self) -> None:
        """Set all tangents to zero: the run begins here."""
        self.dot = {"x": torch.zeros_like(self.g_dot)}

    def along(self, row: int, discount: float) -> list[Tensor]:
        """Return a row of the parameters' tangent, discounted, in the parameters' shapes."""
        x = self.dot["x"][row]
        pieces = torch.split(x if discount == 1 else discount * x, self._sizes)
        return [piece.view(param.shape) for piece, param in zip(pieces, self.params, strict=True)]

    def begin(self, stale: Sequence[bool]) -> None:
        """Prepare for products: what was gathered for a parameter that is stale is forgotten."""
        self._fresh = all(stale)
        if not self._fresh:
            columns = torch.split(self.g_dot, self._sizes, dim=1)
            for part, is_stale in zip(columns, stale, strict=True):
                if is_stale:
                    part.zero_()

    def gather(self, row: int, products: Sequence[Tensor | None]) -> None:
        """Add Hessian–vector products, one a parameter, to a row of the gradient's tangent."""
        parts = [part.reshape(-1) for part in products if part is not None]
        target = self.g_dot[row]
        if self._fresh and len(parts) == len(products) > 0:
            torch.cat(parts, out=target)
            return
        if self._fresh:
            target.zero_()
        for piece, part in zip(torch.split(target, self._sizes), products, strict=True):
            if part is not None:
                piece += part.reshape(-1)

    def dotted(self, vectors: Sequence[Tensor | None]) -> Tensor:
        """Return the inner products of the parameters' tangents with vectors, `m`, in double."""
        return (self.dot["x"] @ self._flat(vectors)).double()

    def advance(
        self,
        state: Mapping[Tensor, Mapping[str, Any]],
        options: Mapping[str, Any],
        seeds: Seeds,
        discount: Factor,
    ) -> None:
        """Carry the tangents through one step of the optimizer, which has not been made yet.

        Args:
            state: The optimizer's state.
            options: Of the parameter group, as `options_of`.
            seeds: Which coordinate moves which option.
            discount: What the tangents before the step are multiplied with.
        """
        names = self._rule.slots(options)
        has_decay = options["weight_decay"] != 0 or "weight_decay" in seeds
        has_past = not _is_zero(discount)
        if not has_past:
            self.dot.clear()
        for run in self._runs(state):
            columns = slice(run.begin, run.end)
            before = {name: self._before(name, columns, discount) for name in ("x", *names)}
            slots = {
                name: _joined([state[param][name] for param in run.params])
                for name in names
                if state.get(run.params[0], {}).get(name) is not None
            }
            step = Step(
                m=len(self.g_dot),
                x=_joined(run.params) if has_decay else None,
                g=_joined([param.grad for param in run.params]),  # type: ignore[misc]
                g_dot=self.g_dot[:, columns] if has_past else self._zero,
                slots=slots,
                t=run.t,
                options=options,
                seeds=seeds,
            )
            after = self._rule.advance(before, step)
            self._put(after if has_past else {"x": after["x"]}, columns)
        if "x" not in self.dot:
            self.dot["x"] = torch.zeros_like(self.g_dot)

    def clip(self, g_norm_dot: Tensor, norm: Tensor, scale: Tensor, eps: float) -> None:
        """Carry the gradient's tangent through a rescaling to a fixed norm.

        Args:
            g_norm_dot: The tangent of the norm, `m`.
            norm: The norm before.
            scale: What the gradients are multiplied with, ``c / (norm + eps)``.
            eps: What is added to the norm.
        """
        g = self._flat([param.grad for param in self.params])
        shrunk = torch.outer(g_norm_dot.to(g), g / (norm + eps))
        self.g_dot = scale.to(g) * (self.g_dot - shrunk)

    def gathered_along(self, vectors: Sequence[Tensor | None]) -> Tensor:
        """Return the inner products of the gradient's tangents with vectors, `m`, in double."""
        return (self.g_dot @ self._flat(vectors)).double()

    def _flat(self, vectors: Sequence[Tensor | None]) -> Tensor:
        pieces = [
            torch.zeros_like(param).reshape(-1) if part is None else part.detach().reshape(-1)
            for part, param in zip(vectors, self.params, strict=True)
        ]
        return torch.cat(pieces) if pieces else self.g_dot.new_zeros(0)

    def _before(self, name: str, columns: slice, discount: Factor) -> Tensor:
        if not _is_zero(discount) and name not in self.dot:
            self.dot[name] = torch.zeros_like(self.g_dot)
        return self._damped(self.dot.get(name, self.g_dot)[:, columns], discount)

    def _damped(self, dot: Tensor, discount: Factor) -> Tensor:
        """Return ``discount * dot``; both extremes cost nothing."""
        if isinstance(discount, Tensor):
            return discount.to(dot) * dot
        if discount == 0:
            return self._zero
        return dot if discount == 1 else discount * dot

    def _put(self, after: Mapping[str, Tensor], columns: slice) -> None:
        for name, value in after.items():
            if value.shape == self.g_dot.shape:
                self.dot[name] = value
            else:
                if name not in self.dot:
                    self.dot[name] = torch.zeros_like(self.g_dot)
                self.dot[name][:, columns] = value

    def _runs(self, state: Mapping[Tensor, Mapping[str, Any]]) -> Iterator[Run]:
        ends = list(itertools.accumulate(self._sizes))
        steps = [
            None if param.grad is None else _steps(state.get(param, {})) for param in self.params
        ]
        for made, members in itertools.groupby(range(len(steps)), key=steps.__getitem__):
            if made is not None:
                first, *rest = members
                last = rest[-1] if rest else first
                begin = ends[first] - self._sizes[first]
                yield Run(begin, ends[last], self.params[first : last + 1], made + 1)


def split(parts: Sequence[Any], blocks: Sequence[Block]) -> list[Sequence[Any]]:
    """Return what belongs to each block of a sequence with one entry a parameter."""
    ends = list(itertools.accumulate(len(block.params) for block in blocks))
    return [parts[end - len(block.params) : end] for block, end in zip(blocks, ends, strict=True)]


def _is_zero(discount: Factor) -> bool:
    return not isinstance(discount, Tensor) and discount == 0


def _joined(parts: Sequence[Tensor]) -> Tensor:
    return torch.cat([part.detach().reshape(-1) for part in parts])


def _steps(slots: Mapping[str, Any]) -> int:
    """Return how many steps a parameter has made; of SGD, which does not count, 1 for any."""
    return int(slots.get("step", slots.get("momentum_buffer") is not None))

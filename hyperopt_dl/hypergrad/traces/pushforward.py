"""The derivative of recorded outputs along tangents of their inputs, by reverse mode alone.

The adjoint of a function y(x) is linear in the adjoint ȳ that it pulls back: ``x̄ = Jᵀ ȳ``. So its
own derivative in ȳ, pulled back from ẋ, is ``J ẋ``: two backward passes make a forward one, and the
first of them serves every tangent. Every operator that reverse mode can differentiate twice will
do; forward-mode formulas, which many operators lack, are not needed.

Letters: x inputs, y outputs; J the Jacobian; a bar is an adjoint, a dot a tangent. Of a complex
entry, tangent and adjoint are those of its two real parts.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from hyperopt_dl.hypergrad.traces.eager import explained


class Pushforward:
    """J as a function of tangents.

    Args:
        outputs: Tensors by name, with the graph that they come from.
        inputs: Leaves of that graph by name.

    Raises:
        TrainingError: An operator in the graph can be differentiated only once.

    Attributes:
        reached: The names of the inputs that an output depends on.
    """

    def __init__(self, outputs: Mapping[str, Tensor], inputs: Mapping[str, Tensor]) -> None:
        given = {name: y for name, y in outputs.items() if y.requires_grad}
        self._names = list(given)
        self._y_bar = [torch.zeros_like(y, requires_grad=True) for y in given.values()]
        self._x_bar: dict[str, Tensor] = {}
        if given:
            found = torch.autograd.grad(
                [*given.values()],
                [*inputs.values()],
                self._y_bar,
                create_graph=True,
                allow_unused=True,
            )
            pairs = zip(inputs, found, strict=True)
            self._x_bar = {name: part for name, part in pairs if part is not None}
        self.reached = frozenset(self._x_bar)

    def __call__(self, tangents: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the tangents of the outputs that have a graph; what is not given is zero."""
        pulled = {n: x_bar for n, x_bar in self._x_bar.items() if x_bar.requires_grad}
        along = [name for name in pulled if name in tangents]
        if not along:
            return {n: torch.zeros_like(y) for n, y in zip(self._names, self._y_bar, strict=True)}
        try:
            found = torch.autograd.grad(
                [pulled[name] for name in along],
                self._y_bar,
                [tangents[name] for name in along],
                retain_graph=True,
                materialize_grads=True,
            )
        except RuntimeError as error:
            if reason := explained(error):
                raise reason from error
            raise
        return dict(zip(self._names, found, strict=True))

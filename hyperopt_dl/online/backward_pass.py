"""The backward pass of a tuner: gradients into ``.grad``, and their tangents into the blocks.

The gradient is taken with its graph, and a Hessian–vector product on that for each tangent. At the
first step, and at some later ones, the graph is looked at (`probes`).

Letters: g gradient, z a tangent of the parameters, H Hessian of the loss, m coordinates.
"""

from collections.abc import Iterable, Sequence
from contextlib import nullcontext

import torch
from torch import Tensor

from hyperopt_dl.online.block import Block, split
from hyperopt_dl.online.fingerprints import due
from hyperopt_dl.online.gradients import Gradients
from hyperopt_dl.online.hooks import Edit, check_no_later_hooks, edited, silenced
from hyperopt_dl.online.in_loss import InLoss
from hyperopt_dl.online.layout import called
from hyperopt_dl.online.probes import (
    must_be_symmetric,
    must_be_twice_differentiable,
    must_not_read_a_padding_row,
    no_edits,
)
from hyperopt_dl.online.products import Parts, gradient, product, says_nothing


class BackwardPass:
    """Fills the gradients of an optimizer's parameters, and carries their tangents.

    Args:
        optimizer: Whose parameters these are.
        blocks: Those that are trained, by group, with their tangents.
        in_loss: The tensors that the loss reads beside them.

    Attributes:
        params: The parameters of the blocks.
        gradients: What is in ``.grad``.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, blocks: Sequence[Block], in_loss: InLoss
    ) -> None:
        self._optimizer, self._blocks, self._in_loss = optimizer, blocks, in_loss
        self.params = [param for block in blocks for param in block.params]
        self.gradients = Gradients(self.params)
        self._looked = False

    def look_again(self) -> None:
        """Look at the graph of the next loss, as at that of the first."""
        self._looked = False

    def says_nothing(self, loss: Tensor) -> bool:
        """Return whether the gradient of a loss is there and zero."""
        with silenced(self.params):
            return says_nothing(loss, self.params)

    def fill(self, loss: Tensor) -> None:
        """Fill ``.grad`` with a gradient whose tangents are zero."""
        g = gradient(loss, self.params, graph=False)  # hooks act here as they do in backward()
        self._begin(self.gradients.add(g))
        for block in self._blocks:
            for row in range(len(block.g_dot)):
                block.gather(row, [None] * len(block.params))

    def carry(self, loss: Tensor, discounts: Iterable[float], step: int) -> None:
        """Fill ``.grad``, and gather the tangents of what was filled in.

        Args:
            loss: The training loss.
            discounts: What the tangents of each coordinate are multiplied with.
            step: How many steps there have been in this process.
        """
        hooked = [param for param in self.params if param._backward_hooks]
        with silenced(hooked) if hooked else _AS_IT_IS:
            g = self._gradient(loss, step)
        own, beside = g[: len(self.params)], g[len(self.params) :]
        if not self._looked:
            self._in_loss.check_read(beside)
            self._looked = True
        edits = self._edits(own) if hooked else {}
        filled = [edits[i].g if i in edits else part for i, part in enumerate(own)]
        self._begin(self.gradients.add(filled, watched=due(step, "gradients")))
        factors = list(discounts)
        for row, mu in enumerate(factors):
            z = [view for block in self._blocks for view in block.along(row, mu)]
            along = [*z, *self._in_loss.along(row)]
            with silenced(hooked) if hooked else _AS_IT_IS:
                found = list(product(g, self.params, along, last=row == len(factors) - 1))
            for i, edit in edits.items():
                if (part := found[i]) is not None:
                    found[i] = edit.along(part)
            for block, parts in zip(self._blocks, split(found, self._blocks), strict=True):
                block.gather(row, parts)

    def _begin(self, stale: Sequence[bool]) -> None:
        for block, is_stale in zip(self._blocks, split(stale, self._blocks), strict=True):
            block.begin(is_stale)

    def _gradient(self, loss: Tensor, step: int) -> Parts:
        """Return the gradient with its graph, looked at at the first step and some later ones."""
        tensors = [*self.params, *self._in_loss.tensors]
        if self._looked and not due(step, "symmetry", first=1):
            return gradient(loss, tensors, graph=True)
        self.gradients.check_leaves(loss, self._in_loss.tensors)
        check_no_later_hooks(self.params, lambda param: called(self._optimizer, param))
        must_be_twice_differentiable(loss)
        must_not_read_a_padding_row(loss)
        with no_edits():
            g = gradient(loss, tensors, graph=True)
        must_be_symmetric(loss, g[: len(self.params)], self.params, step)
        return g

    def _edits(self, g: Parts) -> dict[int, Edit]:
        """Return what hooks on parameters make of their gradients, by the parameter's place."""
        edits = {}
        for i, (param, part) in enumerate(zip(self.params, g, strict=True)):
            if param._backward_hooks and part is not None:
                edit = edited(param, part, called(self._optimizer, param))
                if edit is not None:
                    edits[i] = edit
        return edits


_AS_IT_IS = nullcontext()

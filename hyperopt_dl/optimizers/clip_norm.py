"""Clipping the gradient's norm before a rule sees it, as ``torch.nn.utils.clip_grad_norm_``.

g gradient, n its Euclidean norm, c the largest norm allowed, s the factor, ĝ the clipped gradient.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from hyperopt_dl.errors import TrainingError
from hyperopt_dl.optimizers.groups import GroupsLike
from hyperopt_dl.optimizers.optimizer import Optimizer, intervals_of
from hyperopt_dl.optimizers.options import (
    NON_NEGATIVE,
    Interval,
    Option,
    Value,
    check_option,
    is_zero,
    names_in,
)

ROOM = 1e-6
"""What torch adds to the norm that it divides by."""


@dataclass(frozen=True)
class ClipNorm:
    """Another rule, after ``s = min(1, max_norm / (|g| + 1e-6))`` has scaled the gradient.

    The norm is that of all parameters together. Where nothing is clipped the derivative in
    ``max_norm`` is zero.

    Args:
        rule: The optimizer that takes the clipped gradient.
        max_norm: A positive number, the name of a hyperparameter, or a ``Schedule``.

    Raises:
        TrainingError: ``max_norm`` is a constant that is not positive, or ``rule`` is no optimizer.

    Example:
        >>> clipped = ClipNorm(SGD(lr="lr", momentum=0.9), max_norm=1.0)
    """

    rule: Optimizer
    max_norm: Option

    def __post_init__(self) -> None:
        if isinstance(self.rule, type) or not isinstance(self.rule, Optimizer):
            raise TrainingError(
                f"ClipNorm needs an optimizer such as SGD(lr='lr') as rule, got {self.rule!r}."
            )
        check_option("ClipNorm", "max_norm", self.max_norm, NON_NEGATIVE)
        if is_zero(self.max_norm):
            raise TrainingError("ClipNorm needs max_norm > 0, got 0: no step would ever move.")

    @property
    def groups(self) -> GroupsLike:
        """Those of the rule; the norm is one for all of them."""
        return self.rule.groups

    def options(self) -> dict[str, Option]:
        """The options of the rule, and ``max_norm``."""
        return {**self.rule.options(), "max_norm": self.max_norm}

    def intervals(self) -> Mapping[str, Interval]:
        """Where each option of the rule, as far as it says, and ``max_norm`` must lie."""
        return {**intervals_of(self.rule), "max_norm": NON_NEGATIVE}

    def names(self) -> frozenset[str]:
        """The hyperparameters that the rule and ``max_norm`` name."""
        return self.rule.names() | names_in([self.max_norm])

    def slots(self, params: Tensor) -> dict[str, Tensor]:
        """The slots of the rule."""
        return self.rule.slots(params)

    def update(
        self,
        params: Tensor,
        grad: Tensor,
        slots: Mapping[str, Tensor],
        options: Mapping[str, Value],
        t: int,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """One step of the rule on the clipped gradient."""
        return self.rule.update(params, clipped(grad, options["max_norm"]), slots, options, t)


def clipped(g: Tensor, c: Value) -> Tensor:
    """``ĝ = min(1, c / (n + 1e-6)) g``; where g is 0, so is ĝ, and its derivative is finite.

    Args:
        g: A `p` tensor.
        c: A number or a 0-dim tensor.
    """
    squared = g.square().sum()
    zero = squared == 0
    n = squared.masked_fill(zero, 1.0).sqrt().masked_fill(zero, 0.0)
    s = torch.as_tensor(c / (n + ROOM)).clamp(max=1.0)
    return (s * g).to(g.dtype)

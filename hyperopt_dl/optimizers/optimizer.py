"""The interface of a twin: an optimizer as a pure function of a flat parameter vector."""

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

from torch import Tensor

from hyperopt_dl.optimizers.groups import GroupsLike
from hyperopt_dl.optimizers.options import Interval, Option, Value


@runtime_checkable
class Optimizer(Protocol):
    """A rule that turns parameters, gradient and slots into the next parameters and slots.

    An implementation is frozen, hashable and picklable, and never writes to what it is given.
    `hyperopt_dl.optimizers.resolve.resolve` makes the ``options`` of `update` out of
    `options`, `groups` and the values of the hyperparameters::

        slots = optimizer.slots(params)
        for t in range(T):
            options = resolve(optimizer, hparams, t, layout, params)
            params, slots = optimizer.update(params, gradient(params), slots, options, t)

    It may also have ``intervals() -> Mapping[str, Interval]``, which says where its options must
    lie: a study then checks its space against them before the first trial.
    """

    @property
    def groups(self) -> GroupsLike:
        """Pattern of parameter names (fnmatch) → options that differ there; the first match wins.

        A parameter takes the whole first group that matches it; what this group does not name
        comes from the optimizer itself, not from a later group.
        """
        ...

    def options(self) -> dict[str, Option]:
        """The numeric options, as given, under the names that `update` uses."""
        ...

    def names(self) -> frozenset[str]:
        """The hyperparameters that options and groups name.

        What a ``Schedule.factor`` of ``(t, hparams)`` reads cannot be known.
        """
        ...

    def slots(self, params: Tensor) -> dict[str, Tensor]:
        """The slots before the first update, each a `p` tensor, under torch's state names."""
        ...

    def update(
        self,
        params: Tensor,
        grad: Tensor,
        slots: Mapping[str, Tensor],
        options: Mapping[str, Value],
        t: int,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """One out-of-place step; differentiable in every tensor that it is given.

        Args:
            params: A `p` tensor.
            grad: A `p` tensor, the gradient of the inner loss at ``params``.
            slots: As from `slots` or the previous update.
            options: Each of `options` as a number, a 0-dim tensor or a `p` tensor.
            t: The step, 0 at the first update.

        Returns:
            The new `p` parameters and the new slots, in the dtype of ``params``; none shares
            memory with an argument.
        """
        ...


def intervals_of(optimizer: Optimizer) -> Mapping[str, Interval]:
    """Where the options of an optimizer must lie, as far as it says."""
    said: Mapping[str, Interval] = getattr(optimizer, "intervals", dict)()
    return said

"""The coordinates that forward mode differentiates in: one for each entry of a hyperparameter.

A coordinate u moves its entry of λ by ``dλ/du``: 1, unless an online tuner says otherwise.

Letters: m coordinates; λ the hyperparameters with a derivative; u a coordinate.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence

import torch
from torch import Tensor

from hyperopt_dl.hypergrad.closed_forms.tangents import Seeds
from hyperopt_dl.hypergrad.steps.run_options import Options
from hyperopt_dl.hypergrad.traces.pushforward import Pushforward
from hyperopt_dl.optimizers.options import Value


class Directions:
    """The coordinates of all entries of λ, end to end.

    Args:
        leaves: The hyperparameters by name.

    Attributes:
        m: How many coordinates there are.
        slopes: dλ/du, one number a coordinate.
    """

    def __init__(self, leaves: Mapping[str, Tensor]) -> None:
        self._leaves = leaves
        self._entries = [(n, i) for n, leaf in leaves.items() for i in range(leaf.numel())]
        self.m = len(self._entries)
        self.slopes: Sequence[float] = [1.0] * self.m

    def __getitem__(self, k: int) -> dict[str, Tensor]:
        """Return the tangent of λ along coordinate k: of the one hyperparameter that moves."""
        return self._tangent(k, self.slopes[k])

    def rows_of(self, names: Collection[str]) -> list[int]:
        """Return the coordinates that belong to some hyperparameters."""
        return [k for k, (name, _) in enumerate(self._entries) if name in names]

    def matrix(self, names: Iterable[str], like: Tensor) -> Tensor:
        """Return the tangents of some hyperparameters as ``m x q``, in the dtype of ``like``."""
        offset, columns = 0, {}
        for name in names:
            columns[name] = offset
            offset += self._leaves[name].numel()
        matrix = like.new_zeros(self.m, offset)
        for k, (name, entry) in enumerate(self._entries):
            if name in columns:
                matrix[k, columns[name] + entry] = self.slopes[k]
        return matrix

    def split(self, derivatives: Tensor) -> dict[str, Tensor]:
        """Return the parts of a vector ``[m]`` by name, in the shapes of the hyperparameters."""
        parts = torch.split(derivatives, [leaf.numel() for leaf in self._leaves.values()])
        pairs = zip(self._leaves.items(), parts, strict=True)
        return {name: part.view(leaf.shape) for (name, leaf), part in pairs}

    def seeds(self, options: Options) -> tuple[Seeds, set[str]]:
        """Return how λ moves the options, and the hyperparameters that do.

        The derivatives are those in λ; `along` takes them along the coordinates.
        """
        seeds: dict[str, list[tuple[int, Value]]] = {}
        reached: set[str] = set()
        for option, value in options.recorded.items():
            push = Pushforward({option: value}, self._leaves)
            reached |= push.reached
            rows = self.rows_of(push.reached)
            slopes = [(k, push(self._tangent(k, 1.0))[option]) for k in rows]
            seeds[option] = [(k, s if s.ndim else float(s)) for k, s in slopes if bool(s.any())]
        return seeds, reached

    def along(self, seeds: Seeds) -> Seeds:
        """Return how the coordinates move the options, from how λ does."""
        return {n: [(k, self.slopes[k] * s) for k, s in pairs] for n, pairs in seeds.items()}

    def _tangent(self, k: int, slope: float) -> dict[str, Tensor]:
        name, entry = self._entries[k]
        tangent = torch.zeros_like(self._leaves[name], requires_grad=False)
        tangent.view(-1)[entry] = slope
        return {name: tangent}

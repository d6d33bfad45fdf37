"""The scale of the initial parameters as a hyperparameter.

Letters: p the number of trainable entries.
"""

import fnmatch
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from hyperopt_dl.errors import TrainingError
from hyperopt_dl.space import Dimension
from hyperopt_dl.space.bounds import bounds
from hyperopt_dl.training import HParams


class InitScale:
    """Multiplies initial parameters by hyperparameters, differentiably.

    Args:
        scales: Patterns of parameter names to names of hyperparameters; ``None`` changes nothing.

    Raises:
        TrainingError: Something that is no such mapping.
    """

    def __init__(self, scales: Mapping[str, str] | None) -> None:
        given: Any = {} if scales is None else scales
        fits = isinstance(given, Mapping) and all(
            isinstance(part, str) for pair in given.items() for part in pair
        )
        if not fits:
            raise TrainingError(
                f"init_scale must be the name of a hyperparameter, or map patterns of parameter "
                f"names to such names, got {scales!r}."
            )
        self._scales = dict(given)

    @property
    def names(self) -> frozenset[str]:
        """The hyperparameters that it reads."""
        return frozenset(self._scales.values())

    def check_space(self, space: Mapping[str, Dimension]) -> None:
        """Check that every hyperparameter that it reads is a number.

        Raises:
            TrainingError: One is not.
        """
        for name in sorted(self.names):
            if bounds(space[name]) is None:
                raise TrainingError(
                    f"init_scale needs hyperparameters that are one number, got {name!r} in "
                    f"{space[name]!r}. Use a Float; for one scale a layer give init_scale patterns."
                )

    def __call__(
        self, params: Tensor, layout: tuple[tuple[str, int], ...], hparams: HParams
    ) -> Tensor:
        """Return the scaled ``[p]`` parameters.

        Args:
            params: The parameters ``[p]`` as the model has made them.
            layout: The names and sizes of the parameters, in the order of the vector.
            hparams: Numbers or 0-dim tensors by name.

        Raises:
            TrainingError: A hyperparameter is missing, or a pattern decides for no parameter.
        """
        if not self._scales:
            return params
        decided = [
            next((p for p in self._scales if fnmatch.fnmatchcase(name, p)), None)
            for name, _ in layout
        ]
        for pattern, name in self._scales.items():
            if name not in hparams:
                raise TrainingError(
                    f"init_scale needs the hyperparameter {name!r}, got only {sorted(hparams)}."
                )
            if pattern not in decided:
                raise TrainingError(
                    f"Every pattern of init_scale must decide for a parameter, got {pattern!r} for "
                    f"{[name for name, _ in layout]}; the first match wins."
                )
        pieces = torch.split(params, [size for _, size in layout])
        scaled = [
            piece if pattern is None else (piece * hparams[self._scales[pattern]]).to(piece.dtype)
            for piece, pattern in zip(pieces, decided, strict=True)
        ]
        return torch.cat(scaled)

"""Let a study's seed fix what any sampler proposes, by Optuna's public face alone."""

import io
import pickle
from types import FunctionType
from typing import Any

import numpy as np

from hyperopt_dl.errors import StudyError
from hyperopt_dl.seeds import derive


def reseed(sampler: Any, seed: int) -> None:
    """Put every NumPy generator that a sampler holds into the state that ``seed`` decides.

    Called with a seed of its own before each trial is sampled, this makes a proposal a function of
    the finished trials, the trial's number and the study's seed: a study that was killed and is
    resumed proposes what it would have proposed without the interruption.

    Raises:
        StudyError: The sampler cannot be pickled, which is how its generators are found.
    """
    finder = _Finder()
    try:
        finder.dump(sampler)
    except Exception as error:
        raise StudyError(
            f"Study(seed=...) needs a tuner that can be pickled, {type(sampler).__name__} cannot: "
            f"{error}. Give the seed to the tuner itself, and none to the study."
        ) from error
    for index, generator in enumerate(finder.generators):
        key = derive(seed, index) % 2**32
        if isinstance(generator, np.random.RandomState):
            generator.seed(key)
        else:
            generator.bit_generator.state = type(generator.bit_generator)(key).state


class _Finder(pickle.Pickler):
    """Walks through an object as pickle does, and keeps the generators that it meets."""

    def __init__(self) -> None:
        super().__init__(io.BytesIO(), protocol=5)
        self.generators: list[np.random.RandomState | np.random.Generator] = []

    def reducer_override(self, obj: Any) -> Any:
        """Note a generator in passing; what is pickled in its place does not matter."""
        if isinstance(obj, (np.random.RandomState, np.random.Generator)):
            self.generators.append(obj)
            return int, ()
        if isinstance(obj, (FunctionType, type)) and obj is not int:
            # Pickled by name, which a lambda does not have; a generator is nothing that they hold.
            return int, ()
        # Optuna's samplers hold generators that come into being when their property is first read.
        if isinstance(getattr(type(obj), "rng", None), property):
            _ = obj.rng
        return NotImplemented

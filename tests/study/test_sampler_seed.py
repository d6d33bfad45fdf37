"""Putting a sampler's generators into a known state."""

import threading
from typing import Any

import numpy as np
import optuna
import pytest

import hyperopt_dl as hd
from hyperopt_dl.study.sampler_seed import reseed


class Holder:
    """Something that holds generators in several places, one of them unborn."""

    def __init__(self) -> None:
        self.old = np.random.RandomState()
        self.new = {"a": [np.random.default_rng()]}
        self._unborn: np.random.RandomState | None = None

    @property
    def rng(self) -> np.random.RandomState:
        self._unborn = self._unborn or np.random.RandomState()
        return self._unborn

    def draw(self) -> list[float]:
        return [self.old.rand(), self.new["a"][0].random(), self.rng.rand()]


def test_one_seed_gives_one_state_to_generators_wherever_they_are() -> None:
    first, second = Holder(), Holder()
    reseed(first, 5)
    reseed(second, 5)
    assert first.draw() == second.draw()


def test_the_generators_of_one_sampler_differ() -> None:
    holder = Holder()
    reseed(holder, 5)
    assert len(set(holder.draw())) == 3


def test_another_seed_gives_another_state() -> None:
    first, second = Holder(), Holder()
    reseed(first, 5)
    reseed(second, 6)
    assert not set(first.draw()) & set(second.draw())


def test_a_function_and_a_class_without_a_name_are_passed_by() -> None:
    class Local(Holder):
        rule = staticmethod(lambda x: x)

        def __init__(self) -> None:
            super().__init__()
            self.function = lambda x: x

    first, second = Local(), Local()
    reseed(first, 5)
    reseed(second, 5)
    assert first.draw() == second.draw()


def test_what_cannot_be_pickled_is_named() -> None:
    class Locked(optuna.samplers.RandomSampler):
        lock: Any = None

        def __init__(self) -> None:
            super().__init__()
            self.lock = threading.Lock()

    study = hd.Study(hd.Space(x=hd.Float(0, 1)), tuner=Locked(), seed=0)
    with pytest.raises(hd.StudyError, match="needs a tuner that can be pickled, Locked cannot"):
        study.ask()
    assert study.trials == []

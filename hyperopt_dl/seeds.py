"""Where every random number comes from: a seed and the path that leads to its use.

Nothing here touches the global state of a generator for longer than a ``with`` block, so that the
same path gives the same numbers in any order, in any process, and when a step is computed again.
"""

import hashlib
import operator
import random
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch


def derive(seed: int, *path: int | str) -> int:
    """Return the seed that belongs to ``path`` below ``seed``, a number in ``[0, 2**63)``.

    A hash, not a sum: neighbouring seeds and neighbouring paths give unrelated numbers, the same on
    every machine and in every version of Python. NumPy's integers count as Python's.
    """
    parts = tuple(part if isinstance(part, str) else operator.index(part) for part in (seed, *path))
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


@contextmanager
def seeded(key: int, device: torch.device, *, everywhere: bool = True) -> Iterator[None]:
    """Start the generators that code draws from by default from ``key`` inside the block.

    They are torch's of the CPU and of ``device``, and ``everywhere`` those of Python's ``random``
    and of ``numpy.random`` too. Their states from before the block are put back after it. Costs a
    few microseconds, a hundredth of ``torch.manual_seed`` with ``fork_rng``; everywhere, about 25.
    """
    generators = [torch.default_generator]
    if device.type == "cuda":
        index = torch.cuda.current_device() if device.index is None else device.index
        generators.append(torch.cuda.default_generators[index])
    states = [generator.get_state() for generator in generators]
    for generator in generators:
        generator.manual_seed(key)
    try:
        with _seeded_beside_torch(key) if everywhere else nullcontext():
            yield
    finally:
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)


class BesideTorch:
    """Whether the steps of a training draw from Python's ``random`` or from ``numpy.random``.

    To start these generators in each step costs more than a small step has to spare. So they are
    watched in the first step and in every hundredth after it, and started in every step once they
    have been drawn from.

    Attributes:
        drawn: Whether they have been; ``None`` before the first step.
    """

    def __init__(self) -> None:
        self.drawn: bool | None = None

    def looks(self, t: int) -> bool:
        """Return whether the generators are to be started for step ``t``."""
        return self.drawn is not False or t % 100 == 0

    @contextmanager
    def watching(self, t: int) -> Iterator[None]:
        """Watch the forward pass of step ``t``, where this is due."""
        if self.drawn or not self.looks(t):  # known, or not due
            yield
            return
        before = _states()
        yield
        self.drawn = _states() != before


def _states() -> tuple[Any, ...]:
    numpys: Any = np.random.get_state()
    return random.getstate(), numpys[1].tobytes(), *numpys[2:]


@contextmanager
def _seeded_beside_torch(key: int) -> Iterator[None]:
    numpys: Any = np.random
    state, bits = random.getstate(), numpys.get_bit_generator()
    random.seed(key)
    # Another generator takes the place of numpy's: to copy its state would take longer than all.
    numpys.set_bit_generator(np.random.MT19937(0) if bits in _OWN else _OWN[0])
    np.random.seed(key % 2**32)
    try:
        yield
    finally:
        numpys.set_bit_generator(bits)
        random.setstate(state)


_OWN = [np.random.MT19937(0)]
"""The generator that numpy draws from inside of a block; a block inside of one makes another."""

"""Derived seeds as a hash of their path, and generators that are put back."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hyperopt_dl.seeds import derive, seeded

CPU = torch.device("cpu")
paths = st.lists(st.integers(0, 2**40) | st.text(max_size=4), max_size=3).map(tuple)


def test_a_derived_seed_is_the_same_in_every_version() -> None:
    # printf "(7, 'step', 3)" | b2sum -l 64, read as a little-endian number, halved
    assert derive(0) == 2631537505891389924
    assert derive(7, "step", 3) == 6420672648247578885


@given(st.integers(0, 2**63 - 1), paths)
@settings(deadline=None)
def test_a_derived_seed_fits_into_a_signed_64_bit_integer(
    seed: int, path: tuple[int | str]
) -> None:
    assert 0 <= derive(seed, *path) < 2**63


@given(st.tuples(st.integers(), paths), st.tuples(st.integers(), paths))
@settings(deadline=None)
def test_other_paths_give_other_seeds(
    a: tuple[int, tuple[int | str]], b: tuple[int, tuple[int | str]]
) -> None:
    assert (derive(a[0], *a[1]) == derive(b[0], *b[1])) == (a == b)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ((1, 23), (12, 3)),
        ((1, "2"), (1, 2)),
        ((0, "a", "b"), (0, "ab")),
        ((0, "a, 'b"), (0, "a", "b")),
        ((0,), (0, 0)),
    ],
    ids=str,
)
def test_paths_that_look_alike_give_other_seeds(
    a: tuple[int | str, ...], b: tuple[int | str, ...]
) -> None:
    assert derive(int(a[0]), *a[1:]) != derive(int(b[0]), *b[1:])


def test_neighbouring_seeds_differ_in_half_of_their_bits() -> None:
    distances = [(derive(i) ^ derive(i + 1)).bit_count() for i in range(500)]
    assert abs(sum(distances) / 500 - 63 / 2) < 1


@pytest.mark.parametrize("kind", [np.int64, np.int32, np.uint8])
def test_integers_of_numpy_count_as_those_of_python(
    kind: type[np.integer[np.typing.NBitBase]],
) -> None:
    assert derive(kind(3), "epoch", kind(4)) == derive(3, "epoch", 4)  # type: ignore[arg-type]


def test_a_seed_that_is_no_integer_is_refused() -> None:
    with pytest.raises(TypeError):
        derive(0.5)  # type: ignore[arg-type]


def test_another_process_derives_the_same_seed() -> None:
    code = "from hyperopt_dl.seeds import derive; print(derive(5, 'init', 2))"
    found = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONHASHSEED": "99", "PATH": ""},
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(found.stdout) == derive(5, "init", 2)


@pytest.mark.parametrize("key", [0, 1, 2**63 - 1])
def test_a_seeded_block_draws_what_manual_seed_would_draw(key: int) -> None:
    with seeded(key, CPU):
        found = torch.rand(5)
    assert torch.equal(found, torch.rand(5, generator=torch.Generator().manual_seed(key)))


def test_the_global_generator_goes_on_as_if_there_had_been_no_block() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        expected = torch.rand(4)
        torch.manual_seed(1)
        found = [torch.rand(2)]
        with seeded(5, CPU):
            torch.rand(100)
        found.append(torch.rand(2))
    assert torch.equal(torch.cat(found), expected)


def test_the_global_generator_is_put_back_after_an_exception() -> None:
    def draw_and_fail() -> None:
        torch.rand(3)
        raise LookupError

    before = torch.get_rng_state()
    with pytest.raises(LookupError), seeded(5, CPU):
        draw_and_fail()
    assert torch.equal(torch.get_rng_state(), before)


def test_an_inner_block_does_not_disturb_the_outer_one() -> None:
    with seeded(5, CPU):
        expected = torch.rand(4)
    with seeded(5, CPU):
        first = torch.rand(2)
        with seeded(6, CPU):
            torch.rand(3)
        second = torch.rand(2)
    assert torch.equal(torch.cat([first, second]), expected)

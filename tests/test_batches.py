"""Batches as a function of (seed, step), against one permutation an epoch."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset

from hyperopt_dl.batches import Batch, Batches
from hyperopt_dl.errors import TrainingError
from hyperopt_dl.seeds import derive, seeded

CPU = torch.device("cpu")
N = 10


def tensors(n: int = N) -> tuple[Tensor, Tensor]:
    return torch.arange(n)[:, None] * 1.0, torch.arange(n) * 10


class Pairs(Dataset[tuple[Tensor, int]]):
    """A data set of pairs, fetched one by one."""

    def __len__(self) -> int:
        return N

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        return torch.tensor([float(i)]), 10 * i


class Fetched(Pairs):
    """The same, fetched many at a time."""

    def __init__(self) -> None:
        self.fetches: list[list[int]] = []

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        raise AssertionError("fetched one by one")

    def __getitems__(self, index: list[int]) -> list[tuple[Tensor, int]]:
        self.fetches.append(index)
        return [(torch.tensor([float(i)]), 10 * i) for i in index]


class Example(NamedTuple):
    x: Tensor
    y: int


SOURCES: dict[str, Callable[[], Any]] = {
    "tensors": tensors,
    "list_of_tensors": lambda: list(tensors()),
    "tensor_data_set": lambda: TensorDataset(*tensors()),
    "data_set": Pairs,
    "fetching_data_set": Fetched,
    "subset": lambda: Subset(Pairs(), range(N)),
    "list_of_pairs": lambda: list(zip(*tensors(), strict=True)),
    "list_of_named_pairs": lambda: [Example(torch.tensor([float(i)]), 10 * i) for i in range(N)],
    "list_of_lists": lambda: [[torch.tensor([float(i)]), 10 * i] for i in range(N)],
}


def of(source: Any, **settings: Any) -> Batches:
    return Batches(source, name="train", **settings)


def epoch(batches: Batches, seed: int, number: int = 0) -> list[Batch]:
    first = number * batches.steps_per_epoch
    return [batches.at(seed, first + t, CPU) for t in range(batches.steps_per_epoch)]


def order(batches: list[Batch]) -> list[int]:
    return torch.cat([batch.examples for batch in batches]).tolist()


@pytest.mark.parametrize("source", SOURCES)
def test_a_batch_holds_the_examples_that_it_names(source: str) -> None:
    for batch in epoch(of(SOURCES[source](), batch_size=4), seed=3):
        assert torch.equal(batch.inputs[0], batch.examples[:, None] * 1.0)
        assert torch.equal(batch.target, batch.examples * 10)


@pytest.mark.parametrize("source", SOURCES)
def test_every_kind_of_source_gives_the_same_batches(source: str) -> None:
    found = epoch(of(SOURCES[source](), batch_size=4), seed=3)
    expected = epoch(of(tensors(), batch_size=4), seed=3)
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a.examples, b.examples)
        assert torch.equal(a.inputs[0], b.inputs[0])


def test_a_data_set_that_can_fetch_many_is_asked_once_for_a_batch() -> None:
    source = Fetched()
    batch = of(source, batch_size=4).at(0, 0, CPU)
    assert source.fetches == [batch.examples.tolist()]


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 30), st.data())
def test_an_epoch_visits_every_example_once(n: int, data: st.DataObject) -> None:
    size = data.draw(st.integers(1, n))
    seed, number = data.draw(st.integers(0, 2**62)), data.draw(st.integers(0, 99))
    batches = epoch(of(tensors(n), batch_size=size), seed, number)
    assert sorted(order(batches)) == list(range(n))
    assert [len(batch.examples) for batch in batches[:-1]] == [size] * (len(batches) - 1)


@pytest.mark.parametrize(
    ("size", "drop_last", "lengths"),
    [
        (4, False, [4, 4, 2]),
        (4, True, [4, 4]),
        (5, False, [5, 5]),
        (5, True, [5, 5]),
        (N, False, [N]),
        (N, True, [N]),
        (1, True, [1] * N),
        (None, True, [N]),
        (np.int64(4), True, [4, 4]),
    ],
)
def test_the_last_batch_of_an_epoch_is_kept_or_dropped(
    size: int | None, drop_last: bool, lengths: list[int]
) -> None:
    batches = of(tensors(), batch_size=size, drop_last=drop_last)
    assert batches.steps_per_epoch == len(lengths)
    assert [len(batch.examples) for batch in epoch(batches, seed=0, number=2)] == lengths


def test_an_epoch_is_the_permutation_of_its_own_seed() -> None:
    batches = of(tensors(), batch_size=4)
    for number in range(3):
        generator = torch.Generator().manual_seed(derive(6, "epoch", number))
        expected = torch.randperm(N, generator=generator).tolist()
        assert order(epoch(batches, seed=6, number=number)) == expected


def test_epochs_and_seeds_have_other_permutations() -> None:
    batches = of(tensors(), batch_size=4)
    orders = {tuple(order(epoch(batches, seed, n))) for seed in range(4) for n in range(5)}
    assert len(orders) == 20


def test_the_permutation_does_not_depend_on_the_batch_size() -> None:
    assert order(epoch(of(tensors(), batch_size=4), 6, 1)) == order(
        epoch(of(tensors(), batch_size=3), 6, 1)
    )


def test_random_access_gives_the_batches_of_a_walk_from_the_start() -> None:
    batches = of(tensors(), batch_size=4)
    walk = [batches.at(8, t, CPU).examples for t in range(30)]
    generator = torch.Generator().manual_seed(0)
    for t in torch.randperm(30, generator=generator).tolist():
        batches.at(9, t, CPU)
        assert torch.equal(batches.at(8, t, CPU).examples, walk[t])


def test_without_a_batch_size_every_step_sees_the_whole_set_in_order() -> None:
    batches = of(tensors())
    for t in (0, 1, 7):
        batch = batches.at(t, t, CPU)
        assert torch.equal(batch.examples, torch.arange(N))
        assert torch.equal(batch.inputs[0], tensors()[0])


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("size", [1, 3, N, 4096])
def test_chunks_are_the_set_in_order(source: str, size: int) -> None:
    chunks = list(of(SOURCES[source]()).chunks(size, CPU))
    assert [len(chunk.examples) for chunk in chunks[:-1]] == [size] * (len(chunks) - 1)
    assert order(chunks) == list(range(N))
    assert torch.equal(torch.cat([chunk.target for chunk in chunks]), tensors()[1])


@pytest.mark.parametrize("parts", [2, 3, 4])
def test_the_last_entry_is_the_target_and_the_others_are_inputs(parts: int) -> None:
    source = tuple(torch.arange(N) * (i + 1) for i in range(parts))
    batch = of(source, batch_size=4).at(0, 0, CPU)
    assert len(batch.inputs) == parts - 1
    for i, part in enumerate((*batch.inputs, batch.target)):
        assert torch.equal(part, batch.examples * (i + 1))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64, torch.uint8])
def test_tensors_keep_their_dtype(dtype: torch.dtype) -> None:
    x, y = tensors()
    assert of((x.to(dtype), y), batch_size=4).at(0, 0, CPU).inputs[0].dtype == dtype


@pytest.mark.parametrize("size", [4, None])
def test_writing_into_a_batch_leaves_the_set_as_it_was(size: int | None) -> None:
    x, y = tensors()
    batches = of((x, y), batch_size=size)
    for batch in (batches.at(0, 0, CPU), next(batches.chunks(N, CPU))):
        batch.inputs[0].zero_()
        batch.target.zero_()
    assert torch.equal(x, tensors()[0])
    assert torch.equal(y, tensors()[1])


def test_taking_a_batch_draws_nothing_from_the_global_generator() -> None:
    batches = of(tensors(), batch_size=4)
    before = torch.get_rng_state()
    batches.at(0, 5, CPU)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_data_set_that_draws_at_random_replays_under_a_seed() -> None:
    class Noisy(Pairs):
        def __getitem__(self, i: int) -> tuple[Tensor, int]:
            return torch.rand(1), i

    batches = of(Noisy(), batch_size=4)
    found = []
    for _ in range(2):
        with seeded(4, CPU):
            found.append(batches.at(0, 0, CPU).inputs[0])
    assert torch.equal(*found)
    assert len(found[0].unique()) == 4


class Stream(IterableDataset[int]):
    def __iter__(self) -> Iterator[int]:
        return iter(range(N))


X, Y = tensors()


@pytest.mark.parametrize(
    ("source", "settings", "fragment"),
    [
        ((X,), {}, "train must hold the inputs and, last, the target: (x, y). Got 1 tensor(s)."),
        ((), {}, "Got 0 tensor(s)."),
        (TensorDataset(X), {}, "Got 1 tensor(s)."),
        ((X, Y[:-1]), {}, "must have the same first dimension, got [10, 9]"),
        ((X, torch.tensor(1)), {}, "must have the same first dimension, got [10, 0]"),
        ((X[:0], Y[:0]), {}, "train must have at least one example, got none"),
        (Subset(Pairs(), []), {}, "train must have at least one example, got none"),
        ((X.numpy(), Y.numpy()), {}, "a tuple of tensors (x, y), got ['ndarray', 'ndarray']"),
        ((X, Y.numpy()), {}, "got ['Tensor', 'ndarray']. Use torch.as_tensor on each."),
        (DataLoader(Pairs()), {}, "got DataLoader. A DataLoader or an iterable data set cannot"),
        (Stream(), {}, "got Stream."),
        (iter([(X, Y)]), {}, "got list_iterator."),
        (None, {}, "got NoneType."),
        (X, {}, "got Tensor."),
        (X.numpy(), {}, "got ndarray."),
        ({"x": X, "y": Y}, {}, "got dict."),
        ("train", {}, "got str."),
        ((X, Y), {"batch_size": 0}, "between 1 and the 10 examples of train, got 0"),
        ((X, Y), {"batch_size": -4}, "got -4. None takes the whole set at every step;"),
        ((X, Y), {"batch_size": 11}, "between 1 and the 10 examples of train, got 11"),
        ((X, Y), {"batch_size": 2.5}, "between 1 and the 10 examples of train, got 2.5"),
    ],
)
def test_a_source_that_cannot_be_replayed_is_an_error(
    source: Any, settings: dict[str, Any], fragment: str
) -> None:
    with pytest.raises(TrainingError) as caught:
        of(source, **settings)
    assert fragment in str(caught.value)


@pytest.mark.parametrize(
    ("example", "got"),
    [
        (torch.ones(3), "Tensor"),
        ((torch.ones(3),), "a tuple of length 1"),
        ({"x": torch.ones(3), "y": 1}, "dict"),
        (1.0, "float"),
    ],
)
def test_an_example_that_is_no_pair_is_an_error(example: Any, got: str) -> None:
    class Odd(Dataset[Any]):
        def __len__(self) -> int:
            return N

        def __getitem__(self, i: int) -> Any:
            return example

    with pytest.raises(TrainingError) as caught:
        of(Odd(), batch_size=4).at(0, 0, CPU)
    assert f"An example of train must be a tuple (input, ..., target), got {got}." in str(
        caught.value
    )


def test_only_a_whole_batch_that_is_shared_is_the_data_themselves() -> None:
    x, y = torch.arange(6.0).view(6, 1), torch.arange(6)
    whole = Batches((x, y), name="train")
    assert whole.at(0, 3, torch.device("cpu"), shared=True).inputs[0] is x
    copy = whole.at(0, 3, torch.device("cpu")).inputs[0]
    assert torch.equal(copy, x)
    assert copy.data_ptr() != x.data_ptr()
    part = Batches((x, y), name="train", batch_size=6).at(0, 3, torch.device("cpu"), shared=True)
    assert part.inputs[0].data_ptr() != x.data_ptr()

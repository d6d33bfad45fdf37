"""The contract of stored states on every implementation, and what each one promises alone."""

import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeAlias

import pytest
import torch
from torch import Tensor
from torch.utils.weak import WeakIdRef

from hyperopt_dl.errors import TrainingError
from hyperopt_dl.hypergrad.memory import size_of
from hyperopt_dl.hypergrad.sweeps.snapshots import InMemory, OnDisk, Snapshots, TwoLevel
from hyperopt_dl.hypergrad.sweeps.trajectory import (
    Action,
    Advance,
    Final,
    Free,
    Record,
    Restore,
    Reverse,
    Store,
    binomial,
    keep_all,
)
from hyperopt_dl.training import State

DTYPES = [
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.float8_e4m3fn,
    torch.complex64,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.uint16,
    torch.bool,
]

Make: TypeAlias = Callable[[Path], Snapshots]
STORES: dict[str, Make] = {
    "in_memory": lambda folder: InMemory(),
    "offload": lambda folder: InMemory(offload=True),
    "on_disk": OnDisk,
    "two_levels_all_on_disk": lambda folder: TwoLevel(folder, 0),
    "two_levels_of_100_bytes": lambda folder: TwoLevel(folder, 100),
    "two_levels_all_in_memory": lambda folder: TwoLevel(folder, 10**9, offload=True),
}
every_store = pytest.mark.parametrize("make", STORES.values(), ids=STORES.keys())
gpu = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
every_device = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=gpu)])


def noise(dtype: torch.dtype, *shape: int, seed: int = 0) -> Tensor:
    """Random bits, whatever number they mean: NaNs and infinities among them."""
    generator = torch.Generator().manual_seed(seed)
    size = torch.empty(shape, dtype=dtype).nbytes
    high = 2 if dtype == torch.bool else 256
    bits = torch.randint(0, high, (size,), dtype=torch.uint8, generator=generator)
    return bits.view(dtype).reshape(shape)


def bits(tensor: Tensor) -> list[int]:
    flat: list[int] = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).tolist()
    return flat


def states(number: int, device: str = "cpu") -> Iterator[State]:
    """States as a run yields them: a moving parameter, a frozen one, a seed on the host."""
    frozen = noise(torch.float32, 6, seed=99).to(device)
    seed = torch.tensor(2**62 + 1)
    for t in range(number):
        yield {"w": noise(torch.float32, 5, seed=t).to(device), "frozen": frozen, "seed": seed}


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


@every_device
@every_store
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_state_comes_back_bit_by_bit(
    make: Make, dtype: torch.dtype, device: str, tmp_path: Path
) -> None:
    value = noise(dtype, 3, 4).to(device)
    expected = bits(value)
    with make(tmp_path) as store:
        store.put(3, {"x": value, "scalar": value[0, 0], "transposed": value.t()})
        store.put(4, {"x": noise(dtype, 3, 4, seed=1).to(device)})
        del value
        state = store.get(3)
    assert list(state) == ["x", "scalar", "transposed"]
    assert bits(state["x"]) == expected
    assert bits(state["scalar"]) == expected[: dtype.itemsize]
    assert bits(state["transposed"].t()) == expected
    assert state["transposed"].stride() == (1, 4)
    assert {(tensor.dtype, tensor.device.type) for tensor in state.values()} == {(dtype, device)}


@every_device
@every_store
def test_the_seed_stays_on_the_host(make: Make, device: str, tmp_path: Path) -> None:
    with make(tmp_path) as store:
        for t, state in enumerate(states(3, device)):
            store.put(t, state)
        del state
        for t in range(3):
            restored = store.get(t)
            assert restored["seed"].device.type == "cpu"
            assert restored["seed"].shape == ()
            assert int(restored["seed"]) == 2**62 + 1
            assert restored["w"].device.type == device


@every_device
@every_store
def test_every_state_can_be_asked_for_again_until_it_is_freed(
    make: Make, device: str, tmp_path: Path
) -> None:
    expected = [{name: bits(x) for name, x in state.items()} for state in states(6)]
    with make(tmp_path) as store:
        for t, state in enumerate(states(6, device)):
            store.put(t, state)
        del state
        for t in [5, 0, 3, 3, 1, 5]:
            assert {name: bits(x) for name, x in store.get(t).items()} == expected[t]
        for t in [0, 4, 2]:
            store.free(t)
        for t in [1, 3, 5]:
            assert {name: bits(x) for name, x in store.get(t).items()} == expected[t]
        for t in [0, 2, 4]:
            with pytest.raises(KeyError):
                store.get(t)


@every_store
def test_a_step_can_be_stored_again_with_another_state(make: Make, tmp_path: Path) -> None:
    first, second = states(2)
    with make(tmp_path) as store:
        store.put(1, first)
        store.free(1)
        store.put(1, second)
        assert bits(store.get(1)["w"]) == bits(second["w"])
        assert bits(store.get(1)["frozen"]) == bits(first["frozen"])


@every_store
def test_nothing_is_left_behind_after_the_block(make: Make, tmp_path: Path) -> None:
    with make(tmp_path) as store:
        for t, state in enumerate(states(4)):
            store.put(t, state)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(KeyError):
        store.get(0)


@every_store
def test_nothing_is_left_behind_after_an_exception(make: Make, tmp_path: Path) -> None:
    def diverge() -> None:
        with make(tmp_path) as store:
            for t, state in enumerate(states(4)):
                store.put(t, state)
            raise ArithmeticError

    with pytest.raises(ArithmeticError):
        diverge()
    assert list(tmp_path.iterdir()) == []


@every_store
def test_two_sweeps_at_once_do_not_meet(make: Make, tmp_path: Path) -> None:
    first, second = states(2)
    with make(tmp_path) as one:
        with make(tmp_path) as other:
            one.put(0, first)
            other.put(0, second)
            expected = [bits(first["w"]), bits(second["w"])]
            del first, second
            assert [bits(one.get(0)["w"]), bits(other.get(0)["w"])] == expected
        assert bits(one.get(0)["w"]) == expected[0]


@every_store
def test_what_is_still_alive_comes_back_as_itself(make: Make, tmp_path: Path) -> None:
    first, second = states(2)
    with make(tmp_path) as store:
        store.put(0, first)
        store.put(1, second)
        assert store.get(0)["frozen"] is store.get(1)["frozen"] is first["frozen"]


def sweep(store: Snapshots, schedule: Iterator[Action]) -> Tensor:
    """The derivative of sum(s[T]²) by the first state, for s[t + 1] = frozen sin(s[t]) + t / 7."""
    state: State = {"s": noise(torch.int8, 4).double() / 64, "frozen": torch.tensor([1.1] * 4)}
    adjoint = torch.zeros(4)

    def step(state: State, t: int) -> State:
        return {"s": state["frozen"] * state["s"].sin() + t / 7, "frozen": state["frozen"]}

    with store:
        for action in schedule:
            match action:
                case Store(t):
                    store.put(t, state)
                case Restore(t):
                    state = store.get(t)
                case Free(t):
                    store.free(t)
                case Advance(start, stop):
                    for t in range(start, stop):
                        state = step(state, t)
                case Record(t):
                    state = step(state, t)
                case Final():
                    adjoint = 2 * state["s"]
                case Reverse(t):
                    s = state["s"].clone().requires_grad_()
                    (adjoint,) = torch.autograd.grad(step({**state, "s": s}, t)["s"], s, adjoint)
    return adjoint


@every_store
@pytest.mark.parametrize("slots", [1, 3, 7, 30])
def test_a_sweep_over_stored_states_is_the_sweep_over_all(
    make: Make, slots: int, tmp_path: Path
) -> None:
    exact = sweep(InMemory(), keep_all(23))
    assert exact.abs().max() > 0
    assert torch.equal(sweep(make(tmp_path), binomial(23, slots)), exact)


def test_memory_holds_the_tensors_themselves() -> None:
    (state,) = states(1)
    with InMemory() as store:
        store.put(0, state)
        assert all(store.get(0)[name] is tensor for name, tensor in state.items())


def test_two_levels_count_what_states_in_memory_share_once(tmp_path: Path) -> None:
    with TwoLevel(tmp_path, 1000) as store:
        sizes = []
        for t, state in enumerate(states(3)):
            store.put(t, state)
            sizes.append(store.held_bytes)
        assert sizes == [20 + 24 + 8, 72, 92]
        store.free(0)
        assert store.held_bytes == 72
        store.free(2)
        assert store.held_bytes == 52
    assert store.held_bytes == 0


def test_the_size_of_states_counts_every_storage_once() -> None:
    first, second = states(2)
    assert size_of(first) == 52
    assert size_of(first, second) - size_of(first) == 20
    flat = torch.zeros(10)
    assert size_of({"head": flat[:3], "tail": flat[3:], "row": flat.view(2, 5)}) == 40


def test_files_go_when_their_states_are_freed(tmp_path: Path) -> None:
    with OnDisk(tmp_path) as store:
        for t in range(4):
            store.put(t, {"w": noise(torch.float32, 5, seed=t)})
        for left in [3, 2, 1, 0]:
            store.free(left)
            assert len(files(tmp_path)) == left


def test_a_shared_tensor_is_written_once(tmp_path: Path) -> None:
    frozen = torch.zeros(100_000)
    with OnDisk(tmp_path) as store:
        for t in range(5):
            store.put(t, {"w": torch.full((3,), float(t)), "frozen": frozen})
        assert 400_000 < sum(path.stat().st_size for path in files(tmp_path)) < 450_000
        store.free(0)
        del frozen
        state = store.get(3)
        assert torch.equal(state["frozen"], torch.zeros(100_000))
        assert store.get(4)["frozen"] is state["frozen"]


def test_states_on_disk_are_not_kept_in_memory(tmp_path: Path) -> None:
    with OnDisk(tmp_path) as store:
        alive = []
        for t in range(3):
            state = {"w": torch.zeros(5)}
            store.put(t, state)
            alive.append(WeakIdRef(state["w"]))
        del state
        assert [tensor() for tensor in alive] == [None] * 3


def test_a_tensor_with_a_graph_is_stored_without_it(tmp_path: Path) -> None:
    value = torch.ones(3, requires_grad=True) * 2
    with OnDisk(tmp_path) as store:
        store.put(0, {"w": value})
        del value
        assert not store.get(0)["w"].requires_grad


@pytest.mark.parametrize("budget", [0, 51, 52, 100, 10_000])
def test_memory_stays_within_its_budget(budget: int, tmp_path: Path) -> None:
    with TwoLevel(tmp_path, budget) as store:
        for t, state in enumerate(states(10)):
            store.put(t, state)
            in_memory = min(t + 1, max(0, (budget - 32) // 20))
            assert len(files(tmp_path)) == t + 1 - in_memory


def test_the_states_stored_last_stay_in_memory(tmp_path: Path) -> None:
    with TwoLevel(tmp_path, 72) as store:
        alive = []
        for t, state in enumerate(states(5)):
            store.put(t, state)
            alive.append(WeakIdRef(state["w"]))
        del state
        assert [tensor() is not None for tensor in alive] == [False] * 3 + [True] * 2


@pytest.mark.parametrize("name", ["missing", "a_file"])
@pytest.mark.parametrize("make", [OnDisk, lambda folder: TwoLevel(folder, 1000)])
def test_a_folder_that_takes_no_files_is_named(make: Make, name: str, tmp_path: Path) -> None:
    (tmp_path / "a_file").touch()
    with pytest.raises(TrainingError, match=rf"folder that it may write into, got '.*{name}'"):
        make(tmp_path / name)


def test_a_negative_budget_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="budget_bytes >= 0, got -1"):
        TwoLevel(tmp_path, -1)
    assert list(tmp_path.iterdir()) == []


@contextmanager
def no_file_above(size: int) -> Iterator[None]:
    """Let the system refuse larger files, as a full disk would."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_is_named_and_leaves_nothing_behind(tmp_path: Path) -> None:
    with OnDisk(tmp_path) as store:
        store.put(0, {"w": torch.zeros(10)})
        with no_file_above(100_000), pytest.raises(TrainingError, match="4000000 bytes"):
            store.put(1, {"w": torch.zeros(1_000_000)})
        assert bits(store.get(0)["w"]) == [0] * 40
    assert list(tmp_path.iterdir()) == []

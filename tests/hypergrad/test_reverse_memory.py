"""What reverse mode keeps of a run: the same bits, at the promised cost."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from hyperopt_dl.errors import TrainingError
from hyperopt_dl.hypergrad import Reverse, hypergradient
from hyperopt_dl.hypergrad.memory import size_of
from hyperopt_dl.hypergrad.reverse import Memory, budget_bytes, steps_of
from hyperopt_dl.supervised import Supervised
from hyperopt_dl.training import HParams, State
from tests.contracts.estimator import assert_same_answer
from tests.hypergrad.runs import (
    ALL,
    CLASSES,
    DOUBLE,
    FEATURES,
    Answer,
    all_together,
    fresh,
    mlp,
    supervised,
    vectors,
)
from tests.problems import Quadratic

SETTINGS: dict[str, Callable[[int, Path], Reverse]] = {
    "auto": lambda size, folder: Reverse(),
    "activations": lambda size, folder: Reverse("activations"),
    "sqrt": lambda size, folder: Reverse("sqrt"),
    "1": lambda size, folder: Reverse(1),
    "3": lambda size, folder: Reverse(3),
    "more than steps": lambda size, folder: Reverse(1000),
    "two states": lambda size, folder: Reverse(f"{2 * size} B"),
    "five states": lambda size, folder: Reverse(f"{5 * size} B"),
    "two states and a folder": lambda size, folder: Reverse(f"{2 * size} B", spill=folder),
    "only a folder": lambda size, folder: Reverse("0 B", spill=str(folder)),
    "auto and a folder": lambda size, folder: Reverse(spill=folder),
    "offloaded": lambda size, folder: Reverse("all", offload=True),
    "auto, offloaded": lambda size, folder: Reverse(offload=True),
    "a folder, offloaded": lambda size, folder: Reverse("0 B", spill=folder, offload=True),
}


@pytest.mark.parametrize("net", ["dropout", "batch norm"], ids=lambda name: name.replace(" ", "_"))
@pytest.mark.parametrize("setting", SETTINGS, ids=lambda name: name.replace(" ", "_"))
def test_every_setting_of_memory_gives_the_same_bits(
    setting: str, net: str, path: str, tmp_path: Path
) -> None:
    training, expected = kept(net, path)
    size = size_of(training.init(ALL, seed=2, device="cpu"))
    found = hypergradient(training, ALL, estimator=SETTINGS[setting](size, tmp_path), seed=2)
    assert_same_answer(found, expected)
    assert not list(tmp_path.iterdir())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")
@pytest.mark.parametrize("memory", ["all", "sqrt", 3, "auto"])
def test_states_in_the_memory_of_the_host_give_the_same_bits(memory: Memory, path: str) -> None:
    training, _ = kept("dropout", path)
    settings: dict[str, Any] = {"seed": 2, "device": "cuda"}
    on_device = hypergradient(training, ALL, estimator=Reverse("all"), **settings)
    found = hypergradient(training, ALL, estimator=Reverse(memory, offload=True), **settings)
    assert_same_answer(found, on_device)


@functools.cache
def kept(net: str, path: str) -> tuple[Supervised, Answer]:
    """A training, traced only once, and its answer with every state kept."""
    training = all_together(net, steps=11)
    return training, hypergradient(training, ALL, estimator=Reverse("all"), seed=2)


@pytest.mark.usefixtures("trace_everything")
def test_data_that_all_steps_share_do_not_count_as_part_of_a_record() -> None:
    x, y = vectors(n=5000)
    training = supervised(fresh(mlp), (x, y), vectors(1), batch_size=None)
    run = steps_of(training, {"lr": 0.1}, seed=2, device=torch.device("cpu"))
    recorded, activations = run.recorded_bytes(), 5000 * (4 + CLASSES) * x.element_size()
    assert recorded is not None
    assert activations < recorded < 4 * activations
    part = supervised(fresh(mlp), (x, y), vectors(1), batch_size=2500)
    batch = 2500 * FEATURES * x.element_size()
    other = steps_of(part, {"lr": 0.1}, seed=2, device=torch.device("cpu")).recorded_bytes()
    assert other is not None
    assert other > recorded / 2 + 0.9 * batch


class Watched(Quadratic):
    """Counts steps, and the files there are; may fail in a step."""

    def watch(self, folder: Path, fail_at: int | None = None) -> None:
        for name, value in (("calls", []), ("files", []), ("folder", folder), ("fail", fail_at)):
            object.__setattr__(self, name, value)

    calls: list[int]
    files: list[int]
    folder: Path
    fail: int | None

    def step(self, state: State, hparams: HParams, t: int) -> State:
        self.calls.append(t)
        self.files.append(len(list(self.folder.rglob("*.pt"))))
        if len(self.calls) == self.fail:
            raise ZeroDivisionError(f"step {t}")
        return super().step(state, hparams, t)


@pytest.mark.parametrize(
    ("memory", "calls"),
    [("activations", 10), ("all", 20), ("sqrt", 26), (1, 65), (3, 28), (1000, 20)],
)
def test_a_setting_costs_as_many_steps_as_it_promises(
    memory: Memory, calls: int, tmp_path: Path
) -> None:
    training = Watched(steps=10)
    training.watch(tmp_path)
    hypergradient(training, {"lr": 0.1}, estimator=Reverse(memory))
    assert len(training.calls) == calls + 2  # the first step is seen to replay


@pytest.mark.parametrize("fail_at", [None, 3, 4, 10, 15], ids=str)
def test_files_are_there_in_the_run_and_gone_after_it_however_it_ends(
    fail_at: int | None, tmp_path: Path
) -> None:
    training = Watched(steps=10)
    training.watch(tmp_path, fail_at)
    estimator = Reverse("50 B", spill=tmp_path)
    if fail_at is None:
        hypergradient(training, {"lr": 0.1}, estimator=estimator)
    else:
        with pytest.raises(ZeroDivisionError):
            hypergradient(training, {"lr": 0.1}, estimator=estimator)
    assert max(training.files) >= (5 if fail_at not in (3, 4) else 0)
    assert not list(tmp_path.iterdir())


def test_states_that_are_too_big_for_the_memory_are_an_error_that_says_how_much_is_needed() -> None:
    training = Quadratic(torch.ones(100, dtype=DOUBLE))
    with pytest.raises(TrainingError, match=r"room for 2 states of 800 bytes.* 1600 or more"):
        hypergradient(training, {"lr": 0.1}, estimator=Reverse("1.5 KB"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"memory": "huge"}, "memory must be 'auto', .* got 'huge'"),
        ({"memory": "12 parsecs"}, "size such as '4GiB' or '500MB', got '12 parsecs'"),
        ({"memory": "-1 GB"}, "got '-1 GB'"),
        ({"memory": 1.5}, "memory must be 'auto', .* got 1.5"),
        ({"memory": None}, "memory must be 'auto', .* got None"),
        ({"memory": 0}, r"memory >= 1 \(snapshots\), got 0"),
        ({"memory": -1}, r"memory >= 1 \(snapshots\), got -1"),
        ({"last": 0}, r"last >= 1 \(steps\), got 0"),
        ({"last": -3}, r"last >= 1 \(steps\), got -3"),
        ({"memory": "sqrt", "spill": "."}, "spill= goes with a size .* got memory='sqrt'"),
        ({"memory": "all", "spill": "."}, "spill= goes with a size .* got memory='all'"),
        ({"memory": 3, "spill": "."}, "spill= goes with a size .* got memory=3"),
        ({"memory": "activations", "offload": True}, "offload=True moves states to the host"),
    ],
    ids=str,
)
def test_a_setting_that_cannot_be_is_an_error(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        Reverse(**settings)


def test_a_folder_that_does_not_exist_is_an_error(tmp_path: Path) -> None:
    estimator = Reverse("1 GiB", spill=tmp_path / "nowhere")
    with pytest.raises(TrainingError, match="existing folder that it may write into"):
        hypergradient(Quadratic(), {"lr": 0.1}, estimator=estimator)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0 B", 0),
        ("7B", 7),
        ("2KiB", 2048),
        ("2 KB", 2000),
        (" 1.5 MiB ", 3 * 2**19),
        ("4GiB", 2**32),
    ],
)
def test_a_size_is_read_with_its_unit(text: str, size: int) -> None:
    assert budget_bytes(text) == size

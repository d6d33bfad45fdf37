"""Which slots there are for which devices."""

import pytest
import torch

import hyperopt_dl as hd
from hyperopt_dl.executors.devices import Slot, slots


@pytest.fixture
def four_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def test_without_a_gpu_auto_is_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert slots("auto", 3) == [Slot("", "cpu")] * 3


@pytest.mark.usefixtures("four_gpus")
def test_auto_is_every_gpu_and_devices_take_turns() -> None:
    assert [slot.visible for slot in slots("auto", 2)] == ["0", "1", "2", "3"] * 2


@pytest.mark.usefixtures("four_gpus")
def test_a_worker_sees_its_own_gpu_as_the_first() -> None:
    assert slots(["cuda:2", "cpu"], 1) == [Slot("2", "cuda:0"), Slot("", "cpu")]


@pytest.mark.usefixtures("four_gpus")
def test_indices_count_within_the_devices_that_a_scheduler_gave(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-5ab,GPU-7cd,6,1")
    assert [slot.visible for slot in slots("auto", 1)] == ["GPU-5ab", "GPU-7cd", "6", "1"]


@pytest.mark.usefixtures("four_gpus")
@pytest.mark.parametrize(
    ("devices", "per_device", "message"),
    [
        ("auto", 0, "per_device must be at least 1"),
        (["cuda:4"], 1, r"cuda:4 must be one of the 4 visible"),
        ([], 1, "at least one device"),
        ("gpu0", 1, "'gpu0' is not the name of a device"),
    ],
)
def test_what_is_not_there_is_refused_at_construction(
    devices: str | list[str], per_device: int, message: str
) -> None:
    with pytest.raises(hd.ExecutorError, match=message):
        hd.executors.Processes(devices=devices, per_device=per_device)


def test_a_number_of_devices_is_refused_and_the_number_of_workers_named() -> None:
    with pytest.raises(hd.ExecutorError, match=r"Processes\(per_device=2\)"):
        hd.executors.Processes(2)  # type: ignore[arg-type]


def test_threads_must_be_positive() -> None:
    with pytest.raises(hd.ExecutorError, match="threads_per_worker must be at least 1"):
        hd.executors.Processes(threads_per_worker=0)

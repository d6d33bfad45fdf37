"""Trials in this process."""

import pytest
import torch

import hyperopt_dl as hd
from tests.contracts.executor import ExecutorContract


@pytest.fixture(scope="module")
def executor() -> hd.executors.Executor:
    return hd.executors.Serial(device="cpu")


class TestSerial(ExecutorContract):
    pass


def test_the_device_is_the_one_asked_for() -> None:
    def objective(trial: hd.Trial) -> float:
        trial.set_user_attr("device", str(trial.device))
        return 0.0

    study = hd.Study()
    study.optimize(objective, 1, executor=hd.executors.Serial(device="meta"), progress=False)
    assert study.trials[0].user_attrs["device"] == "meta"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_auto_is_the_first_gpu() -> None:
    study = hd.Study()
    study.optimize(lambda trial: float(trial.device.index), 1, progress=False)
    assert study.best.value == 0.0


@pytest.mark.parametrize(
    ("device", "message"),
    [("cuda:4096", "must be one of the"), ("gpu", "'gpu' is not the name of a device")],
)
def test_a_device_that_is_not_there_is_refused_at_construction(device: str, message: str) -> None:
    with pytest.raises(hd.ExecutorError, match=message):
        hd.executors.Serial(device=device)

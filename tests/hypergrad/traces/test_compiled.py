"""Compiled graphs: the numbers of the plain ones, in a folder of their own."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._inductor
from torch import nn

import hyperopt_dl as hd
from hyperopt_dl.errors import TrainingError
from hyperopt_dl.hypergrad import Reverse, hypergradient
from hyperopt_dl.hypergrad.traces import compiled
from tests.problems import Quadratic

POINT = {"lr": 0.1, "momentum": 0.8, "decay": 1e-3}


def training() -> hd.Supervised:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(24, 5, dtype=torch.double, generator=generator)
    y = (x.sum(1) > 0).long()
    with torch.random.fork_rng():
        torch.random.manual_seed(0)
        model = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 2)).double()
    return hd.Supervised(
        model=model,
        loss=nn.functional.cross_entropy,
        optimizer=hd.optimizers.SGD("lr", "momentum", weight_decay="decay"),
        train=(x[:16], y[:16]),
        validation=(x[16:], y[16:]),
        steps=12,
        batch_size=8,
    )


@pytest.mark.slow
@pytest.mark.parametrize("memory", ["activations", "all", "sqrt"])
def test_a_compiled_step_gives_the_numbers_of_the_plain_one(
    memory: Any, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path_factory.getbasetemp() / "inductor"  # one for all three
    monkeypatch.setenv(compiled.CACHE, str(folder))
    problem = training()
    value, gradient = hypergradient(problem, POINT, estimator=Reverse(memory, compile=True))
    expected, exact = hypergradient(problem, POINT, estimator=Reverse(memory))
    assert any(folder.rglob("*.so"))
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=0)
    for name in POINT:
        torch.testing.assert_close(gradient[name], exact[name], rtol=1e-10, atol=0)


def test_without_a_compiler_the_error_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise RuntimeError("no g++\nand more")

    monkeypatch.setattr(torch._inductor, "compile", fail)
    with pytest.raises(TrainingError, match=r"C\+\+ compiler .* RuntimeError: no g\+\+\. Use comp"):
        hypergradient(training(), POINT, estimator=Reverse(compile=True))


def test_a_broken_folder_is_left_for_a_fresh_one(monkeypatch: pytest.MonkeyPatch) -> None:
    folders = []

    def fail_once(module: Any, tensors: list[torch.Tensor]) -> Any:
        folders.append(os.environ[compiled.CACHE])
        if len(folders) == 1:
            raise ImportError("file too short")
        return module

    monkeypatch.delenv(compiled.CACHE, raising=False)
    monkeypatch.setattr(torch._inductor, "compile", fail_once)
    found = hypergradient(training(), POINT, estimator=Reverse("all", compile=True))
    exact = hypergradient(training(), POINT, estimator=Reverse("all"))
    torch.testing.assert_close(found, exact, rtol=1e-12, atol=0)
    assert Path(folders[0]) == compiled.default_folder()
    assert len(set(folders[:2])) == 2
    assert set(folders[2:]) == {folders[0]}
    assert compiled.CACHE not in os.environ


def test_the_folder_of_the_user_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = []

    def note(module: Any, tensors: list[torch.Tensor]) -> Any:
        folders.append(os.environ[compiled.CACHE])
        return module

    monkeypatch.setenv(compiled.CACHE, str(tmp_path))
    monkeypatch.setattr(torch._inductor, "compile", note)
    hypergradient(training(), POINT, estimator=Reverse("sqrt", compile=True))
    assert set(folders) == {str(tmp_path)}
    assert os.environ[compiled.CACHE] == str(tmp_path)


def test_a_training_that_is_not_split_is_refused() -> None:
    with pytest.raises(TrainingError, match=r"compile=True is for a Supervised, got a Quadratic"):
        hypergradient(Quadratic(steps=3), {"lr": 0.1}, estimator=Reverse(compile=True))

"""The storages that a study can live in."""

import json
import logging
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest

import hyperopt_dl as hd
from hyperopt_dl.study.storage import default_name

SPACE = hd.Space(x=hd.Float(2.0, 6.0), n=hd.Int(1, 9), kind=hd.Categorical(["a", None, 3]))


def objective(trial: hd.Trial) -> float:
    trial.report(trial.params["x"], step=1)
    trial.set_user_attr("note", {"n": trial.params["n"]})
    if trial.number == 2:
        raise ValueError("bad")
    if trial.number == 3:
        raise hd.TrialPruned
    return trial.params["x"]  # type: ignore[no-any-return]


def record(study: hd.Study) -> list[dict[str, Any]]:
    """Everything that a storage must give back."""
    return [
        {
            "state": trial.state.name,
            "values": trial.values,
            "params": trial.params,
            "distributions": trial.distributions,
            "reports": trial.intermediate_values,
            "note": trial.user_attrs["note"],
            "failure": trial.user_attrs.get("failure"),
            "seed": trial.user_attrs["hd:run"]["seed"],
        }
        for trial in study.trials
    ]


STORAGES: dict[str, Callable[[Path], Any]] = {
    "journal": lambda folder: folder / "runs" / "study.log",
    "journal as text": lambda folder: str(folder / "study.log"),
    "sqlite": lambda folder: f"sqlite:///{folder / 'study.db'}",
    "object": lambda folder: optuna.storages.JournalStorage(
        optuna.storages.journal.JournalFileBackend(str(folder / "study.log"))
    ),
}


@pytest.mark.parametrize("kind", STORAGES)
def test_a_study_opened_again_is_the_same(kind: str, tmp_path: Path) -> None:
    def study() -> hd.Study:
        return hd.Study(SPACE, storage=STORAGES[kind](tmp_path), name="mine", seed=0)

    memory = hd.Study(SPACE, seed=0)
    memory.optimize(objective, 5, progress=False)
    study().optimize(objective, 5, progress=False)
    assert record(study()) == record(memory)
    study().optimize(objective, total_trials=7, progress=False)
    assert len(study().trials) == 7


def test_a_journal_without_a_name_is_called_after_its_file(tmp_path: Path) -> None:
    hd.Study(SPACE, storage=tmp_path / "net.log").optimize(objective, 1, progress=False)
    again = hd.Study(SPACE, storage=tmp_path / "net.log")
    assert again.name == "net"
    assert len(again.trials) == 1


@pytest.mark.parametrize(
    ("storage", "name"),
    [
        (None, None),
        (optuna.storages.InMemoryStorage(), None),
        (Path("runs/net.v2.log"), "net.v2"),
        ("sqlite:///runs/net.db", "net"),
        ("postgresql://me:secret@host:5432/net?sslmode=require", "net"),
    ],
    ids=["memory", "in memory", "journal", "sqlite", "postgresql"],
)
def test_a_study_without_a_name_is_called_after_its_storage(storage: Any, name: str | None) -> None:
    assert default_name(storage) == name


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"SQLite format 3\x00rest", "an SQLite database. Write 'sqlite:///"),
        (b"some notes\nwithout a newline", "something else. Name another file"),
        (bytes(range(40)), "something else"),
        (b"{}\n", "something else"),
    ],
)
def test_a_file_that_is_no_journal_is_refused_and_left_alone(
    tmp_path: Path, content: bytes, message: str
) -> None:
    path = tmp_path / "precious"
    path.write_bytes(content)
    with pytest.raises(hd.StudyError, match=message):
        hd.Study(SPACE, storage=path)
    assert path.read_bytes() == content
    assert [each.name for each in tmp_path.iterdir()] == ["precious"]


def test_two_studies_share_a_storage_by_name(tmp_path: Path) -> None:
    for name, n in (("a", 1), ("b", 2)):
        study = hd.Study(SPACE, storage=tmp_path / "both.log", name=name)
        study.optimize(objective, n, progress=False)
    assert len(hd.Study(storage=tmp_path / "both.log", name="a").trials) == 1


def test_a_directory_is_no_storage(tmp_path: Path) -> None:
    with pytest.raises(hd.StudyError, match="must be a file"):
        hd.Study(SPACE, storage=tmp_path)


def test_opening_a_study_is_silent(tmp_path: Path) -> None:
    code = (
        "import sys, hyperopt_dl as hd; "
        "study = hd.Study(hd.Space(x=hd.Float(0, 1)), storage=sys.argv[1]); "
        "study.optimize(lambda trial: trial.params['x'], 3, progress=False)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "study.log")]
    ended = subprocess.run(command, check=True, capture_output=True, text=True)
    assert (ended.stdout, ended.stderr) == ("", "")


# A torn journal


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    path = tmp_path / "study.log"
    hd.Study(SPACE, storage=path, seed=0).optimize(objective, 2, progress=False)
    return path


def test_a_journal_torn_anywhere_in_its_last_record_opens_and_goes_on(
    journal: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR, logger="hyperopt_dl")
    whole = journal.read_bytes()
    last = whole.rstrip(b"\n").rfind(b"\n") + 1
    for end in range(last + 1, len(whole)):
        journal.write_bytes(whole[:end])
        study = hd.Study(SPACE, storage=journal, seed=0)
        assert journal.read_bytes().startswith(whole[:last])
        assert study.trials[0].value is not None
    study.optimize(objective, 1, progress=False)
    assert len(hd.Study(SPACE, storage=journal).trials) == 3


def test_a_torn_journal_is_kept_beside_the_mended_one_and_said(
    journal: Path, caplog: pytest.LogCaptureFixture
) -> None:
    torn = journal.read_bytes()[:-4]
    journal.write_bytes(torn)
    hd.Study(SPACE, storage=journal)
    (copy,) = journal.parent.glob("study.log.corrupt-*")
    assert copy.read_bytes() == torn
    assert str(copy) in caplog.text


def test_a_whole_journal_is_left_as_it_is(journal: Path) -> None:
    before = journal.read_bytes()
    hd.Study(SPACE, storage=journal)
    assert journal.read_bytes() == before
    assert [path.name for path in journal.parent.iterdir()] == ["study.log"]


def test_a_journal_is_one_json_object_a_line(journal: Path) -> None:
    assert all(isinstance(json.loads(line), dict) for line in journal.read_text().splitlines())

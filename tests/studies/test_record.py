"""Results of a study are computed once, also across restarts."""

from pathlib import Path

from studies.shared.record import Record


def test_a_result_is_computed_once_and_kept_for_the_next_process(tmp_path: Path) -> None:
    path, calls = tmp_path / "runs" / "a.jsonl", []

    def compute() -> list[float]:
        calls.append(1)
        return [0.1, 2.0]

    first = Record(path)
    assert first.get(["a", 1], compute) == [0.1, 2.0]
    assert first.get(["a", 1], compute) == [0.1, 2.0]
    assert Record(path).get(["a", 1], compute) == [0.1, 2.0]
    assert len(calls) == 1


def test_another_key_is_another_result(tmp_path: Path) -> None:
    record = Record(tmp_path / "a.jsonl")
    assert record.get(["a", 1], lambda: 1) == 1
    assert record.get(["a", 2], lambda: 2) == 2
    assert Record(tmp_path / "a.jsonl").get(["a", 2], lambda: 0) == 2


def test_without_a_file_nothing_is_left(tmp_path: Path) -> None:
    assert Record(None).get(["a"], lambda: 3) == 3
    assert not list(tmp_path.iterdir())

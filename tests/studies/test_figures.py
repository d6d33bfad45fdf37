"""How studies save what they draw."""

import runpy
import sys
from pathlib import Path

import pytest

from studies.shared import figures


def drawn() -> figures.Figure:
    figure = figures.Figure()
    figure.subplots().plot([1.0, 2.0], [3.0, 1.0])
    return figure


def test_the_same_figure_is_the_same_file(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        figures.save(drawn(), tmp_path / folder / "figure.svg")
    first, second = ((tmp_path / folder / "figure.svg").read_bytes() for folder in ("one", "two"))
    assert first == second
    assert b"<svg " in first


def test_a_missing_matplotlib_is_said_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(SystemExit, match=r"pip install \'hyperopt_dl\[studies\]\'"):
        runpy.run_path(str(figures.__file__))

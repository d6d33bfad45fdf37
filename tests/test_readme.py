"""Every example in the README runs as it stands there."""

import re
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"
FENCED = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def examples() -> list[tuple[int, str]]:
    """The line on which each example begins, and its code."""
    text = README.read_text(encoding="utf-8")
    found = [(text.count("\n", 0, m.start(1)) + 1, m[1]) for m in FENCED.finditer(text)]
    fences = text.count("```python")
    if not found or len(found) != fences:  # else a test with no cases, or with too few, is skipped
        raise ValueError(f"{README} has {fences} fences of python, {len(found)} can be read.")
    return found


@pytest.mark.parametrize(
    ("line", "code"), [pytest.param(*example, id=f"line {example[0]}") for example in examples()]
)
def test_an_example_of_the_readme_runs(
    line: int, code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    # As a script: what it defines belongs to __main__ and travels to workers by value. The empty
    # lines make a traceback point into the README.
    exec(compile("\n" * (line - 1) + code, README, "exec"), {"__name__": "__main__"})

"""The scripts beside this file are what users write: they are well typed, and they run."""

import runpy
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent
SCRIPTS = sorted(path for path in FOLDER.glob("*.py") if not path.name.startswith("test_"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_a_users_script_runs(script: Path) -> None:
    assert "hd" in runpy.run_path(str(script))


@pytest.mark.slow
def test_the_type_checker_accepts_the_scripts_in_strict_mode() -> None:
    command = [sys.executable, "-m", "mypy", "--strict", *map(str, SCRIPTS)]
    checked = subprocess.run(command, check=False, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout


@pytest.mark.slow
def test_the_type_checker_refuses_a_wrong_script(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.py"
    wrong.write_text("import hyperopt_dl as hd\nhd.Study(seed='zero').best.value + 'text'\n")
    command = [sys.executable, "-m", "mypy", "--strict", str(wrong)]
    checked = subprocess.run(command, check=False, capture_output=True, text=True)
    assert "Unsupported operand types" in checked.stdout
    assert '"seed" to "Study" has incompatible type' in checked.stdout

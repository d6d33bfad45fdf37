"""The import rules of the house, read from the source."""

import ast
import functools
from pathlib import Path

import pytest

import hyperopt_dl

ROOT = Path(hyperopt_dl.__file__).parent
SOURCES = sorted(ROOT.rglob("*.py"))

# Each room may import from the rooms above it and, where it is a folder, from itself.
ROOMS = [
    {"errors", "nested", "reads", "seeds", "weights"},
    {"module_checks", "second_derivatives"},
    {"module_modes"},
    {"constraints"},
    {"space"},
    {"training", "early_stopping"},
    {"batches", "init_scale", "network", "losses", "optimizers"},
    {"networks", "predictions", "recorded_step", "state_entries"},
    {"plain_step", "recorded_inputs"},
    {"supervised_arguments"},
    {"supervised"},
    {"hypergrad", "gp"},
    {"tuners", "online"},
    {"trial"},
    {"executors"},
    {"study"},
    {"__init__"},
]
# The same inside of one room: its files, and its folders as a whole.
HYPERGRAD = [
    {"constant", "estimator", "memory", "telescope"},
    {"traces"},
    {"closed_forms"},
    {"steps"},
    {"pushes", "sweeps"},
    {"forward", "reverse"},
    {"auto", "evolution", "hypergradient", "level_runs"},
    {"telescoping"},
    {"__init__"},
]
LEVEL = {room: level for level, rooms in enumerate(ROOMS) for room in rooms}
ONLY_IN = {
    "optuna": {"space", "tuners", "trial", "study"},
    "botorch": {"gp", "tuners"},
    "gpytorch": {"gp", "tuners"},
    "multiprocessing": {"executors"},
    "cloudpickle": {"executors"},
    "rich": {"study"},
}


def room_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


@functools.cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def imported(path: Path) -> list[tuple[int, str]]:
    """Return (line, dotted name) of everything that a file imports."""
    names = []
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            names += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            whole = [f"{module}.{alias.name}" for alias in node.names]
            names += [(node.lineno, name) for name in whole]
    return names


def pytest_id(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", SOURCES, ids=pytest_id)
def test_a_file_belongs_to_a_room(path: Path) -> None:
    assert room_of(path) in LEVEL, "give the new file a place in ROOMS"


@pytest.mark.parametrize("path", SOURCES, ids=pytest_id)
def test_imports_point_to_the_rooms_before(path: Path) -> None:
    mine = room_of(path)
    for line, name in imported(path):
        parts = name.split(".")
        if parts[0] != "hyperopt_dl" or mine == "__init__":
            continue
        theirs = parts[1]
        assert theirs == mine or LEVEL[theirs] < LEVEL[mine], f"{path.name}:{line} imports {name}"


@pytest.mark.parametrize("path", sorted((ROOT / "hypergrad").rglob("*.py")), ids=pytest_id)
def test_imports_inside_of_hypergrad_point_to_what_comes_before(path: Path) -> None:
    level = {part: level for level, parts in enumerate(HYPERGRAD) for part in parts}
    mine = path.relative_to(ROOT / "hypergrad").parts[0].removesuffix(".py")
    for line, name in imported(path):
        parts = name.split(".")
        if parts[:2] == ["hyperopt_dl", "hypergrad"]:
            theirs = parts[2]
            assert theirs == mine or level[theirs] < level[mine], f"{path.name}:{line} has {name}"


@pytest.mark.parametrize("path", SOURCES, ids=pytest_id)
def test_outside_packages_stay_in_their_rooms(path: Path) -> None:
    for line, name in imported(path):
        package = name.split(".")[0]
        rooms = ONLY_IN.get(package)
        assert rooms is None or room_of(path) in rooms, f"{path.name}:{line} imports {name}"


@pytest.mark.parametrize("path", SOURCES, ids=pytest_id)
def test_imports_are_absolute_and_at_the_top(path: Path) -> None:
    top = set(tree_of(path).body)
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}:{node.lineno} is relative"
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            assert node in top, f"{path.name}:{node.lineno} is not at the top"


@pytest.mark.parametrize("path", SOURCES, ids=pytest_id)
def test_only_the_public_face_of_optuna_is_used(path: Path) -> None:
    for line, name in imported(path):
        if name.split(".")[0] == "optuna":
            private = [part for part in name.split(".") if part.startswith("_")]
            assert not private, f"{path.name}:{line} imports {name}"


@pytest.mark.parametrize("path", SOURCES, ids=pytest_id)
def test_a_file_has_at_most_400_lines(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 400

"""What the package promises to the outside."""

import inspect
import subprocess
import sys

import pytest

import hyperopt_dl as hd

PROMISED = {
    "Array", "Categorical", "EarlyStopping", "Float", "Int", "Outcome", "Schedule", "Space",
    "State", "Study", "Supervised", "Training", "Trial", "TrialPruned", "rollout", "HParams",
    "HyperoptError", "SpaceError", "TrainingError", "StudyError", "ExecutorError",
    "constraints", "executors", "hypergrad", "hypergradient", "optimizers", "online",
    "Hypergradient", "evaluate", "AdditiveBO",
}  # fmt: skip
NAMES = sorted(hd.__all__)


def test_the_public_names_are_those_promised() -> None:
    assert set(hd.__all__) == PROMISED


@pytest.mark.parametrize(
    ("module", "names"),
    [
        (hd.executors, {"Serial", "Processes", "Executor", "Pool", "Finished"}),
        (
            hd.hypergrad,
            {
                *("Auto", "Reverse", "Forward", "Telescoping", "PES", "ESSingle"),
                *("Constant", "Estimator", "hypergradient"),
            },
        ),
        (
            hd.online,
            {
                *("ForwardTuner", "TunedRun", "HypergradientDescent", "DeltaBarDelta"),
                *("Move", "Forward", "Descent"),
            },
        ),
        (
            hd.optimizers,
            {"SGD", "Adam", "AdamW", "RMSprop", "Adagrad", "ClipNorm", "Optimizer", "Schedule"},
        ),
    ],
    ids=["executors", "hypergrad", "online", "optimizers"],
)
def test_a_room_shows_its_names(module: object, names: set[str]) -> None:
    assert set(module.__all__) == names  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", [n for n in NAMES if n not in ("HParams", "State")])
def test_a_public_name_is_documented(name: str) -> None:
    assert inspect.getdoc(getattr(hd, name))


@pytest.mark.parametrize("name", [n for n in NAMES if inspect.isclass(getattr(hd, n))])
def test_a_public_method_is_documented(name: str) -> None:
    members = vars(getattr(hd, name)).items()
    public = [m for k, m in members if not k.startswith("_") and inspect.isfunction(m)]
    assert all(inspect.getdoc(member) for member in public)


@pytest.fixture(scope="module")
def imported() -> set[str]:
    """The modules that are loaded after ``import hyperopt_dl`` in a fresh interpreter."""
    code = "import sys, hyperopt_dl; print(*sys.modules)"
    command = [sys.executable, "-c", code]
    return set(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split())


@pytest.mark.parametrize("package", ["botorch", "gpytorch", "ray", "plotly", "sklearn"])
def test_importing_the_package_leaves_out_what_is_rarely_needed(
    imported: set[str], package: str
) -> None:
    assert "torch" in imported
    assert package not in imported


@pytest.mark.parametrize(
    ("error", "builtin"),
    [
        (hd.SpaceError, ValueError),
        (hd.TrainingError, ValueError),
        (hd.StudyError, RuntimeError),
        (hd.ExecutorError, RuntimeError),
    ],
)
def test_an_error_is_caught_by_its_root_and_by_its_builtin_kind(
    error: type[Exception], builtin: type[Exception]
) -> None:
    assert issubclass(error, hd.HyperoptError)
    assert issubclass(error, builtin)

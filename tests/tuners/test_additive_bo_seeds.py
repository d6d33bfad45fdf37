"""`hd.AdditiveBO` in a study: nothing but the trials and the seed decides."""

import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import optuna
import pytest

import hyperopt_dl as hd
from tests.tuners.bowls import SQUARE, bowl, square, tell


@pytest.mark.slow
def test_the_same_seed_proposes_the_same_and_another_does_not() -> None:
    one, other = (hd.Study(SQUARE, tuner=hd.AdditiveBO(n_startup=3), seed=1) for _ in range(2))
    third = hd.Study(SQUARE, tuner=hd.AdditiveBO(n_startup=3), seed=2)
    proposed = tell(one, 7)
    assert tell(other, 7) == proposed
    assert all(a != b for a, b in zip(tell(third, 7), proposed, strict=True))


@pytest.mark.parametrize(
    ("options", "stop"),
    [
        pytest.param({}, 2, marks=pytest.mark.slow),
        pytest.param({}, 9, marks=pytest.mark.slow),
        pytest.param({"batch": 4}, 9, marks=pytest.mark.slow),
        ({"batch": 4, "strategy": "dpp"}, 9),
        ({"batch": 4, "strategy": "dpp"}, 11),
    ],
)
def test_a_resumed_study_goes_on_as_if_it_had_not_stopped(
    tmp_path: Path, options: dict[str, Any], stop: int
) -> None:
    def opened(name: str) -> optuna.Study:
        storage = optuna.storages.JournalStorage(
            optuna.storages.journal.JournalFileBackend(str(tmp_path / name))
        )
        tuner = hd.AdditiveBO(n_startup=4, seed=5, **options)
        return optuna.create_study(
            storage=storage, sampler=tuner, study_name="s", load_if_exists=True
        )

    def objective(trial: optuna.Trial) -> float:
        return bowl({name: trial.suggest_float(name, 0, 1) for name in "xy"})

    through = opened("through")
    through.optimize(objective, n_trials=13)
    opened("stopped").optimize(objective, n_trials=stop)
    opened("stopped").optimize(objective, n_trials=13 - stop)
    stopped = opened("stopped")
    assert [t.params for t in stopped.trials] == [t.params for t in through.trials]


SCRIPT = """
import optuna, hyperopt_dl as hd
study = optuna.create_study(sampler=hd.AdditiveBO(n_startup=3, seed=7))
study.optimize(lambda t: sum(t.suggest_float(n, 0, 1) ** 2 for n in ("b", "a", "c")), n_trials=6)
print([trial.params for trial in study.trials])
"""


@pytest.mark.slow
def test_another_process_proposes_the_same() -> None:
    runs = [
        subprocess.run(
            [
                sys.executable,
                "-c",
                "import optuna; optuna.logging.disable_default_handler()" + SCRIPT,
            ],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            cwd=Path(__file__).parents[2],
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for hash_seed in ("1", "4321")
    ]
    assert runs[0] == runs[1]
    assert runs[0].count("'a'") == 6


def test_a_pickled_copy_proposes_the_same() -> None:
    study = square(seed=4)
    tell(study, 8)
    tuner = study.tuner
    assert isinstance(tuner, hd.AdditiveBO)
    copy = pickle.loads(pickle.dumps(tuner))
    assert copy.propose(study.optuna, SQUARE, 2) == tuner.propose(study.optuna, SQUARE, 2)


def test_a_reseeded_copy_proposes_something_else() -> None:
    study = square(seed=4)
    tell(study, 8)
    tuner = study.tuner
    assert isinstance(tuner, hd.AdditiveBO)
    before = tuner.propose(study.optuna, SQUARE, 3)
    tuner.reseed_rng()
    assert tuner.propose(study.optuna, SQUARE, 3) != before

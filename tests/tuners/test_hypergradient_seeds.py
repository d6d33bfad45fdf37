"""`hd.Hypergradient` in a study: nothing but the trials and the seed decides."""

import functools
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from optuna.trial import TrialState

import hyperopt_dl as hd
from tests.tuners.descents import LR, MIXED, PROBLEM, bowl, broken_below, column, params, tuned


def test_one_seed_gives_the_same_study_again() -> None:
    assert params(tuned(MIXED, 9, estimator=bowl, chain_length=3)) == params(
        tuned(MIXED, 9, estimator=bowl, chain_length=3)
    )


def test_another_seed_of_the_tuner_gives_other_starts() -> None:
    first, second = (tuned(MIXED, 9, estimator=bowl, chain_length=3, seed=s) for s in (0, 1))
    assert params(first)[3:] != params(second)[3:]


def test_a_study_in_pieces_is_a_study_in_one_piece(tmp_path: Path) -> None:
    def tuner() -> hd.Hypergradient:
        return hd.Hypergradient(broken_below(4.5), chains=2, chain_length=5, lr=0.1)

    space = hd.Space(x=hd.Float(2.0, 9.0), n=hd.Int(1, 9))
    whole = hd.Study(space, tuner=tuner(), seed=1)
    whole.optimize(PROBLEM, n_trials=20, progress=False)
    for total in (1, 4, 9, 20):
        piece = hd.Study(space, tuner=tuner(), storage=tmp_path / "s.log", seed=1)
        piece.optimize(PROBLEM, total_trials=total, progress=False)
    assert {t.state for t in whole.trials} == {TrialState.COMPLETE, TrialState.FAIL}
    assert params(piece) == params(whole)


SCRIPT = """
import hyperopt_dl as hd
from tests.tuners.descents import MIXED, bowl, params, tuned
print(params(tuned(MIXED, 8, estimator=bowl, chains=2, chain_length=3)))
"""


@pytest.mark.slow
def test_another_process_with_other_hashes_proposes_the_same() -> None:
    here = params(tuned(MIXED, 8, estimator=bowl, chains=2, chain_length=3))
    there = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env={**os.environ, "PYTHONHASHSEED": "4321"},
        cwd=Path(__file__).parents[2],
        check=True,
        capture_output=True,
        text=True,
    )
    assert there.stdout.strip() == str(here)


@pytest.mark.parametrize(
    "optimizer", ["sgd", torch.optim.RMSprop, functools.partial(torch.optim.SGD, momentum=0.9)]
)
def test_a_pickled_copy_proposes_the_same(optimizer: Any) -> None:
    sampler = hd.Hypergradient(bowl, optimizer, chain_length=3, seed=4)
    copy = pickle.loads(pickle.dumps(sampler))
    runs = []
    for tuner in (sampler, copy):
        study = hd.Study(MIXED, tuner=tuner)
        study.optimize(PROBLEM, n_trials=6, progress=False)
        runs.append(params(study))
    assert runs[0] == runs[1]


def test_a_lambda_is_an_optimizer_also_in_a_study_with_a_seed() -> None:
    momentum = lambda ps, lr: torch.optim.SGD(ps, lr=lr, momentum=0.9)  # noqa: E731
    assert len(tuned(LR, 3, optimizer=momentum).trials) == 3


def test_reseeding_gives_other_starts() -> None:
    def first(reseed: bool) -> float:
        sampler = hd.Hypergradient(seed=4)
        if reseed:
            sampler.reseed_rng()
        return float(hd.Study(LR, tuner=sampler).ask().params["lr"])

    assert first(False) == first(False)
    assert first(True) != first(True)


def test_starts_may_be_any_sampler() -> None:
    grid = optuna.samplers.GridSampler({"x": [5.0, 4.0, 3.5]}, seed=0)
    study = hd.Study(
        hd.Space(x=hd.Float(2.0, 6.0)),
        tuner=hd.Hypergradient(bowl, starts=grid, chain_length=2),
        seed=0,
    )
    study.optimize(PROBLEM, n_trials=6, progress=False)
    assert sorted(column(study, "x")[::2]) == [3.5, 4.0, 5.0]

"""One seed fixes a study, in one piece or in several."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import hyperopt_dl as hd
from tests.study.runs import SPACE, bowl, run, suggestions


def one_seed(seed: int | None, n: int = 14, pieces: Sequence[int] = ()) -> list[dict[str, Any]]:
    study = hd.Study(SPACE, seed=seed)
    for count in pieces or [n]:
        run(study, bowl, count)
    return suggestions(study)


def test_one_seed_gives_the_same_study_again() -> None:
    assert one_seed(3) == one_seed(3)


def test_another_seed_gives_another_study() -> None:
    assert one_seed(3) != one_seed(4)


def test_no_seed_gives_another_study_every_time() -> None:
    assert one_seed(None) != one_seed(None)


def test_a_study_in_pieces_equals_a_study_in_one_piece(tmp_path: Path) -> None:
    for count in (3, 4, 7):
        run(hd.Study(SPACE, seed=3, storage=tmp_path / "study.log"), bowl, count)
    assert suggestions(hd.Study(SPACE, storage=tmp_path / "study.log")) == one_seed(3)


def test_trials_have_seeds_of_their_own_that_the_study_decides() -> None:
    def seeds(seed: int) -> list[int]:
        return [trial.seed for trial in hd.Study(SPACE, seed=seed).ask(3)]

    assert len(set(seeds(0))) == 3
    assert seeds(0) == seeds(0)
    assert not set(seeds(0)) & set(seeds(1))


def test_a_study_leaves_the_global_generators_alone() -> None:
    torch.manual_seed(5)
    np.random.seed(5)
    before = torch.random.get_rng_state(), np.random.get_state()[1].copy()  # type: ignore[index]
    run(hd.Study(SPACE, seed=0), bowl, 12)
    assert torch.equal(torch.random.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])  # type: ignore[index]

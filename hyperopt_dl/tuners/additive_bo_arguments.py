"""What the arguments of ``AdditiveBO`` must be."""

from typing import get_args

import numpy as np
import torch

from hyperopt_dl.errors import StudyError
from hyperopt_dl.gp.batch import AcquisitionName, Strategy
from hyperopt_dl.tuners.known_groups import check_structure


def device_of(device: torch.device | str) -> torch.device:
    """Return the device of a name; "auto" is the CPU.

    Raises:
        StudyError: It is no device, or not there.
    """
    try:
        found = torch.device("cpu" if device == "auto" else device)
    except (RuntimeError, TypeError) as error:
        raise StudyError(f"device must be 'auto' or a device of torch, got {device!r}.") from error
    count = torch.cuda.device_count()
    if found.type == "cuda" and (found.index or 0) >= count:
        raise StudyError(f"device must be there, got {device} of {count} visible CUDA device(s).")
    return found


def check_whole(name: str, number: object, *, least: int) -> None:
    """Refuse what is no whole number of at least so much, with a StudyError."""
    if not isinstance(number, int | np.integer) or isinstance(number, bool) or number < least:
        raise StudyError(f"{name} must be a whole number of at least {least}, got {number!r}.")


def check_arguments(
    batch: object,
    chains: object,
    structure: object,
    acquisition: object,
    strategy: object,
    n_startup: object,
    seed: object,
) -> None:
    """Refuse arguments that ``AdditiveBO`` does not have, with a StudyError."""
    check_whole("batch", batch, least=1)
    check_whole("chains", chains, least=1)
    for name, number in (("n_startup", n_startup), ("seed", seed)):
        if number is not None:
            check_whole(name, number, least=0)
    for name, word, alias in (
        ("acquisition", acquisition, AcquisitionName),
        ("strategy", strategy, Strategy),
    ):
        if word not in get_args(alias):
            raise StudyError(f"{name} must be one of {list(get_args(alias))}, got {word!r}.")
    check_structure(structure)

"""Several objectives, and tuners that are made for one."""

from optuna.samplers import BaseSampler, CmaEsSampler

from hyperopt_dl.errors import ObjectivesError


def check_objectives(tuner: BaseSampler, objectives: int) -> None:
    """Check that a tuner can do with so many objectives.

    A tuner of ours that cannot says so by an attribute ``one_objective``. A sampler around such a
    tuner cannot either.

    Raises:
        ObjectivesError: It cannot.
    """
    if objectives == 1:
        return
    inside = [part for part in vars(tuner).values() if isinstance(part, BaseSampler)]
    for sampler in (tuner, *inside):
        if getattr(sampler, "one_objective", isinstance(sampler, CmaEsSampler)):
            raise ObjectivesError(
                f"{type(sampler).__name__} needs a study with one objective, got {objectives}. Use "
                f"optuna.samplers.GPSampler or TPESampler, or make one objective of them."
            )

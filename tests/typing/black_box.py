"""A user's script: a space, an objective, a study. Checked by the type checker, and run."""

import hyperopt_dl as hd

space = hd.Space(
    lr=hd.Float(1e-4, 1.0, log=True),
    layers=hd.Int(1, 4),
    activation=hd.Categorical(["relu", "gelu"]),
)


def objective(trial: hd.Trial) -> float:
    """Stand in for a training."""
    loss = abs(trial.params["lr"] - 0.1) + trial.params["layers"]
    for epoch in range(3):
        trial.report(loss / (epoch + 1), step=epoch)
        if trial.should_prune():
            raise hd.TrialPruned
    return float(loss)


study = hd.Study(space, direction="minimize", seed=0)
study.optimize(objective, n_trials=8, executor=hd.executors.Serial(), progress=False)
value: float | None = study.best.value
assert value is not None
assert value < 5

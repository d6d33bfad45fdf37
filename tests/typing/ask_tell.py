"""A user's script: the loop is the user's own."""

import hyperopt_dl as hd

study = hd.Study(hd.Space(x=hd.Float(-1, 1)), directions=["minimize", "maximize"], seed=0)
for trial in study.ask(4):
    x: float = trial.params["x"]
    study.tell(trial, (x, -(x**2)))
single: hd.Trial = study.ask()
study.tell(single.number, None)
assert [trial.state.name for trial in study.trials] == ["COMPLETE"] * 4 + ["FAIL"]
assert study.best_trials

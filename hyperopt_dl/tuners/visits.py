"""The visits of the trials of a study, each read from its files once while it is recent."""

from collections.abc import Collection
from dataclasses import dataclass, field

from optuna.trial import FrozenTrial

from hyperopt_dl.tuners.archive import Archive
from hyperopt_dl.tuners.chain import Visit
from hyperopt_dl.tuners.moving import Dimensions, moving, visit_of
from hyperopt_dl.tuners.setback import predicted_change

RECENT = 32
"""How many visits are kept: the last two of so many chains as may take turns."""


@dataclass
class Visits:
    """A memo of what finished trials have shown; they no longer change.

    Args:
        archive: Where the Arrays of the study are.
        fixed: Names that do not move.
        sign: 1 to go down, -1 to go up.
    """

    archive: Archive
    fixed: Collection[str]
    sign: float
    _recent: dict[int, tuple[Dimensions, Visit]] = field(default_factory=dict)
    _changes: dict[tuple[int, int], float] = field(default_factory=dict)

    def of(self, trial: FrozenTrial, dims: Dimensions) -> Visit:
        """Return where a trial was and its gradient there, as ``visit_of`` does."""
        known = self._recent.pop(trial.number, None)
        if known is None or known[0] != dims:
            known = dims, visit_of(trial, dims, self.archive, sign=self.sign)
        self._recent[trial.number] = known
        if len(self._recent) > RECENT:
            del self._recent[next(iter(self._recent))]
        return known[1]

    def change(self, before: FrozenTrial, after: FrozenTrial) -> float:
        """Return the change of the loss from one trial to another, by their gradients."""
        pair = before.number, after.number
        if pair not in self._changes:
            there = moving(after, self.archive, self.fixed)
            both = moving(before, self.archive, self.fixed).keys() & there.keys()
            dims = {name: dimension for name, dimension in there.items() if name in both}
            ends = (self.of(trial, dims) for trial in (before, after))
            self._changes[pair] = predicted_change(*ends) if dims else 0.0
        return self._changes[pair]

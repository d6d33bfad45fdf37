"""The page docs/supported.md, made of the rows: ``python tests/zoo/table.py`` writes it."""

import itertools
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
if str(ROOT) not in sys.path:  # run as a script
    sys.path.insert(0, str(ROOT))

from tests.zoo.pending import PENDING  # noqa: E402
from tests.zoo.row import Row  # noqa: E402
from tests.zoo.rows import ROWS  # noqa: E402

PAGE = ROOT / "docs" / "supported.md"
HEAD = """# What is supported

{rows} networks, losses and loops as people write them, each of which a test runs
(`tests/zoo/`; `python tests/zoo/table.py` makes this page of them). What is not exact is refused:
a `TrainingError` says what to do instead.

- **exact**, of a run: the validation loss and the weights after `hd.rollout` are those of a plain
  loop with `torch.optim`, on the same batches and the same random numbers.
- **exact**, of a hypergradient: where autograd can unroll that loop, its derivative, to 1e-8;
  elsewhere the central difference quotient of the loop, to 1e-5 (some: 1e-4). Both are computed in
  float64; of narrower dtypes the tests ask what their digits allow, of bfloat16 a tenth. They ask
  it of short runs, of {short} steps, and of long ones, of {long}: from there on derivatives are
  traced, if all trials can share the trace.
- **exact**, of a loop with an online tuner: it trains as without one, and the tuner sees the
  difference quotient of the loop.
- **refused**: the message of the `TrainingError`, in short.

`make test` and `make slow` together look at every network with `Reverse()` in one of the two runs
and with `Forward()` in the other one, turn by turn, and at rows that name a package only where it
is installed. `ZOO=all python -m pytest tests/zoo -m "slow or not slow"` looks at both runs with
`Reverse()`, `Reverse("all")` and `Forward()`.

Of {rows} rows {exact} are exact, in {runs} the run is exact and a hypergradient is refused, and
{refused} are refused.{pending}
"""


def page() -> str:
    """Return the text of the page."""
    counts = dict.fromkeys(("exact", "runs", "refused"), 0)
    for row in ROWS:
        counts[row.expectation] += row.id not in PENDING
    pending = f" Not what they are to be yet, and marked so: {len(PENDING)}." if PENDING else ""
    steps = {"short": Row.steps, "long": Row.long}
    parts = [HEAD.format(rows=len(ROWS), pending=pending, **steps, **counts)]
    for kind, rows in itertools.groupby(ROWS, key=lambda row: row.kind):
        parts.append(f"\n## {kind}\n\n" + _table(list(rows)))
    return "".join(parts)


def _table(rows: list[Row]) -> str:
    loops = rows[0].loop is not None
    head = ["loop", "derivative"] if loops else ["network", "run", "hypergradient"]
    lines = [head, ["---"] * len(head)]
    for row in rows:
        refused = "" if row.expectation == "exact" else f"refused: {row.says}"
        if row.id in PENDING:
            answers = ["not yet"] if loops else ["not yet", "not yet"]
        elif loops:
            answers = [refused or "exact"]
        else:
            run = refused if row.expectation == "refused" else "exact"
            answers = [run, refused or "exact"]
        name = row.name + (f" (with `{row.needs}`)" if row.needs else "")
        lines.append([name, *answers])
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


if __name__ == "__main__":
    PAGE.write_text(page())

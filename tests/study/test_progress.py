"""What a person sees."""

import io
import sys
from collections import Counter
from collections.abc import Callable

import pytest

import hyperopt_dl as hd
from hyperopt_dl.study.progress import Progress, Tally


def test_the_line_has_every_count_and_the_time_left() -> None:
    ended = Counter({"complete": 10, "failed": 3, "pruned": 2})
    tally = Tally(target=60, running=4, ended=ended, best="0.25", start=100.0)
    assert tally.line(now=190.0) == (
        "15/60 trials · 4 running · 3 failed · 2 pruned · best 0.25 · 10.0/min · 4:30 left"
    )


def test_trials_of_earlier_calls_count_but_tell_nothing_of_the_pace() -> None:
    ended = Counter({"complete": 10})
    line = Tally(target=60, earlier=30, ended=ended, start=0.0).line(now=100.0)
    assert line.startswith("40/60 trials · ")
    assert line.endswith(" · 6.0/min · 3:20 left")


def test_a_study_that_is_run_again_goes_on_counting(capsys: pytest.CaptureFixture[str]) -> None:
    again = study()
    again.optimize(lambda trial: 1.0, 3, progress=False)
    again.optimize(lambda trial: 1.0, total_trials=5)
    assert capsys.readouterr().err.startswith("5/5 trials · ")
    again.optimize(lambda trial: 1.0, 2)
    assert capsys.readouterr().err.startswith("2/2 trials · ")


@pytest.mark.parametrize(
    ("target", "timeout", "left"),
    [
        (None, None, None),
        (None, 7200.0, "1:58:20"),
        (40, 7200.0, "5:00"),
        (4000, 7200.0, "1:58:20"),
    ],
)
def test_the_time_left_is_that_of_the_nearer_limit(
    target: int | None, timeout: float | None, left: str | None
) -> None:
    ended = Counter({"complete": 10})
    line = Tally(target=target, timeout=timeout, ended=ended, start=0.0).line(now=100.0)
    assert line.endswith(f"{left} left" if left else "/min")


def study() -> hd.Study:
    return hd.Study(hd.Space(x=hd.Float(1.0, 2.0)), seed=0)


def objective(trial: hd.Trial) -> float:
    if trial.number > 0:
        raise ValueError("first\nlast line [bold]")
    return 1.5


def test_plain_lines_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    study().optimize(objective, 3)
    out, error = capsys.readouterr()
    lines = error.splitlines()
    assert out == ""
    assert "trial 1 failed (exception): Traceback (most recent call last):" in lines
    assert "ValueError: first" in lines
    assert "trial 2 failed (exception): last line [bold]" in lines
    assert lines[-1].startswith("3/3 trials · 0 running · 2 failed · 0 pruned · best 1.5 · ")


def test_silence_on_demand(capfd: pytest.CaptureFixture[str]) -> None:
    study().optimize(objective, 3, progress=False)
    assert capfd.readouterr() == ("", "")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_one_live_line_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    with Progress(Tally(target=5), enabled=True) as shown:
        shown.tally.ended["complete"] = 4
    assert "4/5 trials" in terminal.getvalue()
    hidden, shown_again = "\x1b[?25l", "\x1b[?25h"  # the cursor, while the line lives
    assert terminal.getvalue().startswith(hidden)
    assert shown_again in terminal.getvalue()


def fail(trial: hd.Trial) -> float:
    raise ValueError(f"boom\nin trial {trial.number}")


def log_of(capture: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in capture.records if r.levelname == "WARNING"]


@pytest.mark.parametrize("progress", [False, True])
def test_a_call_in_which_every_trial_fails_ends_with_a_warning(
    progress: bool, caplog: pytest.LogCaptureFixture
) -> None:
    failing = study()
    failing.optimize(lambda trial: 1.0, 2, progress=False)
    failing.optimize(fail, 3, progress=progress)
    assert log_of(caplog) == [
        "All 3 trial(s) of this call have failed; study.trials[2].user_attrs['error'] has the "
        "first error (exception): in trial 2"
    ]


def one_prunes(trial: hd.Trial) -> float:
    if trial.number == 1:
        raise hd.TrialPruned
    raise ValueError


@pytest.mark.parametrize("objective", [one_prunes, objective, lambda trial: 1.0])
def test_a_call_in_which_a_trial_has_ended_otherwise_ends_without_a_warning(
    objective: Callable[[hd.Trial], float], caplog: pytest.LogCaptureFixture
) -> None:
    study().optimize(objective, 3, progress=False)
    assert log_of(caplog) == []


def test_a_call_that_ran_no_trial_ends_without_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    study().optimize(fail, 0, progress=False)
    assert log_of(caplog) == []

"""What a person sees of a running study: one live line on a terminal, plain lines elsewhere."""

import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.text import Text

PLAIN_EVERY = 5.0
"""Seconds between two plain lines."""


@dataclass
class Tally:
    """The counts of one ``optimize``.

    ``target`` is the number of trials in the end, ``earlier`` how many of them were there before;
    ``timeout`` is the length in seconds. The target and the timeout may be ``None``. ``best`` is
    the study's best value as text.
    """

    target: int | None = None
    timeout: float | None = None
    earlier: int = 0
    running: int = 0
    ended: Counter[str] = field(default_factory=Counter)
    best: str = "-"
    start: float = field(default_factory=time.monotonic)

    def line(self, now: float) -> str:
        """Return the state of things in one line."""
        seconds = max(now - self.start, 1e-9)
        done = sum(self.ended.values())
        of = f"/{self.target}" if self.target is not None else ""
        parts = [
            f"{self.earlier + done}{of} trials",
            f"{self.running} running",
            f"{self.ended['failed']} failed",
            f"{self.ended['pruned']} pruned",
            f"best {self.best}",
            f"{60 * done / seconds:.1f}/min",
        ]
        left = self._seconds_left(done, seconds)
        return " · ".join(parts + ([f"{_duration(left)} left"] if left is not None else []))

    def _seconds_left(self, done: int, seconds: float) -> float | None:
        limits = []
        if self.target is not None and done:
            limits.append((self.target - self.earlier - done) * seconds / done)
        if self.timeout is not None:
            limits.append(max(0.0, self.timeout - seconds))
        return min(limits) if limits else None


class Progress:
    """Shows a tally on standard error; a context manager, silent where ``enabled`` is false."""

    def __init__(self, tally: Tally, *, enabled: bool) -> None:
        self.tally = tally
        self.enabled = enabled
        self._console = Console(file=sys.stderr, highlight=False, soft_wrap=True)
        self._live: Live | None = None
        self._due = time.monotonic() + PLAIN_EVERY

    def __enter__(self) -> Self:
        if self.enabled and self._console.is_terminal:
            self._live = Live(
                console=self._console, refresh_per_second=4, get_renderable=self._text
            )
            self._live.start()
        return self

    def update(self) -> None:
        """Show the tally again; a plain line only every few seconds."""
        now = time.monotonic()
        if self.enabled and self._live is None and now >= self._due:
            self._due = now + PLAIN_EVERY
            self._print(self.tally.line(now))

    def failed(self, number: int, failure: str, error: str) -> None:
        """Show why a trial failed: of the first one all, of others the last line of the error."""
        if self.enabled:
            first = self.tally.ended["failed"] == 1
            shown = error.strip() if first else error.strip().rpartition("\n")[2]
            self._print(f"trial {number} failed ({failure}): {shown}")

    def __exit__(self, *exception: object) -> None:
        if self._live is not None:
            self._live.stop()
        elif self.enabled:
            self._print(self.tally.line(time.monotonic()))

    def _text(self) -> Text:
        return Text(self.tally.line(time.monotonic()), overflow="ellipsis", no_wrap=True)

    def _print(self, line: str) -> None:
        self._console.print(Text(line))


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"

"""How far a long job is: a bar on a terminal, lines in a log, both with rate, time left and failures."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

log = logging.getLogger(__name__)
CHATTY_S, QUIET_S = 2.0, 60.0  # a log gets a line every tenth of the way, the former apart at least, and the latter at most


class Advance(Protocol):
    """One more is through."""

    def __call__(self, *, failed: bool = False, done_before: bool = False) -> None: ...


def not_shown(*, failed: bool = False, done_before: bool = False) -> None:
    """Nobody looks."""


class Pace:
    """Counts what is through, and at what pace.

    Args:
        total: how many there are.
        clock: seconds.
    """

    def __init__(self, total: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.total, self._clock = total, clock
        self.through = self.failed = self.done_before = 0
        self._began = clock()

    def __call__(self, *, failed: bool = False, done_before: bool = False) -> None:
        if done_before and self.through == self.done_before:
            self._began = self._clock()  # looking for finished ones is not the pace of the work
        self.through += 1
        self.failed += failed
        self.done_before += done_before

    def __str__(self) -> str:
        """ "120 of 8448, 12.0/min, 11 h 34 min left, 2 failed"."""
        parts = [f"{self.through} of {self.total}"]
        worked, seconds = self.through - self.done_before, self._clock() - self._began
        if worked and seconds > 0:
            per_s = worked / seconds
            parts.append(f"{per_s:.1f}/s" if per_s >= 1 else f"{60 * per_s:.1f}/min")
            if left := self.total - self.through:
                parts.append(f"{duration(left / per_s)} left")
        if self.failed:
            parts.append(f"{self.failed} failed")
        return ", ".join(parts)


def duration(seconds: float) -> str:
    """In the two largest units: "3 h 20 min", "4 min 10 s", "12 s"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


@contextmanager
def progress(what: str, total: int, console: Console, clock: Callable[[], float] = time.monotonic) -> Iterator[Advance]:
    """A bar on a terminal; elsewhere lines in the log. Yields the function that counts."""
    pace = Pace(total, clock)
    if not console.is_terminal:
        yield _Lines(what, pace, clock)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[pace]}"),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(what, total=total, pace="")

        def advance(*, failed: bool = False, done_before: bool = False) -> None:
            pace(failed=failed, done_before=done_before)
            bar.update(task, completed=pace.through, pace=str(pace).partition(", ")[2])

        yield advance


class _Lines:
    def __init__(self, what: str, pace: Pace, clock: Callable[[], float]) -> None:
        self._what, self._pace, self._clock = what, pace, clock
        self._tenths, self._said = 0, clock()

    def __call__(self, *, failed: bool = False, done_before: bool = False) -> None:
        self._pace(failed=failed, done_before=done_before)
        tenths, quiet = self._pace.through * 10 // max(1, self._pace.total), self._clock() - self._said
        if (tenths > self._tenths and (quiet > CHATTY_S or self._pace.through >= self._pace.total)) or quiet > QUIET_S:
            self._tenths, self._said = tenths, self._clock()
            log.info("%s: %s", self._what, self._pace)

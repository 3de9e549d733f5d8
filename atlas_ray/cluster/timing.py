"""Where the time of a stream goes, laps of every case added up by stage, and what memory it took.

Laps are wall-clock times, so those of one machine compare; between machines they compare as well as their clocks do.
"""

import json
import os
import resource
import socket
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

Lap = tuple[str, str, float, float, float]  # stage, worker, first start and last end (seconds since the epoch), seconds in it


class Stopwatch:
    """Takes one case's laps, one for each stage and worker, and carries them from process to process as JSON.

    Args:
        record: what another stopwatch's `record` gave.
    """

    def __init__(self, record: str = "[]") -> None:
        self._laps: dict[tuple[str, str], tuple[float, float, float]] = {
            (lap[0], lap[1]): tuple(lap[2:]) for lap in json.loads(record)
        }

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Time a block; blocks of one stage add up."""
        began = time.time()
        try:
            yield
        finally:
            ended = time.time()
            key = (stage, f"{socket.gethostname()}:{os.getpid()}")
            started, _, seconds = self._laps.get(key, (began, ended, 0.0))
            self._laps[key] = (started, ended, seconds + ended - began)

    @property
    def seconds(self) -> float:
        """Of all stages together."""
        return sum(seconds for _, _, seconds in self._laps.values())

    def record(self) -> str:
        laps: list[Lap] = [(*key, round(a, 3), round(b, 3), round(seconds, 3)) for key, (a, b, seconds) in self._laps.items()]
        return json.dumps(laps)


@dataclass(slots=True)
class StageTimes:
    """Laps of many cases, added up."""

    _seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    _spans: dict[tuple[str, str], tuple[float, float]] = field(default_factory=dict)  # (stage, worker) -> first start, last end

    def add(self, record: str) -> None:
        """Count one case's laps (`Stopwatch.record`)."""
        for stage, worker, started, ended, seconds in json.loads(record):
            self._seconds[stage] += seconds
            first, last = self._spans.get((stage, worker), (started, ended))
            self._spans[stage, worker] = min(first, started), max(last, ended)

    @property
    def seconds(self) -> dict[str, float]:
        """Stage -> seconds over all cases, in the order the stages were met."""
        return dict(self._seconds)

    def busy(self, stage: str) -> float:
        """Share of their time that a stage's workers spend in it, from each one's first lap to its last; 0 where it never ran."""
        available = sum(last - first for (name, _), (first, last) in self._spans.items() if name == stage)
        return min(1.0, self._seconds.get(stage, 0.0) / available) if available else 0.0


def peak_mb() -> float:
    """Highest resident memory this process has had, MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # Linux counts in KiB

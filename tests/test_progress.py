"""Rate and time left count the work of this run; what an earlier run finished does not make it look fast."""

import io
import logging

import pytest
from rich.console import Console

from atlas_ray.progress import Pace, duration, progress


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_pace_says_rate_time_left_and_failures() -> None:
    clock = Clock()
    pace = Pace(8448, clock)
    for _ in range(118):
        pace()
    pace(failed=True)
    pace()
    clock.now = 600.0  # 120 in ten minutes: 12 a minute; 8,328 are left, 694 minutes
    assert str(pace) == "120 of 8448, 12.0/min, 11 h 34 min left, 1 failed"


def test_what_was_done_before_is_not_pace() -> None:
    clock = Clock()
    pace = Pace(100, clock)
    for _ in range(90):
        clock.now += 0.001
        pace(done_before=True)
    assert str(pace) == "90 of 100"
    for _ in range(5):
        clock.now += 2.0
        pace()
    assert str(pace) == "95 of 100, 30.0/min, 10 s left"


@pytest.mark.parametrize(("seconds", "words"), [(0.4, "0 s"), (12, "12 s"), (250, "4 min 10 s"), (12_000, "3 h 20 min")])
def test_durations_are_read_at_a_glance(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_a_log_gets_a_line_every_tenth(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    with caplog.at_level(logging.INFO), progress("predict", 20, Console(file=io.StringIO()), clock) as advance:
        for number in range(20):
            clock.now += 3
            advance(failed=number == 3)
    assert len(caplog.messages) == 10
    assert caplog.messages[-1].startswith("predict: 20 of 20")
    assert caplog.messages[-1].endswith("1 failed")


def test_what_takes_no_time_is_one_line_in_a_log(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO), progress("ingest", 20, Console(file=io.StringIO()), Clock()) as advance:
        for _ in range(20):
            advance()
    assert caplog.messages == ["ingest: 20 of 20"]


def test_a_long_way_without_a_tenth_is_not_silent(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    with caplog.at_level(logging.INFO), progress("predict", 1000, Console(file=io.StringIO()), clock) as advance:
        for _ in range(10):
            clock.now += 31
            advance()
    assert len(caplog.messages) == 5


def test_a_terminal_gets_a_bar_with_the_pace() -> None:
    screen = io.StringIO()
    with progress("predict", 2, Console(file=screen, force_terminal=True, width=120)) as advance:
        advance()
        advance(failed=True)
    assert "predict" in screen.getvalue()
    assert "2/2" in screen.getvalue()
    assert "1 failed" in screen.getvalue()

"""Laps travel with a case and add up to where a stream's time goes."""

import json

import pytest

from atlas_ray.cluster import timing
from atlas_ray.cluster.timing import StageTimes, Stopwatch


class Clock:
    """Goes on only when it is told to; in the place of the module `time`."""

    def __init__(self) -> None:
        self._now = 1000.0

    def time(self) -> float:
        return self._now

    def sleep(self, seconds: float) -> None:
        self._now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(timing, "time", clock)
    return clock


def test_laps_travel_as_text_and_go_on_elsewhere(clock: Clock) -> None:
    first = Stopwatch()
    with first("read"):
        clock.sleep(0.01)
    second = Stopwatch(first.record())
    with second("networks"):
        clock.sleep(0.02)
    laps = json.loads(second.record())
    assert [stage for stage, *_ in laps] == ["read", "networks"]
    assert [lap[2:] for lap in laps] == [[1000.0, 1000.01, 0.01], [1000.01, 1000.03, 0.02]]
    assert second.seconds == pytest.approx(0.03)


def test_blocks_of_one_stage_are_one_lap_that_leaves_out_what_lies_between(clock: Clock) -> None:
    watch = Stopwatch()
    for stage in ("inverse", "attention", "inverse"):
        with watch(stage):
            clock.sleep(0.01)
    inverse, attention = json.loads(watch.record())
    assert (inverse[0], *inverse[2:]) == ("inverse", 1000.0, 1000.03, 0.02)
    assert (attention[0], *attention[2:]) == ("attention", 1000.01, 1000.02, 0.01)


def test_a_lap_that_ends_in_an_error_counts() -> None:
    watch = Stopwatch()
    with pytest.raises(ValueError, match="no"), watch("read"):
        raise ValueError("no")
    assert json.loads(watch.record())[0][0] == "read"


def test_seconds_add_up_by_stage_and_waiting_is_not_busy() -> None:
    """One actor runs its networks at 10-13 and 15-16: 4 of 6 seconds. Another at 10-12 and is never idle: 6 of 8 together."""
    times = StageTimes()
    times.add(json.dumps([["read", "a:1", 9, 10, 1], ["networks", "a:2", 10, 13, 3]]))
    times.add(json.dumps([["networks", "a:2", 15, 16, 1]]))
    assert times.seconds == {"read": 1, "networks": 4}
    assert times.busy("networks") == pytest.approx(4 / 6)
    times.add(json.dumps([["networks", "b:1", 10, 12, 2]]))
    assert times.busy("networks") == pytest.approx(6 / 8)
    assert times.busy("never") == 0

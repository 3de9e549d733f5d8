"""Laps travel with a case and add up to where a stream's time goes."""

import json
import time

import pytest

from atlas_ray.cluster.timing import StageTimes, Stopwatch


def test_laps_travel_as_text_and_go_on_elsewhere() -> None:
    first = Stopwatch()
    with first("read"):
        time.sleep(0.01)
    second = Stopwatch(first.record())
    with second("networks"):
        time.sleep(0.02)
    laps = json.loads(second.record())
    assert [stage for stage, *_ in laps] == ["read", "networks"]
    assert all(seconds == pytest.approx(ended - started, abs=0.002) for _, _, started, ended, seconds in laps)
    assert second.seconds >= 0.03


def test_blocks_of_one_stage_are_one_lap_that_leaves_out_what_lies_between() -> None:
    watch = Stopwatch()
    for stage in ("inverse", "attention", "inverse"):
        with watch(stage):
            time.sleep(0.01)
    (inverse, _, started, ended, seconds), (attention, *_) = json.loads(watch.record())
    assert (inverse, attention) == ("inverse", "attention")
    assert 0.02 <= seconds < ended - started - 0.009


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

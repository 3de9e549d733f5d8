"""What Prometheus sees of a prediction stream, through Ray's own exporter (Ray puts `ray_` before every name).

All of it is counted by the driver, from the small rows that come back, so a lost worker takes no counts with it. infra/ has a
dashboard of these names.
"""

import json
from typing import Any

from atlas_ray.cluster.session import runs_in_process

STAGE_SECONDS = (0.01, 0.05, 0.2, 1.0, 5.0, 20.0, 60.0, 300.0, 1800.0)  # upper ends of the histogram's buckets


class StreamMetrics:
    """Counters of one stream; nothing where steps run without Ray.

    Args:
        campaign: its name, a label of every metric.
        round_index: likewise.
        cases: that the stream is going to predict.
    """

    def __init__(self, campaign: str, round_index: int, cases: int) -> None:
        self._left, self._counts = cases, not runs_in_process()
        if not self._counts:
            return
        from ray.util.metrics import Counter, Gauge, Histogram

        labels = {"campaign": campaign, "round": str(round_index)}
        self._done: Any = Counter("atlas_ray_cases", description="Cases that left the stream.", tag_keys=("campaign", "round"))
        self._failed: Any = Counter("atlas_ray_cases_failed", description="Cases set aside.", tag_keys=("campaign", "round"))
        self._to_do: Any = Gauge("atlas_ray_cases_left", description="Cases still to predict.", tag_keys=("campaign", "round"))
        self._busy: Any = Gauge(
            "atlas_ray_gpu_busy_ratio",
            description="Share of their time actors spend in networks.",
            tag_keys=("campaign", "round"),
        )
        self._seconds: Any = Histogram(
            "atlas_ray_stage_seconds",
            description="Seconds of one case in one stage.",
            boundaries=list(STAGE_SECONDS),
            tag_keys=("campaign", "round", "stage"),
        )
        for metric in (self._done, self._failed, self._to_do, self._busy, self._seconds):
            metric.set_default_tags(labels)
        self._to_do.set(self._left)

    def count(self, *, failed: bool, stages: str, busy: float) -> None:
        """One case has left the stream.

        Args:
            stages: its laps, as `timing.Stopwatch.record` gives them.
            busy: of the actors, so far.
        """
        self._left -= 1
        if not self._counts:
            return
        self._done.inc()
        if failed:
            self._failed.inc()
        self._to_do.set(self._left)
        self._busy.set(busy)
        for stage, _, _, _, seconds in json.loads(stages):
            self._seconds.observe(seconds, tags={"stage": stage})

"""The numbers of a prediction stream as Prometheus reads them from Ray's exporter."""

import json
import re
import time
import urllib.request
from pathlib import Path

import pytest

from atlas_ray.cluster.metrics import StreamMetrics

NAMES = ("cases_total", "cases_failed_total", "cases_left", "gpu_busy_ratio", "stage_seconds")


def exported(name: str) -> dict[str, float]:
    """Labels -> value of a metric of this test's campaign, as soon as the exporter has it (it reports every ten seconds)."""
    import ray

    port = ray.nodes()[0]["MetricsExportPort"]
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            text = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5).read().decode()
        except OSError:
            text = ""
        found = re.findall(rf'^ray_atlas_ray_{name}{{([^}}]*campaign="metrics-test"[^}}]*)}} (\S+)$', text, re.MULTILINE)
        if found:
            return {labels: float(value) for labels, value in found}
        time.sleep(0.5)
    raise AssertionError(f"the exporter never had ray_atlas_ray_{name}")


@pytest.mark.slow
def test_prometheus_reads_what_the_stream_did(ray_session: None) -> None:
    metrics = StreamMetrics("metrics-test", 0, cases=3)
    laps = json.dumps([["networks", "host:1", 0.0, 2.0, 2.0]])
    metrics.count(failed=False, stages=laps, busy=0.5)
    metrics.count(failed=True, stages="[]", busy=0.75)
    assert list(exported("cases_total").values()) == [2]
    assert list(exported("cases_failed_total").values()) == [1]
    assert list(exported("cases_left").values()) == [1]
    assert list(exported("gpu_busy_ratio").values()) == [0.75]
    buckets = {re.search(r'le="([^"]+)"', labels)[1]: value for labels, value in exported("stage_seconds_bucket").items()}  # type: ignore[index]
    assert buckets["1.0"] == 0
    assert buckets["5.0"] == 1


def test_every_metric_of_the_dashboard_is_one_of_these() -> None:
    asked = (Path(__file__).parents[2] / "infra" / "grafana" / "atlas_ray.json").read_text()
    named = set(re.findall(r"ray_atlas_ray_(\w+?)(?:_bucket|_sum|_count)?\b", asked))
    assert named
    assert named <= set(NAMES), f"the dashboard asks for {sorted(named - set(NAMES))}"

"""The rounds of a campaign beside each other in MLflow's own page, as a picture: docs/screenshots/mlflow.png.

python benchmarks/mlflow_picture.py [CONFIG] [--set key=value ...] [--out FILE]     CONFIG is configs/proof.yaml, after `make proof`

Starts `mlflow server` on the campaign's store, on loopback, and opens its comparison of the evaluated rounds in Chromium.
"""

import argparse
import io
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from atlas_ray.config import Campaign, load_config
from atlas_ray.exceptions import WorkspaceError

if TYPE_CHECKING:
    from mlflow.entities import Run

PICTURE = Path(__file__).resolve().parents[1] / "docs" / "screenshots" / "mlflow.png"
WIDTH, HEIGHT = 1200, 1700
ORGANS = 3
SETTLE_MS = 3000  # charts move until they are there
START_S, STOP_S = 120, 30


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", nargs="?", default="proof")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--out", type=Path, default=PICTURE)
    arguments = parser.parse_args()
    campaign = load_config(arguments.config, arguments.set)
    runs = evaluated_rounds(campaign)
    metrics = drawn_metrics(runs[0].data.metrics, runs[-1].data.metrics)
    with served(campaign.tracking_uri) as address:
        data = photograph(f"{address}/#/compare-runs?{asked(runs)}", metrics)
    arguments.out.write_bytes(data)
    print(f"{arguments.out}: {len(runs)} rounds, {len(data) / 1000:.0f} kB")


def evaluated_rounds(campaign: Campaign) -> list["Run"]:
    """The run of every round's evaluation. Raises WorkspaceError with fewer than two."""
    from mlflow import MlflowClient

    client = MlflowClient(campaign.tracking_uri)
    experiment = client.get_experiment_by_name(campaign.name)
    found = client.search_runs([experiment.experiment_id], "tags.`atlas_ray.key` LIKE 'round-%/evaluate'") if experiment else []
    if len(found) < 2:
        raise WorkspaceError(f"{campaign.tracking_uri} has {len(found)} evaluated rounds of {campaign.name}; two are needed")
    return sorted(found, key=lambda run: str(run.data.tags["atlas_ray.key"]))


def asked(runs: Sequence["Run"]) -> str:
    """Of the comparison's address."""
    experiments = sorted({run.info.experiment_id for run in runs})
    return urllib.parse.urlencode({"runs": json.dumps([run.info.run_id for run in runs]), "experiments": json.dumps(experiments)})


@contextmanager
def served(store: str) -> Iterator[str]:
    """Address of an MLflow server of its own on this store."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ["server", "--backend-store-uri", store, "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    environment = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    server = subprocess.Popen([sys.executable, "-m", "mlflow", *words], env=environment, stdout=subprocess.DEVNULL)
    address = f"http://127.0.0.1:{port}"
    try:
        wait_for(f"{address}/health", server)
        yield address
    finally:
        server.terminate()
        try:
            server.wait(STOP_S)
        except subprocess.TimeoutExpired:  # a busy machine; nothing is written that could be lost
            server.kill()


def wait_for(url: str, server: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + START_S
    while server.poll() is None and time.monotonic() < deadline:
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return
        except urllib.error.URLError:
            time.sleep(0.5)
    raise RuntimeError(f"MLflow does not answer at {url} after {START_S} s")


def drawn_metrics(before: Mapping[str, float], after: Mapping[str, float]) -> list[str]:
    """Both means, the organs whose Dice moved most, and the attention: what MLflow's plot has room for."""
    organs = [name for name in before if name.startswith("dice/") and name != "dice/mean" and name in after]
    moved = sorted(organs, key=lambda name: -abs(after[name] - before[name]))
    wanted = ["attention_holdout/mean_mm3", *moved[:ORGANS], "surface_dice/mean"]  # the last one colors the lines
    return [name for name in wanted if name in before]  # MLflow draws dice/mean, the page's first metric, by itself


def photograph(url: str, metrics: Sequence[str]) -> bytes:
    """PNG of the comparison down to its metrics."""
    from PIL import Image
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT})
        page.goto(url)
        page.get_by_text("dice/mean").first.wait_for(timeout=60_000)
        for panel in ("Close", "Toggle sidebar"):  # of the assistant, and of what else MLflow has
            for button in page.get_by_role("button", name=panel, exact=True).all():
                button.click()
        choice = page.locator("input[role=combobox]").nth(1)  # of parameters, of metrics
        for name in metrics:
            choice.click(force=True)
            choice.fill(name)
            page.get_by_role("option", name=name, exact=True).first.wait_for(state="attached")
            page.keyboard.press("Enter")
        page.keyboard.press("Escape")
        page.get_by_role("button", name="Parameters").first.click()  # there are none: the round's own run has them
        page.mouse.move(0, 0)
        page.wait_for_timeout(SETTLE_MS)
        end = page.get_by_text("Artifacts", exact=True).first.bounding_box()
        data = page.screenshot(clip={"x": 0, "y": 0, "width": WIDTH, "height": end["y"] - 20 if end else HEIGHT})
        browser.close()
    kept = io.BytesIO()
    Image.open(io.BytesIO(data)).convert("RGB").quantize(128).save(kept, format="PNG", optimize=True)
    return kept.getvalue()


if __name__ == "__main__":
    main()

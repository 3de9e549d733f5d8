"""A copy taken while somebody annotates is restored elsewhere, and the round goes on there as docs/operations.md says."""

import contextlib
import math
import os
import shutil
import sqlite3
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import yaml

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path += [str(REPOSITORY / "tests" / "ui"), str(REPOSITORY / "benchmarks")]
import sizing  # noqa: E402
from ui_workspace import ORGANS, PEAK, SHAPE, make_client, make_workspace  # noqa: E402

from atlas_ray.config import Campaign  # noqa: E402
from atlas_ray.steps.merge import merge_step  # noqa: E402
from atlas_ray.volume import read_volume  # noqa: E402
from atlas_ray.workspace import Workspace  # noqa: E402

OPERATIONS = (REPOSITORY / "docs" / "operations.md").read_text()
FILE_ORDER = int(np.ravel_multi_index(PEAK[::-1], SHAPE[::-1]))  # x fastest


def backup(workspace: Path, copy: Path, *databases: Path) -> subprocess.CompletedProcess[str]:
    command = [REPOSITORY / "infra" / "backup.sh", workspace, copy, *databases]
    return subprocess.run(command, env={**os.environ, "PYTHON": sys.executable}, capture_output=True, text=True)


def draw(client, case: str, start: int) -> None:
    body = zlib.compress(np.array([[start, 1, 1]], "<u4").tobytes())
    headers = {"If-Match": '"0"', "Content-Type": "application/octet-stream"}
    client.put(f"/api/v1/cases/{case}/labels/ball", content=body, headers=headers).raise_for_status()


def test_a_copy_is_restored_and_the_round_goes_on(tmp_path: Path) -> None:
    original = make_workspace(tmp_path / "here")
    with make_client(original) as client:  # it stays open, its write-ahead log in use
        client.post("/api/v1/cases/case_0/lease").raise_for_status()
        draw(client, "case_0", FILE_ORDER)
        done = backup(original.root, tmp_path / "copy")
        assert done.returncode == 0, done.stderr
    shutil.rmtree(original.root)

    restored = Workspace(tmp_path / "elsewhere")
    shutil.copytree(tmp_path / "copy", restored.root)
    with make_client(restored) as client:
        states = {item["case_id"]: item["state"] for item in client.get("/api/v1/cases").json()["items"]}
        assert states == {"case_0": "leased", "case_1": "waiting", "case_2": "waiting"}
        client.post("/api/v1/cases/case_0/submit", json={"verdict": "fixed"}).raise_for_status()
        client.post("/api/v1/cases/case_1/lease").raise_for_status()
        draw(client, "case_1", FILE_ORDER)
        client.post("/api/v1/cases/case_1/submit", json={"verdict": "fixed"}).raise_for_status()
    organs = tmp_path / "organs.yaml"
    organs.write_text(yaml.safe_dump(ORGANS.model_dump(mode="json")))
    datasets = [{"source": "phantom", "name": "pool", "count": 1, "split": "pool"}]
    campaign = Campaign.model_validate(
        {"name": "small", "workspace": str(restored.root), "organs": str(organs), "datasets": datasets}
    )
    assert merge_step(campaign, 0) == 2
    for case in ("case_0", "case_1"):
        assert read_volume(restored.annotation(0, case)).voxels[PEAK] == 3, "drawn before the copy was taken, and after"


def test_a_copy_is_whole_or_absent(tmp_path: Path) -> None:
    assert "is no workspace" in backup(tmp_path, tmp_path / "copy").stderr
    assert not (tmp_path / "copy").exists()
    workspace = make_workspace(tmp_path / "here")
    (tmp_path / "copy").mkdir()
    assert "exists" in backup(workspace.root, tmp_path / "copy").stderr
    (tmp_path / "next.partial").mkdir()
    assert "another backup goes there, or was killed" in backup(workspace.root, tmp_path / "next").stderr
    assert (tmp_path / "next.partial").exists(), "it may be at work"


def test_a_database_outside_the_workspace_is_copied_too(tmp_path: Path) -> None:
    workspace, database = make_workspace(tmp_path / "here"), tmp_path / "campaign.db"
    with contextlib.closing(sqlite3.connect(database)) as connection:
        connection.execute("CREATE TABLE t AS SELECT 7 AS n")
        connection.commit()
    done = backup(workspace.root, tmp_path / "copy", database)
    assert done.returncode == 0, done.stderr
    with contextlib.closing(sqlite3.connect(tmp_path / "copy" / "campaign.db")) as connection:
        assert connection.execute("SELECT n FROM t").fetchall() == [(7,)]
    assert "is no file" in backup(workspace.root, tmp_path / "other", tmp_path / "absent.db").stderr
    twin = tmp_path / "elsewhere" / "annotation.db"
    twin.parent.mkdir()
    shutil.copy(database, twin)
    assert "two databases are called annotation.db" in backup(workspace.root, tmp_path / "other", twin).stderr
    assert not list(tmp_path.glob("other*")), "a failure leaves nothing behind"


def test_the_sizing_table_is_the_scripts() -> None:
    assert sizing.table() in OPERATIONS
    assert sizing.windows(0.5) == 5 * 5 * 8  # 273 voxels: 96 and four steps of 48; 400: seven
    assert math.isclose(sizing.gpu_seconds(0.5, "A100"), 200 * 1136 / (312 * 0.2 * 1000))

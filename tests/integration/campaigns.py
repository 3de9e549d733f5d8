"""Campaigns small enough to be run for real, and the jobs as real processes."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

REPOSITORY = Path(__file__).resolve().parents[2]
SCAN = {"spacing": [8, 8, 8], "field_of_view_mm": [320, 256, 320], "orientation": "LPS"}  # 40 x 32 x 40 voxels
UNET = {"architecture": "unet", "features": [4, 8, 16], "residual_units": 1}
NNUNET = {"architecture": "nnunet", "features": [4, 8, 16]}


def phantoms(name: str, count: int, split: str, seed: int, **fields: Any) -> dict[str, Any]:
    return {"source": "phantom", "name": name, "count": count, "seed": seed, "split": split, "phantom": SCAN, **fields}


def write_campaign(folder: Path, *, datasets: list[dict[str, Any]], architectures: list[dict[str, Any]], **fields: Any) -> Path:
    """A campaign.yaml in `folder` whose workspace is beside it; a few steps of tiny networks."""
    schedule = {"steps": 3, "batch": 2, "warmup_steps": 1, "learning_rate": 0.01, "validation_cases": 0, "checkpoint_every": 2}
    content = {
        "name": "small",
        "workspace": str(folder / "workspace"),
        "datasets": datasets,
        "preprocessing": {"spacing": [8, 8, 8]},
        "architectures": architectures,
        "patches": {"patch": [16, 16, 16]},
        "training": schedule,
        "finetuning": schedule,
        "inference": {"window": [32, 32, 32], "overlap": 0.25, "batch": 2},
        "effort": {"budget_share": 0.5},
        "annotation": {"annotator": {"annotator": "oracle", "scope": "component", "dilation_mm": 0}},
        "cluster": {"cpus_per_worker": 1, "cpus_per_actor": 1},
        **fields,
    }
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def start(verb: str, *arguments: str | Path, cwd: Path, **environment: str) -> subprocess.Popen[str]:
    """A job as a process of its own, its output in pipes."""
    return subprocess.Popen(
        [sys.executable, "-m", f"jobs.{verb}", *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "COLUMNS": "200", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def job(verb: str, *arguments: str | Path, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """The same, to its end."""
    process = start(verb, *arguments, cwd=cwd, **environment)
    try:
        stdout, stderr = process.communicate(timeout=900)
    except subprocess.TimeoutExpired:
        process.kill()
        pytest.fail(f"{process.args} has not ended in 15 minutes; it said {process.communicate()}")
    return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)


def succeeded(result: subprocess.CompletedProcess[str]) -> str:
    """Its stdout. Fails with all it said where it did not succeed."""
    assert result.returncode == 0, f"{result.args}\n{result.stdout}\n{result.stderr}"
    return result.stdout

"""A scheduler that takes a machine away says so with SIGTERM: the job ends in good order, and the next one may start at once."""

import signal
import subprocess
import sys
from pathlib import Path

from atlas_ray.lock import holder_of, newest
from atlas_ray.workspace import Workspace

REPOSITORY = Path(__file__).resolve().parents[1]
JOB = """
import time
from atlas_ray.job import run
from atlas_ray.lock import locked
from atlas_ray.workspace import Workspace

def main(root: str) -> None:
    with locked(Workspace(root), "jobs.predict"):
        print("at work", flush=True)
        time.sleep(60)

run(main)
"""


def test_a_job_that_is_told_to_end_releases_its_workspace(tmp_path: Path) -> None:
    job = subprocess.Popen(
        [sys.executable, "-c", JOB, str(tmp_path)],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert job.stdout is not None
    assert job.stdout.readline() == "at work\n"
    workspace = Workspace(tmp_path)
    assert holder_of(workspace) is not None
    job.send_signal(signal.SIGTERM)
    _, stderr = job.communicate(timeout=30)
    assert job.returncode == 143
    assert "told to end (SIGTERM)" in stderr
    assert "Traceback" not in stderr
    _, last = newest(workspace.locks)
    assert last is not None
    assert last.released

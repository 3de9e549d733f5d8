"""A job sent to a real Ray head on this machine, behind a token: accepted, followed to its end, and its failure told."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from campaigns import UNET, job, phantoms, succeeded, write_campaign

from atlas_ray.workspace import Workspace

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@dataclass(frozen=True)
class Head:
    address: str
    token: dict[str, str]  # the environment of those who may submit


def free_ports(count: int) -> list[str]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [str(one.getsockname()[1]) for one in sockets]
    for one in sockets:
        one.close()
    return ports


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    folder = Path(tempfile.mkdtemp(prefix="ar", dir="/tmp"))  # short: a socket's path has at most 107 bytes
    (folder / "auth_token").write_text("throw-away-" + os.urandom(16).hex())
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(folder / "auth_token")}
    gcs, dashboard, agent, grpc, client, metrics = free_ports(6)
    binaries = str(Path(sys.executable).parent)
    command = [
        *(f"{binaries}/ray", "start", "--head", "--block", "--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1"),
        *(f"--port={gcs}", f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={agent}"),
        *(f"--dashboard-agent-grpc-port={grpc}", f"--ray-client-server-port={client}", f"--metrics-export-port={metrics}"),
        *(f"--temp-dir={folder}/ray", "--num-cpus=4", "--object-store-memory=200000000", "--disable-usage-stats"),
    ]
    environment = {**os.environ, **token, "PATH": f"{binaries}:{os.environ['PATH']}"}
    log = (folder / "log").open("w")
    process = subprocess.Popen(command, env=environment, cwd=folder, stdout=log, stderr=subprocess.STDOUT)
    try:
        wait_for(f"http://127.0.0.1:{dashboard}/api/version", process, folder / "log")
        yield Head(f"http://127.0.0.1:{dashboard}", token)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(300)
        log.close()
        shutil.rmtree(folder, ignore_errors=True)


def wait_for(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()
        try:
            urllib.request.urlopen(url, timeout=5).close()
        except urllib.error.HTTPError:
            return  # 401: it is up and wants a token
        except OSError:
            time.sleep(0.2)
        else:
            return
    pytest.fail(f"{url} did not come up: {log.read_text()}")


def campaign(folder: Path) -> Path:
    """Outside the checkout, with a relative workspace and an organ set of its own: neither means anything to a cluster."""
    organs = "name: two\norgans:\n- {name: liver, label_id: 1, color: '#c8604f'}\n- {name: aorta, label_id: 2, color: '#e0383e'}\n"
    (folder / "two.yaml").write_text(organs)
    datasets = [phantoms("known", 1, "train", 1)]
    return write_campaign(folder, workspace="here/workspace", organs="two.yaml", architectures=[UNET], datasets=datasets)


def test_a_job_is_sent_followed_and_numbered(head, tmp_path):
    config = campaign(tmp_path)
    arguments = ("ingest", config, "--address", head.address)
    stdout = succeeded(job("submit", *arguments, cwd=tmp_path, **head.token))
    assert "submitted small-ingest-r0-1" in stdout
    assert "1 cases" in stdout, "the job's own table"
    (case,) = Workspace(tmp_path / "here" / "workspace").cases()
    assert case.labeled_organs == ("liver", "aorta")
    failed = job("submit", "prioritize", config, "--round", "3", "--address", head.address, cwd=tmp_path, **head.token)
    assert failed.returncode == 1
    assert "python -m jobs.predict" in failed.stdout, "the job's own line"
    assert "job small-prioritize-r3-1 ended FAILED" in failed.stderr
    assert "Traceback" not in failed.stderr
    assert "submitted small-ingest-r0-2" in succeeded(job("submit", *arguments, "--no-wait", cwd=tmp_path, **head.token))


def test_without_the_token_it_says_how_to_give_one(head, tmp_path):
    result = job("submit", "ingest", campaign(tmp_path), "--address", head.address, cwd=tmp_path, RAY_AUTH_MODE="disabled")
    assert result.returncode == 1
    (line,) = result.stderr.strip().splitlines()
    assert "RAY_AUTH_TOKEN_PATH" in line
    assert not (tmp_path / "here").exists()

"""What every test may use. The environment is set here, before anything imports ray, mlflow or gradio: they read it on import."""

import os

os.environ.update(
    RAY_AUTH_MODE="disabled",
    RAY_USAGE_STATS_ENABLED="0",
    RAY_DATA_DISABLE_PROGRESS_BARS="1",
    MLFLOW_DISABLE_TELEMETRY="true",
    GRADIO_ANALYTICS_ENABLED="False",
)

import contextlib
import re
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from atlas_ray.storage import BucketPath

REPOSITORY = Path(__file__).resolve().parents[1]

with contextlib.suppress(ImportError):  # a machine that is there for its GPU need not have it
    from hypothesis import settings

    # The same examples every time, at any speed: a test fails because of what was changed.
    settings.register_profile("suite", derandomize=True, deadline=None, database=None)
    settings.load_profile("suite")

_FORKS: list[str] = []


def _note_a_fork() -> None:
    stack = "".join(traceback.format_stack())
    if "subprocess.py" not in stack:  # it starts a program at once
        _FORKS.append(stack)


os.register_at_fork(before=_note_a_fork)


@pytest.fixture(autouse=True)
def _no_fork() -> Iterator[None]:
    """A fork copies locks that the threads of Ray, Torch and Gradio hold: now and then the copy waits for one forever."""
    yield
    stack = "\n".join(_FORKS)
    _FORKS.clear()
    assert not stack, f"this test forked the process; spawn one, or start a program:\n{stack}"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real CT and label maps beside the repository; read-only, not part of it."""
    folder = REPOSITORY.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"needs the real cases in {folder}, which are not here")
    return folder


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """One local Ray for all tests that ask for it, started by the first."""
    import ray

    folder = tempfile.mkdtemp(prefix="ar", dir="/tmp")  # short: a socket's path has at most 107 bytes
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Ray's own; what our code warns of stays an error
        ray.init(
            address="local",
            num_cpus=4,
            num_gpus=0,
            include_dashboard=False,
            object_store_memory=300_000_000,
            log_to_driver=False,
            _temp_dir=folder,
        )
    yield
    ray.shutdown()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real S3 server on loopback, in a process of its own; its address. Any key opens it."""
    log = tmp_path_factory.mktemp("s3") / "log"
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", "0"]  # it takes a free port and says which
    with log.open("w") as output:
        server = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
    try:
        deadline = time.monotonic() + 240
        while not (found := re.search(r"Running on (http://\S+:\d+)", log.read_text())):
            if server.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"the S3 server did not come up:\n{log.read_text()}")
            time.sleep(0.1)
        yield found[1]
    finally:
        server.kill()
        server.wait()


@pytest.fixture
def bucket(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator["BucketPath"]:
    """An empty bucket of its own, and the environment that leads to it (processes that a test starts inherit it)."""
    import uuid

    from atlas_ray import storage

    for key, value in {
        "AWS_ENDPOINT_URL": s3_server,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }.items():
        monkeypatch.setenv(key, value)
    storage._file_system.cache_clear()
    name = f"atlas-{uuid.uuid4().hex[:12]}"
    from pyarrow import fs

    fs.S3FileSystem(endpoint_override=s3_server, region="us-east-1", allow_bucket_creation=True).create_dir(name)
    yield storage.BucketPath("s3", name)
    storage._file_system.cache_clear()


@pytest.fixture
def in_this_process() -> Iterator[None]:
    """Steps run their cases here, one after the other: for tests of what a step does, not of how Ray spreads it."""
    from atlas_ray.cluster.session import in_process

    with in_process():
        yield


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Networks this small are slower on several threads, and much slower while others use the cores."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def _fresh_data_context() -> Iterator[None]:
    """What one test sets in Ray Data's context must not reach the next."""
    yield
    if "ray.data" in sys.modules:
        from ray.data import DataContext

        with warnings.catch_warnings():  # its own constructor reads settings it calls deprecated
            warnings.simplefilter("ignore", DeprecationWarning)
            DataContext._set_current(DataContext())

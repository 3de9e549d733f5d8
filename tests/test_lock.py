"""One job at a time: leases end by the file system's clock, are never interrupted by signals, and only one of many gets a claim."""

import contextlib
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from atlas_ray import lock
from atlas_ray.exceptions import WorkspaceError
from atlas_ray.lock import Holder, acquire, check_lock, holder_of, locked, newest
from atlas_ray.storage import BucketPath, write_atomically
from atlas_ray.workspace import Workspace


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path)


def claim(workspace: Workspace, number: int, *, job: str = "jobs.predict", pid: int = 1, machine: str = "elsewhere") -> Path:
    """Somebody else's, on another machine."""
    path = workspace.locks / f"{number:08d}.json"
    holder = Holder(token=job, job=job, host="node7", machine=machine, pid=pid, since="2026-01-01T00:00:00+00:00")
    write_atomically(path, holder.model_dump_json())
    return path


def age(path: Path, seconds: float) -> None:
    then = time.time() - seconds
    os.utime(path, (then, then))


def test_the_second_job_is_told_who_has_the_workspace_and_since_when(workspace: Workspace) -> None:
    claim(workspace, 3)
    with pytest.raises(WorkspaceError, match=r"in use by jobs\.predict on node7 \(process 1\), since 2026-01-01T00:00:00\+00:00"):
        acquire(workspace, "jobs.train")
    holder, seconds = holder_of(workspace) or (None, 0)
    assert holder is not None
    assert holder.job == "jobs.predict"
    assert 0 <= seconds < 5


def test_given_back_it_is_free_at_once(workspace: Workspace) -> None:
    assert holder_of(workspace) is None
    with locked(workspace, "jobs.train"):
        assert holder_of(workspace) is not None
        with pytest.raises(WorkspaceError, match=r"in use by jobs\.train"):
            acquire(workspace, "jobs.predict")
        check_lock()
    assert holder_of(workspace) is None
    with locked(workspace, "jobs.predict"):
        assert newest(workspace.locks)[0] == 2
    assert len(list(workspace.locks.iterdir())) == 1, "older claims and probes are gone"


def test_a_lease_that_ran_out_is_taken_over(workspace: Workspace) -> None:
    age(claim(workspace, 5), 61)
    assert holder_of(workspace) is None
    with locked(workspace, "jobs.train"):
        assert newest(workspace.locks)[0] == 6


@pytest.mark.parametrize("skew_s", [-86_400, 86_400])
def test_a_clock_that_is_wrong_decides_nothing(workspace: Workspace, monkeypatch: pytest.MonkeyPatch, skew_s: float) -> None:
    """Only times of the file system are compared."""
    path = claim(workspace, 1)
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + skew_s)
    assert holder_of(workspace) is not None
    age(path, 61 + skew_s)
    assert holder_of(workspace) is None


def test_a_holder_that_died_on_this_machine_is_followed_at_once(workspace: Workspace) -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    claim(workspace, 1, pid=child.pid, machine=lock._machine())
    with locked(workspace, "jobs.train"):
        pass
    claim(workspace, 9, pid=os.getpid(), machine=lock._machine())
    with pytest.raises(WorkspaceError, match="in use"):
        acquire(workspace, "jobs.train")


def test_in_a_bucket_a_lease_that_ran_out_is_taken_over(bucket: BucketPath) -> None:
    workspace = Workspace(f"{bucket}/campaign")
    with locked(workspace, "jobs.predict") as first:
        with pytest.raises(WorkspaceError, match=r"in use by jobs\.predict"):
            acquire(workspace, "jobs.train")
        time.sleep(1.2)  # a bucket's times are whole seconds
        with locked(workspace, "jobs.train", lease_s=0.1):
            first.renew()
            with pytest.raises(WorkspaceError, match=r"has lost s3://.* to jobs\.train"):
                first.check()
    assert holder_of(workspace) is None
    assert newest(workspace.locks)[0] == 2


def test_of_many_that_want_it_one_gets_it(workspace: Workspace) -> None:
    age(claim(workspace, 1), 61)
    barrier, held = threading.Barrier(8), []

    def want() -> None:
        barrier.wait()
        with contextlib.suppress(WorkspaceError):
            held.append(acquire(workspace, "jobs.train"))

    threads = [threading.Thread(target=want) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(held) == 1
    held[0].release()


def test_who_lost_it_is_told_at_the_next_check(workspace: Workspace) -> None:
    with locked(workspace, "jobs.train") as mine:
        claim(workspace, 2, job="jobs.run_round")
        check_lock()  # not yet looked
        mine.renew()
        with pytest.raises(WorkspaceError, match=r"has lost .* to jobs\.run_round on node7"):
            check_lock()
    _, holder = newest(workspace.locks)
    assert holder is not None
    assert not holder.released, "the new holder's claim is left alone"
    check_lock()  # no lock, nothing to lose


def test_it_is_renewed_in_the_background(workspace: Workspace) -> None:
    with locked(workspace, "jobs.train", lease_s=4) as mine:
        age(mine.path, 600)
        until = time.monotonic() + 60
        while holder_of(workspace) is None:
            assert time.monotonic() < until, "nobody renewed it"
            time.sleep(0.05)
        with pytest.raises(WorkspaceError, match="in use"):
            acquire(workspace, "jobs.predict")
        check_lock()


def test_a_disk_that_is_away_for_a_lease_ends_the_job(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*_: object) -> None:
        raise OSError("disk away")

    with locked(workspace, "jobs.train"):
        monkeypatch.setattr(lock, "write_atomically", away)
        check_lock()  # not for long yet
        real = time.monotonic
        monkeypatch.setattr(time, "monotonic", lambda: real() + lock.LEASE_S)
        with pytest.raises(WorkspaceError, match="could not be renewed"):
            check_lock()

"""One job at a time writes a workspace: a lock with a lease, made of small files.

    lock/<number>.json     one claim; the highest number has the lock

A job claims by creating the next number, which only one can; it renews the claim by writing it again, and says so in it when it is
done. A claim that nobody renews for LEASE_S, or whose process is dead on this very machine, is taken over by the next number.
Numbers only grow, so nobody can take a claim that is not the one they judged.

Ages are differences between times of the file system, never between clocks of machines: a file is written now and the times are
compared.

Who loses the lock is told at the next `check_lock()`, between steps and between cases; nothing is interrupted. Until then two jobs
may work side by side, which costs time and no result: every result appears whole and says what it was made from, and a task that
outlives its job knows by the number of its job's claim that a later one has come (`check_claim`).
"""

import contextlib
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path

from pydantic import ValidationError

from atlas_ray.exceptions import WorkspaceError
from atlas_ray.schema import Schema
from atlas_ray.storage import create, remove, settle_s, write_atomically
from atlas_ray.workspace import Workspace, now

log = logging.getLogger(__name__)
LEASE_S = 60.0
RENEWALS = 4  # per lease: three may fail

_held: ContextVar["Lock | None"] = ContextVar("held_lock", default=None)


class Holder(Schema):
    """Who has a workspace.

    Args:
        machine: host name, boot and process namespace: where `pid` means this process and no other.
        since: ISO 8601, UTC, by the holder's own clock; for people.
        released: whether it is done.
    """

    token: str
    job: str
    host: str
    machine: str
    pid: int
    since: str
    released: bool = False

    def __str__(self) -> str:
        return f"{self.job} on {self.host} (process {self.pid}), since {self.since}"


class Lock:
    """A claim that is renewed in the background.

    Args:
        path: its file.
    """

    def __init__(self, path: Path, holder: Holder, *, lease_s: float) -> None:
        self.path, self.holder, self.lease_s = path, holder, lease_s
        self._renewed = time.monotonic()
        self._taken_by: Holder | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="workspace-lock", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raises WorkspaceError where the lock was lost: somebody took it, or it could not be renewed for a whole lease."""
        if self._taken_by is not None:
            raise WorkspaceError(f"this job has lost {self.path.parent.parent} to {self._taken_by}; what it finished is kept")
        if self._is_overdue():
            self.renew()  # what kept it from being renewed may be over
        if self._is_overdue():
            raise WorkspaceError(f"{self.path} could not be renewed for {self.lease_s:.0f} s; what is finished is kept")

    def _is_overdue(self) -> bool:
        return time.monotonic() - self._renewed > self.lease_s

    def renew(self) -> None:
        """Say that this job lives. A disk that does not answer is asked again at the next renewal."""
        try:
            number, holder = newest(self.path.parent)
            if number >= int(self.path.stem) and holder is not None and holder.token != self.holder.token:
                self._taken_by = holder
                self._stop.set()
                return
            if number > int(self.path.stem):
                return  # whoever it is has not yet said so
            write_atomically(self.path, self.holder.model_dump_json())
            self._renewed = time.monotonic()
        except (OSError, WorkspaceError) as error:
            log.warning("lock %s: %s", self.path, error)

    def release(self) -> None:
        """Let the next one in at once."""
        self._stop.set()
        self._thread.join()
        if self._taken_by is None:
            with contextlib.suppress(OSError, WorkspaceError):
                write_atomically(self.path, self.holder.model_copy(update={"released": True}).model_dump_json())

    def _keep(self) -> None:
        while not self._stop.wait(self.lease_s / RENEWALS):
            self.renew()


@contextlib.contextmanager
def locked(workspace: Workspace, job: str, *, lease_s: float = LEASE_S) -> Iterator[Lock]:
    """Inside, this job is the only one that writes the workspace.

    Raises:
        WorkspaceError: another job has it; says who and since when.
    """
    lock = acquire(workspace, job, lease_s=lease_s)
    token = _held.set(lock)
    try:
        yield lock
    finally:
        _held.reset(token)
        lock.release()


def check_lock() -> None:
    """Raises WorkspaceError where the job this runs in has lost its workspace; does nothing where no lock is held."""
    if (lock := _held.get()) is not None:
        lock.check()


def held_claim() -> int:
    """Number of the claim of the job this runs in, for its tasks on other machines; 0 where no lock is held."""
    lock = _held.get()
    return 0 if lock is None else int(lock.path.stem)


def check_claim(workspace: Workspace, number: int) -> None:
    """Raises WorkspaceError where a job has claimed the workspace after the one with this claim; 0 is nobody's and always good."""
    if number and any(int(claim.stem) > number for claim in _claims(workspace.locks)):
        raise WorkspaceError(f"a later job has taken {workspace.root}; what this one finishes now is dropped")


def acquire(workspace: Workspace, job: str, *, lease_s: float = LEASE_S) -> Lock:
    """Claim the workspace. Raises as `locked`."""
    folder = workspace.locks
    number, holder = newest(folder)
    if number and not _is_free(folder, number, holder, lease_s):
        raise _taken(workspace, folder, number, holder, lease_s)
    if holder is not None and not holder.released:
        log.warning("taking over %s from %s, which is gone", workspace.root, holder)
    me = Holder(token=uuid.uuid4().hex, job=job, host=socket.gethostname(), machine=_machine(), pid=os.getpid(), since=now())
    mine = folder / f"{number + 1:08d}.json"
    try:
        create(mine, me.model_dump_json())
    except FileExistsError:
        raise _taken(workspace, folder, number + 1, _read(mine), lease_s) from None
    time.sleep(settle_s(mine))  # where creating is not exclusive the last one to write has it
    if (winner := _read(mine)) is not None and winner.token != me.token:
        raise _taken(workspace, folder, number + 1, winner, lease_s)
    for older in _claims(folder)[:-1]:
        remove(older)
    return Lock(mine, me, lease_s=lease_s)


def holder_of(workspace: Workspace, *, lease_s: float = LEASE_S) -> tuple[Holder, float] | None:
    """Who has the workspace, and seconds since their last sign of life; None where it is free."""
    number, holder = newest(workspace.locks)
    if not number or holder is None or _is_free(workspace.locks, number, holder, lease_s):
        return None
    return holder, _age_s(workspace.locks, number)


def newest(folder: Path) -> tuple[int, Holder | None]:
    """The highest claim: its number and who made it (None for half a second, while it is being written); (0, None) without one."""
    claims = _claims(folder)
    return (int(claims[-1].stem), _read(claims[-1])) if claims else (0, None)


def _claims(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*.json") if path.stem.isdigit()) if folder.exists() else []


def _read(path: Path) -> Holder | None:
    try:
        return Holder.model_validate_json(path.read_bytes())
    except (FileNotFoundError, ValidationError):
        return None


def _is_free(folder: Path, number: int, holder: Holder | None, lease_s: float) -> bool:
    if holder is not None and (holder.released or (holder.machine == _machine() and not _lives(holder.pid))):
        return True
    return _age_s(folder, number) > lease_s


def _age_s(folder: Path, number: int) -> float:
    """Since a claim was renewed, by the clock that times the files. 0 where it is gone: somebody is just taking over."""
    probe = folder / f".{uuid.uuid4().hex}.probe"
    write_atomically(probe, b"")
    try:
        return probe.stat().st_mtime - (folder / f"{number:08d}.json").stat().st_mtime
    except FileNotFoundError:
        return 0.0
    finally:
        remove(probe)


def _taken(workspace: Workspace, folder: Path, number: int, holder: Holder | None, lease_s: float) -> WorkspaceError:
    who = str(holder) if holder is not None else "a job that has just started"
    age = _age_s(folder, number)
    return WorkspaceError(
        f"{workspace.root} is in use by {who}, last heard of {age:.0f} s ago; a job that dies gives it up {lease_s:.0f} s later"
    )


def _machine() -> str:
    """Where a process number means the same process: two containers may share a host name."""
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
    with contextlib.suppress(OSError):
        parts.append(str(Path("/proc/self/ns/pid").readlink()))
    return " ".join(parts)


def _lives(pid: int) -> bool:
    """Not covered: a number given to another process meanwhile; then the lease has to run out."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # somebody else's
        return True
    return True

"""A clock to set, and what the other processes of these tests do: spawned, so each imports this module and opens the database."""

import os
import signal
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Barrier  # a manager's proxy has its methods

from atlas_ray.annotation.database import open_database
from atlas_ray.annotation.queue import LeaseError, Queue, QueueEntry
from atlas_ray.annotation.revisions import RevisionConflict, Revisions


class Clock:
    """Stands still until it is told to go on."""

    def __init__(self) -> None:
        self.time = datetime(2026, 1, 5, 8, 0, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.time

    def pass_minutes(self, minutes: float) -> None:
        self.time += timedelta(minutes=minutes)


def open_and_fill(url: str, barrier: Barrier, cases: int) -> int:
    """Create the tables and fill the same round as everybody else; how many items this process added."""
    barrier.wait(120)
    with open_database(url) as database:
        return Queue(database).fill(1, [QueueEntry(case_id=f"case{n}", organs=("liver",), rank=n) for n in range(cases)])


def lease_all(url: str, barrier: Barrier, user: str) -> list[str]:
    """Lease until nothing is left, submitting none: each `next` of one user would give the same item, so users are many."""
    leased: list[str] = []
    with open_database(url) as database:
        queue = Queue(database)
        barrier.wait(120)
        while (item := queue.next(f"{user}-{len(leased)}")) is not None:
            leased.append(item.case_id)
    return leased


def claim_one(url: str, barrier: Barrier, user: str) -> bool:
    """Whether this process got the one item everybody claims."""
    with open_database(url) as database:
        queue = Queue(database)
        barrier.wait(120)
        try:
            queue.claim(1, "case0", user)
        except LeaseError:
            return False
        return True


def save_on_the_draft(url: str, barrier: Barrier, user: str) -> int:
    """Save an edit made on revision 0; the revision id it got, or minus the id that was there first."""
    with open_database(url) as database:
        revisions = Revisions(database)
        barrier.wait(120)
        try:
            return revisions.save(1, "case0", "liver", user=user, parent_id=0, runs=[[0, 1, 1]]).revision_id
        except RevisionConflict as conflict:
            return -conflict.current_id


def save_and_die(url: str, saved: Path) -> None:
    """Lease, save, say so, and be killed with everything open and nothing closed."""
    database = open_database(url)
    item = Queue(database).next("anna")
    assert item is not None
    Revisions(database).save(1, item.case_id, "liver", user="anna", parent_id=0, runs=[[3, 2, 1]], seconds=9)
    saved.touch()
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)

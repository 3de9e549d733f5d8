"""The queue and its revisions on a PostgreSQL server of their own, with the backup and restore of docs/operations.md."""

import multiprocessing
import os
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from datetime import datetime
from pathlib import Path

import pytest
from annotation_helpers import claim_one, open_and_fill
from sqlalchemy import update
from sqlalchemy.engine import make_url

from atlas_ray.annotation.database import Database, open_database, schema_version, utc_now, with_database
from atlas_ray.annotation.queue import Queue, QueueEntry
from atlas_ray.annotation.revisions import RevisionConflict, Revisions
from atlas_ray.exceptions import WorkspaceError

OPERATIONS = (Path(__file__).resolve().parents[2] / "docs" / "operations.md").read_text()
PROGRAMS = ("initdb", "pg_ctl", "createdb", "pg_dump", "pg_restore")


def find_programs() -> Path | None:
    """The newest PostgreSQL's folder of programs, as Debian or PATH has it."""
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name), reverse=True)
    folders += [Path(found).parent for found in [shutil.which("initdb")] if found]
    return next((folder for folder in folders if all((folder / name).exists() for name in PROGRAMS)), None)


class Server:
    """A server that listens at a socket in its own folder only. It refuses root, who lets the user postgres run it."""

    def __init__(self, programs: Path, folder: Path) -> None:
        self.programs, self.folder = programs, folder
        self.user = "postgres" if os.geteuid() == 0 else None
        if self.user:
            shutil.chown(folder, self.user)
        self.run("initdb", "--pgdata", "data", "--username=atlas", "--auth=trust", "--no-sync", "--locale=C", "--encoding=UTF8")
        self.start()

    def run(self, program: str, *arguments: str) -> None:
        environment = {**os.environ, "PGHOST": str(self.folder), "PGUSER": "atlas"}
        log = self.folder / "programs.log"
        with log.open("a") as out:
            command = [self.programs / program, *arguments]
            subprocess.run(command, cwd=self.folder, env=environment, user=self.user, stdout=out, stderr=out, check=True)

    def start(self) -> None:
        options = f"-c listen_addresses= -c unix_socket_directories={self.folder} -c fsync=off"
        self.run("pg_ctl", "--pgdata=data", "--wait", "--log=server.log", "--options", options, "start")

    def stop(self) -> None:
        self.run("pg_ctl", "--pgdata=data", "--wait", "--mode=immediate", "stop")

    def url(self, database: str) -> str:
        return f"postgresql+psycopg://atlas@/{database}?host={self.folder}"


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    programs = find_programs()
    if programs is None:
        pytest.skip("no PostgreSQL server: initdb, pg_ctl, createdb, pg_dump and pg_restore are not installed")
    with tempfile.TemporaryDirectory(prefix="pg") as folder:
        started = Server(programs, Path(folder))
        try:
            yield started
        finally:
            started.stop()


@pytest.fixture
def url(server: Server, request: pytest.FixtureRequest) -> str:
    """Of an empty database of the test's own."""
    name = request.node.name[-40:]
    server.run("createdb", name)
    return server.url(name)


def entries(*case_ids: str) -> list[QueueEntry]:
    return [QueueEntry(case_id=c, organs=("liver",), rank=rank) for rank, c in enumerate(case_ids, 1)]


def work(database: Database) -> None:
    """Three items: one handed in with two revisions, one leased, one untouched."""
    queue, revisions = Queue(database), Revisions(database)
    assert queue.fill(1, entries("a", "b", "c")) == 3
    done = queue.claim(1, "a", "anna")
    revisions.save(1, "a", "liver", user="anna", parent_id=0, runs=[[3, 2, 1]], seconds=9)
    revisions.save(1, "a", "liver", user="anna", parent_id=1, runs=[[7, 1, 0]], seconds=4)
    queue.submit(done.item_id, "anna", seconds=60, note="naïve – 肝")
    queue.claim(1, "b", "ben")


def told(database: Database) -> list[object]:
    """All that the queue and the revisions say."""
    queue, revisions = Queue(database), Revisions(database)
    edits = [(edit.revision, edit.runs.tolist()) for edit in revisions.edits(1, "a")]
    return [queue.items(1), queue.events(), edits, revisions.seconds(1)]


def test_processes_create_it_at_once_and_one_gets_the_item(url: str) -> None:
    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager, ProcessPoolExecutor(2, mp_context=context) as pool:
        barrier = manager.Barrier(2)
        added = [pool.submit(open_and_fill, url, barrier, 5) for _ in range(2)]
        assert sorted(future.result(300) for future in added) == [0, 5]
        claimed = [pool.submit(claim_one, url, barrier, user) for user in ("anna", "ben")]
        assert sorted(future.result(300) for future in claimed) == [False, True]


def test_what_people_do_is_kept_and_in_order(url: str) -> None:
    with open_database(url) as database:
        before = utc_now()
        work(database)
        queue, revisions = Queue(database), Revisions(database)
        assert {i.case_id: (i.state, i.user, i.seconds) for i in queue.items(1)} == {
            "a": ("submitted", "anna", 60.0),
            "b": ("leased", "ben", 0.0),
            "c": ("waiting", None, 0.0),
        }
        assert queue.item((1, "a")).note == "naïve – 肝"
        expires = queue.item((1, "b")).lease_expires
        assert expires is not None
        assert datetime.fromisoformat(expires) > before, "times come back with their zone"
        assert [edit.runs.tolist() for edit in revisions.edits(1, "a")] == [[[3, 2, 1]], [[7, 1, 0]]]
        with pytest.raises(RevisionConflict):
            revisions.save(1, "a", "liver", user="ben", parent_id=1, runs=[[0, 1, 1]])
        assert queue.next("anna") == queue.item((1, "c"))


def test_a_database_of_version_2_is_brought_up_to_date(url: str) -> None:
    with open_database(url) as database:
        Queue(database).fill(1, entries("a"))
        with database.write() as connection:
            connection.exec_driver_sql("ALTER TABLE work_item DROP COLUMN components")
            connection.execute(update(schema_version).values(version=2))
    with open_database(url) as database:
        assert Queue(database).item((1, "a")).components == ()


def test_a_dump_is_restored_and_work_goes_on(server: Server, url: str) -> None:
    for command in ("pg_dump --format=custom --file=", "createdb atlas && pg_restore --dbname=atlas"):
        assert command in OPERATIONS
    with open_database(url) as database:  # open while the dump is made
        work(database)
        server.run("pg_dump", "--format=custom", "--file=atlas.dump", str(make_url(url).database))
        before = told(database)
    server.run("createdb", "restored")
    server.run("pg_restore", "--dbname=restored", "atlas.dump")
    with open_database(server.url("restored")) as database:
        assert told(database) == before
        queue, revisions = Queue(database), Revisions(database)
        revisions.save(1, "b", "liver", user="ben", parent_id=0, runs=[[5, 1, 1]])  # numbers go on after those of the copy
        queue.submit(queue.item((1, "b")).item_id, "ben", seconds=5)
        assert queue.counts(1) == {"submitted": 2, "waiting": 1}


def test_a_server_that_is_away_is_waited_for(server: Server, url: str) -> None:
    open_database(url).close()
    server.stop()
    start = threading.Thread(target=lambda: (time.sleep(0.3), server.start()))
    start.start()
    try:
        assert with_database(url, lambda database: Queue(database).fill(1, entries("a")), patience_s=60) == 1
    finally:
        start.join()


def test_a_server_that_never_answers_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("atlas_ray.annotation.database.CONNECT_TIMEOUT_S", 2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        with pytest.raises(WorkspaceError, match="timeout"):
            open_database(f"postgresql+psycopg://ada@127.0.0.1:{port}/atlas")

"""The database opens anywhere, any number of times at once, and says clearly why it does not."""

import contextlib
import multiprocessing
import sqlite3
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from datetime import datetime
from pathlib import Path

import pytest
from annotation_helpers import open_and_fill
from sqlalchemy import insert, inspect, select, update
from sqlalchemy.dialects import registry
from sqlalchemy.engine import Dialect
from sqlalchemy.exc import IntegrityError, StatementError
from sqlalchemy.schema import CreateTable

from atlas_ray.annotation.database import (
    Database,
    events,
    metadata,
    open_database,
    schema_version,
    sqlite_url,
    utc_now,
    with_database,
)
from atlas_ray.annotation.queue import Queue, QueueEntry
from atlas_ray.annotation.revisions import Revisions
from atlas_ray.exceptions import ConfigError, WorkspaceError


def test_opening_again_keeps_what_is_there(url: str) -> None:
    with open_database(url) as database, database.write() as connection:
        connection.execute(insert(events).values(created=utc_now(), user="anna", action="note"))
    with open_database(url) as database, database.read() as connection:
        assert connection.execute(select(events.c.user)).scalars().all() == ["anna"]


def test_a_path_may_hold_any_character(tmp_path: Path) -> None:
    path = tmp_path / "50 % done? #1" / "annotation.db"
    open_database(sqlite_url(path)).close()
    assert path.is_file()


def test_processes_may_create_and_fill_it_at_the_same_moment(url: str) -> None:
    processes, cases = 4, 20
    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager, ProcessPoolExecutor(processes, mp_context=context) as pool:
        barrier = manager.Barrier(processes)
        added = [pool.submit(open_and_fill, url, barrier, cases) for _ in range(processes)]
        assert sorted(future.result(300) for future in added) == [0, 0, 0, cases]
    with open_database(url) as database:
        assert len(Queue(database).items(1)) == cases


def test_a_failed_transaction_leaves_nothing(database: Database) -> None:
    row = {"event_id": 1, "created": utc_now(), "user": "anna", "action": "note"}
    with pytest.raises(IntegrityError), database.write() as connection:
        connection.execute(insert(events), [row, row])  # the second has the event_id of the first
    with database.read() as connection:
        assert connection.execute(select(events)).all() == []


@contextlib.contextmanager
def locked_until_it_is_tried_again(path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Another connection holds the file until whoever was refused says so and waits; then the event is set."""
    held, let_go = threading.Event(), threading.Event()
    monkeypatch.setattr("atlas_ray.patience.log.warning", lambda *_: let_go.set())

    def hold() -> None:
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
            connection.execute("BEGIN EXCLUSIVE")
            held.set()
            let_go.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    try:
        assert held.wait(60)
        yield let_go
    finally:
        let_go.set()
        thread.join()


def test_a_database_that_is_away_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("atlas_ray.annotation.database.BUSY_TIMEOUT_S", 0.05)
    path = tmp_path / "annotation.db"
    open_database(sqlite_url(path)).close()
    entries = [QueueEntry(case_id="a", organs=("liver",), rank=1)]
    with locked_until_it_is_tried_again(path, monkeypatch) as let_go:
        assert with_database(sqlite_url(path), lambda database: Queue(database).fill(1, entries), patience_s=30) == 1
        assert let_go.is_set()
    with locked_until_it_is_tried_again(path, monkeypatch), pytest.raises(WorkspaceError, match="locked"):
        with_database(sqlite_url(path), lambda database: Queue(database).fill(1, entries), patience_s=0)


def test_readers_do_not_wait_for_a_writer(database: Database) -> None:
    with database.write() as writer, database.read() as reader:
        writer.execute(insert(events).values(created=utc_now(), user="anna", action="note"))
        assert reader.execute(select(events)).all() == []


def test_every_commit_reaches_the_disk(database: Database) -> None:
    with database.read() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2  # FULL


def test_a_time_without_zone_is_refused(database: Database) -> None:
    with pytest.raises(StatementError, match="no time zone"), database.write() as connection:
        connection.execute(insert(events).values(created=datetime(2026, 1, 1), user="anna", action="note"))


def test_a_database_of_another_version_is_refused(url: str) -> None:
    with open_database(url) as database, database.write() as connection:
        connection.execute(update(schema_version).values(version=99))
    with pytest.raises(WorkspaceError, match="table version 99; this atlas_ray reads 3"):
        open_database(url)


def columns(url: str) -> dict[str, set[str]]:
    with open_database(url) as database, database.read() as connection:
        inspector = inspect(connection)
        return {name: {column["name"] for column in inspector.get_columns(name)} for name in inspector.get_table_names()}


def write_version_1(path: Path) -> str:
    path.parent.mkdir(parents=True)
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.executescript((Path(__file__).parent / "version_1.sql").read_text())
    return sqlite_url(path)


def test_a_file_of_version_1_is_brought_up_to_date(tmp_path: Path) -> None:
    url = write_version_1(tmp_path / "old" / "annotation.db")
    assert columns(url) == columns(sqlite_url(tmp_path / "new.db"))
    with open_database(url) as database:
        queue, revisions = Queue(database), Revisions(database)
        assert [(i.case_id, i.reading, i.state, i.user, i.seconds) for i in queue.items(1)] == [
            ("a", 1, "submitted", "anna", 20.0),
            ("b", 1, "leased", "ben", 0.0),
            ("c", 1, "waiting", None, 0.0),
        ]
        edits = revisions.edits(1, "a")
        assert [(e.revision.revision_id, e.revision.name, e.revision.kind, e.runs.tolist()) for e in edits] == [
            (1, "", "edit", [[3, 2, 1]]),
            (2, "", "edit", [[4, 1, 0]]),
        ]
        assert revisions.seconds(1, "a") == {"liver": 20.0}
        assert [v.verdict for v in revisions.verdicts(1, "a", reading=1)] == ["fixed"]
        # What only version 2 can hold: a second reading of the same case, and the same organ's revision in it.
        queue.fill(1, [QueueEntry(case_id="a", reading=2, organs=("liver",), rank=1)])
        assert revisions.save(1, "a", "liver", user="carl", parent_id=0, runs=[[0, 1, 1]], reading=2).revision_id == 1
        assert revisions.current(1, "a", "liver") == 2


def test_a_file_of_version_2_gains_the_components(tmp_path: Path) -> None:
    url, path = sqlite_url(tmp_path / "annotation.db"), tmp_path / "annotation.db"
    with open_database(url) as database:
        Queue(database).fill(1, [QueueEntry(case_id="a", organs=("liver",), rank=1)])
    with contextlib.closing(sqlite3.connect(path)) as connection:  # as version 2 left it
        connection.execute("ALTER TABLE work_item DROP COLUMN components")
        connection.execute("UPDATE schema_version SET version = 2")
        connection.commit()
    with open_database(url) as database:
        assert Queue(database).item((1, "a")).components == ()
        Queue(database).fill(1, [QueueEntry(case_id="a", organs=("liver",), components=(3, 5), rank=1)])
        assert Queue(database).item((1, "a")).components == (3, 5)


def test_the_migration_is_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "old" / "annotation.db"
    url = write_version_1(path)
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("ALTER TABLE time_entry RENAME TO lost")
        connection.commit()
    with pytest.raises(WorkspaceError, match="time_entry"):
        open_database(url)
    with contextlib.closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT version FROM schema_version").fetchall() == [(1,)]
        assert connection.execute("SELECT count(*) FROM revision").fetchall() == [(2,)]
        connection.execute("ALTER TABLE lost RENAME TO time_entry")
        connection.commit()
    open_database(url).close()


def test_a_file_that_is_no_database_is_named(tmp_path: Path) -> None:
    path = tmp_path / "annotation.db"
    path.write_text("this is a text file, and long enough to be looked at as one" * 20)
    with pytest.raises(WorkspaceError, match=r"annotation\.db cannot be opened: .*not a database"):
        open_database(sqlite_url(path))


@pytest.mark.parametrize("url", ["annotation.db", "oracle9://host/db", "postgresql+nodriver://u:secret@host/db"])
def test_an_unusable_url_is_a_configuration_error_that_shows_no_password(url: str) -> None:
    with pytest.raises(ConfigError, match=r"annotation\.database") as raised:
        open_database(url)
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize("name", ["postgresql", "mysql"])
def test_the_tables_can_be_written_for_other_databases(name: str) -> None:
    dialect: Dialect = registry.load(name)()
    for table in metadata.sorted_tables:
        assert f"CREATE TABLE {table.name}" in str(CreateTable(table).compile(dialect=dialect))


def test_the_file_is_readable_with_plain_sqlite(url: str, tmp_path: Path) -> None:
    open_database(url).close()
    connection = sqlite3.connect(tmp_path / "a folder" / "annotation.db")
    names = {row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    connection.close()
    assert names >= {"work_item", "revision", "component_verdict", "time_entry", "event"}

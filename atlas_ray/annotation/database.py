"""The annotation database: queue, revisions, verdicts, time and events.

One SQLite file in the workspace by default; any database SQLAlchemy speaks, by URL, when several servers share one campaign.
No statement here or in the modules above is particular to one vendor. What people did (revision, component_verdict,
time_entry, event) is only ever appended; the one table whose rows change is work_item, whose every change leaves an event.

A SQLite file must lie on a local disk: its write-ahead log does not work over NFS.
"""

import contextlib
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import (
    JSON,
    CheckConstraint,
    Column,
    DateTime,
    Float,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    create_engine,
    event,
    insert,
    inspect,
    select,
    update,
)
from sqlalchemy.engine import URL, Connection, Dialect, Engine, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, InterfaceError, NoSuchModuleError, OperationalError, SQLAlchemyError
from sqlalchemy.types import TypeDecorator

from atlas_ray.exceptions import ConfigError, WorkspaceError
from atlas_ray.patience import causes, patiently
from atlas_ray.redaction import without_passwords

Result = TypeVar("Result")
SCHEMA_VERSION = 3
BUSY_TIMEOUT_S = 30.0  # how long a writer waits for another; every transaction here takes milliseconds
CONNECT_TIMEOUT_S = 10  # of a PostgreSQL server to answer at all


def utc_now() -> datetime:
    return datetime.now(UTC)


class UtcDateTime(TypeDecorator[datetime]):
    """An aware datetime, kept as naive UTC because SQLite has no time zones. Raises ValueError for a naive one."""

    impl = DateTime
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"time {value} has no time zone; UTC is stored")
        return value.astimezone(UTC).replace(tzinfo=None)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        return None if value is None else value.replace(tzinfo=UTC)


metadata = MetaData()

schema_version = Table("schema_version", metadata, Column("version", Integer, primary_key=True, autoincrement=False))

work_items = Table(
    "work_item",
    metadata,
    Column("item_id", Integer, primary_key=True),
    Column("round", Integer, nullable=False),
    Column("case_id", String(255), nullable=False),
    Column("reading", Integer, nullable=False, default=1),  # 2: the same case once more, by somebody who must not see the first
    Column("organs", JSON, nullable=False),
    Column("components", JSON, nullable=False, server_default="[]"),  # asked about, by index; none is all of the organs'
    Column("rank", Integer, nullable=False),
    Column("score", Float, nullable=False),
    Column("state", String(16), nullable=False),
    Column("user", String(255)),
    Column("lease_expires", UtcDateTime),
    Column("seconds", Float, nullable=False, default=0.0),
    Column("note", Text, nullable=False, default=""),
    Column("verdict", String(16)),
    Column("review", String(16)),
    Column("reviewer", String(255)),
    UniqueConstraint("round", "case_id", "reading"),
    Index("work_item_order", "round", "state", "rank"),
)

revisions = Table(
    "revision",
    metadata,
    Column("sequence", Integer, primary_key=True),  # the order of saving over all organs: merging paints in it
    Column("round", Integer, nullable=False),
    Column("case_id", String(255), nullable=False),
    Column("reading", Integer, nullable=False, default=1),
    Column("organ", String(64), nullable=False),
    Column("revision_id", Integer, nullable=False),
    Column("parent_id", Integer, nullable=False),
    Column("user", String(255), nullable=False),
    Column("created", UtcDateTime, nullable=False),
    Column("voxels", Integer, nullable=False),
    Column("seconds", Float, nullable=False),
    Column("name", String(80), nullable=False, default=""),
    Column("kind", String(8), nullable=False, default="edit"),
    Column("component", Integer),
    Column("runs", LargeBinary, nullable=False),  # revisions.encode_runs
    # Two saves on one parent would both be revision parent + 1: the second one is refused by the database itself.
    UniqueConstraint("round", "case_id", "reading", "organ", "revision_id"),
    CheckConstraint("revision_id = parent_id + 1", name="revision_follows_parent"),
)

component_verdicts = Table(
    "component_verdict",
    metadata,
    Column("sequence", Integer, primary_key=True),
    Column("round", Integer, nullable=False),
    Column("case_id", String(255), nullable=False),
    Column("reading", Integer, nullable=False, default=1),
    Column("organ", String(64), nullable=False),
    Column("component", Integer, nullable=False),  # AttentionComponent.index
    Column("verdict", String(16), nullable=False),
    Column("user", String(255), nullable=False),
    Column("created", UtcDateTime, nullable=False),
    Column("note", Text, nullable=False, default=""),
    Index("component_verdict_case", "round", "case_id"),
)

time_entries = Table(
    "time_entry",
    metadata,
    Column("sequence", Integer, primary_key=True),
    Column("round", Integer, nullable=False),
    Column("case_id", String(255), nullable=False),
    Column("reading", Integer, nullable=False, default=1),
    Column("organ", String(64)),
    Column("component", Integer),
    Column("user", String(255), nullable=False),
    Column("created", UtcDateTime, nullable=False),
    Column("seconds", Float, nullable=False),
    Index("time_entry_case", "round", "case_id"),
)

# No foreign key on item_id: the story of an item that left the list stays.
events = Table(
    "event",
    metadata,
    Column("event_id", Integer, primary_key=True),
    Column("created", UtcDateTime, nullable=False),
    Column("user", String(255), nullable=False),
    Column("action", String(32), nullable=False),
    Column("item_id", Integer),
    Column("round", Integer),
    Column("case_id", String(255)),
    Column("detail", Text, nullable=False, default=""),
    Index("event_item", "item_id"),
)


class Database:
    """An open annotation database; close it, or use it in a `with` block.

    Safe to share between threads; a forked or spawned process opens its own.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    @contextlib.contextmanager
    def read(self) -> Iterator[Connection]:
        """A transaction that only reads; on SQLite it never waits for a writer."""
        with self.engine.connect() as connection, connection.begin():
            yield connection

    @contextlib.contextmanager
    def write(self) -> Iterator[Connection]:
        """A transaction that may write: all of it happens, or nothing; committed when the block ends without an error."""
        with self.engine.connect().execution_options(atlas_write=True) as connection, connection.begin():
            yield connection

    def close(self) -> None:
        self.engine.dispose()

    def __enter__(self) -> "Database":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def sqlite_url(path: str | Path) -> str:
    """URL of a SQLite file, whatever characters its path has."""
    return URL.create("sqlite", database=str(path)).render_as_string()


def open_database(url: str) -> Database:
    """Open the database and create the tables it lacks; any number of processes may do so at the same moment.

    Args:
        url: "sqlite:////absolute/annotation.db", "postgresql+psycopg://user:password@host/name", ...

    Raises:
        ConfigError: not a database URL, or its driver is not installed.
        WorkspaceError: the database cannot be reached, or was made by another version of atlas_ray.
    """
    try:
        parsed = make_url(url)
        engine = create_engine(parsed, pool_pre_ping=True, connect_args=_connect_args(parsed))
    except (ArgumentError, NoSuchModuleError, ModuleNotFoundError) as error:
        raise ConfigError(f"annotation.database {url.split('://')[0]!r}://... cannot be used: {error}") from error
    if engine.dialect.name == "sqlite":
        if parsed.database and parsed.database != ":memory:":
            Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
    database = Database(engine)
    shown = parsed.render_as_string(hide_password=True)
    try:
        version = _create_tables(database)
    except SQLAlchemyError as error:
        database.close()
        raise WorkspaceError(
            f"annotation database {shown} cannot be opened: {without_passwords(str(error))}{_hint(parsed)}"
        ) from error
    if version != SCHEMA_VERSION:
        database.close()
        raise WorkspaceError(f"annotation database {shown} has table version {version}; this atlas_ray reads {SCHEMA_VERSION}")
    return database


def _connect_args(parsed: URL) -> dict[str, Any]:
    """A PostgreSQL host that does not answer at all is given up soon and tried again; by itself that takes minutes."""
    waits = parsed.get_dialect().driver.startswith("psycopg") and "connect_timeout" not in parsed.query
    return {"connect_timeout": CONNECT_TIMEOUT_S} if waits else {}


def with_database(url: str, work: Callable[[Database], Result], patience_s: float) -> Result:
    """Open the database and do something with it; all of it once more, for at most `patience_s`, while the database is away.

    Args:
        work: in one transaction, or such that doing it twice is doing it once.

    Raises:
        ConfigError, WorkspaceError: as `open_database`.
    """

    def once() -> Result:
        try:
            with open_database(url) as database:
                return work(database)
        except (OperationalError, InterfaceError) as error:
            shown = make_url(url).render_as_string(hide_password=True)
            raise WorkspaceError(f"annotation database {shown} is away: {without_passwords(str(error))}") from error

    return patiently(once, patience_s, _is_away)


def _is_away(error: BaseException) -> bool:
    return any(isinstance(e, OperationalError | InterfaceError) for e in causes(error))


def _hint(url: URL) -> str:
    """Where a password comes from that the address does not have: what is written into a workspace never has one."""
    if url.get_backend_name() != "postgresql" or url.password:
        return ""
    return "; its password is read from PGPASSWORD, from ~/.pgpass, or from the file named by ?passfile=/path in the address"


def _create_tables(database: Database) -> int:
    """Create what is missing; the version the database says it has."""
    for last_attempt in (False, True):
        try:
            with database.write() as connection:
                schema_version.create(connection, checkfirst=True)
                found = connection.execute(select(schema_version.c.version)).scalars().first()
                if found == 1 and connection.dialect.name == "sqlite":
                    found = _migrate_from_1(connection)
                if found == 2:
                    found = _migrate_from_2(connection)
                if found in (None, SCHEMA_VERSION):
                    metadata.create_all(connection)
                if found is None:
                    connection.execute(insert(schema_version).values(version=SCHEMA_VERSION))
                return SCHEMA_VERSION if found is None else int(found)
        except DBAPIError:
            # A server lets two processes look for the tables and both create them: the loser looks again and finds them.
            if last_attempt:
                raise
    raise AssertionError("unreachable")


def _migrate_from_1(connection: Connection) -> int:
    """Bring a SQLite file of version 1 to this one, in the transaction it is opened in; the version it then has.

    Version 1 had one reading per case and no names of steps. SQLite cannot change a unique constraint, so the tables whose
    constraint gained the reading are written anew; the columns of the others are added. Not covered: a server of version 1.
    """
    for table in (work_items, revisions):
        old = inspect(connection).get_columns(table.name)
        kept = ", ".join(f'"{column["name"]}"' for column in old)
        added = {column.name: column.default.arg for column in table.c if column.default is not None}  # type: ignore[attr-defined]
        new = {name: value for name, value in added.items() if name not in {column["name"] for column in old}}
        for index in table.indexes:
            connection.exec_driver_sql(f"DROP INDEX {index.name}")
        connection.exec_driver_sql(f"ALTER TABLE {table.name} RENAME TO {table.name}_1")
        table.create(connection)
        names, values = ", ".join([kept, *new]), ", ".join([kept, *(repr(value) for value in new.values())])
        connection.exec_driver_sql(f"INSERT INTO {table.name} ({names}) SELECT {values} FROM {table.name}_1")
        connection.exec_driver_sql(f"DROP TABLE {table.name}_1")
    for name in (component_verdicts.name, time_entries.name):
        connection.exec_driver_sql(f"ALTER TABLE {name} ADD COLUMN reading INTEGER NOT NULL DEFAULT 1")
    connection.execute(update(schema_version).values(version=SCHEMA_VERSION))
    return SCHEMA_VERSION


def _migrate_from_2(connection: Connection) -> int:
    """Add what version 2 lacks, on any server, in the transaction the database is opened in: the components an item asks about."""
    connection.exec_driver_sql(f"ALTER TABLE {work_items.name} ADD COLUMN components JSON DEFAULT '[]' NOT NULL")
    connection.execute(update(schema_version).values(version=SCHEMA_VERSION))
    return SCHEMA_VERSION


def _prepare_sqlite(connection: Any, record: object) -> None:
    """Write-ahead log (readers never wait), every commit on disk before it is reported, and transactions begun by us."""
    connection.isolation_level = None  # else the driver begins transactions by itself, and later than we ask
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout = {int(BUSY_TIMEOUT_S * 1000)}")
    _set_write_ahead_log(cursor)
    cursor.execute("PRAGMA synchronous = FULL")  # NORMAL may lose the last commits when the power fails
    cursor.execute("PRAGMA foreign_keys = ON")
    cursor.close()


def _set_write_ahead_log(cursor: Any) -> None:
    """Switching the journal ignores busy_timeout, so two processes that open a new file at once must take turns here."""
    import sqlite3

    deadline = time.monotonic() + BUSY_TIMEOUT_S
    while True:
        try:
            cursor.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.02)


def _begin_sqlite(connection: Connection) -> None:
    """A writer takes the write lock at once: one that reads first and upgrades later fails instead of waiting."""
    write = connection.get_execution_options().get("atlas_write", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")

"""Revisions: what the annotator changed, as an append-only history per organ.

An edit is a list of runs over the voxels of ONE organ's mask: uint32 [N, 3] of (start, length, value 0 or 1), sorted by
start, not overlapping. Voxels are counted in file order: x fastest, so Fortran order of an [X, Y, Z] array. A volume of more
than 2^32 voxels (40 times 512 x 512 x 400) cannot be addressed and is refused.

An organ's mask at revision n is its mask in the round's draft (merge.draft_label, which does not change during the round)
with the runs of revisions 1..n applied in turn. Undoing appends the opposite runs. A case that two people annotate blind has two
readings, each with revisions of its own on the same draft. Organs are stored each on its own, so a brush that takes a voxel from a
neighbor saves two revisions, one per organ; where only one was saved, the organ saved last keeps the voxel (merge.py).
"""

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from sqlalchemy import ColumnElement, FromClause, and_, func, insert, select
from sqlalchemy.engine import Connection
from sqlalchemy.exc import IntegrityError

from atlas_ray.annotation import database as tables
from atlas_ray.annotation.database import Database, utc_now
from atlas_ray.exceptions import RevisionError
from atlas_ray.records import Revision, RevisionKind
from atlas_ray.schema import Schema

Runs = npt.NDArray[np.uint32]  # [N, 3] start, length, value
Mask = npt.NDArray[np.bool_]  # [X, Y, Z]
Verdict = Literal["accepted", "fixed", "not_an_error"]

RUN_BYTES = 12
MAX_RUN_BYTES = 64 << 20  # five million runs: a whole organ of a large CT redrawn, many times over


class RevisionConflict(RevisionError):
    """Somebody saved this organ in between; carries the revision to rebase on."""

    def __init__(self, message: str, *, current_id: int) -> None:
        super().__init__(message)
        self.current_id = current_id


class ComponentVerdict(Schema):
    """What an annotator said of one attention component.

    Args:
        component: the AttentionComponent's index within its organ and case.
        verdict: "fixed": it was wrong and is corrected; "not_an_error": a false alarm; "accepted": doubtful, left as it is.
        created: ISO 8601, UTC.
    """

    round: int
    case_id: str
    reading: int = 1
    organ: str
    component: int
    verdict: Verdict
    user: str
    created: str
    note: str = ""


class TimeSpent(Schema):
    """Active seconds on a case; on one organ or component of it where these are named."""

    seconds: float
    organ: str | None = None
    component: int | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """One named editing step before it is stored; see records.Revision."""

    name: str
    runs: Runs
    kind: RevisionKind = "edit"
    seconds: float = 0.0
    component: int | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Edit:
    """One saved revision with its runs.

    Args:
        sequence: grows with every save of any organ: the order edits are painted in.
    """

    sequence: int
    revision: Revision
    runs: Runs


# --- runs -----------------------------------------------------------------------------------------------------------


def check_runs(runs: npt.ArrayLike, size: int | None = None) -> Runs:
    """The runs as uint32 [N, 3], if they are well-formed.

    Args:
        size: voxels of the grid; None checks everything but the upper end.

    Raises:
        RevisionError: naming the first run that is wrong.
    """
    array = np.asarray(runs)
    if array.size == 0:
        return np.zeros((0, 3), np.uint32)
    if array.ndim != 2 or array.shape[1] != 3 or array.dtype.kind not in "iu":
        raise RevisionError(f"runs are {array.dtype}{list(array.shape)}; integers [N, 3] of start, length, value are allowed")
    if size is not None and size > 1 << 32:
        raise RevisionError(f"a grid of {size} voxels cannot be edited; at most 2^32 can be addressed")
    wide = array.astype(np.int64)  # start + length would wrap around in uint32
    start, length, value = wide.T
    stop = start + length
    _refuse((value != 0) & (value != 1), wide, "the value is 0 or 1")
    _refuse((start < 0) | (length < 1), wide, "start is at least 0, length at least 1")
    _refuse(stop > (1 << 32 if size is None else size), wide, f"the grid has {'2^32' if size is None else size} voxels")
    _refuse(np.r_[False, start[1:] < stop[:-1]], wide, "runs are sorted and do not overlap")
    return wide.astype(np.uint32)


def _refuse(wrong: npt.NDArray[np.bool_], runs: npt.NDArray[np.int64], allowed: str) -> None:
    if wrong.any():
        index = int(np.argmax(wrong))
        raise RevisionError(f"run {index} is (start, length, value) = {tuple(runs[index].tolist())}; {allowed}")


def expand_runs(runs: Runs) -> tuple[npt.NDArray[np.int64], Mask]:
    """Every voxel the runs write: flat file-order index [n], ascending, and its new value [n]."""
    start, length, value = runs.astype(np.int64).T
    first_of_run = np.cumsum(length) - length
    index = np.arange(length.sum()) + np.repeat(start - first_of_run, length)
    return index, np.repeat(value == 1, length)


def diff_runs(before: Mask, after: Mask) -> Runs:
    """The runs that turn one mask [X, Y, Z] into another; none where they are equal. Raises RevisionError for other shapes."""
    if before.shape != after.shape:
        raise RevisionError(f"masks of shape {before.shape} and {after.shape} cannot be compared; they share one grid")
    new = after.astype(bool, copy=False)
    index = np.flatnonzero((before.astype(bool, copy=False) != new).ravel(order="F"))
    if index.size == 0:
        return np.zeros((0, 3), np.uint32)
    value = new[np.unravel_index(index, new.shape, order="F")]
    first = np.flatnonzero(np.r_[True, (np.diff(index) != 1) | (value[1:] != value[:-1])])
    length = np.diff(np.r_[first, index.size])
    return check_runs(np.stack([index[first], length, value[first]], axis=1), new.size)


def apply_runs(mask: Mask, runs: npt.ArrayLike) -> Mask:
    """A copy of the mask [X, Y, Z], in file (Fortran) memory order, with the runs written into it. Raises RevisionError."""
    result = np.array(mask, dtype=bool, order="F")
    _write_runs(result, runs)
    return result


def _write_runs(mask: Mask, runs: npt.ArrayLike) -> None:
    """Write runs into a Fortran-ordered mask in place."""
    index, value = expand_runs(check_runs(runs, mask.size))
    mask.reshape(-1, order="F")[index] = value


def encode_runs(runs: npt.ArrayLike) -> bytes:
    """Runs as stored and sent: little-endian uint32, row after row, zlib."""
    return zlib.compress(check_runs(runs).astype("<u4").tobytes())


def decode_runs(data: bytes, *, size: int | None = None, max_bytes: int = MAX_RUN_BYTES) -> Runs:
    """Runs from `encode_runs` or from a browser's gzip; well-formed, or refused.

    Args:
        size: voxels of the grid, see check_runs.
        max_bytes: of the decompressed runs; a small body that unfolds to gigabytes stops here.

    Raises:
        RevisionError: not compressed, cut off, too large or malformed.
    """
    unzip = zlib.decompressobj(zlib.MAX_WBITS | 32)  # zlib or gzip, by its header
    try:
        raw = unzip.decompress(data, max_bytes + 1)
    except zlib.error as error:
        raise RevisionError(f"an edit of {len(data)} bytes is neither zlib nor gzip: {error}") from error
    if len(raw) > max_bytes:
        raise RevisionError(f"an edit of {len(data)} bytes unfolds to more than the {max_bytes} allowed")
    if not unzip.eof or unzip.unused_data or len(raw) % RUN_BYTES:
        raise RevisionError(f"an edit of {len(data)} bytes is cut off or followed by something else")
    return check_runs(np.frombuffer(raw, "<u4").reshape(-1, 3), size)


# --- the store ------------------------------------------------------------------------------------------------------


class Revisions:
    """Saved edits, verdicts and time of every case; nothing here is ever changed or deleted.

    Args:
        database: open; the caller closes it.
        now: the clock, aware; tests pass their own.
    """

    def __init__(self, database: Database, *, now: Callable[[], datetime] = utc_now) -> None:
        self.database = database
        self.now = now

    def append(
        self,
        round_index: int,
        case_id: str,
        organ: str,
        steps: Sequence[Step],
        *,
        user: str,
        parent_id: int,
        size: int | None = None,
        reading: int = 1,
    ) -> list[Revision]:
        """Append steps, the first made on revision `parent_id` (0: the draft), each next one on the one before it.

        All of them are on disk when this returns, or none is stored.

        Args:
            size: voxels of the grid. Pass it whenever the runs come from outside: an edit beyond the grid that was once
                stored could never be replayed.

        Raises:
            RevisionConflict: the organ has moved on; nothing is stored.
            RevisionError: runs are malformed.
        """
        rows = []
        for number, step in enumerate(steps, parent_id + 1):
            checked = check_runs(step.runs, size)
            row = {
                "round": round_index,
                "case_id": case_id,
                "reading": reading,
                "organ": organ,
                "revision_id": number,
                "parent_id": number - 1,
                "user": user,
                "created": self.now(),
                "voxels": int(checked[:, 1].sum(dtype=np.int64)),
                "seconds": step.seconds,
                "name": step.name,
                "kind": step.kind,
                "component": step.component,
                "runs": encode_runs(checked),
            }
            rows.append(row)
        where = _is(tables.revisions, round_index, case_id, organ, reading=reading)
        try:
            with self.database.write() as connection:
                current_id = _current(connection, where)
                if parent_id == current_id:
                    if rows:
                        connection.execute(insert(tables.revisions), rows)
                    return [_revision(row) for row in rows]
        except IntegrityError:  # another server saved between our look and our insert
            current_id = self.current(round_index, case_id, organ, reading=reading)
        raise RevisionConflict(
            f"{organ} of case {case_id}, round {round_index}, is at revision {current_id}; this edit was made on {parent_id}",
            current_id=current_id,
        )

    def save(
        self,
        round_index: int,
        case_id: str,
        organ: str,
        *,
        user: str,
        parent_id: int,
        runs: npt.ArrayLike,
        seconds: float = 0.0,
        name: str = "",
        kind: RevisionKind = "edit",
        size: int | None = None,
        reading: int = 1,
    ) -> Revision:
        """Append one step; see `append`. No runs at all is an edit too ("looked at it")."""
        step = Step(name=name, kind=kind, seconds=seconds, runs=check_runs(runs))
        key = (round_index, case_id, organ)
        return self.append(*key, [step], user=user, parent_id=parent_id, size=size, reading=reading)[0]

    def current(self, round_index: int, case_id: str, organ: str, *, reading: int = 1) -> int:
        """The latest revision id; 0 where the draft was not edited."""
        with self.database.read() as connection:
            return _current(connection, _is(tables.revisions, round_index, case_id, organ, reading=reading))

    def history(
        self, round_index: int, case_id: str | None = None, organ: str | None = None, *, reading: int | None = 1
    ) -> list[Revision]:
        """Every revision of one organ, or with None of a case, of the round, of all readings; in the order they were saved."""
        query = select(*_REVISION_COLUMNS).where(_is(tables.revisions, round_index, case_id, organ, reading=reading))
        with self.database.read() as connection:
            rows = connection.execute(query.order_by(tables.revisions.c.sequence)).all()
        return [_revision(row._mapping) for row in rows]

    def edits(
        self,
        round_index: int,
        case_id: str,
        organ: str | None = None,
        *,
        reading: int = 1,
        after: int = 0,
        last: int | None = None,
    ) -> list[Edit]:
        """Every edit of a case (or of one organ of it) with its runs, in the order they were saved.

        Args:
            after: leave out the revisions up to this one; makes sense for one organ.
            last: at most so many, the newest.
        """
        where = _is(tables.revisions, round_index, case_id, organ, reading=reading)
        query = select(tables.revisions).where(where, tables.revisions.c.revision_id > after)
        with self.database.read() as connection:
            rows = connection.execute(query.order_by(tables.revisions.c.sequence.desc()).limit(last)).all()[::-1]
        return [Edit(row.sequence, _revision(row._mapping), decode_runs(row.runs)) for row in rows]

    def runs(self, revision: Revision) -> Runs:
        """The runs of one revision. Raises RevisionError where it is not in the store."""
        columns = tables.revisions.c
        here = _is(tables.revisions, revision.round, revision.case_id, revision.organ, reading=revision.reading)
        with self.database.read() as connection:
            query = select(columns.runs).where(here, columns.revision_id == revision.revision_id)
            data = connection.execute(query).scalar()
        if data is None:
            raise RevisionError(f"{revision.organ} of case {revision.case_id} has no revision {revision.revision_id}")
        return decode_runs(data)

    def changed_organs(self, round_index: int, case_id: str, *, reading: int = 1) -> tuple[str, ...]:
        """Organs with at least one edit that changed a voxel, by name; one that was reverted to the draft counts too."""
        columns = tables.revisions.c
        query = select(columns.organ).where(_is(tables.revisions, round_index, case_id, reading=reading), columns.voxels > 0)
        with self.database.read() as connection:
            return tuple(connection.execute(query.distinct().order_by(columns.organ)).scalars())

    def mask(self, base: Mask, round_index: int, case_id: str, organ: str, *, at: int | None = None, reading: int = 1) -> Mask:
        """The organ's mask [X, Y, Z] at a revision.

        Args:
            base: its mask in the round's draft.
            at: revision id; None is the latest, 0 the draft.

        Raises:
            RevisionError: no such revision, or the edits do not fit the grid of `base`.
        """
        edits = self.edits(round_index, case_id, organ, reading=reading)
        if at is not None and not 0 <= at <= len(edits):
            raise RevisionError(f"{organ} of case {case_id} has no revision {at}; it has 0 to {len(edits)}")
        result = np.array(base, dtype=bool, order="F")
        for edit in edits[:at]:
            _write_runs(result, edit.runs)
        return result

    def revert(self, base: Mask, round_index: int, case_id: str, organ: str, *, to: int, user: str, reading: int = 1) -> Revision:
        """Append the edit that brings revision `to` back; what lies between stays in the history.

        Raises:
            RevisionError: no such revision.
            RevisionConflict: somebody saved in the meantime.
        """
        key = (round_index, case_id, organ)
        parent_id = self.current(*key, reading=reading)
        now, then = (self.mask(base, *key, at=at, reading=reading) for at in (parent_id, to))
        name = f"revert to {to}"
        return self.save(*key, user=user, parent_id=parent_id, runs=diff_runs(now, then), name=name, kind="revert", reading=reading)

    # --- verdicts ---
    def judge(
        self,
        round_index: int,
        case_id: str,
        organ: str,
        component: int,
        verdict: Verdict,
        *,
        user: str,
        note: str = "",
        reading: int = 1,
    ) -> ComponentVerdict:
        """Say what one attention component was; saying something else later is a new entry."""
        row: dict[str, Any] = {
            "round": round_index,
            "case_id": case_id,
            "reading": reading,
            "organ": organ,
            "component": component,
            "verdict": verdict,
            "user": user,
            "created": self.now(),
            "note": note,
        }
        record = _verdict(row)
        with self.database.write() as connection:
            connection.execute(insert(tables.component_verdicts).values(**row))
        return record

    def verdicts(self, round_index: int, case_id: str | None = None, *, reading: int | None = None) -> list[ComponentVerdict]:
        """The latest verdict on each component of a case, or of the whole round, in each reading."""
        given = self.all_verdicts(round_index, case_id, reading=reading)
        return list({(v.case_id, v.reading, v.organ, v.component): v for v in given}.values())

    def all_verdicts(self, round_index: int, case_id: str | None = None, *, reading: int | None = None) -> list[ComponentVerdict]:
        """Every verdict ever given, oldest first."""
        table = tables.component_verdicts
        query = select(*(column for column in table.c if column.name != "sequence")).order_by(table.c.sequence)
        with self.database.read() as connection:
            rows = connection.execute(query.where(_is(table, round_index, case_id, reading=reading))).all()
        return [_verdict(row._mapping) for row in rows]

    # --- time ---
    def log_times(self, round_index: int, case_id: str, entries: Sequence[TimeSpent], *, user: str, reading: int = 1) -> None:
        """Add active seconds that no revision carries, all or none: looking at a case, at an organ, at a component."""
        same = {"round": round_index, "case_id": case_id, "reading": reading, "user": user, "created": self.now()}
        rows = [{**same, **entry.model_dump()} for entry in entries]
        if rows:
            with self.database.write() as connection:
                connection.execute(insert(tables.time_entries), rows)

    def seconds(self, round_index: int, case_id: str | None = None, *, reading: int | None = None) -> dict[str | None, float]:
        """Active seconds per organ, its revisions' and the logged ones, of a case or of the whole round; under None on no organ."""
        total: dict[str | None, float] = {}
        for (organ, _), seconds in self.seconds_by_component(round_index, case_id, reading=reading).items():
            total[organ] = total.get(organ, 0.0) + seconds
        return total

    def seconds_by_component(
        self, round_index: int, case_id: str | None = None, *, reading: int | None = None
    ) -> dict[tuple[str | None, int | None], float]:
        """Active seconds per (organ, component) of a case or of a whole round; None where no organ or component was named."""
        total: dict[tuple[str | None, int | None], float] = {}
        with self.database.read() as connection:
            for table in (tables.revisions, tables.time_entries):
                columns = (table.c.organ, table.c.component)
                query = select(*columns, func.sum(table.c.seconds)).where(_is(table, round_index, case_id, reading=reading))
                for organ, component, seconds in connection.execute(query.group_by(*columns)):
                    total[organ, component] = total.get((organ, component), 0.0) + float(seconds)
        return total


_REVISION_COLUMNS = [tables.revisions.c[name] for name in Revision.model_fields]


def _is(
    table: FromClause, round_index: int, case_id: str | None, organ: str | None = None, *, reading: int | None
) -> ColumnElement[bool]:
    conditions = [table.c.round == round_index]
    if reading is not None:
        conditions.append(table.c.reading == reading)
    if case_id is not None:
        conditions.append(table.c.case_id == case_id)
    if organ is not None:
        conditions.append(table.c.organ == organ)
    return and_(*conditions)


def _current(connection: Connection, where: ColumnElement[bool]) -> int:
    return int(connection.execute(select(func.max(tables.revisions.c.revision_id)).where(where)).scalar() or 0)


def _revision(row: Any) -> Revision:
    return Revision(**{name: row[name] for name in Revision.model_fields} | {"created": row["created"].isoformat()})


def _verdict(row: Any) -> ComponentVerdict:
    return ComponentVerdict(**{**row, "created": row["created"].isoformat()})

"""Tables of a round in Parquet, so that nobody opens a hundred thousand small files to rank, resume or report.

    rounds/<round>/tables/scores/<part>.parquet        a row per case and organ (one row without an organ where a case has none)
    rounds/<round>/tables/components/<part>.parquet    a row per attention component

The tables repeat what the cases' own files say and decide nothing: a case is predicted where its scores.json is. Every row carries
that file's time of writing, and a row whose time is not the file's counts as absent; so a table may be missing, old, or lack cases,
and is completed from the files. A part is written once, whole. Many parts are joined into one; a row that is in two parts by then
(two jobs, or a job killed between writing the one and removing the others) is taken once.
"""

import contextlib
import io
import uuid
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.json
import pyarrow.parquet as pq
from pydantic import ValidationError

from atlas_ray.exceptions import WorkspaceError
from atlas_ray.records import CaseScores
from atlas_ray.scores import CASE_COLUMNS, ORGAN_COLUMNS, Scores
from atlas_ray.storage import new_file, remove
from atlas_ray.workspace import Workspace

Kind = Literal["scores", "components"]
MOST_PARTS = 8  # more are joined
CASES_PER_PART = 5_000  # read before a part is written: what is in memory at once

_TEXT = pa.dictionary(pa.int32(), pa.string())
_ARROW = {np.int64: pa.int64(), np.float64: pa.float64(), np.str_: _TEXT}
# What a case says of itself, on each of its rows; key and bytes beside what is ranked by.
_CASE = {name: _ARROW[dtype] for name, dtype in CASE_COLUMNS.items() if name != "case_id"} | {"key": _TEXT, "bytes": pa.int64()}
_ORGAN = {name: _ARROW[dtype] for name, dtype in ORGAN_COLUMNS.items()}
_COMPONENT = {
    "organ": _TEXT,
    "index": pa.int64(),
    "box": pa.list_(pa.list_(pa.int64())),
    "peak": pa.list_(pa.int64()),
    "voxels": pa.int64(),
    "volume_mm3": pa.float64(),
    "reason": _TEXT,
    "criteria": pa.list_(pa.string()),
    "score": pa.float64(),
    "mean_heat": pa.float64(),
    "error": _TEXT,
}
_ALL = {"case_id": _TEXT, "stamp": pa.int64()}
SCHEMAS: dict[Kind, pa.Schema] = {
    "scores": pa.schema({**_ALL, **{f"case_{name}": kind for name, kind in _CASE.items()}, "organ": _TEXT, **_ORGAN}),
    "components": pa.schema({**_ALL, **_COMPONENT}),
}


def read_table(workspace: Workspace, round_index: int, kind: Kind) -> pa.Table:
    """The whole table: its parts, and from the cases' files what they lack. Writes nothing."""
    survey = _survey(workspace, round_index, kind)
    tables = [*survey.tables(), *_read(workspace, round_index, kind, survey.missing)]
    return pa.concat_tables([SCHEMAS[kind].empty_table(), *tables]).unify_dictionaries().combine_chunks()


def save_table(workspace: Workspace, round_index: int, kind: Kind) -> None:
    """Write what the parts lack, and join them where they are many or hold rows that no longer count."""
    survey = _survey(workspace, round_index, kind)
    new = [_write(workspace, round_index, kind, [table]) for table in _read(workspace, round_index, kind, survey.missing)]
    if len(survey.parts) + len(new) > MOST_PARTS or any(part.stale for part in survey.parts):
        survey = _survey(workspace, round_index, kind)
        _write(workspace, round_index, kind, survey.tables())
        for part in survey.parts:
            remove(part.path)


def add_to_tables(workspace: Workspace, round_index: int, case_ids: Sequence[str]) -> None:
    """Append cases that have just been predicted, without a look at the others."""
    written = {}
    for case_id in case_ids:
        with contextlib.suppress(FileNotFoundError):  # replaced just now; save_table finds it
            written[case_id] = workspace.scores(round_index, case_id).stat().st_mtime_ns
    for kind in SCHEMAS:
        for table in _read(workspace, round_index, kind, written):
            _write(workspace, round_index, kind, [table])


# --- scores ----------------------------------------------------------------------------------------------------------


def read_scores(workspace: Workspace, round_index: int) -> Scores:
    """Of every predicted case, by case id."""
    return scores_of(read_table(workspace, round_index, "scores"))


def result_keys(workspace: Workspace, round_index: int) -> dict[str, str]:
    """Content key of every predicted case; "" of one written before there were keys."""
    cases, _ = _cases(read_table(workspace, round_index, "scores"))
    return dict(zip(cases["case_id"].to_pylist(), cases["case_key"].to_pylist(), strict=True))


def result_bytes(workspace: Workspace, round_index: int) -> int:
    """What the predictions took on disk when they were written."""
    cases, _ = _cases(read_table(workspace, round_index, "scores"))
    return int(cases["case_bytes"].to_numpy().sum())


def scores_of(table: pa.Table) -> Scores:
    """Columns over cases and organs of a scores table. R rows."""
    cases, case_R = _cases(table)
    organs, organ_R = _coded(table["organ"])
    rows = np.flatnonzero(organ_R >= 0)
    place = (case_R[rows], organ_R[rows])
    has_NK = np.zeros((len(cases), len(organs)), np.bool_)
    has_NK[place] = True
    of_organs: dict[str, Any] = {name: np.zeros(has_NK.shape, dtype) for name, dtype in ORGAN_COLUMNS.items()}
    for name, column_NK in of_organs.items():
        column_NK[place] = table[name].to_numpy()[rows]
    of_cases = {
        name: np.array(cases["case_id" if name == "case_id" else f"case_{name}"].to_pylist(), dtype)
        for name, dtype in CASE_COLUMNS.items()
    }
    return Scores.joined(tuple(organs), has_NK, of_cases, of_organs)


def _cases(table: pa.Table) -> tuple[pa.Table, Any]:
    """The first row of every case, by case id, and for each row the place of its case."""
    ids, code_R = _coded(table["case_id"])
    by_id = sorted(range(len(ids)), key=ids.__getitem__)
    place = np.empty(len(ids), np.int64)
    place[by_id] = np.arange(len(ids))
    case_R = place[code_R]
    _, first_N = np.unique(case_R, return_index=True)
    return table.take(pa.array(first_N, pa.int64())), case_R


def _coded(column: pa.ChunkedArray) -> tuple[list[str], Any]:
    """The values of a dictionary column in the order of their appearance, and the place of each row's among them; -1 is null."""
    whole = column.combine_chunks()
    index_R = whole.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
    used, first = np.unique(index_R[index_R >= 0], return_index=True)
    used = used[np.argsort(first)]
    place = np.full(len(whole.dictionary) + 1, -1)
    place[used] = np.arange(len(used))
    return whole.dictionary.take(pa.array(used, pa.int64())).to_pylist(), place[index_R]


# --- parts -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Part:
    """A file, and the cases whose rows in it count.

    Args:
        stale: whether it has rows that do not.
    """

    path: Path
    cases: Collection[str]
    stale: bool

    def read(self) -> pa.Table:
        table = _parquet(self.path)
        if not self.stale:
            return table
        column = table["case_id"].combine_chunks()
        counts = np.array([case_id in self.cases for case_id in column.dictionary.to_pylist()], np.bool_)
        return table.filter(pa.array(counts[column.indices.to_numpy()]))


@dataclass(frozen=True, slots=True)
class _Survey:
    """What the parts hold, held against the results on disk.

    Args:
        missing: case -> when its result was written, of the cases that no part has.
    """

    parts: list[_Part]
    missing: dict[str, int]

    def tables(self) -> Iterator[pa.Table]:
        """One part at a time."""
        return (part.read() for part in self.parts if part.cases)


def _survey(workspace: Workspace, round_index: int, kind: Kind) -> _Survey:
    missing = workspace.result_stamps(round_index)
    folder = workspace.tables(round_index) / kind
    parts = []
    for path in sorted(folder.glob("*.parquet")) if folder.exists() else ():
        if path.name.startswith("."):
            continue
        if not _has_columns(path, kind):
            parts.append(_Part(path, (), stale=True))
            continue
        held = _parquet(path, ["case_id", "stamp"]).group_by("case_id").aggregate([("stamp", "max")])
        listed = dict(zip(held["case_id"].to_pylist(), held["stamp_max"].to_pylist(), strict=True))
        cases = {case_id for case_id, stamp in listed.items() if missing.get(case_id) == stamp}
        for case_id in cases:
            del missing[case_id]
        parts.append(_Part(path, cases, stale=len(cases) < len(listed)))
    return _Survey(parts, missing)


def _has_columns(path: Path, kind: Kind) -> bool:
    """Whether this version wrote the part; one of another version counts for nothing, and goes at the next joining."""
    with path.open("rb") as file:
        return bool(pq.read_schema(file).names == SCHEMAS[kind].names)


def _parquet(path: Path, columns: list[str] | None = None) -> pa.Table:
    with path.open("rb") as file:
        return pq.read_table(file, columns=columns).unify_dictionaries().combine_chunks()


def _write(workspace: Workspace, round_index: int, kind: Kind, tables: Iterable[pa.Table]) -> Path:
    path = workspace.tables(round_index) / kind / f"{uuid.uuid4().hex}.parquet"
    with new_file(path) as file, pq.ParquetWriter(file, SCHEMAS[kind], compression="zstd") as writer:
        for table in tables:
            writer.write_table(table)
    return path


# --- from the cases' own files ---------------------------------------------------------------------------------------


def _read(workspace: Workspace, round_index: int, kind: Kind, written: dict[str, int]) -> Iterator[pa.Table]:
    """Tables of some cases, a few thousand cases each.

    Args:
        written: case -> when its result was written.
    """
    read = _read_scores if kind == "scores" else _read_components
    case_ids = sorted(written)
    for start in range(0, len(case_ids), CASES_PER_PART):
        some = {case_id: written[case_id] for case_id in case_ids[start : start + CASES_PER_PART]}
        if (table := read(workspace, round_index, some)) is not None:
            yield table


def _read_scores(workspace: Workspace, round_index: int, written: dict[str, int]) -> pa.Table | None:
    columns: dict[str, list[Any]] = {name: [] for name in SCHEMAS["scores"].names}
    for case_id, stamp in written.items():
        path = workspace.scores(round_index, case_id)
        try:
            case = CaseScores.model_validate_json(path.read_bytes())
        except FileNotFoundError:  # being replaced: it has a row the next time
            continue
        except ValidationError as error:
            raise WorkspaceError(f"{path} is not a CaseScores: {error.errors()[0]['msg']}") from error
        values = {"case_id": case_id, "stamp": stamp, **{f"case_{name}": getattr(case, name) for name in _CASE}}
        for organ in case.organs or (None,):
            for name, value in values.items():
                columns[name].append(value)
            for name in ("organ", *_ORGAN):
                columns[name].append(None if organ is None else getattr(organ, name))
    return pa.table(columns, schema=SCHEMAS["scores"]) if columns["case_id"] else None


def _read_components(workspace: Workspace, round_index: int, written: dict[str, int]) -> pa.Table | None:
    """Arrow's own reader: components are millions."""
    texts, case_ids, times = [], [], []
    for case_id, stamp in written.items():
        try:
            text = workspace.components(round_index, case_id).read_bytes()
        except FileNotFoundError:
            continue
        count = text.count(b"\n")
        texts.append(text)
        case_ids += [case_id] * count
        times += [stamp] * count
    if not case_ids:
        return None
    plain = pa.schema({name: pa.string() if kind == _TEXT else kind for name, kind in _COMPONENT.items()})
    options = pyarrow.json.ParseOptions(explicit_schema=plain, unexpected_field_behavior="error")
    try:
        table = pyarrow.json.read_json(io.BytesIO(b"".join(texts)), parse_options=options)
    except pa.ArrowInvalid as error:
        raise WorkspaceError(f"components of round {round_index}, cases {case_ids[0]} to {case_ids[-1]}: {error}") from error
    columns = {"case_id": pa.array(case_ids), "stamp": pa.array(times), **{name: table[name] for name in _COMPONENT}}
    return pa.table(columns).cast(SCHEMAS["components"])

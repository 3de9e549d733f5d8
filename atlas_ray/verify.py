"""Reads a workspace again and holds it against what was written down: what is missing, stale or altered, and what mends it.

What is not covered: networks (their digests stand in the predictions, so weights that changed make them stale) and the training
cache, which is made again from images and labels whenever its key is not found.
"""

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal, TypeVar

from atlas_ray.cluster.prediction import plan_predictions
from atlas_ray.config import Campaign
from atlas_ray.data.ingest import sha256_of
from atlas_ray.exceptions import CaseError
from atlas_ray.garbage import is_collected, leftovers
from atlas_ray.records import Case
from atlas_ray.schema import Schema
from atlas_ray.steps.predict import to_predict
from atlas_ray.storage import place
from atlas_ray.workspace import MERGED, RESULT, SUMS, Workspace, file_sha256, read_sums

Given = TypeVar("Given")
Made = TypeVar("Made")
READERS = 8  # files hashed at once: disks and buckets answer several


class Finding(Schema):
    """One thing that is not as it was written down.

    Args:
        problem: "altered": other bytes than were written; "stale": made from other inputs than there are now; "leftover": of a job
            that died.
        mend: the command that puts it right, or what to do.
    """

    problem: Literal["missing", "altered", "stale", "leftover"]
    path: str
    detail: str
    mend: str


def verify(campaign: Campaign, config: str, *, images: bool = False, progress: Callable[[], None] = lambda: None) -> list[Finding]:
    """
    Args:
        config: how the user names the campaign, for the commands.
        images: read every image again, too; else only whether it is there.
        progress: called after each folder.

    Raises:
        WorkspaceError: ingest has not run.
    """
    workspace = campaign.open_workspace()
    cases = workspace.cases()
    found = [*_of_inputs(workspace, cases, config, images, progress)]
    for r in workspace.rounds():
        folders = [workspace.prediction(r, case_id) for case_id in sorted(workspace.predicted(r))]
        mend = f"python -m jobs.predict {config} --round {r}"
        found += _in_folders(folders, RESULT, f"remove the folder, then {mend}", progress)
        folders = [workspace.annotations(r) / case_id for case_id in sorted(workspace.merged(r))]
        found += _in_folders(folders, MERGED, f"python -m jobs.merge {config} --round {r}", progress)
    found += _stale(campaign, config)
    found += _of_database(workspace)
    for path in leftovers(workspace):
        found.append(Finding(problem="leftover", path=str(path), detail="of a job that died", mend=f"python -m jobs.gc {config}"))
    return found


def folders_to_check(campaign: Campaign) -> int:
    """How often `verify` will call `progress`."""
    workspace = campaign.open_workspace()
    return len(workspace.cases()) + sum(len(workspace.predicted(r)) + len(workspace.merged(r)) for r in workspace.rounds())


# --- inputs ----------------------------------------------------------------------------------------------------------


def _of_inputs(
    workspace: Workspace, cases: Sequence[Case], config: str, images: bool, progress: Callable[[], None]
) -> Iterator[Finding]:
    mend = f"python -m jobs.ingest {config}"
    digests = _each(lambda case: _digest(case) if images else case.sha256, cases)
    for case, digest in zip(cases, digests, strict=True):
        progress()
        if not place(case.image).exists():
            yield Finding(problem="missing", path=case.image, detail=f"image of {case.case_id}", mend="bring it back")
        elif digest != case.sha256:
            detail = f"image of {case.case_id}: sha256 {digest[:12]}, at ingest {case.sha256[:12]}"
            yield Finding(problem="altered", path=case.image, detail=detail, mend=mend)
    for findings in _each(lambda case: list(_of_labels(workspace, case, mend)), cases):
        yield from findings


def _of_labels(workspace: Workspace, case: Case, mend: str) -> Iterator[Finding]:
    """Against what ingest wrote; altered ones are not held against a manifest of an earlier version, which has no digests."""
    label = (workspace.label(case.case_id), case.label_sha256) if case.labeled_organs else None
    truth = (workspace.truth(case.case_id), case.truth_sha256) if case.truth else None
    for path, digest in filter(None, (label, truth)):
        if not path.exists():
            yield Finding(problem="missing", path=str(path), detail=f"label of {case.case_id}", mend=mend)
        elif digest and (now := file_sha256(path)) != digest:
            detail = f"label of {case.case_id}: sha256 {now[:12]}, at ingest {digest[:12]}"
            yield Finding(problem="altered", path=str(path), detail=detail, mend=f"remove the file, then {mend}")


def _digest(case: Case) -> str:
    try:
        return sha256_of(case.image, case.series_uid)
    except (CaseError, OSError):
        return "unreadable"


# --- what was made ---------------------------------------------------------------------------------------------------


def _in_folders(folders: Sequence[Path], result: str, mend: str, progress: Callable[[], None]) -> Iterator[Finding]:
    for findings in _each(lambda folder: list(_in_folder(folder, result, mend)), folders):
        progress()
        yield from findings


def _in_folder(folder: Path, result: str, mend: str) -> Iterator[Finding]:
    sums = read_sums(folder)
    if not sums:
        yield Finding(problem="missing", path=str(folder / SUMS), detail="written by a version without checksums", mend=mend)
    for name, digest in sums.items():
        path = folder / name
        if not path.exists():
            if not is_collected(path, folder):
                yield Finding(problem="missing", path=str(path), detail=f"was written with {result}", mend=mend)
        elif (now := file_sha256(path)) != digest:
            yield Finding(problem="altered", path=str(path), detail=f"sha256 {now[:12]}, written {digest[:12]}", mend=mend)


def _stale(campaign: Campaign, config: str) -> Iterator[Finding]:
    """Of the newest round that was started: predictions of other inputs, and cases that should have one."""
    workspace = campaign.open_workspace()
    r = workspace.newest_round()
    predicted = workspace.predicted(r)
    mend = f"python -m jobs.predict {config} --round {r}"
    if not predicted and "predict" not in workspace.finished_steps(r):
        return
    missing = [name for name in campaign.architecture_names if not workspace.checkpoint(r, name).exists()]
    for name in missing:
        path = workspace.checkpoint(r, name)
        yield Finding(problem="missing", path=str(path), detail="network", mend=f"python -m jobs.train {config} --round {r}")
    if missing:
        return
    plan = plan_predictions(campaign, r, to_predict(campaign, ("train", "pool", "holdout")))
    for case in plan.todo:
        if case.case_id in predicted:
            key, wanted = workspace.case_scores(r, case.case_id).key, plan.identity.key(case)
            same = key.partition("-")[0] == wanted.partition("-")[0]
            detail = "made by another version of the code" if same else "made from another image, other weights or parameters"
            yield Finding(problem="stale", path=str(workspace.prediction(r, case.case_id)), detail=detail, mend=mend)
        elif "predict" in workspace.finished_steps(r):
            yield Finding(
                problem="missing", path=str(workspace.prediction(r, case.case_id)), detail="the round has predicted", mend=mend
            )


def _of_database(workspace: Workspace) -> Iterator[Finding]:
    """SQLite's own check of the file in the workspace; a server looks after itself."""
    path = workspace.annotation_db
    if not path.exists():
        return
    try:
        connection = sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)
        try:
            said = connection.execute("PRAGMA quick_check").fetchone()[0]
        finally:
            connection.close()
    except sqlite3.DatabaseError as error:
        said = str(error)
    if said != "ok":
        yield Finding(problem="altered", path=str(path), detail=str(said), mend="restore annotation.db from a backup")


def _each(function: Callable[[Given], Made], values: Sequence[Given]) -> Iterator[Made]:
    """In order, several at a time."""
    with ThreadPoolExecutor(READERS) as pool:
        yield from pool.map(function, values)

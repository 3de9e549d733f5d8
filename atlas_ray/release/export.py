"""Writing a release: one case after the other, each with a record, then the tables.

    provenance/<case>.json     who says what each organ is, its volume, what was written; the last file of a case, so its presence
                               means "done"
    dataset.csv, statistics.csv, LICENSES.md, SHA256SUMS, and the layout's own files

No file holds a path of this machine but links, and no header written here bears text of its source. Case ids go on as they are
unless the plan has pseudonyms for them (deidentify.py).
"""

import logging
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from pydantic import ValidationError

from atlas_ray.cluster.tasks import map_cases
from atlas_ray.config import Campaign
from atlas_ray.exceptions import AtlasError
from atlas_ray.organs import Organs
from atlas_ray.records import Quarantined
from atlas_ray.release.layouts import Layout
from atlas_ray.release.plan import Planned, fingerprint, planned_label
from atlas_ray.release.tables import ReleasedCase, ReleasedOrgan, write_tables
from atlas_ray.schema import Schema
from atlas_ray.storage import write_atomically
from atlas_ray.volume import Volume
from atlas_ray.workspace import Workspace, file_sha256

log = logging.getLogger(__name__)
RECORDS = "provenance"


class ReleaseReport(Schema):
    """What a run of `release` did."""

    cases: tuple[ReleasedCase, ...]
    skipped: int
    failed: tuple[Quarantined, ...]


def release(
    campaign: Campaign, planned: Sequence[Planned], out: Path, *, layout: Layout, progress: Callable[[], None] = lambda: None
) -> ReleaseReport:
    """Write the release; cases that are there and have not changed are kept, files of cases that are no longer part of it go.

    Raises:
        AtlasError: more cases failed than the campaign allows (cluster.max_failed_fraction); the others are written.
    """
    organs = campaign.load_organs()
    one = partial(release_case, root=campaign.open_workspace().root, out=out, organs=organs, layout=layout)
    cases, failed, skipped = [], [], 0
    for result in map_cases(one, planned):
        if isinstance(result, Quarantined):
            log.warning("%s: %s", result.case_id, result.reason)
            failed.append(result)
        else:
            released, new = result
            cases.append(released)
            skipped += not new
        progress()
    _remove_stale(out, cases)
    write_tables(out, campaign.name, cases, organs, layout)
    if len(failed) > campaign.cluster.max_failed_fraction * len(planned):
        raise AtlasError(f"{len(failed)} of {len(planned)} cases could not be released to {out}; first: {failed[0].reason}")
    return ReleaseReport(cases=tuple(cases), skipped=skipped, failed=tuple(failed))


def release_case(
    planned: Planned, *, root: Path, out: Path, organs: Organs, layout: Layout
) -> tuple[ReleasedCase, bool] | Quarantined:
    """Write one case's files, its record last. False with a case that was there already."""
    case, workspace = planned.case, Workspace(root)
    path = out / RECORDS / f"{planned.name}.json"
    try:
        digest = fingerprint(planned, workspace, (organs, layout))
        before = _read(path)
        if before and before.fingerprint == digest and all((out / name).exists() for name in before.files):
            return before, False
        label = planned_label(planned, workspace, organs)
        path.unlink(missing_ok=True)
        names = layout.write_case(out, planned, label, organs, digest)
        released = _describe(planned, label, organs, digest, {name: file_sha256(out / name) for name in names})
        _remove(out, set(before.files if before else ()) - set(names))
        write_atomically(path, released.model_dump_json(indent=2))
    except (AtlasError, OSError) as error:
        return Quarantined(case_id=case.case_id, step="export", reason=str(error), path=case.image)
    return released, True


def _describe(planned: Planned, label: Volume, organs: Organs, digest: str, files: dict[str, str]) -> ReleasedCase:
    case, voxels = planned.case, organs.voxels(label.voxels)
    return ReleasedCase(
        case_id=planned.name,
        source=case.source,
        license=case.license,
        image_sha256=case.sha256,
        shape=case.shape,
        spacing=case.spacing,
        orientation=case.orientation,
        label_map=f"{organs.name} {organs.version}",
        organs=tuple(
            ReleasedOrgan(**s.model_dump(), volume_ml=round(voxels[s.organ] * case.voxel_volume_mm3 / 1000, 3))
            for s in planned.organs
        ),
        fingerprint=digest,
        files=files,
    )


def _read(path: Path) -> ReleasedCase | None:
    try:
        return ReleasedCase.model_validate_json(path.read_bytes())
    except (FileNotFoundError, ValidationError):  # none yet, or another version's: make it again
        return None


def _remove_stale(out: Path, released: Sequence[ReleasedCase]) -> None:
    """A case may have been withdrawn, and nnU-Net refuses a folder with more images than its dataset.json says."""
    kept = {case.case_id for case in released}
    stale = [path for path in (out / RECORDS).glob("*.json") if path.stem not in kept]
    for path in stale:
        if before := _read(path):
            _remove(out, before.files)
        path.unlink()
    if stale:
        log.info("%s: removed %d cases of an earlier export that are no longer released", out, len(stale))


def _remove(out: Path, names: set[str] | dict[str, str]) -> None:
    """Files of an earlier export, and the folders they leave empty."""
    for name in names:
        path = out / name
        path.unlink(missing_ok=True)
        for folder in path.parents if isinstance(path, Path) else ():  # a bucket has no folders
            if folder == out or not folder.is_dir() or any(folder.iterdir()):
                break
            folder.rmdir()

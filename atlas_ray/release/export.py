"""Writing a release: one case after the other, each with a record, then the tables.

    provenance/<case>.json     who says what each organ is, its volume, what was written; the first file of a case, void, and its
                               last: a fingerprint in it means "done"
    dataset.csv, statistics.csv, LICENSES.md, SHA256SUMS, and the layout's own files

Every file of a case is named in its record before it is written, so that none is forgotten when an export is killed. Files of a
void record are no part of a release: the export that meets them completes them, or removes them where the case fails or is no
longer released.

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
from atlas_ray.patience import patiently
from atlas_ray.records import Quarantined
from atlas_ray.release.layouts import Layout
from atlas_ray.release.plan import OrganSource, Planned, fingerprint, planned_label
from atlas_ray.release.tables import ReleasedCase, ReleasedOrgan, write_tables
from atlas_ray.schema import Schema
from atlas_ray.storage import PARTIALS, write_atomically
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
    """Write the release; cases that are there and have not changed are kept, files of cases that are no longer part of it go, and
    so does what an export that was killed left half-written. One export at a time writes to a folder.

    Of a case that fails, an earlier export's files go once it is known that they are outdated. Where that could not be found out
    and their record is as planned now, they stay, in the tables, too.

    Raises:
        AtlasError: more cases failed than the campaign allows (cluster.max_failed_fraction); the others are written.
    """
    organs = campaign.load_organs()
    root, patience_s = campaign.open_workspace().root, campaign.cluster.patience_s
    one = partial(release_case, root=root, out=out, organs=organs, layout=layout, patience_s=patience_s)
    cases, failed, skipped = [], [], 0
    for plan, result in zip(planned, map_cases(one, planned), strict=True):
        if isinstance(result, Quarantined):
            log.warning("%s: %s", result.case_id, result.reason)
            failed.append(result)
            if earlier := _untouched(plan, out, organs, layout):
                cases.append(earlier)
        else:
            released, new = result
            cases.append(released)
            skipped += not new
        progress()
    _remove_partial(out)
    _remove_stale(out, cases)
    write_tables(out, campaign.name, cases, organs, layout)
    if len(failed) > campaign.cluster.max_failed_fraction * len(planned):
        raise AtlasError(f"{len(failed)} of {len(planned)} cases could not be released to {out}; first: {failed[0].reason}")
    return ReleaseReport(cases=tuple(cases), skipped=skipped, failed=tuple(failed))


def release_case(
    planned: Planned, *, root: Path, out: Path, organs: Organs, layout: Layout, patience_s: float = 0.0
) -> tuple[ReleasedCase, bool] | Quarantined:
    """Write one case's files, its record last. False with a case that was there already.

    Before anything changes the record becomes void: it names what an earlier export wrote and what this one is about to write.

    Args:
        patience_s: how long is tried again to find out whether the case has changed.
    """
    case, workspace, path = planned.case, Workspace(root), _record(planned, out)
    try:
        digest = patiently(partial(fingerprint, planned, workspace, (organs, layout)), patience_s)
        before = _read(path)
        if before and before.fingerprint == digest and _is_whole(before, out):
            return before, False
        names = layout.files(planned)
        earlier = set(before.files if before else ())
        void = _describe(planned, organs, (), "", dict.fromkeys(sorted(earlier.union(names)), ""))
        write_atomically(path, void.model_dump_json(indent=2))
        label = planned_label(planned, workspace, organs)
        layout.write_case(out, planned, label, organs, digest)
        sums = {name: file_sha256(out / name) for name in names}
        released = _describe(planned, organs, _volumes(planned, label, organs), digest, sums)
        _remove(out, earlier.difference(names))
        write_atomically(path, released.model_dump_json(indent=2))
    except (AtlasError, OSError) as error:
        return Quarantined(case_id=case.case_id, step="export", reason=str(error), path=case.image)
    return released, True


def _describe(
    planned: Planned, organs: Organs, released: tuple[ReleasedOrgan, ...], digest: str, files: dict[str, str]
) -> ReleasedCase:
    case = planned.case
    return ReleasedCase(
        case_id=planned.name,
        source=case.source,
        license=case.license,
        image_sha256=case.sha256,
        shape=case.shape,
        spacing=case.spacing,
        orientation=case.orientation,
        label_map=f"{organs.name} {organs.version}",
        organs=released,
        fingerprint=digest,
        files=files,
    )


def _volumes(planned: Planned, label: Volume, organs: Organs) -> tuple[ReleasedOrgan, ...]:
    voxels, voxel_mm3 = organs.voxels(label.voxels), planned.case.voxel_volume_mm3
    return tuple(ReleasedOrgan(**s.model_dump(), volume_ml=round(voxels[s.organ] * voxel_mm3 / 1000, 3)) for s in planned.organs)


def _record(planned: Planned, out: Path) -> Path:
    return out / RECORDS / f"{planned.name}.json"


def _is_whole(released: ReleasedCase, out: Path) -> bool:
    return all((out / name).exists() for name in released.files)


def _untouched(planned: Planned, out: Path, organs: Organs, layout: Layout) -> ReleasedCase | None:
    """What an earlier export wrote of a case that failed, if its record is not void and all that it says is as planned now."""
    before = _read(_record(planned, out))
    if before is None or not before.fingerprint:
        return None
    sources = tuple(OrganSource(organ=o.organ, source=o.source, round=o.round) for o in before.organs)
    is_as_planned = sources == planned.organs and before.files.keys() == set(layout.files(planned))
    is_as_planned &= before == _describe(planned, organs, before.organs, before.fingerprint, before.files)
    return before if is_as_planned and _is_whole(before, out) else None


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


def _remove_partial(out: Path) -> None:
    """What killed processes, of this export or an earlier one, were writing."""
    if isinstance(out, Path):  # in a bucket an object is there whole or not at all
        _remove(out, {path.relative_to(out).as_posix() for path in out.rglob(PARTIALS)})


def _remove(out: Path, names: set[str] | dict[str, str]) -> None:
    """Files of an earlier export, and the folders they leave empty."""
    for name in names:
        path = out / name
        path.unlink(missing_ok=True)
        for folder in path.parents if isinstance(path, Path) else ():  # a bucket has no folders
            if folder == out or not folder.is_dir() or any(folder.iterdir()):
                break
            folder.rmdir()

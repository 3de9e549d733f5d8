"""From a source's candidates to the manifest: every case is checked, described and given its label in the campaign's own numbering.

One candidate is one call of `ingest_case`, a plain function of picklable arguments: `ingest` maps it over the candidates with the
builtin `map`, or with whatever the caller passes, such as a map over Ray tasks. A case that cannot be used becomes a `Quarantined`
row with its reason; it never ends the run. Images are never copied.
"""

import hashlib
import logging
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from pydantic import Field, NonNegativeFloat, PositiveInt, ValidationError

from atlas_ray.data.labels import Labels, join_label_files
from atlas_ray.data.sources import Candidate, Source, prepare
from atlas_ray.exceptions import CaseError, DatasetError, GeometryError, LabelError
from atlas_ray.organs import LabelMap, Organs
from atlas_ray.patience import patiently
from atlas_ray.records import Case, Quarantined
from atlas_ray.schema import Millimeters, Schema
from atlas_ray.storage import place, write_atomically
from atlas_ray.volume import Array, Volume, dicom_files, form_disagreement_mm, read_volume, write_volume
from atlas_ray.workspace import Workspace, file_sha256, write_lines

logger = logging.getLogger(__name__)

STEP = "ingest"
CaseFunction = Callable[[Candidate], Case | Quarantined]
CaseMap = Callable[[CaseFunction, Iterable[Candidate]], Iterable[Case | Quarantined]]


class IngestChecks(Schema):
    """What a CT must be like to be used.

    Values below `padding_below_hu` are what scanners and resamplers write outside the field of view (-3024, -2048, -8192); they are
    left out of the HU checks, so that padding does not make an 8-bit image look like a CT.

    Args:
        padding_below_hu: below it a voxel is padding.
        air_hu: some voxel must be as dark: a CT shows air. Higher, and it is windowed, rescaled or no CT.
        tissue_hu: some voxel must be as bright: a 0..1 or -1..1 image has none.
        brightest_hu: no voxel may be brighter; metal reaches 30,710 on extended scales.
        form_disagreement_mm: how far the corners of a NIfTI file's sform and qform may lie apart.
        label_offset_mm: how far a label's corners may lie from its image's; headers are rounded, but not by half a voxel.
        spacing_mm: allowed voxel edges; outside it the unit is not the millimeter.
        smallest_edge: voxels along every axis, at least.
    """

    padding_below_hu: float = -1500.0
    air_hu: float = -200.0
    tissue_hu: float = 10.0
    brightest_hu: float = 32_767.0
    form_disagreement_mm: NonNegativeFloat = 1.0
    label_offset_mm: NonNegativeFloat = 0.25
    spacing_mm: tuple[Millimeters, Millimeters] = (0.1, 12.0)
    smallest_edge: PositiveInt = 8


class IngestReport(Schema):
    """What a run of `ingest` did.

    Args:
        cases: the manifest.
        quarantined: cases set aside in this run.
        skipped: ids of cases that were finished before.
    """

    cases: tuple[Case, ...]
    quarantined: tuple[Quarantined, ...]
    skipped: tuple[str, ...]


class Ingested(Schema):
    """A finished case's own record, written last: with the same fingerprint nothing has to be done again.

    Args:
        organ_ml: volume of every labeled organ, so that reports read no label again.
    """

    fingerprint: str
    case: Case
    organ_ml: dict[str, float]
    overlapping_voxels: int = Field(default=0, ge=0)


# --- the campaign ----------------------------------------------------------------------------------------------------


def collect(
    sources: Sequence[Source], organs: Organs, workspace: Workspace, *, data_root: str | Path | None = None
) -> list[Candidate]:
    """The candidates of all sources, in the order of the sources and then of their ids.

    Raises:
        DatasetError: a source cannot be found, or two cases have one id; names both sources.
    """
    first: dict[str, Candidate] = {}
    for source in sources:
        for candidate in source.candidates(workspace, organs, data_root):
            if other := first.get(candidate.case_id):
                raise DatasetError(
                    f"case {candidate.case_id!r} comes from {other.source} ({other.image}) and from {candidate.source} "
                    f"({candidate.image}); make ids differ by the dataset's case_id, such as '{{name}}_{{case}}'"
                )
            first[candidate.case_id] = candidate
    return list(first.values())


def ingest(
    sources: Sequence[Source],
    organs: Organs,
    workspace: Workspace,
    checks: IngestChecks = IngestChecks(),  # noqa: B008 - frozen
    *,
    data_root: str | Path | None = None,
    map_cases: CaseMap = map,
    patience_s: float = 0.0,
) -> IngestReport:
    """Check and describe every case of the sources; write manifest and quarantine list.

    A finished case whose files, labels, organs and checks have not changed is taken from its record. Of cases with the same image
    the first by order of the sources is kept, so a pool or holdout listed later cannot repeat a training case.

    Args:
        map_cases: like `map`; results may come in any order.
        patience_s: how long is tried again what may pass by itself.

    Raises:
        DatasetError: as `collect`.
    """
    candidates = collect(sources, organs, workspace, data_root=data_root)
    results: dict[str, Case | Quarantined] = {}
    for candidate in candidates:
        if case := finished(candidate, organs, workspace, checks):
            results[case.case_id] = case
    skipped = tuple(results)
    one = partial(ingest_case, organs=organs, workspace=workspace, checks=checks, patience_s=patience_s)
    for result in map_cases(one, [c for c in candidates if c.case_id not in results]):
        results[result.case_id] = result
        if isinstance(result, Quarantined):
            logger.warning("%s: %s", result.case_id, result.reason)
    cases, quarantined = _set_duplicates_aside([results[c.case_id] for c in candidates])
    _update_quarantine(workspace, cases, quarantined)
    manifest = sorted(cases, key=lambda case: case.case_id)
    write_lines(workspace.manifest, manifest)
    for result in results.values():
        if isinstance(result, Quarantined):
            _remove_written(result.case_id, workspace)
    kept = {case.case_id for case in cases}
    return IngestReport(
        cases=tuple(manifest), quarantined=tuple(quarantined), skipped=tuple(case_id for case_id in skipped if case_id in kept)
    )


def _set_duplicates_aside(results: Iterable[Case | Quarantined]) -> tuple[list[Case], list[Quarantined]]:
    first: dict[str, Case] = {}
    quarantined: list[Quarantined] = []
    for result in results:
        if isinstance(result, Quarantined):
            quarantined.append(result)
        elif original := first.get(result.sha256):
            reason = f"the same image as case {original.case_id} ({original.image}), sha256 {result.sha256[:12]}"
            logger.warning("%s: %s", result.case_id, reason)
            quarantined.append(Quarantined(case_id=result.case_id, step=STEP, reason=reason, path=result.image))
        else:
            first[result.sha256] = result
    return list(first.values()), quarantined


def _update_quarantine(workspace: Workspace, cases: Iterable[Case], quarantined: Sequence[Quarantined]) -> None:
    """A case that was repaired since leaves this step's list."""
    usable = {case.case_id for case in cases}
    listed = workspace.quarantined()
    still = [entry for entry in listed if entry.step != STEP or entry.case_id not in usable]
    if len(still) < len(listed):
        write_lines(workspace.quarantine, still)
    if quarantined:
        workspace.add_to_quarantine(*quarantined)


# --- what is finished -------------------------------------------------------------------------------------------------


def finished(candidate: Candidate, organs: Organs, workspace: Workspace, checks: IngestChecks) -> Case | None:
    """The case, if an earlier run finished it and nothing it depends on has changed since. Reads no image."""
    path = workspace.ingested(candidate.case_id)
    try:
        record = Ingested.model_validate_json(path.read_bytes())
    except (FileNotFoundError, ValidationError):  # none yet, or written by another version: do it again
        return None
    written = [workspace.label(candidate.case_id)] if record.case.labeled_organs else []
    written += [place(record.case.truth)] if record.case.truth else []
    whole = all(p.exists() for p in written)
    return record.case if whole and record.fingerprint == _fingerprint(candidate, organs, checks) else None


def _fingerprint(candidate: Candidate, organs: Organs, checks: IngestChecks) -> str:
    """Changes with the description of a case and with path, size or modification time of any of its files."""
    described = (candidate.model_dump_json(), organs.model_dump_json(), checks.model_dump_json())
    return hashlib.sha256(repr((described, [_state(path) for path in _files_of(candidate)])).encode()).hexdigest()


def _state(path: Path) -> tuple[str, int, int] | None:
    try:
        found = path.stat()
    except OSError:  # missing or not readable: reading it will say so
        return None
    return str(path), found.st_size, found.st_mtime_ns


def _files_of(candidate: Candidate) -> list[Path]:
    image = place(candidate.image)
    try:
        files = sorted(image.iterdir()) if image.is_dir() else [image]
    except OSError:
        files = [image]
    return files + [path for labels in candidate.labels for path in labels.files()]


# --- one case --------------------------------------------------------------------------------------------------------


def ingest_case(
    candidate: Candidate, organs: Organs, workspace: Workspace, checks: IngestChecks, *, patience_s: float = 0.0
) -> Case | Quarantined:
    """Generate (if synthetic), read, check and describe one case, and write its label. Never raises for a bad case.

    What an earlier run wrote of a bad case stays: the manifest may still name it, and a twin of this call may have succeeded.

    Args:
        candidate: one of a source's.
        organs: the campaign's.
        workspace: where label and truth go.
        checks: what is allowed.
        patience_s: how long is tried again what may pass by itself: a share that stalls, a full disk.
    """
    try:
        return patiently(partial(_ingest_case, candidate, organs, workspace, checks), patience_s)
    except CaseError as error:
        reason = " ".join(error.args[0].split())  # one line, whatever a library said
        return Quarantined(case_id=candidate.case_id, step=STEP, reason=reason, path=candidate.image)


def _ingest_case(candidate: Candidate, organs: Organs, workspace: Workspace, checks: IngestChecks) -> Case:
    prepare(candidate, organs)
    fingerprint = _fingerprint(candidate, organs, checks)  # before reading: a file replaced meanwhile is then read again
    image = read_volume(candidate.image, series_uid=candidate.series_uid)
    check_image(image, checks)
    labels = _labels(candidate, image, organs, checks)
    case = _describe(candidate, image, labels, workspace)
    voxels = labels.voxels if candidate.labels else None
    case = case.model_copy(update=_write_labels(case, voxels, image, organs, workspace))
    organ_ml = _organ_ml(case, voxels, organs)
    record = Ingested(fingerprint=fingerprint, case=case, organ_ml=organ_ml, overlapping_voxels=labels.overlapping)
    write_atomically(workspace.ingested(case.case_id), record.model_dump_json(indent=2))
    return case


def _describe(candidate: Candidate, image: Volume, labels: Labels, workspace: Workspace) -> Case:
    seen = tuple(name for name in candidate.labeled_organs if name in labels.origins)
    return Case(
        case_id=candidate.case_id,
        image=candidate.image,
        series_uid=candidate.series_uid,
        sha256=sha256_of(candidate.image, candidate.series_uid),
        shape=image.shape,
        spacing=image.spacing,
        orientation=image.orientation,
        source=candidate.source,
        license=candidate.license,
        split=candidate.split,
        labeled_organs=seen,
        origins={name: labels.origins[name] for name in seen},
        not_labeled={n: labels.not_labeled[n] for n in candidate.labeled_organs if n in labels.not_labeled},
        truth=str(workspace.truth(candidate.case_id)) if candidate.truth else None,
    )


def _labels(candidate: Candidate, image: Volume, organs: Organs, checks: IngestChecks) -> Labels:
    """What the case's label files say, on its image's grid. Raises LabelError where that is not what the case is for."""
    if not candidate.labels:
        return Labels(np.zeros(0, np.uint8))
    labels = join_label_files(
        candidate.labels,
        image,
        organs,
        tolerance_mm=checks.label_offset_mm,
        dicom=candidate.image,
        series_uid=candidate.series_uid,
    )
    reasons = [f"{name}: {labels.not_labeled.get(name, 'no label')}" for name in organs.names if name not in labels.origins]
    if candidate.truth and reasons:
        raise LabelError(f"a reference must know every organ; {'; '.join(reasons)}")
    if candidate.split == "train" and set(candidate.labeled_organs).isdisjoint(labels.origins):
        raise LabelError(f"no organ is labeled for certain; {'; '.join(reasons)}")
    for name, reason in labels.not_labeled.items():
        logger.info("%s: %s is not labeled: %s", candidate.case_id, name, reason)
    if labels.overlapping:
        logger.info("%s: %d voxels in more than one mask; the smaller organ got them", candidate.case_id, labels.overlapping)
    return labels


def _organ_ml(case: Case, labels: LabelMap | None, organs: Organs) -> dict[str, float]:
    if labels is None or not case.labeled_organs:
        return {}
    voxels = organs.voxels(labels)
    return {name: voxels[name] * case.voxel_volume_mm3 / 1000 for name in case.labeled_organs}


def _write_labels(
    case: Case, labels: LabelMap | None, image: Volume, organs: Organs, workspace: Workspace
) -> dict[str, str | None]:
    """What training may see holds only the organs it may see; the truth holds all. What an earlier run wrote is replaced, whole at
    every moment, and goes at the end where this run writes none: other steps look for the file. Until the case's record is there
    again, it is not finished. Returns what the case records of them."""
    workspace.ingested(case.case_id).unlink(missing_ok=True)
    digests = dict[str, str | None]()
    if labels is not None and case.labeled_organs:
        hidden = [organs.label_id(name) for name in organs.names if name not in case.labeled_organs]
        visible = np.where(np.isin(labels, hidden), np.uint8(0), labels) if hidden else labels
        write_volume(workspace.label(case.case_id), image.with_voxels(visible))
        digests["label_sha256"] = file_sha256(workspace.label(case.case_id))
    if labels is not None and case.truth:
        write_volume(case.truth, image.with_voxels(labels))
        digests["truth_sha256"] = file_sha256(place(case.truth))
    for written, path in (("label_sha256", workspace.label(case.case_id)), ("truth_sha256", workspace.truth(case.case_id))):
        if written not in digests:
            path.unlink(missing_ok=True)
    return digests


def _remove_written(case_id: str, workspace: Workspace) -> None:
    """Of a case that the manifest no longer names. The record first: without it nothing of the case is finished."""
    for path in (workspace.ingested(case_id), workspace.label(case_id), workspace.truth(case_id)):
        path.unlink(missing_ok=True)


def sha256_of(image: str | Path, series_uid: str | None = None) -> str:
    """Of a file's bytes; of a DICOM series, of its slices' digests in sorted order, so that renamed slices give the same."""
    path = place(image)
    if not path.is_dir():
        return _file_digest(path).hex()
    digests = sorted(_file_digest(p) for p in dicom_files(path, series_uid))
    return hashlib.sha256(b"".join(digests)).hexdigest()


def _file_digest(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    except OSError as error:
        raise CaseError(f"{path} cannot be read: {error}") from error


# --- checks of the image ---------------------------------------------------------------------------------------------


def check_image(image: Volume, checks: IngestChecks) -> None:
    """Raise GeometryError or CaseError, saying what was found and what is allowed, unless this is a usable CT."""
    _check_grid(image, checks)
    _check_finite(image)
    _check_hounsfield(image.voxels, checks)


def _check_grid(image: Volume, checks: IngestChecks) -> None:
    if min(image.shape) < checks.smallest_edge:
        raise GeometryError(f"shape {image.shape}: every edge must have at least {checks.smallest_edge} voxels")
    low, high = checks.spacing_mm
    if min(image.spacing) < low or max(image.spacing) > high:
        found = " x ".join(f"{s:.4g}" for s in image.spacing)
        raise GeometryError(f"voxel edges of {found} mm; {low:g} to {high:g} mm are allowed (is the unit the millimeter?)")
    if (off := form_disagreement_mm(image)) > checks.form_disagreement_mm:
        raise GeometryError(f"sform and qform disagree by {off:.1f} mm; {checks.form_disagreement_mm:g} mm are allowed")


def _check_finite(image: Volume) -> None:
    if image.voxels.dtype.kind != "f":
        return
    bad = ~np.isfinite(image.voxels)
    if count := int(bad.sum()):
        where = tuple(int(i) for i in np.unravel_index(int(bad.argmax()), bad.shape))
        raise CaseError(f"{count} voxels are NaN or infinite, the first at {where}; none is allowed")


def _check_hounsfield(voxels: Array, checks: IngestChecks) -> None:
    image = voxels >= checks.padding_below_hu
    if not image.any():
        raise CaseError(f"every voxel is below {checks.padding_below_hu:g} HU: nothing but padding")
    darkest = float(voxels.min(where=image, initial=voxels.max()))
    brightest = float(voxels.max())
    found = f"values from {darkest:g} to {brightest:g}"
    if darkest > checks.air_hu:
        raise CaseError(
            f"{found} are not CT in HU: some must reach {checks.air_hu:g} (air); is it windowed, rescaled to 8 bit or 0..1, "
            "missing its rescale intercept, or not a CT?"
        )
    if brightest < checks.tissue_hu:
        raise CaseError(f"{found} are not CT in HU: some must reach {checks.tissue_hu:g} (tissue)")
    if brightest > checks.brightest_hu:
        raise CaseError(f"{found} are not CT in HU: none may exceed {checks.brightest_hu:g}")

"""A release: a campaign's current truth as a dataset for others, in AbdomenAtlas' layout.

    <out>/
      <case>/combined_labels.nii.gz          label ids of the campaign's organ set, on the image's own grid
      <case>/segmentations/<organ>.nii.gz    0 and 1, one for every organ something is known of
      <case>/release.json                    what it was made of; written with the rest, so its presence means "done"
      dataset.csv                            one row per case: where its image lies, and who says what each organ is
      label_map.yaml                         the organ set; an organ set of configs/organs/ can be read from it
      LICENSES.md, SHA256SUMS

The label of a case is its last annotation up to the round; where there is none, the round's pseudo-label under the original
label; where nothing was predicted, the original label alone, and organs it does not know get no mask. Holdout cases are never
released. Images are referenced by path and sha256, never copied.

Not covered: organs that share voxels (the annotation is one label map), and images on other machines.
"""

import csv
import hashlib
import io
import json
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import yaml
from pydantic import ValidationError

from atlas_ray.annotation.drafts import latest_annotation, read_draft, read_provenance
from atlas_ray.cluster.tasks import map_cases
from atlas_ray.config import Campaign
from atlas_ray.exceptions import AtlasError, CaseError, GeometryError
from atlas_ray.organs import LabelMap, Organs
from atlas_ray.records import Case, LabelSource, Quarantined
from atlas_ray.schema import Schema
from atlas_ray.storage import new_folder, write_atomically
from atlas_ray.volume import Volume, read_volume, write_volume
from atlas_ray.workspace import Workspace, file_sha256

log = logging.getLogger(__name__)
COMBINED, RECORD = "combined_labels.nii.gz", "release.json"
Basis = Literal["annotation", "draft", "original"]


class Planned(Schema):
    """A case and what its released label is made of.

    Args:
        round: of the annotation or of the prediction; None for the original label.
    """

    case: Case
    basis: Basis
    round: int | None = None


class OrganSource(Schema):
    """Who says what an organ is, and since which round; None for the original label."""

    organ: str
    source: LabelSource
    round: int | None = None


class ReleasedCase(Schema):
    """A finished case of a release.

    Args:
        fingerprint: of everything its files were made of; the same fingerprint means nothing has to be done again.
        files: path below the case's folder -> sha256.
    """

    case: Case
    fingerprint: str
    organs: tuple[OrganSource, ...]
    files: dict[str, str]


class ReleaseReport(Schema):
    """What a run of `release` did."""

    cases: tuple[ReleasedCase, ...]
    skipped: int
    failed: tuple[Quarantined, ...]


def plan_release(campaign: Campaign, round_index: int) -> tuple[list[Planned], list[Case]]:
    """What would be released with the knowledge of rounds 0 to `round_index`, and the cases nothing is known of."""
    workspace = campaign.open_workspace()
    predicted = {r: workspace.predicted(r) for r in range(round_index, -1, -1)}
    planned, unknown = [], []
    for case in workspace.cases():
        if case.split == "holdout":
            continue
        annotated = latest_annotation(workspace, case.case_id, before=round_index + 1)
        drafted = next((r for r, ids in predicted.items() if case.case_id in ids), None)
        if annotated is not None:
            planned.append(Planned(case=case, basis="annotation", round=annotated))
        elif drafted is not None:
            planned.append(Planned(case=case, basis="draft", round=drafted))
        elif case.labeled_organs:
            planned.append(Planned(case=case, basis="original"))
        else:
            unknown.append(case)
    return planned, unknown


def release(
    campaign: Campaign, planned: Sequence[Planned], out: Path, *, progress: Callable[[], None] = lambda: None
) -> ReleaseReport:
    """Write the release; cases that are there and have not changed are kept.

    Raises:
        AtlasError: more cases failed than the campaign allows (cluster.max_failed_fraction); the others are written.
    """
    organs = campaign.load_organs()
    one = partial(release_case, root=campaign.open_workspace().root, out=out, organs=organs)
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
    _write_tables(out, cases, organs, campaign)
    if len(failed) > campaign.cluster.max_failed_fraction * len(planned):
        raise AtlasError(f"{len(failed)} of {len(planned)} cases could not be released to {out}; first: {failed[0].reason}")
    return ReleaseReport(cases=tuple(cases), skipped=skipped, failed=tuple(failed))


# --- one case -------------------------------------------------------------------------------------------------------


def release_case(planned: Planned, *, root: Path, out: Path, organs: Organs) -> tuple[ReleasedCase, bool] | Quarantined:
    """Write one case's folder, whole or not at all. False with a case that was there already."""
    case, workspace = planned.case, Workspace(root)
    folder = out / case.case_id
    try:
        sources = _sources(planned, workspace, organs)
        fingerprint = _fingerprint(planned, workspace, sources, organs)
        if finished := _finished(folder, fingerprint):
            return finished, False
        label = _label(planned, workspace, organs)
        with new_folder(folder) as partial_folder:
            files = _write_masks(partial_folder, label, sources, organs)
            released = ReleasedCase(case=case, fingerprint=fingerprint, organs=sources, files=files)
            write_atomically(partial_folder / RECORD, released.model_dump_json(indent=2))
    except (AtlasError, OSError) as error:
        return Quarantined(case_id=case.case_id, step="export", reason=str(error), path=case.image)
    return released, True


def _sources(planned: Planned, workspace: Workspace, organs: Organs) -> tuple[OrganSource, ...]:
    """Of every organ something is known of, in channel order."""
    case = planned.case
    if planned.basis == "annotation":
        entries = {e.organ: e for e in read_provenance(workspace, _round(planned), case.case_id).organs}
        known = [entries[name] for name in organs.names if name in entries]
        return tuple(OrganSource(organ=e.organ, source=e.source, round=e.round) for e in known)
    sources = []
    for name in organs.names:
        if name in case.labeled_organs:
            sources.append(OrganSource(organ=name, source="original"))
        elif planned.basis == "draft":
            sources.append(OrganSource(organ=name, source="pseudo", round=planned.round))
    return tuple(sources)


def _label(planned: Planned, workspace: Workspace, organs: Organs) -> Volume:
    case = planned.case
    if planned.basis == "annotation":
        label = read_volume(workspace.annotation(_round(planned), case.case_id))
    elif planned.basis == "draft":
        label = read_draft(workspace, _round(planned), case, organs)
    else:
        label = read_volume(workspace.label(case.case_id))
    if label.shape != case.shape:
        raise GeometryError(f"label of shape {label.shape}, image of shape {case.shape}", case_id=case.case_id)
    return label


def _round(planned: Planned) -> int:
    if planned.round is None:
        raise CaseError(f"{planned.basis} without a round", case_id=planned.case.case_id)
    return planned.round


def _fingerprint(planned: Planned, workspace: Workspace, sources: Sequence[OrganSource], organs: Organs) -> str:
    """The label files are compressed and small, so their bytes are hashed; modification times would not survive a copy."""
    case_id = planned.case.case_id
    inputs = {
        "annotation": lambda: [workspace.annotation(_round(planned), case_id)],
        "draft": lambda: [workspace.pseudo_label(_round(planned), case_id), workspace.label(case_id)],
        "original": lambda: [workspace.label(case_id)],
    }[planned.basis]()
    digest = hashlib.sha256(planned.model_dump_json().encode() + organs.model_dump_json().encode())
    for source in sources:
        digest.update(source.model_dump_json().encode())
    for path in inputs:
        if path.exists():
            digest.update(file_sha256(path).encode())
    return digest.hexdigest()


def _finished(folder: Path, fingerprint: str) -> ReleasedCase | None:
    try:
        record = ReleasedCase.model_validate_json((folder / RECORD).read_bytes())
    except (FileNotFoundError, ValidationError):  # none yet, or another version's: make it again
        return None
    whole = all((folder / name).exists() for name in record.files)
    return record if whole and record.fingerprint == fingerprint else None


def _write_masks(folder: Path, label: Volume, sources: Sequence[OrganSource], organs: Organs) -> dict[str, str]:
    """Relative path -> sha256 of what was written. Ids of organs nothing is known of do not reach the combined label."""
    voxels = np.asarray(label.voxels, np.uint8)
    write_volume(folder / COMBINED, label.with_voxels(_only(voxels, [organs.label_id(s.organ) for s in sources])))
    names = [COMBINED]
    for source in sources:
        names.append(f"segmentations/{source.organ}.nii.gz")
        write_volume(folder / names[-1], label.with_voxels(organs.mask(voxels, source.organ)))
    return {name: file_sha256(folder / name) for name in names}


def _only(labels: LabelMap, label_ids: Sequence[int]) -> LabelMap:
    table = np.zeros(256, np.uint8)
    table[list(label_ids)] = list(label_ids)
    kept: LabelMap = table[labels]
    return kept


# --- the tables -----------------------------------------------------------------------------------------------------


def _write_tables(out: Path, cases: Sequence[ReleasedCase], organs: Organs, campaign: Campaign) -> None:
    """The sums come last: with them the release is complete."""
    texts = {
        "dataset.csv": _dataset_csv(cases, organs),
        "label_map.yaml": yaml.safe_dump(json.loads(organs.model_dump_json()), sort_keys=False),
        "LICENSES.md": _licenses(cases, campaign),
    }
    for name, text in texts.items():
        write_atomically(out / name, text)
    sums = {f"{c.case.case_id}/{name}": digest for c in cases for name, digest in c.files.items()}
    sums |= {name: hashlib.sha256(text.encode()).hexdigest() for name, text in texts.items()}
    write_atomically(out / "SHA256SUMS", "".join(f"{digest}  {name}\n" for name, digest in sums.items()))
    released = {c.case.case_id for c in cases}
    if old := sorted(p.parent.name for p in out.glob(f"*/{RECORD}") if p.parent.name not in released):
        log.warning(
            "%s still holds %d cases of an earlier export that are no longer released: %s", out, len(old), ", ".join(old[:5])
        )


def _dataset_csv(cases: Sequence[ReleasedCase], organs: Organs) -> str:
    """One row per case; an organ nothing is known of has empty cells."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    fixed = ("case", "image", "image_sha256", "source", "license", "spacing_mm", "shape", "orientation")
    writer.writerow([*fixed, *(f"{name}_{what}" for name in organs.names for what in ("source", "round"))])
    for released in cases:
        case, known = released.case, {s.organ: s for s in released.organs}
        spacing, shape = (" ".join(f"{value:g}" for value in values) for values in (case.spacing, case.shape))
        row = [case.case_id, case.image, case.sha256, case.source, case.license, spacing, shape, case.orientation]
        for name in organs.names:
            entry = known.get(name)
            row += ["", ""] if entry is None else [entry.source, "" if entry.round is None else str(entry.round)]
        writer.writerow(row)
    return text.getvalue()


def _licenses(cases: Sequence[ReleasedCase], campaign: Campaign) -> str:
    counts = Counter((c.case.source, c.case.license) for c in cases)
    rows = "".join(f"| {source} | {license_} | {n} |\n" for (source, license_), n in sorted(counts.items()))
    return (
        f"# Licenses of {campaign.name}\n\nThe labels derive from images under these terms; the strictest binds the whole.\n\n"
        f"| source | license | cases |\n|---|---|---|\n{rows}"
    )

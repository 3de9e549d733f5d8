"""What would be released: of every case, which label and who says what each organ is.

The label of a case is its last annotation up to the round; where there is none, the round's pseudo-label under the original
label; where nothing was predicted, the original label alone, and nothing is said of organs it does not know. Holdout cases are
never released.

Not covered: organs that share voxels (the annotation is one label map), and images on other machines.
"""

import contextlib
import hashlib
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from atlas_ray.annotation.drafts import latest_annotation, read_draft, read_provenance
from atlas_ray.config import Campaign
from atlas_ray.exceptions import CaseError, GeometryError
from atlas_ray.organs import Organs
from atlas_ray.records import Case, LabelSource
from atlas_ray.release.deidentify import Pseudonyms
from atlas_ray.schema import Schema
from atlas_ray.volume import Volume, read_volume
from atlas_ray.workspace import Workspace, file_sha256

Basis = Literal["annotation", "draft", "original"]


class OrganSource(Schema):
    """Who says what an organ is, and since which round; None for the original label."""

    organ: str
    source: LabelSource
    round: int | None = None


class Planned(Schema):
    """A case and what its released label is made of.

    Args:
        round: of the annotation or of the prediction; None for the original label.
        organs: every organ something is known of, in channel order.
        pseudonym: what the case is called in the release; None is its id.
    """

    case: Case
    basis: Basis
    round: int | None = None
    organs: tuple[OrganSource, ...]
    pseudonym: str | None = None

    @property
    def name(self) -> str:
        """What the case is called in the release."""
        return self.case.case_id if self.pseudonym is None else self.pseudonym


def plan_release(campaign: Campaign, round_index: int, pseudonyms: Pseudonyms | None = None) -> tuple[list[Planned], list[Case]]:
    """What would be released with the knowledge of rounds 0 to `round_index`, and the cases nothing is known of."""
    workspace, organs = campaign.open_workspace(), campaign.load_organs()
    predicted = {r: workspace.predicted(r) for r in range(round_index, -1, -1)}
    planned, unknown = [], []
    for case in workspace.cases():
        if case.split == "holdout":
            continue
        found = _basis(case, workspace, round_index, predicted)
        if found is None:
            unknown.append(case)
        else:
            basis, round_ = found
            sources = _sources(case, basis, round_, workspace, organs)
            pseudonym = pseudonyms.case(case.case_id) if pseudonyms else None
            planned.append(Planned(case=case, basis=basis, round=round_, organs=sources, pseudonym=pseudonym))
    return planned, unknown


def _basis(
    case: Case, workspace: Workspace, round_index: int, predicted: Mapping[int, set[str]]
) -> tuple[Basis, int | None] | None:
    annotated = latest_annotation(workspace, case.case_id, before=round_index + 1)
    if annotated is not None:
        return "annotation", annotated
    drafted = next((r for r, ids in predicted.items() if case.case_id in ids), None)
    if drafted is not None:
        return "draft", drafted
    return ("original", None) if case.labeled_organs else None


def _sources(case: Case, basis: Basis, round_: int | None, workspace: Workspace, organs: Organs) -> tuple[OrganSource, ...]:
    if basis == "annotation" and round_ is not None:
        entries = {e.organ: e for e in read_provenance(workspace, round_, case.case_id).organs}
        known = [entries[name] for name in organs.names if name in entries]
        return tuple(OrganSource(organ=e.organ, source=e.source, round=e.round) for e in known)
    sources = []
    for name in organs.names:
        if name in case.labeled_organs:
            sources.append(OrganSource(organ=name, source="original"))
        elif basis == "draft":
            sources.append(OrganSource(organ=name, source="pseudo", round=round_))
    return tuple(sources)


def planned_label(planned: Planned, workspace: Workspace, organs: Organs) -> Volume:
    """The label map on the image's own grid, uint8; ids of organs nothing is known of are background.

    Raises:
        CaseError: it cannot be read, or lies on another grid than the image.
    """
    case = planned.case
    if planned.basis == "annotation":
        label = read_volume(workspace.annotation(_round(planned), case.case_id))
    elif planned.basis == "draft":
        label = read_draft(workspace, _round(planned), case, organs)
    else:
        label = read_volume(workspace.label(case.case_id))
    if label.shape != case.shape:
        raise GeometryError(f"label of shape {label.shape}, image of shape {case.shape}", case_id=case.case_id)
    known = [organs.label_id(s.organ) for s in planned.organs]
    table = np.zeros(256, np.uint8)
    table[known] = known
    return label.with_voxels(table[np.asarray(label.voxels, np.uint8)])


def _round(planned: Planned) -> int:
    if planned.round is None:
        raise CaseError(f"{planned.basis} without a round", case_id=planned.case.case_id)
    return planned.round


def fingerprint(planned: Planned, workspace: Workspace, parts: Sequence[Schema]) -> str:
    """Of everything a case's files are made of. The label files are compressed and small, so their bytes are hashed;
    modification times would not survive a copy.

    Raises:
        OSError: a label file is there and cannot be read.
    """
    case_id = planned.case.case_id
    inputs = {
        "annotation": lambda: [workspace.annotation(_round(planned), case_id)],
        "draft": lambda: [workspace.pseudo_label(_round(planned), case_id), workspace.label(case_id)],
        "original": lambda: [workspace.label(case_id)],
    }[planned.basis]()
    digest = hashlib.sha256()
    for part in (planned, *parts):
        digest.update(part.model_dump_json().encode())
    for path in inputs:
        with contextlib.suppress(FileNotFoundError):
            digest.update(file_sha256(path).encode())
    return digest.hexdigest()

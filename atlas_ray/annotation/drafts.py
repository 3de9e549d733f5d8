"""The workspace's side of merging: which files make the draft of a case, and what was annotated before.

The app, the oracle and the merge step all start from `read_draft`: an edit means nothing on another draft.
"""

import numpy as np

from atlas_ray.annotation.merge import Annotated, Provenance, draft_label
from atlas_ray.organs import LabelMap, Organs
from atlas_ray.records import Case
from atlas_ray.volume import Volume, read_volume
from atlas_ray.workspace import Workspace


def read_draft(workspace: Workspace, round_index: int, case: Case, organs: Organs) -> Volume:
    """The label the annotator of a round starts from, on the image's grid."""
    start = read_start(workspace, round_index, case)
    previous = previous_annotation(workspace, case.case_id, before=round_index)
    original = original_label(workspace, case)
    return start.with_voxels(draft_label(start.voxels, original, case.labeled_organs, organs, previous=previous))


def read_start(workspace: Workspace, round_index: int, case: Case) -> Volume:
    """The ensemble's label map; nothing at all on the same grid where no network has seen the case.

    A round of labels that are only to be reviewed needs no prediction.
    """
    path = workspace.pseudo_label(round_index, case.case_id)
    if path.exists():
        return read_volume(path)
    label = workspace.label(case.case_id)
    grid = read_volume(label) if label.exists() else read_volume(case.image, series_uid=case.series_uid)
    return grid.with_voxels(np.zeros(grid.shape, np.uint8))


def original_label(workspace: Workspace, case: Case) -> LabelMap | None:
    """Ground truth of the case's labeled organs, None where it has none."""
    return np.asarray(read_volume(workspace.label(case.case_id)).voxels, np.uint8) if case.labeled_organs else None


def latest_annotation(workspace: Workspace, case_id: str, *, before: int) -> int | None:
    """The last round before `before` whose annotation of a case is finished (its provenance is written last)."""
    return next((r for r in range(before - 1, -1, -1) if workspace.provenance(r, case_id).exists()), None)


def read_provenance(workspace: Workspace, round_index: int, case_id: str) -> Provenance:
    """Of a merged annotation."""
    return Provenance.model_validate_json(workspace.provenance(round_index, case_id).read_bytes())


def previous_annotation(workspace: Workspace, case_id: str, *, before: int) -> Annotated | None:
    """Label and provenance of the last annotation before a round."""
    latest = latest_annotation(workspace, case_id, before=before)
    if latest is None:
        return None
    label = np.asarray(read_volume(workspace.annotation(latest, case_id)).voxels, np.uint8)
    return label, read_provenance(workspace, latest, case_id)

"""The workspace's side of merging: which files make the draft of a case, and what was annotated before.

The app, the oracle and the merge step all start from `read_draft`: an edit means nothing on another draft.
"""

import numpy as np

from atlas_ray.annotation.merge import Annotated, Provenance, draft_label
from atlas_ray.exceptions import WorkspaceError
from atlas_ray.organs import LabelMap, Organs
from atlas_ray.records import Case
from atlas_ray.volume import Volume, read_volume
from atlas_ray.workspace import Workspace


def read_draft(workspace: Workspace, round_index: int, case: Case, organs: Organs) -> Volume:
    """The label the annotator of a round starts from, on the image's grid.

    Raises:
        WorkspaceError: the case is not predicted in this round.
    """
    pseudo = read_pseudo_label(workspace, round_index, case.case_id)
    previous = previous_annotation(workspace, case.case_id, before=round_index)
    original = original_label(workspace, case)
    return pseudo.with_voxels(draft_label(pseudo.voxels, original, case.labeled_organs, organs, previous=previous))


def read_pseudo_label(workspace: Workspace, round_index: int, case_id: str) -> Volume:
    """The ensemble's label map. Raises WorkspaceError where the case is not predicted."""
    path = workspace.pseudo_label(round_index, case_id)
    if not path.exists():
        raise WorkspaceError(f"{path} is missing; run `python -m jobs.predict CONFIG --round {round_index}` first")
    return read_volume(path)


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

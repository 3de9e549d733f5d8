"""Submitted revisions into annotations with provenance."""

from functools import partial

import numpy as np

from atlas_ray.annotation.database import Database, with_database
from atlas_ray.annotation.drafts import (
    original_label,
    previous_annotation,
    read_start,
)
from atlas_ray.annotation.merge import merge_case
from atlas_ray.annotation.queue import Queue, WorkItem
from atlas_ray.annotation.review import to_merge
from atlas_ray.annotation.revisions import Revisions
from atlas_ray.attention.criteria import CalibratedAttention
from atlas_ray.cluster.tracking import step_run
from atlas_ray.config import Campaign
from atlas_ray.exceptions import WorkspaceError
from atlas_ray.lock import check_lock
from atlas_ray.organs import Organs
from atlas_ray.steps.learn_attention import learn_attention_step
from atlas_ray.steps.prioritize import QUEUE_LABELS
from atlas_ray.storage import new_folder
from atlas_ray.volume import write_volume
from atlas_ray.workspace import Workspace, seal


def merge_step(campaign: Campaign, round_index: int) -> int:
    """Write the annotation of every submitted case that waits for no reviewer: draft plus its revisions, with provenance per organ.

    Of a case that was read twice it is the reading that was taken. Calibrated attention then learns from what was changed. Returns
    how many.
    """
    patience_s = campaign.cluster.patience_s
    count = with_database(campaign.database_url, partial(_merge, campaign, round_index), patience_s)
    if isinstance(campaign.attention, CalibratedAttention):
        learn_attention_step(campaign, round_index, mode=campaign.attention)
    with step_run(campaign, round_index, "merge") as run:
        run.metrics({"merge/cases": count}, step=round_index)
    return count


def _merge(campaign: Campaign, round_index: int, database: Database) -> int:
    """Only reads the database; an annotation that is written twice is the same one."""
    workspace, organs = campaign.open_workspace(), campaign.load_organs()
    items = to_merge(Queue(database).items(round_index), second_reader_share=campaign.annotation.second_reader_share)
    for item in items:
        check_lock()
        _merge_one(workspace, round_index, item, Revisions(database), organs)
    return len(items)


def _merge_one(workspace: Workspace, round_index: int, item: WorkItem, revisions: Revisions, organs: Organs) -> None:
    case = workspace.case(item.case_id)
    pseudo = read_start(workspace, round_index, case)
    is_predicted = workspace.scores(round_index, case.case_id).exists()
    if not is_predicted and QUEUE_LABELS not in workspace.finished_steps(round_index):
        raise WorkspaceError(
            f"the prediction of {case.case_id} in round {round_index}, on which it was annotated, is gone; run "
            f"`python -m jobs.predict CONFIG --round {round_index}` first"
        )
    label, merged = merge_case(
        np.asarray(pseudo.voxels, np.uint8),
        organs,
        case_id=case.case_id,
        round_index=round_index,
        original=original_label(workspace, case),
        labeled_organs=case.labeled_organs,
        previous=previous_annotation(workspace, case.case_id, before=round_index),
        edits=revisions.edits(round_index, case.case_id, reading=item.reading),
        reviewed=dict.fromkeys(item.organs, item.user or item.reviewer or "unknown"),
        checkpoints=workspace.case_scores(round_index, case.case_id).checkpoints if is_predicted else None,
    )
    path, result = workspace.annotation(round_index, case.case_id), workspace.provenance(round_index, case.case_id)
    with new_folder(path.parent) as folder:  # merged again after more edits, a label must not lie under its old provenance
        write_volume(folder / path.name, pseudo.with_voxels(label))
        seal(folder, result.name, merged.model_dump_json(indent=2))

"""What an arm has reached after so many rounds: the networks, the labels, and what people did for them."""

import numpy as np

from atlas_ray.annotation.database import open_database
from atlas_ray.annotation.drafts import read_draft
from atlas_ray.annotation.queue import Queue
from atlas_ray.annotation.revisions import Revisions
from atlas_ray.cluster.session import in_process
from atlas_ray.config import Campaign
from atlas_ray.evaluation.components import Detection, Rules, detect, total
from atlas_ray.evaluation.surface import surface_dice
from atlas_ray.organs import LabelMap, Organs
from atlas_ray.records import Case
from atlas_ray.schema import Schema
from atlas_ray.segmentation.metrics import organ_dice
from atlas_ray.steps.predict import predict_step
from atlas_ray.volume import read_labels
from atlas_ray.workspace import Workspace


class Work(Schema):
    """What people have done in an arm's rounds so far."""

    minutes: float = 0.0
    looked_at: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    organs: int = 0
    voxels: int = 0
    verdict_precision: float | None = None  # of the components looked at, the share that was an error


class Point(Schema):
    """One point of an arm's curve.

    Args:
        round: rounds of annotation behind it; 0 is before any.
        networks: holdout case -> Dice of this round's ensemble, mean over organs.
        surface: holdout case -> surface Dice, likewise.
        labels: pool case -> Dice of its label as it would be released now: people's where they have been, else the ensemble's.
        organ_voxels: of all organs of the pool's cases in truth.
        detection: attention of this round against its errors on the holdout.
    """

    round: int
    work: Work
    networks: dict[str, float]
    surface: dict[str, float]
    labels: dict[str, float]
    organ_voxels: int
    detection: Detection


def reached(campaign: Campaign, round_index: int, rules: Rules) -> Point:
    """Measure the arm before its annotation of a round; predicts what is not predicted yet."""
    workspace, organs = campaign.open_workspace(), campaign.load_organs()
    with in_process():
        predict_step(campaign, round_index, splits=("pool", "holdout"))
    cases = [case for case in workspace.cases() if workspace.truth(case.case_id).exists()]
    holdout = [case for case in cases if case.split == "holdout"]
    pool = [case for case in cases if case.split == "pool"]
    networks, surface, detections = {}, {}, list[Detection]()
    for case in holdout:
        truth = read_labels(workspace.truth(case.case_id))
        predicted = read_labels(workspace.pseudo_label(round_index, case.case_id))
        networks[case.case_id] = _mean(organ_dice(predicted, truth, organs))
        surface[case.case_id] = _mean(_surface(predicted, truth, organs, case, rules))
        detections.append(_detection(workspace, round_index, case, predicted, truth, organs, rules))
    labels, organ_voxels = {}, 0
    for case in pool:
        truth = read_labels(workspace.truth(case.case_id))
        label = np.asarray(read_draft(workspace, round_index, case, organs).voxels, np.uint8)
        labels[case.case_id] = _mean(organ_dice(label, truth, organs))
        organ_voxels += int(np.count_nonzero(truth))
    return Point(
        round=round_index,
        work=work_before(campaign, round_index),
        networks=networks,
        surface=surface,
        labels=labels,
        organ_voxels=organ_voxels,
        detection=total(detections),
    )


def work_before(campaign: Campaign, round_index: int) -> Work:
    """What the rounds before this one have in the database."""
    minutes, organs, voxels = 0.0, set[tuple[str, str]](), 0
    looked_at, changed = dict[str, None](), dict[str, None]()
    fixed = judged = 0
    with open_database(campaign.database_url) as database:
        queue, revisions = Queue(database), Revisions(database)
        for earlier in range(round_index):
            for item in queue.items(earlier, state="submitted"):
                minutes += item.seconds / 60
                looked_at[item.case_id] = None
            for revision in revisions.history(earlier, reading=None):
                changed[revision.case_id] = None
                organs.add((revision.case_id, revision.organ))
                voxels += revision.voxels
            verdicts = [verdict.verdict for verdict in revisions.verdicts(earlier)]
            fixed += verdicts.count("fixed")
            judged += verdicts.count("fixed") + verdicts.count("not_an_error")
    return Work(
        minutes=minutes,
        looked_at=tuple(looked_at),
        changed=tuple(changed),
        organs=len(organs),
        voxels=voxels,
        verdict_precision=fixed / judged if judged else None,
    )


def _detection(
    workspace: Workspace, round_index: int, case: Case, predicted: LabelMap, truth: LabelMap, organs: Organs, rules: Rules
) -> Detection:
    found = []
    for organ in organs:
        attention = read_labels(workspace.attention(round_index, case.case_id, organ.name)) > 0
        error = (predicted == organ.label_id) != (truth == organ.label_id)
        found.append(detect(error, attention, case.spacing, rules))
    return total(found)


def _surface(predicted: LabelMap, truth: LabelMap, organs: Organs, case: Case, rules: Rules) -> dict[str, float | None]:
    pairs = {organ.name: (predicted == organ.label_id, truth == organ.label_id) for organ in organs}
    return {n: surface_dice(a, b, case.spacing, tolerance_mm=rules.tolerance_mm) for n, (a, b) in pairs.items() if b.any()}


def _mean(values: dict[str, float | None]) -> float:
    known = [value for value in values.values() if value is not None]
    return float(np.mean(known)) if known else 1.0

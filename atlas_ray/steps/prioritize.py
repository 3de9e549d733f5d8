"""Rank the predicted cases and put the first ones into the annotators' queue."""

import numpy as np

from atlas_ray.annotation.database import open_database
from atlas_ray.annotation.queue import Queue, QueueEntry
from atlas_ray.annotation.review import with_second_readings
from atlas_ray.cluster.tracking import step_run
from atlas_ray.config import Campaign
from atlas_ray.exceptions import WorkspaceError
from atlas_ray.prioritization.effort import Budget
from atlas_ray.prioritization.export import write_priority
from atlas_ray.prioritization.plots import attention_curve
from atlas_ray.records import Case
from atlas_ray.scores import Scores
from atlas_ray.steps.predict import to_predict
from atlas_ray.storage import write_atomically
from atlas_ray.tables import read_scores
from atlas_ray.workspace import now

QUEUE_LABELS = "queue_labels"  # in a round's state where nothing was predicted and labels are reviewed


def prioritize_step(campaign: Campaign, round_index: int) -> Budget:
    """Rank the predicted training and pool cases, cut at the budget, and put the cut into the annotators' queue.

    Raises:
        WorkspaceError: nothing is predicted in this round.
    """
    workspace = campaign.open_workspace()
    scores = round_scores(campaign, round_index)
    if not len(scores):
        raise WorkspaceError(
            f"round {round_index} has no prediction to rank; run `python -m jobs.predict CONFIG --round {round_index}`"
        )
    ranked = campaign.strategy.rank(scores)
    budget = campaign.effort.budget(ranked)
    chosen = set(budget.case_ids)
    entries = [QueueEntry(case_id=r.case_id, organs=r.organs, rank=r.rank, score=r.score) for r in ranked if r.case_id in chosen]
    entries = with_second_readings(entries, round_index, campaign.annotation.double_reading_share)
    with open_database(campaign.database_url) as database:
        Queue(database, lease_minutes=campaign.annotation.lease_minutes).fill(round_index, entries)
    csv, parquet = workspace.priority_csv(round_index), workspace.priority_parquet(round_index)
    csv.parent.mkdir(parents=True, exist_ok=True)
    write_priority(ranked, scores, csv_path=csv, parquet_path=parquet)
    plot = workspace.plot(round_index, "attention_curve")
    write_atomically(plot, attention_curve(ranked, budget))
    write_atomically(workspace.budget(round_index), budget.model_dump_json(indent=2))
    with step_run(campaign, round_index, "prioritize") as run:
        run.metrics(_attention_metrics(scores), step=round_index)
        run.metrics({"budget/cases": budget.cases, "budget/share": budget.share, "budget/days": budget.days}, step=round_index)
        for path in (csv, parquet, plot):
            run.artifact(path)
    return budget


def round_scores(campaign: Campaign, round_index: int) -> Scores:
    """Scores of the predicted cases an annotator may be asked about: all but the holdout."""
    scores = read_scores(campaign.open_workspace(), round_index)
    asked = [c.case_id for c in to_predict(campaign, ("train", "pool"))]
    return scores.take(np.isin(scores.case_id_N, asked))


def _attention_metrics(scores: Scores) -> dict[str, float | None]:
    by_organ = dict(zip(scores.organs, scores.attention_mm3_NK.mean(axis=0).tolist(), strict=True))
    return {
        "attention_size/mean_mm3": float(scores.attention_mm3_N.mean()),
        "attention_size/median_mm3": float(np.median(scores.attention_mm3_N)),
        "attention_size/max_mm3": float(scores.attention_mm3_N.max()),
        "attention_size/mean_voxels": float(scores.attention_voxels_N.mean()),
        **{f"attention_organ/{name}_mm3": mean for name, mean in by_organ.items()},
    }


def queue_labels_step(campaign: Campaign, round_index: int) -> int:
    """Queue the labels that are there already, to be reviewed as they are: no prediction, no networks, no GPU.

    Every case but the holdout's that has ground truth for an organ, in the manifest's order. Returns how many are new.
    """
    cases = labels_to_review(campaign)
    entries = [QueueEntry(case_id=c.case_id, organs=c.labeled_organs, rank=rank) for rank, c in enumerate(cases, 1)]
    with open_database(campaign.database_url) as database:
        new = Queue(database).fill(round_index, entries, user="review", state="submitted")
    campaign.open_workspace().finish_step(round_index, QUEUE_LABELS, now())
    return new


def labels_to_review(campaign: Campaign) -> list[Case]:
    return [c for c in campaign.open_workspace().cases() if c.labeled_organs and c.split != "holdout"]

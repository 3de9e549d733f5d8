"""Rank the predicted cases and put the first ones into the annotators' queue."""

from collections.abc import Sequence
from dataclasses import fields, replace

import numpy as np

from atlas_ray.annotation.database import Database, with_database
from atlas_ray.annotation.drafts import read_provenance
from atlas_ray.annotation.queue import Queue, QueueEntry
from atlas_ray.annotation.review import with_second_readings
from atlas_ray.annotation.revisions import Revisions
from atlas_ray.cluster.tracking import step_run
from atlas_ray.config import Campaign
from atlas_ray.exceptions import WorkspaceError
from atlas_ray.prioritization.effort import Budget
from atlas_ray.prioritization.export import write_priority
from atlas_ray.prioritization.minutes import MinutesModel, TimedOrgan
from atlas_ray.prioritization.plots import attention_curve
from atlas_ray.prioritization.strategies import RankedCase, informed
from atlas_ray.records import AttentionComponent, Case
from atlas_ray.schema import Schema
from atlas_ray.scores import Scores
from atlas_ray.steps.measured import components_table
from atlas_ray.steps.predict import to_predict
from atlas_ray.storage import write_atomically
from atlas_ray.tables import read_scores
from atlas_ray.workspace import Workspace, now

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
    url, patience_s = campaign.database_url, campaign.cluster.patience_s
    times = with_database(url, lambda database: logged_times(campaign, Revisions(database), round_index), patience_s)
    ranked = informed(campaign.strategy, times.teach).rank(open_questions(workspace, scores))
    budget = campaign.effort.budget(ranked, round_index)
    entries = with_second_readings(
        queue_entries(campaign, round_index, ranked, budget), round_index, campaign.annotation.double_reading_share
    )
    with_database(url, lambda database: Queue(database).fill(round_index, entries), patience_s)
    csv, parquet = workspace.priority_csv(round_index), workspace.priority_parquet(round_index)
    csv.parent.mkdir(parents=True, exist_ok=True)
    write_priority(ranked, scores, csv_path=csv, parquet_path=parquet)
    plot = workspace.plot(round_index, "attention_curve")
    write_atomically(plot, attention_curve(ranked, budget))
    write_atomically(workspace.budget(round_index), budget.model_dump_json(indent=2))
    with step_run(campaign, round_index, "prioritize") as run:
        run.metrics(
            {"budget/knee": budget.knee, "budget/by_hand": budget.by_hand, "budget/next_days": budget.next_days}, step=round_index
        )
        run.metrics(_attention_metrics(scores), step=round_index)
        run.metrics({"budget/cases": budget.cases, "budget/share": budget.share, "budget/days": budget.days}, step=round_index)
        components = components_table(workspace, round_index, budget.case_ids)
        run.table("attention_per_component", components.columns, components.rows)
        for path in (csv, parquet, plot):
            run.artifact(path)
    return budget


def round_scores(campaign: Campaign, round_index: int) -> Scores:
    """Scores of the predicted cases an annotator may be asked about: all but the holdout."""
    scores = read_scores(campaign.open_workspace(), round_index)
    asked = [c.case_id for c in to_predict(campaign, ("train", "pool"))]
    return scores.take(np.isin(scores.case_id_N, asked))


def open_questions(workspace: Workspace, scores: Scores) -> Scores:
    """The scores without the attention of organs that a person has revised or confirmed: nobody is asked twice."""
    settled_NK = np.zeros(scores.has_NK.shape, np.bool_)
    latest = {case_id: r for r in range(scores.of_round()) for case_id in workspace.merged(r)}
    for n, case_id in enumerate(scores.case_id_N.tolist()):
        if case_id in latest:
            settled_NK[n] = np.isin(scores.organs, read_provenance(workspace, latest[case_id], case_id).human_organs)
    if not settled_NK.any():
        return scores
    left = {f.name: getattr(scores, f.name).copy() for f in fields(scores) if f.name.endswith("_NK")}
    for column_NK in left.values():
        column_NK[settled_NK] = np.zeros((), column_NK.dtype)
    sizes = {name: left[f"{name}K"].sum(axis=1) for name in ("attention_voxels_N", "attention_mm3_N")}
    return replace(scores, **left, **sizes)


def queue_entries(campaign: Campaign, round_index: int, ranked: Sequence[RankedCase], budget: Budget) -> list[QueueEntry]:
    """The budget's cases in the order of their ranks, with the audit's at random places, as items of the campaign's level."""
    by_id, names = {case.case_id: case for case in ranked}, campaign.load_organs().names
    mixed = campaign.effort.audit.mixed(budget.case_ids, budget.audit, round_index)
    workspace, annotation = campaign.open_workspace(), campaign.annotation
    entries = []
    for rank, case_id in enumerate(mixed, 1):
        case = by_id[case_id]
        whole = annotation.level == "case" or case_id in budget.audit
        organs, components = names if whole else case.organs, tuple[int, ...]()
        if annotation.level == "component" and not whole:
            listed = [c for c in workspace.case_components(round_index, case_id) if c.organ in organs]
            components = most_of_the_score(listed, annotation.component_share)
        entries.append(QueueEntry(case_id=case_id, organs=organs, components=components, rank=rank, score=case.score))
    return entries


def most_of_the_score(components: Sequence[AttentionComponent], share: float) -> tuple[int, ...]:
    """Indexes of the largest components of each organ that together carry this share of the organ's score, in order of index."""
    chosen = []
    for organ in sorted({component.organ for component in components}):
        of_organ = sorted((c for c in components if c.organ == organ), key=lambda c: -c.score)
        total, carried = sum(c.score for c in of_organ), 0.0
        for component in of_organ:
            if carried >= share * total:
                break
            carried += component.score
            chosen.append(component.index)
    return tuple(sorted(chosen))


class LoggedTimes(Schema):
    """What earlier rounds say of the time that organs and cases take."""

    organs: tuple[TimedOrgan, ...] = ()
    case_minutes: tuple[float, ...] = ()

    def teach(self, minutes: MinutesModel) -> MinutesModel:
        return minutes.learned(self.organs, self.case_minutes)


def logged_times(campaign: Campaign, revisions: Revisions, round_index: int) -> LoggedTimes:
    """Seconds that people logged in the rounds before this one, beside what was known of each organ then."""
    workspace = campaign.open_workspace()
    organs, cases = list[TimedOrgan](), list[float]()
    for earlier in range(round_index):
        for case_id in sorted(workspace.predicted(earlier)):
            seconds = revisions.seconds(earlier, case_id, reading=None)
            if not seconds:
                continue
            cases.append(seconds.get(None, 0.0) / 60)
            known = {organ.organ: organ for organ in workspace.case_scores(earlier, case_id).organs}
            organs += [
                TimedOrgan(components=known[name].components, attention_ml=known[name].attention_mm3 / 1000, minutes=spent / 60)
                for name, spent in seconds.items()
                if name is not None and name in known and spent > 0
            ]
    return LoggedTimes(organs=tuple(organs), case_minutes=tuple(cases))


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

    def fill(database: Database) -> int:
        return Queue(database).fill(round_index, entries, user="review", state="submitted")

    new = with_database(campaign.database_url, fill, campaign.cluster.patience_s)
    campaign.open_workspace().finish_step(round_index, QUEUE_LABELS, now())
    return new


def labels_to_review(campaign: Campaign) -> list[Case]:
    return [c for c in campaign.open_workspace().cases() if c.labeled_organs and c.split != "holdout"]

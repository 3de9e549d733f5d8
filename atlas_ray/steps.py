"""The steps of a round. Each reads what the one before it wrote in the workspace, skips what is finished, and can be run alone.

ingest -> train -> predict -> evaluate -> prioritize -> annotate -> merge -> train (the next round's networks)
"""

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import numpy as np
from pydantic import Field

from atlas_ray import __version__
from atlas_ray.annotation.database import open_database, sqlite_url
from atlas_ray.annotation.drafts import (
    latest_annotation,
    original_label,
    previous_annotation,
    read_draft,
    read_provenance,
    read_start,
)
from atlas_ray.annotation.merge import merge_case
from atlas_ray.annotation.oracle import OracleAnnotator
from atlas_ray.annotation.queue import Queue, QueueEntry, WorkItem
from atlas_ray.annotation.review import awaiting, to_merge, with_second_readings
from atlas_ray.annotation.revisions import Revisions
from atlas_ray.annotation.simulation import OracleInput, annotate_round
from atlas_ray.cluster import prediction, training
from atlas_ray.cluster.tasks import map_cases
from atlas_ray.cluster.tracking import step_run
from atlas_ray.config import Campaign
from atlas_ray.data.ingest import IngestReport, ingest
from atlas_ray.data.preprocess import Preprocessing, cache_key, write_cache
from atlas_ray.exceptions import AtlasError, CaseError, WorkspaceError
from atlas_ray.organs import LabelMap, Organs
from atlas_ray.prioritization.effort import Budget
from atlas_ray.prioritization.export import write_priority
from atlas_ray.prioritization.plots import attention_curve
from atlas_ray.records import Case, CaseScores, OrganDice, Quarantined, Split
from atlas_ray.schema import Schema
from atlas_ray.segmentation.checkpoints import Provenance as CheckpointProvenance
from atlas_ray.segmentation.metrics import mean_organ_dice, mean_over_organs, organ_dice
from atlas_ray.volume import read_volume, write_volume
from atlas_ray.workspace import Workspace, file_sha256, write_atomically

log = logging.getLogger(__name__)
KNOWN_SOURCES = ("original", "revised", "confirmed")  # what training may take as truth; "pseudo" only the networks have said
QUEUE_LABELS = "queue_labels"  # in a round's state where nothing was predicted and labels are reviewed
Progress = Callable[[], None]


def _nothing() -> None:
    """No progress bar."""


# --- ingest ---------------------------------------------------------------------------------------------------------


def ingest_step(campaign: Campaign) -> IngestReport:
    """Describe and check every case of every dataset; write manifest, labels and quarantine list."""
    return ingest(
        campaign.datasets,
        campaign.load_organs(),
        campaign.open_workspace(),
        campaign.checks,
        data_root=campaign.data_root,
        map_cases=map_cases,
    )


# --- train ----------------------------------------------------------------------------------------------------------


class LabeledCase(Schema):
    """A case with the label training uses and the organs it may trust in it."""

    case: Case
    label: str
    known_organs: tuple[str, ...]


def labeled_cases(campaign: Campaign, round_index: int) -> list[LabeledCase]:
    """What round `round_index`'s networks learn from: ground truth, and every annotation of an earlier round over it."""
    workspace = campaign.open_workspace()
    labeled = []
    for case in workspace.cases():
        if case.split == "holdout":
            continue
        latest = latest_annotation(workspace, case.case_id, before=round_index)
        if latest is not None:
            label = workspace.annotation(latest, case.case_id)
            organs = read_provenance(workspace, latest, case.case_id).organs
            known = tuple(entry.organ for entry in organs if entry.source in KNOWN_SOURCES)
        else:
            label, known = workspace.label(case.case_id), case.labeled_organs
        if known:
            labeled.append(LabeledCase(case=case, label=str(label), known_organs=known))
    return labeled


def train_step(campaign: Campaign, round_index: int, *, progress: Progress = _nothing) -> list[Path]:
    """Train (round 0) or fine-tune (later rounds) every architecture; finished checkpoints are kept."""
    workspace, organs = campaign.open_workspace(), campaign.load_organs()
    wanted = [(a, workspace.checkpoint(round_index, a.architecture)) for a in campaign.architectures]
    if all(path.exists() for _, path in wanted):
        return [path for _, path in wanted]
    labeled = labeled_cases(campaign, round_index)
    watched = [
        LabeledCase(case=c, label=str(workspace.truth(c.case_id)), known_organs=organs.names)
        for c in workspace.cases()
        if c.split == "holdout" and workspace.truth(c.case_id).exists()
    ]
    section = campaign.training if round_index == 0 else campaign.finetuning
    training_cases = _cached(campaign, organs, labeled)
    validation = _cached(campaign, organs, watched[: section.validation_cases])
    data_key = hashlib.sha256("".join(f"{c.folder}{c.known_organs}" for c in training_cases).encode()).hexdigest()[:16]
    for architecture, path in wanted:
        name = architecture.architecture
        parent = None if round_index == 0 else workspace.checkpoint(round_index - 1, name)
        if parent is not None and not parent.exists():
            raise AtlasError(f"checkpoint {parent} is missing; train round {round_index - 1} first")
        schedule = section.of(name)
        with step_run(campaign, round_index, f"train-{name}", kind="train") as run:
            plan = training.TrainingPlan(
                name=f"{campaign.name}-r{round_index:03d}-{name}-{data_key}-{_hash(schedule, architecture, campaign.patches)}",
                output=str(path),
                parent=str(parent) if parent else None,
                storage=str(workspace.train_storage),
                organs=organs,
                architecture=architecture,
                schedule=schedule,
                patches=campaign.patches,
                preprocessing=campaign.preprocessing,
                inference=campaign.inference,
                pseudo_labels=campaign.pseudo_labels,
                cases=training_cases,
                validation=validation,
                provenance=CheckpointProvenance(
                    round=round_index,
                    parent=file_sha256(parent) if parent else None,
                    cases=len(training_cases),
                    data_key=data_key,
                    steps=schedule.steps,
                    seed=schedule.seed,
                    created=now(),
                    versions=_versions(),
                ),
                tracking_uri=campaign.tracking_uri,
                run_id=run.run_id,
            )
            run.params({"architecture": architecture.model_dump_json(), "cases": str(len(training_cases)), "data_key": data_key})
            training.train(plan, _resources(campaign))
            run.tags({"checkpoint": str(path), "sha256": file_sha256(path)})
        progress()
    return [path for _, path in wanted]


def _resources(campaign: Campaign) -> training.Resources:
    cluster = campaign.cluster
    return training.Resources(
        workers=cluster.train_workers,
        cpus_per_worker=cluster.cpus_per_worker,
        use_gpu=cluster.use_gpu,
        max_failures=cluster.train_failures,
    )


def _cached(campaign: Campaign, organs: Organs, labeled: Sequence[LabeledCase]) -> tuple[training.TrainingCase, ...]:
    """Training cases, each in the cache; one that cannot be read is quarantined and left out."""
    workspace = campaign.open_workspace()
    one = partial(_cache_one, root=str(workspace.root), preprocessing=campaign.preprocessing, organs=organs)
    ready = []
    for result in map_cases(one, labeled):
        if isinstance(result, Quarantined):
            log.warning("%s: %s", result.case_id, result.reason)
            workspace.add_to_quarantine(result)
        else:
            ready.append(result)
    return tuple(ready)


def _cache_one(
    labeled: LabeledCase, *, root: str, preprocessing: Preprocessing, organs: Organs
) -> training.TrainingCase | Quarantined:
    case = labeled.case
    try:
        folder = Workspace(root).cache(cache_key(case, Path(labeled.label), preprocessing, organs), case.case_id)
        if not folder.exists():
            write_cache(folder, case, Path(labeled.label), preprocessing, organs)
    except (CaseError, OSError) as error:
        return Quarantined(case_id=case.case_id, step="cache", reason=str(error), path=case.image)
    return training.TrainingCase(case_id=case.case_id, folder=str(folder), known_organs=labeled.known_organs)


# --- predict --------------------------------------------------------------------------------------------------------


def predict_step(
    campaign: Campaign,
    round_index: int,
    *,
    splits: Sequence[Split] = ("train", "pool", "holdout"),
    progress: Callable[[prediction.Row], None] = lambda row: None,
) -> prediction.PredictionSummary:
    """Pseudo-labels and attention of every case of the given splits."""
    cases = to_predict(campaign, splits)
    with step_run(campaign, round_index, "predict") as run:
        summary = prediction.predict_cases(campaign, round_index, cases, progress=progress)
        run.metrics(
            {
                "predict/cases": summary.predicted,
                "predict/skipped": summary.skipped,
                "predict/failed": len(summary.failed),
                "predict/actor_peak_mb": summary.actor_peak_mb,
                "predict/finish_peak_mb": summary.finish_peak_mb,
                "predict/networks_busy": summary.times.busy("networks"),
                **{f"predict/seconds/{stage}": seconds for stage, seconds in summary.times.seconds.items()},
            }
        )
    return summary


def to_predict(campaign: Campaign, splits: Sequence[Split]) -> list[Case]:
    """Cases of these splits; a training case whose every organ is labeled has nothing to predict."""
    organs = set(campaign.load_organs().names)
    cases = campaign.open_workspace().cases()
    return [c for c in cases if c.split in splits and not (c.split == "train" and organs <= set(c.labeled_organs))]


# --- evaluate -------------------------------------------------------------------------------------------------------


class Evaluation(Schema):
    """Dice of a round's ensemble and of each architecture on one split, on the images' own grids."""

    round: int
    split: str
    cases: int
    organs: tuple[OrganDice, ...]
    mean_dice: float | None
    architectures: dict[str, tuple[OrganDice, ...]]
    attention_mm3: float | None = None  # mean over the cases
    attention_voxels: float | None = None
    per_case: dict[str, dict[str, float | None]] = Field(default_factory=dict)

    @property
    def mean_by_architecture(self) -> dict[str, float | None]:
        return {name: mean_over_organs(rows) for name, rows in self.architectures.items()}


def evaluate_step(campaign: Campaign, round_index: int, *, split: Split = "holdout") -> Evaluation:
    """Compare predictions with the reference labels of a split; the evaluation is written and tracked.

    Raises:
        WorkspaceError: no predicted case of the split has a reference.
    """
    workspace, organs = campaign.open_workspace(), campaign.load_organs()
    predicted = workspace.predicted(round_index)
    cases = [c for c in workspace.cases() if c.split == split and c.case_id in predicted and workspace.truth(c.case_id).exists()]
    if not cases:
        raise WorkspaceError(
            f"round {round_index} has no predicted {split} case with a reference label; run jobs.predict, or set a truth"
        )
    one = partial(
        _dice_of, root=str(workspace.root), round_index=round_index, names=("", *campaign.architecture_names), organs=organs
    )
    scores = list(map_cases(one, [c.case_id for c in cases]))
    rows = {name: tuple(mean_organ_dice([s[name] for s in scores], organs)) for name in ("", *campaign.architecture_names)}
    attention = [workspace.case_scores(round_index, c.case_id) for c in cases]
    evaluation = Evaluation(
        round=round_index,
        split=split,
        cases=len(cases),
        organs=rows[""],
        mean_dice=mean_over_organs(rows[""]),
        architectures={name: rows[name] for name in campaign.architecture_names},
        attention_mm3=float(np.mean([s.attention_mm3 for s in attention])),
        attention_voxels=float(np.mean([s.attention_voxels for s in attention])),
        per_case={c.case_id: s[""] for c, s in zip(cases, scores, strict=True)},
    )
    path = workspace.evaluation(round_index, split)
    write_atomically(path, evaluation.model_dump_json(indent=2))
    with step_run(campaign, round_index, "evaluate") as run:
        run.metrics(evaluation_metrics(evaluation), step=round_index)
        run.artifact(path)
    return evaluation


def evaluation_metrics(evaluation: Evaluation) -> dict[str, float | None]:
    """Every number of an evaluation as "group/name"."""
    return {
        "dice/mean": evaluation.mean_dice,
        **{f"dice/{row.organ}": row.dice for row in evaluation.organs},
        **{f"dice_{name}/mean": mean for name, mean in evaluation.mean_by_architecture.items()},
        **{f"dice_{name}/{row.organ}": row.dice for name, rows in evaluation.architectures.items() for row in rows},
        "attention_holdout/mean_mm3": evaluation.attention_mm3,
        "attention_holdout/mean_voxels": evaluation.attention_voxels,
    }


def _dice_of(
    case_id: str, *, root: str, round_index: int, names: Sequence[str], organs: Organs
) -> dict[str, dict[str, float | None]]:
    """Dice per organ of the ensemble ("") and of every architecture."""
    workspace = Workspace(root)
    truth = _labels(workspace.truth(case_id))
    paths = {
        n: workspace.architecture_label(round_index, case_id, n) if n else workspace.pseudo_label(round_index, case_id)
        for n in names
    }
    return {name: organ_dice(_labels(path), truth, organs) for name, path in paths.items()}


# --- prioritize -----------------------------------------------------------------------------------------------------


def prioritize_step(campaign: Campaign, round_index: int) -> Budget:
    """Rank the predicted training and pool cases, cut at the budget, and put the cut into the annotators' queue.

    Raises:
        WorkspaceError: nothing is predicted in this round.
    """
    workspace = campaign.open_workspace()
    scores = round_scores(campaign, round_index)
    if not scores:
        raise WorkspaceError(
            f"round {round_index} has no prediction to rank; run `python -m jobs.predict CONFIG --round {round_index}`"
        )
    ranked = campaign.strategy.rank(scores)
    budget = campaign.effort.budget(ranked)
    chosen = set(budget.case_ids)
    entries = [QueueEntry(case_id=r.case_id, organs=r.organs, rank=r.rank, score=r.score) for r in ranked if r.case_id in chosen]
    entries = with_second_readings(entries, round_index, campaign.annotation.double_reading_share)
    with open_database(database_url(campaign)) as database:
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


def round_scores(campaign: Campaign, round_index: int) -> list[CaseScores]:
    """Scores of the predicted cases an annotator may be asked about: all but the holdout."""
    workspace = campaign.open_workspace()
    predicted = workspace.predicted(round_index)
    return [
        workspace.case_scores(round_index, c.case_id) for c in to_predict(campaign, ("train", "pool")) if c.case_id in predicted
    ]


def _attention_metrics(scores: Sequence[CaseScores]) -> dict[str, float | None]:
    sizes = np.array([s.attention_mm3 for s in scores])
    by_organ: Counter[str] = Counter()
    for case in scores:
        by_organ.update({organ.organ: organ.attention_mm3 for organ in case.organs})
    return {
        "attention_size/mean_mm3": float(sizes.mean()),
        "attention_size/median_mm3": float(np.median(sizes)),
        "attention_size/max_mm3": float(sizes.max()),
        "attention_size/mean_voxels": float(np.mean([s.attention_voxels for s in scores])),
        **{f"attention_organ/{name}_mm3": total / len(scores) for name, total in by_organ.items()},
    }


def queue_labels_step(campaign: Campaign, round_index: int) -> int:
    """Queue the labels that are there already, to be reviewed as they are: no prediction, no networks, no GPU.

    Every case but the holdout's that has ground truth for an organ, in the manifest's order. Returns how many are new.
    """
    cases = labels_to_review(campaign)
    entries = [QueueEntry(case_id=c.case_id, organs=c.labeled_organs, rank=rank) for rank, c in enumerate(cases, 1)]
    with open_database(database_url(campaign)) as database:
        new = Queue(database).fill(round_index, entries, user="review", state="submitted")
    campaign.open_workspace().finish_step(round_index, QUEUE_LABELS, now())
    return new


def labels_to_review(campaign: Campaign) -> list[Case]:
    return [c for c in campaign.open_workspace().cases() if c.labeled_organs and c.split != "holdout"]


# --- annotate -------------------------------------------------------------------------------------------------------


class AnnotationProgress(Schema):
    """How far the people (or the oracle) are with a round.

    Args:
        submitted, open, set_aside: items; a case that is read twice is two.
        to_review: submitted items that wait for a reviewer.
        reviewed: items a reviewer has accepted, or decided on.
        minutes: active time, of all items; minutes_by_organ leaves out what was spent on no organ in particular.
        median_minutes: of a submitted item; None before the first.
        attention_precision: of the components judged an error or a false alarm, the share that was an error.
    """

    submitted: int
    open: int
    set_aside: int
    minutes: float
    voxels: int
    organs: int
    to_review: int = 0
    reviewed: int = 0
    minutes_by_organ: dict[str, float] = Field(default_factory=dict)
    median_minutes: float | None = None
    attention_precision: float | None = None

    @property
    def complete(self) -> bool:
        return self.open == 0 and self.to_review == 0


def annotate_step(campaign: Campaign, round_index: int, *, progress: Progress = _nothing) -> AnnotationProgress:
    """Let the oracle work off the queue where the campaign has one; in any case say how far the round is."""
    annotator = campaign.annotation.annotator
    organs = campaign.load_organs()
    with open_database(database_url(campaign)) as database:
        queue = Queue(database, lease_minutes=campaign.annotation.lease_minutes)
        revisions = Revisions(database)
        if isinstance(annotator, OracleAnnotator):
            load = partial(_oracle_input, campaign=campaign, organs=organs, round_index=round_index)
            annotate_round(
                annotator, queue, revisions, organs, round_index=round_index, load=load, progress=lambda item: progress()
            )
        share = campaign.annotation.second_reader_share
        state = annotation_progress(queue, revisions, round_index, second_reader_share=share)
    with step_run(campaign, round_index, "annotate") as run:
        run.metrics(annotation_metrics(state), step=round_index)
    return state


def annotation_progress(
    queue: Queue, revisions: Revisions, round_index: int, *, second_reader_share: float = 0.0
) -> AnnotationProgress:
    """Counts over a round's queue, revisions, verdicts and time."""
    items = queue.items(round_index)
    saved = revisions.history(round_index, reading=None)
    minutes = [item.seconds / 60 for item in items if item.state == "submitted"]
    verdicts = Counter(verdict.verdict for verdict in revisions.verdicts(round_index))
    errors, judged = verdicts["fixed"], verdicts["fixed"] + verdicts["not_an_error"]
    waiting = awaiting(items, second_reader_share=second_reader_share)
    return AnnotationProgress(
        submitted=sum(item.state == "submitted" for item in items),
        open=sum(item.state in ("waiting", "leased") for item in items),
        set_aside=sum(item.state in ("skipped", "flagged") for item in items),
        to_review=sum(item.state == "submitted" for item, _ in waiting),
        reviewed=sum(item.state == "submitted" and item.review is not None for item in items),
        minutes=sum(item.seconds for item in items) / 60,
        minutes_by_organ={organ: seconds / 60 for organ, seconds in revisions.seconds(round_index).items() if organ is not None},
        median_minutes=float(np.median(minutes)) if minutes else None,
        attention_precision=errors / judged if judged else None,
        voxels=sum(revision.voxels for revision in saved),
        organs=len({(revision.case_id, revision.organ) for revision in saved}),
    )


def annotation_metrics(state: AnnotationProgress) -> dict[str, float | None]:
    return {
        "annotation/cases_submitted": state.submitted,
        "annotation/cases_open": state.open,
        "annotation/cases_to_review": state.to_review,
        "annotation/cases_reviewed": state.reviewed,
        "annotation/minutes": state.minutes,
        "annotation/minutes_per_case_median": state.median_minutes,
        "annotation/attention_precision": state.attention_precision,
        "annotation/voxels_revised": state.voxels,
        "annotation/organs_revised": state.organs,
        **{f"annotation_minutes/{organ}": minutes for organ, minutes in state.minutes_by_organ.items()},
    }


def _oracle_input(item: WorkItem, *, campaign: Campaign, organs: Organs, round_index: int) -> OracleInput:
    workspace = campaign.open_workspace()
    case = workspace.case(item.case_id)
    if not workspace.truth(case.case_id).exists():
        raise CaseError(
            f"the oracle needs a reference label at {workspace.truth(case.case_id)}; the dataset has none", case_id=case.case_id
        )
    truth = _labels(workspace.truth(case.case_id))
    return OracleInput(
        draft=read_draft(workspace, round_index, case, organs).voxels,
        truth=truth,
        organs_with_truth=organs.names,
        attention={name: _labels(workspace.attention(round_index, case.case_id, name)) > 0 for name in organs.names},
        components=tuple(workspace.case_components(round_index, case.case_id)),
        spacing=case.spacing,
    )


# --- merge ----------------------------------------------------------------------------------------------------------


def merge_step(campaign: Campaign, round_index: int) -> int:
    """Write the annotation of every submitted case that waits for no reviewer: draft plus its revisions, with provenance per organ.

    Of a case that was read twice it is the reading that was taken. Returns how many.
    """
    workspace, organs = campaign.open_workspace(), campaign.load_organs()
    with open_database(database_url(campaign)) as database:
        items = to_merge(Queue(database).items(round_index), second_reader_share=campaign.annotation.second_reader_share)
        for item in items:
            _merge_one(workspace, round_index, item, Revisions(database), organs)
    with step_run(campaign, round_index, "merge") as run:
        run.metrics({"merge/cases": len(items)}, step=round_index)
    return len(items)


def _merge_one(workspace: Workspace, round_index: int, item: WorkItem, revisions: Revisions, organs: Organs) -> None:
    case = workspace.case(item.case_id)
    pseudo = read_start(workspace, round_index, case)
    is_predicted = workspace.scores(round_index, case.case_id).exists()
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
    path = workspace.annotation(round_index, case.case_id)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_volume(path, pseudo.with_voxels(label))
    write_atomically(workspace.provenance(round_index, case.case_id), merged.model_dump_json(indent=2))


# --- small things ---------------------------------------------------------------------------------------------------


def database_url(campaign: Campaign) -> str:
    """Of the annotation database: configured, or a SQLite file in the workspace."""
    return campaign.annotation.database or sqlite_url(campaign.open_workspace().annotation_db)


def now() -> str:
    """ISO 8601, UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _labels(path: Path) -> LabelMap:
    return np.asarray(read_volume(path).voxels, np.uint8)


def _hash(*parts: Schema) -> str:
    return hashlib.sha256(json.dumps([p.model_dump(mode="json") for p in parts], sort_keys=True).encode()).hexdigest()[:8]


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    return {"atlas_ray": __version__, **{package: version(package) for package in ("torch", "monai", "ray")}}

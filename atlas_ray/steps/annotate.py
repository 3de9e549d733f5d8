"""How far people are with a round; the oracle in their place."""

from collections import Counter
from collections.abc import Callable
from functools import partial

import numpy as np
from pydantic import Field

from atlas_ray.annotation.database import Database, with_database
from atlas_ray.annotation.drafts import read_draft
from atlas_ray.annotation.oracle import OracleAnnotator
from atlas_ray.annotation.queue import Queue, WorkItem
from atlas_ray.annotation.review import awaiting
from atlas_ray.annotation.revisions import Revisions
from atlas_ray.annotation.simulation import OracleInput, annotate_round
from atlas_ray.cluster.tracking import step_run
from atlas_ray.config import Campaign
from atlas_ray.exceptions import CaseError
from atlas_ray.organs import Organs
from atlas_ray.schema import Schema
from atlas_ray.volume import read_labels

Progress = Callable[[], None]


def _nothing() -> None:
    """No progress bar."""


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


def annotate_step(
    campaign: Campaign, round_index: int, *, minutes: float | None = None, progress: Progress = _nothing
) -> AnnotationProgress:
    """Let the oracle work off the queue where the campaign has one; in any case say how far the round is.

    Args:
        minutes: the oracle's time for this round; None works the queue off.
    """
    if isinstance(campaign.annotation.annotator, OracleAnnotator):
        work = partial(
            _let_oracle_work, campaign, campaign.annotation.annotator, round_index=round_index, minutes=minutes, progress=progress
        )
        with_database(campaign.database_url, work, campaign.cluster.patience_s)
    state = annotation_state(campaign, round_index)
    with step_run(campaign, round_index, "annotate") as run:
        run.metrics(annotation_metrics(state), step=round_index)
    return state


def _let_oracle_work(
    campaign: Campaign, oracle: OracleAnnotator, database: Database, *, round_index: int, minutes: float | None, progress: Progress
) -> None:
    """All that is left of the round; done twice, it finds nothing left."""
    organs = campaign.load_organs()
    annotate_round(
        oracle,
        Queue(database, lease_minutes=campaign.annotation.lease_minutes),
        Revisions(database),
        organs,
        round_index=round_index,
        load=partial(_oracle_input, campaign=campaign, organs=organs, round_index=round_index),
        minutes=minutes,
        progress=lambda item: progress(),
    )


def annotation_state(campaign: Campaign, round_index: int) -> AnnotationProgress:
    """How far a round is; a database that is away is waited for."""
    share = campaign.annotation.second_reader_share

    def count(database: Database) -> AnnotationProgress:
        return annotation_progress(Queue(database), Revisions(database), round_index, second_reader_share=share)

    return with_database(campaign.database_url, count, campaign.cluster.patience_s)


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
    truth = read_labels(workspace.truth(case.case_id))
    return OracleInput(
        draft=read_draft(workspace, round_index, case, organs).voxels,
        truth=truth,
        organs_with_truth=organs.names,
        attention={name: read_labels(workspace.attention(round_index, case.case_id, name)) > 0 for name in organs.names},
        components=tuple(workspace.case_components(round_index, case.case_id)),
        spacing=case.spacing,
    )

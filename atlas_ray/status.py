"""Where a campaign stands: every case's state, every failure's reason, every round's steps, and what to do next. Writes nothing."""

import shutil
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from atlas_ray.annotation.database import open_database
from atlas_ray.annotation.queue import Queue, WorkItem
from atlas_ray.annotation.review import awaiting
from atlas_ray.cluster.prediction import step_of
from atlas_ray.config import Campaign
from atlas_ray.data.ingest import STEP as INGEST
from atlas_ray.exceptions import WorkspaceError
from atlas_ray.lock import Holder, holder_of
from atlas_ray.records import Quarantined, RoundState
from atlas_ray.steps.predict import to_predict
from atlas_ray.tables import result_bytes

# A case is in the last of these that holds for it; "quarantined" and "failed" are reasons to stay where it is.
STATES = (
    "quarantined",  # by ingest: not in the manifest
    "ingested",
    "complete",  # every organ is labeled: there is nothing to predict
    "failed",  # set aside by a later step
    "predicted",
    "queued",
    "leased",
    "set aside",  # skipped or flagged by an annotator
    "submitted",
    "in review",
    "merged",
)
_OF_ITEM = {"waiting": "queued", "leased": "leased", "skipped": "set aside", "flagged": "set aside", "submitted": "submitted"}


@dataclass(frozen=True, slots=True)
class Status:
    """Of a campaign, seen from one round.

    Args:
        states: case -> one of STATES.
        failures: cases that are set aside now, with the reasons.
        rounds: every round that was started.
        holder: who is at work, and seconds since their last sign of life.
        backlog: entries that the tracking server has not been told.
        prediction_bytes: of each round's predictions, as they were written.
        free_bytes: on the workspace's disk; None in a bucket.
    """

    round: int
    states: dict[str, str]
    failures: tuple[Quarantined, ...]
    rounds: dict[int, RoundState]
    holder: tuple[Holder, float] | None
    backlog: int
    prediction_bytes: dict[int, int]
    free_bytes: int | None

    @property
    def counts(self) -> dict[str, int]:
        """How many cases are in each state, in the order of STATES; states without any are left out."""
        found = Counter(self.states.values())
        return {state: found[state] for state in STATES if found[state]}


def read_status(campaign: Campaign, round_index: int | None = None) -> Status:
    """
    Args:
        round_index: None is the newest round with a step of its own.

    Raises:
        WorkspaceError: nothing was ever ingested.
    """
    workspace = campaign.open_workspace()
    rounds = {r: workspace.round_state(r) for r in workspace.rounds()}
    shown = workspace.newest_round() if round_index is None else round_index
    quarantined = workspace.quarantined()
    if not workspace.manifest.exists() and not quarantined:
        raise WorkspaceError(f"{workspace.manifest} is missing; run `python -m jobs.ingest CONFIG` first")
    states = case_states(campaign, shown, quarantined)
    of_round = (INGEST, "cache", step_of(shown))
    failed = {case_id for case_id, state in states.items() if state in ("quarantined", "failed")}
    failures = tuple(q for q in quarantined if q.step in of_round and (q.case_id in failed or q.step == "cache"))
    backlog = workspace.tracking_backlog
    return Status(
        round=shown,
        states=states,
        failures=failures,
        rounds=rounds,
        holder=holder_of(workspace),
        backlog=backlog.read_text().count("\n") if backlog.exists() else 0,
        prediction_bytes={r: result_bytes(workspace, r) for r in rounds},
        free_bytes=shutil.disk_usage(workspace.root).free if isinstance(workspace.root, Path) else None,
    )


def case_states(campaign: Campaign, round_index: int, quarantined: list[Quarantined]) -> dict[str, str]:
    """Case -> one of STATES, in the order of the manifest and then of the quarantine list."""
    workspace = campaign.open_workspace()
    cases = workspace.cases() if workspace.manifest.exists() else []
    to_do = {case.case_id for case in to_predict(campaign, ("train", "pool", "holdout"))} if cases else set()
    states = {case.case_id: "ingested" if case.case_id in to_do else "complete" for case in cases}
    known = set(states)
    failed = {q.case_id for q in quarantined if q.step == step_of(round_index)}
    for state, case_ids in (
        ("failed", failed),
        ("predicted", workspace.predicted(round_index)),
        *_annotated(campaign, round_index),
        ("merged", workspace.merged(round_index)),
    ):
        states |= dict.fromkeys(case_ids & known, state)
    return states | {q.case_id: "quarantined" for q in quarantined if q.step == INGEST and q.case_id not in known}


def _annotated(campaign: Campaign, round_index: int) -> list[tuple[str, set[str]]]:
    """The queue's states, with the cases that have reached them; of two readings the one that is further counts."""
    if not campaign.has_database:
        return []
    with open_database(campaign.database_url) as database:
        items: list[WorkItem] = Queue(database).items(round_index)
    waiting = awaiting(items, second_reader_share=campaign.annotation.second_reader_share)
    reached: dict[str, set[str]] = {state: set() for state in STATES if state in _OF_ITEM.values()}
    for item in items:
        reached[_OF_ITEM[item.state]].add(item.case_id)
    return [*reached.items(), ("in review", {item.case_id for item, _ in waiting if item.state == "submitted"})]


def next_command(campaign: Campaign, config: str, status: Status) -> str:
    """What moves the campaign on."""
    counts, state = status.counts, status.rounds.get(status.round, RoundState())
    if status.holder is not None:
        return f"wait: {status.holder[0]} is at work"
    if not counts.keys() - {"quarantined"}:
        return f"python -m jobs.ingest {config}"
    if counts.get("failed", 0) > campaign.cluster.max_failed_fraction * len(status.states):
        return f"python -m jobs.predict {config} --round {status.round} --retry-failed"
    if counts.get("in review", 0) or (counts.keys() & {"queued", "leased"} and campaign.annotation.annotator.annotator == "human"):
        return f"python -m ui {config} --round {status.round}"
    following = status.round + 1 if "check" in state.finished else status.round
    return f"python -m jobs.run_round {config} --round {following}"

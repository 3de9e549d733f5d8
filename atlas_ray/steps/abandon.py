"""A round that does not go on, and a round that starts again from one of its steps. Neither deletes anything."""

from atlas_ray.annotation.database import Database, with_database
from atlas_ray.annotation.queue import Queue
from atlas_ray.annotation.revisions import Revisions
from atlas_ray.config import Campaign
from atlas_ray.exceptions import WorkspaceError
from atlas_ray.schema import Schema
from atlas_ray.workspace import now

NOTE = "the round was abandoned"


class Abandoned(Schema):
    """What an abandoned round leaves.

    Args:
        closed: items of the queue that nobody will be given any more.
        submitted: items that were handed in, and stay so.
        revisions: saved edits, which stay.
        merged: annotations, which stay and count as known in every later round.
        predicted: cases whose prediction stays.
    """

    round: int
    closed: int
    submitted: int
    revisions: int
    merged: int
    predicted: int


def abandon_round(campaign: Campaign, round_index: int) -> Abandoned:
    """Mark a round abandoned and close its queue.

    Raises:
        WorkspaceError: nothing was ever done in that round.
    """
    workspace = campaign.open_workspace()
    if not workspace.round(round_index).exists():
        known = ", ".join(map(str, workspace.rounds())) or "none"
        raise WorkspaceError(f"round {round_index} was never started in {workspace.root}; rounds there: {known}")
    state = workspace.round_state(round_index)
    workspace.write_round_state(round_index, state.model_copy(update={"abandoned": state.abandoned or now()}))

    def close(database: Database) -> tuple[int, int, int]:
        queue = Queue(database)
        closed = queue.close_round(round_index, "abandon", note=NOTE)
        revisions = len(Revisions(database).history(round_index, reading=None))
        return closed, queue.counts(round_index).get("submitted", 0), revisions

    closed = submitted = revisions = 0
    if campaign.has_database:
        closed, submitted, revisions = with_database(campaign.database_url, close, campaign.cluster.patience_s)
    return Abandoned(
        round=round_index,
        closed=closed,
        submitted=submitted,
        revisions=revisions,
        merged=len(workspace.merged(round_index)),
        predicted=len(workspace.predicted(round_index)),
    )


def replay_from(campaign: Campaign, round_index: int, steps: tuple[str, ...], step: str) -> None:
    """Let a round start again from a step: this one and those after it count as not done. An abandoned round goes on.

    Results whose inputs are the same are used again: a case that is predicted by the same weights is not predicted twice. Networks
    to be trained again are set aside beside the new ones, in a folder that ends in the time. Annotators' work stays as it is.

    Args:
        steps: of a round, in their order.
    """
    workspace = campaign.open_workspace()
    again = steps[steps.index(step) :]
    trained = {"train": round_index, "finetune": round_index + 1}
    for name in (name for name in again if name in trained):
        _set_networks_aside(campaign, trained[name])
    state = workspace.round_state(round_index)
    finished = {name: when for name, when in state.finished.items() if name not in again}
    workspace.write_round_state(round_index, state.model_copy(update={"finished": finished, "abandoned": None}))
    if state.abandoned and campaign.has_database:
        url, patience_s = campaign.database_url, campaign.cluster.patience_s
        with_database(url, lambda database: Queue(database).open_round(round_index, "replay", note=NOTE), patience_s)


def _set_networks_aside(campaign: Campaign, round_index: int) -> None:
    folder = campaign.open_workspace().checkpoints(round_index)
    aside = folder.with_name(f"{folder.name}.{now().replace(':', '')}")
    for path in list(folder.iterdir()) if folder.exists() else ():
        aside.mkdir(parents=True, exist_ok=True)
        path.replace(aside / path.name)

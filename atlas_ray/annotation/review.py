"""Review: a second person accepts a submitted case, or sends it back with a reason.

Only the two decisions: second readers for a share of the cases, blind double reading and agreement come with the app's
review stage. It needs no network and no GPU.
"""

from typing import Literal

from atlas_ray.annotation.queue import Queue, QueueError, WorkItem

Role = Literal["annotator", "reviewer", "admin"]


def accept(queue: Queue, item_id: int, reviewer: str, *, role: Role, note: str = "") -> WorkItem:
    """Accept a submitted item.

    Raises:
        QueueError: the role may not review, or the reviewer annotated the case.
        LeaseError: the item is not submitted.
    """
    _require_second_person(queue, item_id, reviewer, role)
    values = {"review": "accepted", "reviewer": reviewer}
    return queue.transition(item_id, reviewer, "accept", state="submitted", to="submitted", values=values, detail=note)


def reject(queue: Queue, item_id: int, reviewer: str, *, role: Role, reason: str) -> WorkItem:
    """Send a submitted item back to the queue; its revisions stay, and the reason becomes its note. Raises as `accept`."""
    if not reason.strip():
        raise QueueError("a rejection needs a reason: the annotator has nothing else to go by")
    _require_second_person(queue, item_id, reviewer, role)
    values = {"review": "rejected", "reviewer": reviewer, "note": reason}
    return queue.transition(item_id, reviewer, "reject", state="submitted", to="waiting", values=values, detail=reason)


def _require_second_person(queue: Queue, item_id: int, reviewer: str, role: Role) -> None:
    """Reviewers and admins review; nobody but an admin decides on their own work."""
    if role == "annotator":
        raise QueueError(f"{reviewer} is an annotator; reviewers and admins may review")
    if role != "admin" and queue.item(item_id).user == reviewer:
        raise QueueError(f"{reviewer} annotated this case; somebody else must review it")

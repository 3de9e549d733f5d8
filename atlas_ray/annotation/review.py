"""Review: who looks at a submitted case once more, and what they may decide.

    waiting -> leased -> submitted ─┬─ nobody has to look ───────────────────────────────> merged
                            ^       ├─ reviewer accepts ─────────────────────────────────> merged
                            └───────┴─ reviewer rejects, with a reason: back to its annotator

A share of the cases gets a second reader. Another share is read twice: two annotators start from the same draft, blind to each
other, and a reviewer takes one of the readings; editing on top is reopening the one that was taken. It needs no network and no GPU:
labels that are there already can be queued as submitted by nobody.
"""

import hashlib
from collections.abc import Iterable, Sequence
from typing import Literal

from atlas_ray.annotation.queue import Queue, QueueEntry, QueueError, WorkItem

Role = Literal["annotator", "reviewer", "admin"]
Stage = Literal["second_reader", "double_reading"]


class RoleError(QueueError):
    """What the user wants to do is not theirs to do."""


# --- who is looked at -------------------------------------------------------------------------------------------------


def is_drawn(stage: Stage, round_index: int, case_id: str, share: float) -> bool:
    """Whether a case belongs to the share: the same answer for everybody, at any time, independent of the other cases."""
    digest = hashlib.sha256(f"{stage}:{round_index}:{case_id}".encode()).digest()
    return int.from_bytes(digest[:8]) < share * 2**64


def with_second_readings(entries: Iterable[QueueEntry], round_index: int, share: float) -> list[QueueEntry]:
    """The list with a second, blind reading of the share's cases, each right after the first."""
    listed = []
    for entry in entries:
        listed.append(entry)
        if is_drawn("double_reading", round_index, entry.case_id, share):
            listed.append(entry.model_copy(update={"reading": 2}))
    return listed


def awaiting(items: Sequence[WorkItem], *, second_reader_share: float) -> list[tuple[WorkItem, str]]:
    """The items of a round that a reviewer has to look at, each with the reason, in the order given."""
    double = _read_twice(items)
    reasons = ((item, _reason(item, double, second_reader_share)) for item in items)
    return [(item, reason) for item, reason in reasons if reason]


def to_merge(items: Sequence[WorkItem], *, second_reader_share: float) -> list[WorkItem]:
    """The items of a round whose edits count: submitted, and nothing about the case is left to decide."""
    double = _read_twice(items)
    return [
        item
        for item in items
        if item.state == "submitted"
        and _counts(item)
        and item.case_id not in double
        and not _reason(item, double, second_reader_share)
    ]


def _counts(item: WorkItem) -> bool:
    """A skipped reading, or one whose twin was taken, leaves the case to the other one."""
    return item.review != "superseded" and item.state != "skipped"


def _read_twice(items: Sequence[WorkItem]) -> dict[str, bool]:
    """Cases with two readings that count -> whether both are submitted."""
    by_case: dict[str, list[WorkItem]] = {}
    for item in filter(_counts, items):
        by_case.setdefault(item.case_id, []).append(item)
    return {case: all(i.state == "submitted" for i in readings) for case, readings in by_case.items() if len(readings) > 1}


def _reason(item: WorkItem, double: dict[str, bool], share: float) -> str:
    """Why somebody has to look; "" where nobody has to."""
    if item.state == "flagged":
        return "flagged"
    if item.state != "submitted" or item.review is not None:
        return ""
    if item.case_id in double:
        return "two readings to decide between" if double[item.case_id] else ""
    if item.user is None:
        return "a label nobody has looked at"
    if item.verdict == "unsure":
        return "the annotator was unsure"
    return "second reader" if is_drawn("second_reader", item.round, item.case_id, share) else ""


# --- what they decide -------------------------------------------------------------------------------------------------


def accept(queue: Queue, item_id: int, reviewer: str, *, role: Role, note: str = "") -> WorkItem:
    """Accept a submitted item.

    Raises:
        RoleError: the role may not review, or the reviewer annotated the case.
        LeaseError: the item is not submitted.
        QueueError: the case is read twice and not decided, or its other reading was taken.
    """
    item = _require_second_person(queue, item_id, reviewer, role)
    if item.review == "superseded":
        raise QueueError("the case's other reading was taken; take this one instead to change that")
    if item.case_id in _read_twice(queue.readings(item.round, item.case_id)):
        raise QueueError(f"case {item.case_id} is read twice; take one of its readings instead of accepting one")
    values = {"review": "accepted", "reviewer": reviewer}
    return queue.transition(item_id, reviewer, "accept", state="submitted", to="submitted", values=values, detail=note)


def reject(queue: Queue, item_id: int, reviewer: str, *, role: Role, reason: str) -> WorkItem:
    """Send a submitted item back to its annotator, also one of two readings; its revisions and its note stay.

    Raises:
        RoleError, LeaseError: as `accept`.
        QueueError: no reason, or the case's other reading was taken.
    """
    if not reason.strip():
        raise QueueError("a rejection needs a reason: the annotator has nothing else to go by")
    if _require_second_person(queue, item_id, reviewer, role).review == "superseded":
        raise QueueError("the case's other reading was taken; nothing waits for this one")
    values = {"review": "rejected", "reviewer": reviewer}
    return queue.transition(item_id, reviewer, "reject", state="submitted", to="waiting", values=values, detail=reason)


def resolve(queue: Queue, round_index: int, case_id: str, reviewer: str, *, role: Role, reading: int) -> WorkItem:
    """Take one of a case's two readings.

    Raises:
        RoleError: the role may not review, or the reviewer did one of the readings.
        LeaseError: the case does not have two submitted readings.
    """
    for item in queue.readings(round_index, case_id):
        _require_second_person(queue, item.item_id, reviewer, role)
    return queue.settle(round_index, case_id, reviewer, reading=reading)


def require_reviewer(user: str, role: Role) -> None:
    """Raises RoleError for an annotator."""
    if role == "annotator":
        raise RoleError(f"{user} is an annotator; reviewers and admins may review")


def _require_second_person(queue: Queue, item_id: int, reviewer: str, role: Role) -> WorkItem:
    """Reviewers and admins review; nobody but an admin decides on their own work."""
    require_reviewer(reviewer, role)
    item = queue.item(item_id)
    if role != "admin" and item.user == reviewer:
        raise RoleError(f"{reviewer} annotated this case; somebody else must review it")
    return item

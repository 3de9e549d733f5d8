"""A second person decides on a submitted case."""

import pytest

from atlas_ray.annotation.database import Database
from atlas_ray.annotation.queue import LeaseError, Queue, QueueEntry, QueueError, WorkItem
from atlas_ray.annotation.review import accept, reject


@pytest.fixture
def queue(database: Database) -> Queue:
    queue = Queue(database)
    queue.fill(1, [QueueEntry(case_id="a", organs=("liver",), rank=1)])
    return queue


@pytest.fixture
def submitted(queue: Queue) -> WorkItem:
    return queue.submit(queue.claim(1, "a", "anna").item_id, "anna", seconds=60)


def test_accepting_keeps_it_submitted(queue: Queue, submitted: WorkItem) -> None:
    item = accept(queue, submitted.item_id, "rita", role="reviewer", note="good")
    assert (item.state, item.user, item.review, item.reviewer) == ("submitted", "anna", "accepted", "rita")
    last = queue.events(item.item_id)[-1]
    assert (last.user, last.action, last.detail) == ("rita", "accept", "good")


def test_rejecting_sends_it_back_with_the_reason(queue: Queue, submitted: WorkItem) -> None:
    item = reject(queue, submitted.item_id, "rita", role="reviewer", reason="the dome is cut off")
    assert (item.state, item.review, item.note, item.seconds) == ("waiting", "rejected", "the dome is cut off", 60)
    assert queue.next("ben") is None  # it goes back to the one who knows it
    again = queue.next("anna")
    assert again is not None
    assert (again.case_id, again.note) == ("a", "the dome is cut off")
    assert queue.submit(item.item_id, "anna").review is None  # a new submission is reviewed anew


def test_who_may_review(queue: Queue, submitted: WorkItem) -> None:
    with pytest.raises(QueueError, match="ben is an annotator"):
        accept(queue, submitted.item_id, "ben", role="annotator")
    with pytest.raises(QueueError, match="anna annotated this case"):
        accept(queue, submitted.item_id, "anna", role="reviewer")
    with pytest.raises(QueueError, match="needs a reason"):
        reject(queue, submitted.item_id, "rita", role="reviewer", reason=" ")
    assert queue.item(submitted.item_id) == submitted
    assert accept(queue, submitted.item_id, "anna", role="admin").review == "accepted"


def test_only_what_is_submitted_can_be_reviewed(queue: Queue, submitted: WorkItem) -> None:
    queue.reopen(submitted.item_id, "anna")
    with pytest.raises(LeaseError, match="rita cannot accept it: case a of round 1 is leased by anna"):
        accept(queue, submitted.item_id, "rita", role="reviewer")

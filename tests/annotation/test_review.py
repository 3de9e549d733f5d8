"""A second person decides on a submitted case."""

import numpy as np
import pytest

from atlas_ray.annotation.database import Database
from atlas_ray.annotation.queue import LeaseError, Queue, QueueEntry, QueueError, WorkItem
from atlas_ray.annotation.review import RoleError, accept, awaiting, is_drawn, reject, resolve, to_merge, with_second_readings
from atlas_ray.annotation.revisions import Revisions, TimeSpent


@pytest.fixture
def queue(database: Database) -> Queue:
    queue = Queue(database)
    queue.fill(1, [QueueEntry(case_id="a", organs=("liver",), rank=1)])
    return queue


@pytest.fixture
def submitted(queue: Queue) -> WorkItem:
    return queue.submit(queue.claim(1, "a", "anna").item_id, "anna", seconds=60, note="thin slices")


def test_accepting_keeps_it_submitted(queue: Queue, submitted: WorkItem) -> None:
    item = accept(queue, submitted.item_id, "rita", role="reviewer", note="good")
    assert (item.state, item.user, item.review, item.reviewer) == ("submitted", "anna", "accepted", "rita")
    last = queue.events(item.item_id)[-1]
    assert (last.user, last.action, last.detail) == ("rita", "accept", "good")


def test_rejecting_sends_it_back_with_the_reason(queue: Queue, submitted: WorkItem) -> None:
    item = reject(queue, submitted.item_id, "rita", role="reviewer", reason="the dome is cut off")
    assert (item.state, item.review, item.note, item.seconds) == ("waiting", "rejected", "thin slices", 60)
    assert queue.events(item.item_id)[-1].detail == "the dome is cut off"
    assert queue.next("ben") is None  # it goes back to the one who knows it
    again = queue.next("anna")
    assert again is not None
    assert again.case_id == "a"
    assert queue.submit(item.item_id, "anna").review is None  # a new submission is reviewed anew


def test_what_was_sent_back_comes_before_cases_of_a_better_rank(queue: Queue) -> None:
    queue.fill(1, [QueueEntry(case_id=c, organs=("liver",), rank=n) for n, c in enumerate("ab", 1)])
    item = queue.submit(queue.claim(1, "b", "anna").item_id, "anna")
    reject(queue, item.item_id, "rita", role="reviewer", reason="the dome is cut off")
    turns = [queue.next(user) for user in ("anna", "ben")]
    assert [turn and turn.case_id for turn in turns] == ["b", "a"]


def test_who_may_review(queue: Queue, submitted: WorkItem) -> None:
    for user, role, why in (("ben", "annotator", "ben is an annotator"), ("anna", "reviewer", "anna annotated this case")):
        with pytest.raises(RoleError, match=why):
            accept(queue, submitted.item_id, user, role=role)  # type: ignore[arg-type]
        with pytest.raises(RoleError, match=why):
            reject(queue, submitted.item_id, user, role=role, reason="no")  # type: ignore[arg-type]
    with pytest.raises(QueueError, match="needs a reason"):
        reject(queue, submitted.item_id, "rita", role="reviewer", reason=" ")
    assert queue.item(submitted.item_id) == submitted
    assert accept(queue, submitted.item_id, "anna", role="admin").review == "accepted"


def test_only_what_is_submitted_can_be_reviewed(queue: Queue, submitted: WorkItem) -> None:
    queue.reopen(submitted.item_id, "anna")
    with pytest.raises(LeaseError, match="rita cannot accept it: case a of round 1 is leased by anna"):
        accept(queue, submitted.item_id, "rita", role="reviewer")


# --- who is looked at ---


def waiting_for(queue: Queue, share: float = 0.0) -> dict[tuple[str, int], str]:
    return {(item.case_id, item.reading): why for item, why in awaiting(queue.items(1), second_reader_share=share)}


def merged(queue: Queue, share: float = 0.0) -> list[tuple[str, int]]:
    return [(item.case_id, item.reading) for item in to_merge(queue.items(1), second_reader_share=share)]


def test_the_share_is_the_same_for_everybody_and_close_to_what_was_asked() -> None:
    cases = [f"case_{n}" for n in range(2000)]
    drawn = [case for case in cases if is_drawn("second_reader", 1, case, 0.1)]
    assert 160 <= len(drawn) <= 240  # 200 expected, standard deviation 13.4: three of them on either side
    assert set(drawn) <= {case for case in cases if is_drawn("second_reader", 1, case, 0.2)}  # a larger share keeps the smaller
    assert drawn != [case for case in cases if is_drawn("second_reader", 2, case, 0.1)]  # other rounds, other cases
    assert not any(is_drawn("second_reader", 1, case, 0.0) for case in cases)
    assert all(is_drawn("second_reader", 1, case, 1.0) for case in cases)


def test_known_draws_do_not_change_with_the_version() -> None:
    """sha256("second_reader:1:case_N") begins with these bytes; a quarter is below 0x40."""
    assert [n for n in range(12) if is_drawn("second_reader", 1, f"case_{n}", 0.25)] == DRAWN


def test_every_round_draws_its_own_second_readers() -> None:
    names = [f"case_{n}" for n in range(12)]
    known = {"organs": ("liver",), "rank": 1, "score": 0, "state": "submitted", "user": "anna"}
    for round_index, drawn in ((1, DRAWN), (2, [n for n in range(12) if is_drawn("second_reader", 2, names[n], 0.25)])):
        items = [WorkItem(item_id=n, round=round_index, case_id=name, **known) for n, name in enumerate(names)]  # type: ignore[arg-type]
        assert [item.item_id for item, _ in awaiting(items, second_reader_share=0.25)] == drawn
    assert drawn != DRAWN


def test_a_second_reader_keeps_a_case_from_being_merged_until_it_is_accepted(queue: Queue, submitted: WorkItem) -> None:
    assert (waiting_for(queue), merged(queue)) == ({}, [("a", 1)])
    assert (waiting_for(queue, 1.0), merged(queue, 1.0)) == ({("a", 1): "second reader"}, [])
    accept(queue, submitted.item_id, "rita", role="reviewer")
    assert (waiting_for(queue, 1.0), merged(queue, 1.0)) == ({}, [("a", 1)])


def test_who_was_unsure_or_flagged_a_case_is_heard_whatever_the_share(queue: Queue) -> None:
    queue.fill(1, [QueueEntry(case_id=c, organs=("liver",), rank=n) for n, c in enumerate("ab", 1)])
    queue.submit(queue.claim(1, "a", "anna").item_id, "anna", verdict="unsure")
    queue.flag(queue.claim(1, "b", "anna").item_id, "anna", note="two livers")
    assert waiting_for(queue) == {("a", 1): "the annotator was unsure", ("b", 1): "flagged"}
    assert merged(queue) == []


def test_labels_that_exist_are_reviewed_without_an_annotator(queue: Queue) -> None:
    queue.fill(2, [QueueEntry(case_id=c, organs=("liver",), rank=n) for n, c in enumerate("ab", 1)], state="submitted")
    a, b = queue.items(2)
    assert [why for _, why in awaiting([a, b], second_reader_share=0.0)] == ["a label nobody has looked at"] * 2
    assert queue.next("anna", round_index=2) is None
    accept(queue, a.item_id, "rita", role="reviewer")
    reject(queue, b.item_id, "rita", role="reviewer", reason="the dome is missing")
    assert [i.case_id for i in to_merge(queue.items(2), second_reader_share=0.0)] == ["a"]
    fixing = queue.next("anna", round_index=2)
    assert fixing is not None
    assert (fixing.case_id, fixing.review) == ("b", "rejected")


# --- double reading ---


@pytest.fixture
def twice(database: Database) -> Queue:
    """Case a is read twice, case b once."""
    queue = Queue(database)
    queue.fill(1, [QueueEntry(case_id=c, reading=n, organs=("liver",), rank=rank) for c, n, rank in TWICE])
    return queue


TWICE = (("a", 1, 1), ("a", 2, 1), ("b", 1, 2))
DRAWN = [7, 11]


def read_both(queue: Queue) -> None:
    for user in ("anna", "ben"):
        item = queue.next(user)
        assert item is not None
        queue.submit(item.item_id, user)


def test_the_share_of_cases_is_listed_twice() -> None:
    entries = [QueueEntry(case_id=c, organs=("liver",), rank=n) for n, c in enumerate("ab", 1)]
    assert with_second_readings(entries, 1, 0.0) == entries
    assert [(e.case_id, e.reading, e.rank) for e in with_second_readings(entries, 1, 1.0)] == [
        ("a", 1, 1),
        ("a", 2, 1),
        ("b", 1, 2),
        ("b", 2, 2),
    ]


def test_who_is_read_twice_says_nothing_of_who_gets_a_second_reader() -> None:
    entries = [QueueEntry(case_id=f"case_{n}", organs=("liver",), rank=n) for n in range(12)]
    twice = [e.rank for e in with_second_readings(entries, 1, 0.25) if e.reading == 2]
    assert twice == [n for n in range(12) if is_drawn("double_reading", 1, f"case_{n}", 0.25)] != DRAWN


def test_nobody_reads_a_case_twice(twice: Queue) -> None:
    first = twice.next("anna")
    assert first is not None
    assert (first.case_id, first.reading) == ("a", 1)
    twice.submit(first.item_id, "anna")
    after = twice.next("anna")
    assert after is not None
    assert (after.case_id, after.reading) == ("b", 1)
    second = twice.next("ben")
    assert second is not None
    assert (second.case_id, second.reading) == ("a", 2)
    with pytest.raises(LeaseError, match="anna cannot open it"):
        twice.claim(1, "a", "anna", reading=2)
    twice.submit(second.item_id, "ben")
    with pytest.raises(LeaseError, match="anna cannot reopen it"):
        twice.reopen(second.item_id, "anna")


def test_who_has_edited_one_reading_does_not_get_the_other_even_after_losing_it(twice: Queue, database: Database) -> None:
    first = twice.claim(1, "a", "anna")
    Revisions(database).save(1, "a", "liver", user="anna", parent_id=0, runs=[[0, 1, 1]])
    twice.release(first.item_id, "anna")
    twice.claim(1, "a", "carl")
    with pytest.raises(LeaseError):
        twice.claim(1, "a", "anna", reading=2)


def test_blind_is_who_did_the_other_reading_of_that_case_in_that_round(twice: Queue, database: Database) -> None:
    """Who has held and edited a's first reading may go on with it, and may do the second one of another case, or next round."""
    first = twice.claim(1, "a", "anna")
    Revisions(database).save(1, "a", "liver", user="anna", parent_id=0, runs=[[0, 1, 1]])
    twice.release(first.item_id, "anna")
    assert twice.claim(1, "a", "anna").item_id == first.item_id
    entries = [QueueEntry(case_id=c, reading=n, organs=("liver",), rank=rank) for c, n, rank in (*TWICE, ("b", 2, 2))]
    for round_index, case_id in ((1, "b"), (2, "a")):
        twice.fill(round_index, entries)
        assert twice.claim(round_index, case_id, "anna", reading=2).user == "anna"


def test_a_reading_that_was_set_aside_is_not_for_who_did_the_other(twice: Queue) -> None:
    twice.submit(twice.claim(1, "a", "anna").item_id, "anna")
    twice.skip(twice.claim(1, "a", "ben", reading=2).item_id, "ben")
    with pytest.raises(LeaseError, match="anna cannot open it: case a of round 1 is skipped by ben"):
        twice.claim(1, "a", "anna", reading=2)
    assert twice.claim(1, "a", "carl", reading=2).user == "carl"


def test_readings_have_their_own_edits_verdicts_and_time(database: Database) -> None:
    revisions = Revisions(database)
    for reading, user, start in ((1, "anna", 0), (2, "ben", 5)):
        saved = revisions.save(1, "a", "liver", user=user, parent_id=0, runs=[[start, 1, 1]], seconds=start, reading=reading)
        assert saved.revision_id == 1
    assert [e.runs.tolist() for e in revisions.edits(1, "a", reading=2)] == [[[5, 1, 1]]]
    assert [r.user for r in revisions.history(1, "a", "liver")] == ["anna"]
    assert [revisions.runs(r).tolist() for r in revisions.history(1, "a", "liver", reading=2)] == [[[5, 1, 1]]]
    revisions.judge(1, "a", "liver", 1, "fixed", user="anna")
    revisions.judge(1, "a", "liver", 1, "not_an_error", user="ben", reading=2)
    assert [v.verdict for v in revisions.verdicts(1, "a", reading=2)] == ["not_an_error"]
    assert sorted(v.verdict for v in revisions.verdicts(1)) == ["fixed", "not_an_error"]
    revisions.log_times(1, "a", [TimeSpent(seconds=2)], user="ben", reading=2)
    assert revisions.seconds(1, "a", reading=1) == {"liver": 0.0}
    assert revisions.seconds(1, "a", reading=2) == {"liver": 5.0, None: 2.0}
    assert revisions.seconds(1, "a") == {"liver": 5.0, None: 2.0}


def test_a_reading_is_replayed_and_reverted_on_its_own(database: Database) -> None:
    """The first one has one revision of the liver; the second one two, of another organ."""
    revisions = Revisions(database)
    key, nothing = (1, "a", "spleen"), np.zeros((3, 2, 2), bool)
    revisions.save(1, "a", "liver", user="anna", parent_id=0, runs=[[0, 1, 1]])
    for parent_id, start in ((0, 5), (1, 7)):
        revisions.save(*key, user="ben", parent_id=parent_id, runs=[[start, 1, 1]], reading=2)
    assert [revisions.changed_organs(1, "a", reading=n) for n in (1, 2)] == [("liver",), ("spleen",)]
    assert [revisions.current(*key, reading=n) for n in (1, 2)] == [0, 2]
    reverted = revisions.revert(nothing, *key, to=1, user="ben", reading=2)
    assert (reverted.reading, reverted.revision_id, reverted.kind) == (2, 3, "revert")
    masks = [np.flatnonzero(revisions.mask(nothing, *key, reading=n).ravel(order="F")).tolist() for n in (1, 2)]
    assert masks == [[], [5]]


def test_two_readings_wait_for_a_decision_and_the_taken_one_is_merged(twice: Queue) -> None:
    assert merged(twice) == []
    item = twice.next("anna")
    assert item is not None
    twice.submit(item.item_id, "anna")
    assert (waiting_for(twice), merged(twice)) == ({}, [])  # the other one is still being read
    item = twice.next("ben")
    assert item is not None
    twice.submit(item.item_id, "ben")
    why = "two readings to decide between"
    assert (waiting_for(twice), merged(twice)) == ({("a", 1): why, ("a", 2): why}, [])
    taken = resolve(twice, 1, "a", "rita", role="reviewer", reading=2)
    assert (taken.reading, taken.review, taken.reviewer) == (2, "accepted", "rita")
    assert (waiting_for(twice, 1.0), merged(twice, 1.0)) == ({}, [("a", 2)])
    assert twice.item((1, "a")).review == "superseded"
    resolve(twice, 1, "a", "rita", role="reviewer", reading=1)  # on second thoughts
    assert merged(twice) == [("a", 1)]


def test_the_reading_that_was_not_taken_is_not_accepted_beside_the_other(twice: Queue) -> None:
    """Two accepted ones would be neither merged nor waited for."""
    read_both(twice)
    resolve(twice, 1, "a", "rita", role="reviewer", reading=2)
    with pytest.raises(QueueError, match="the case's other reading was taken"):
        accept(twice, twice.item((1, "a", 1)).item_id, "rita", role="reviewer")
    assert accept(twice, twice.item((1, "a", 2)).item_id, "rita", role="reviewer", note="good").review == "accepted"
    assert merged(twice) == [("a", 2)]


def test_a_decision_is_of_one_round(twice: Queue) -> None:
    read_both(twice)
    twice.fill(2, [QueueEntry(case_id="a", reading=n, organs=("liver",), rank=1) for n in (1, 2)], state="submitted")
    resolve(twice, 1, "a", "rita", role="reviewer", reading=2)
    assert [(i.round, i.reading, i.review) for r in (1, 2) for i in twice.readings(r, "a")] == [
        (1, 1, "superseded"),
        (1, 2, "accepted"),
        (2, 1, None),
        (2, 2, None),
    ]


def test_the_taken_reading_can_be_edited_on_top(twice: Queue) -> None:
    read_both(twice)
    taken = resolve(twice, 1, "a", "rita", role="reviewer", reading=1)
    twice.reopen(taken.item_id, "rita")
    assert merged(twice) == []
    twice.submit(taken.item_id, "rita")
    assert merged(twice) == [("a", 1)]


def test_only_a_third_person_decides(twice: Queue) -> None:
    with pytest.raises(LeaseError, match="rita cannot resolve it: case a of round 1 is waiting"):
        resolve(twice, 1, "a", "rita", role="reviewer", reading=1)
    read_both(twice)
    with pytest.raises(RoleError, match="annotated this case"):
        resolve(twice, 1, "a", "ben", role="reviewer", reading=1)
    with pytest.raises(QueueError, match="is read twice"):
        accept(twice, twice.item((1, "a")).item_id, "rita", role="reviewer")
    with pytest.raises(LeaseError):
        resolve(twice, 1, "b", "rita", role="reviewer", reading=1)


def test_a_skipped_reading_leaves_the_case_to_the_other(twice: Queue) -> None:
    item = twice.next("anna")
    assert item is not None
    twice.submit(item.item_id, "anna")
    twice.skip(twice.claim(1, "a", "ben", reading=2).item_id, "ben")
    assert merged(twice) == [("a", 1)]


def test_peek_says_what_comes_after_what_is_held(twice: Queue) -> None:
    def peek(user: str) -> tuple[str, int] | None:
        item = twice.peek(user, round_index=1)
        return item and (item.case_id, item.reading)

    assert peek("anna") == ("a", 1)
    twice.next("anna")
    assert (peek("anna"), peek("ben")) == (("b", 1), ("a", 2))
    assert [i.state for i in twice.items(1)] == ["leased", "waiting", "waiting"]  # nothing was taken


def test_the_reading_that_was_not_taken_is_not_sent_back_either(twice: Queue) -> None:
    """Its annotator would do again what nobody waits for; the taken one may still be sent back."""
    read_both(twice)
    resolve(twice, 1, "a", "rita", role="reviewer", reading=2)
    with pytest.raises(QueueError, match="the case's other reading was taken"):
        reject(twice, twice.item((1, "a", 1)).item_id, "rita", role="reviewer", reason="no")
    assert reject(twice, twice.item((1, "a", 2)).item_id, "rita", role="reviewer", reason="the dome").state == "waiting"

"""The queue: in order of rank, one holder per item, and nothing forgotten."""

import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import pytest
from annotation_helpers import Clock, claim_one, lease_all
from pydantic import ValidationError

from atlas_ray.annotation.database import Database, open_database
from atlas_ray.annotation.oracle import HumanAnnotator, OracleAnnotator
from atlas_ray.annotation.queue import Annotation, LeaseError, Queue, QueueEntry, QueueError


def entries(*case_ids: str) -> list[QueueEntry]:
    return [QueueEntry(case_id=c, organs=("liver", "aorta"), rank=rank, score=1 / rank) for rank, c in enumerate(case_ids, 1)]


@pytest.fixture
def queue(database: Database, clock: Clock) -> Queue:
    """Round 1 with cases a, b, c; leases of 30 minutes."""
    queue = Queue(database, lease_minutes=30, now=clock)
    queue.fill(1, entries("a", "b", "c"))
    return queue


def states(queue: Queue, round_index: int = 1) -> dict[str, str]:
    return {item.case_id: item.state for item in queue.items(round_index)}


# --- filling ---


def test_an_item_says_all_there_is_to_know(queue: Queue) -> None:
    item = queue.items(1)[0]
    assert item.model_dump() == {
        "item_id": item.item_id,
        "round": 1,
        "case_id": "a",
        "reading": 1,
        "organs": ("liver", "aorta"),
        "components": (),
        "rank": 1,
        "score": 1.0,
        "state": "waiting",
        "user": None,
        "lease_expires": None,
        "seconds": 0.0,
        "note": "",
        "verdict": None,
        "review": None,
        "reviewer": None,
    }
    assert queue.item(item.item_id) == queue.item((1, "a")) == item


def test_filling_twice_keeps_what_people_did(queue: Queue) -> None:
    held, done = queue.claim(1, "a", "anna"), queue.claim(1, "b", "ben")
    queue.submit(done.item_id, "ben", seconds=60, note="fine")
    before = queue.items(1)
    assert queue.fill(1, entries("a", "b", "c")) == 0
    assert queue.items(1) == before
    assert held in before


def test_a_new_list_moves_untouched_items_only(queue: Queue) -> None:
    held = queue.claim(1, "a", "anna")
    assert queue.fill(1, entries("d", "c", "a")) == 1
    assert [(i.case_id, i.rank, i.state) for i in queue.items(1)] == [
        ("a", 1, "leased"),
        ("d", 1, "waiting"),  # the newest item, and not the last
        ("c", 2, "waiting"),
    ]
    assert [i.case_id for i in queue.items(1, limit=2)] == ["a", "d"]
    assert queue.item((1, "a")) == held  # its rank is not 3: somebody works on it
    with pytest.raises(QueueError, match="case 'b' in round 1 is not in the annotation queue"):
        queue.item((1, "b"))
    assert [e.case_id for e in queue.events() if e.action == "withdraw"] == ["b"]


def test_a_new_list_says_anew_what_an_untouched_item_asks_about(queue: Queue) -> None:
    entry = QueueEntry(case_id="a", organs=("aorta",), components=(3, 1), rank=7, score=0.25)
    queue.fill(1, [entry])
    (item,) = queue.items(1)
    assert (item.organs, item.components, item.rank, item.score) == (("aorta",), (3, 1), 7, 0.25)


def test_an_item_somebody_gave_back_is_not_withdrawn(queue: Queue) -> None:
    item = queue.claim(1, "b", "anna")
    queue.release(item.item_id, "anna")
    queue.fill(1, entries("a"))
    assert states(queue) == {"a": "waiting", "b": "waiting"}  # it may hold saved edits


def test_rounds_do_not_mix(queue: Queue) -> None:
    queue.fill(2, entries("b"))
    newest, older = queue.next("anna"), queue.next("ben", round_index=1)
    assert newest is not None
    assert (newest.round, newest.case_id) == (2, "b")
    assert older is not None
    assert (older.round, older.case_id) == (1, "a")
    assert queue.next("carl") is None  # round 1 has items left, but a newer round has begun
    assert queue.newest_round() == 2
    assert queue.counts(1) == {"waiting": 2, "leased": 1}


def test_an_empty_queue_has_nothing(database: Database) -> None:
    assert Queue(database).next("anna") is None
    assert Queue(database).items(1) == []


# --- leases ---


def test_next_goes_by_rank_and_gives_each_user_their_own(queue: Queue) -> None:
    taken = [queue.next(user) for user in ("anna", "ben", "carl", "dora")]
    assert [item and (item.case_id, item.user, item.state) for item in taken] == [
        ("a", "anna", "leased"),
        ("b", "ben", "leased"),
        ("c", "carl", "leased"),
        None,
    ]


def test_next_gives_back_the_unfinished_item_first(queue: Queue, clock: Clock) -> None:
    queue.claim(1, "c", "anna")
    clock.pass_minutes(10)
    again = queue.next("anna")
    assert again is not None
    assert again.case_id == "c"
    assert again.lease_expires == "2026-01-05T08:40:00+00:00"  # 8:10 and half an hour


def test_an_expired_lease_is_anybodys(queue: Queue, clock: Clock) -> None:
    queue.next("anna")
    clock.pass_minutes(29)
    ben = queue.next("ben")
    assert ben is not None
    assert ben.case_id == "b"
    clock.pass_minutes(1)  # anna's 30 minutes are over
    carl = queue.next("carl")
    assert carl is not None
    assert (carl.case_id, carl.user) == ("a", "carl")


def test_an_expired_lease_is_still_its_holders_until_somebody_takes_it(queue: Queue, clock: Clock) -> None:
    item = queue.next("anna")
    assert item is not None
    clock.pass_minutes(300)
    assert queue.heartbeat(item.item_id, "anna").lease_expires == "2026-01-05T13:30:00+00:00"
    clock.pass_minutes(300)
    assert queue.submit(item.item_id, "anna", seconds=5).state == "submitted"


def test_a_heartbeat_keeps_others_away(queue: Queue, clock: Clock) -> None:
    item = queue.next("anna")
    assert item is not None
    for _ in range(5):
        clock.pass_minutes(20)
        queue.heartbeat(item.item_id, "anna")
    ben = queue.next("ben")
    assert ben is not None
    assert ben.case_id == "b"


def test_who_was_too_slow_is_told_who_has_it(queue: Queue, clock: Clock) -> None:
    item = queue.next("anna")
    assert item is not None
    clock.pass_minutes(31)
    queue.next("ben")
    with pytest.raises(LeaseError, match=r"anna cannot submit it: case a of round 1 is leased by ben until 2026-01-05T09:01"):
        queue.submit(item.item_id, "anna")


@pytest.mark.parametrize(
    "act",
    [
        lambda q, i: q.heartbeat(i, "ben"),
        lambda q, i: q.release(i, "ben"),
        lambda q, i: q.skip(i, "ben"),
        lambda q, i: q.flag(i, "ben", note="odd"),
        lambda q, i: q.submit(i, "ben"),
        lambda q, i: q.reopen(i, "ben"),
        lambda q, i: q.claim(1, "a", "ben"),
    ],
    ids=["heartbeat", "release", "skip", "flag", "submit", "reopen", "claim"],
)
def test_nobody_touches_anothers_item(queue: Queue, act: Callable[[Queue, int], Any]) -> None:
    item = queue.claim(1, "a", "anna")
    with pytest.raises(LeaseError, match="is leased by anna") as refused:
        act(queue, item.item_id)
    assert refused.value.item == item == queue.item(item.item_id)


def test_an_unknown_item_is_not_a_lost_lease(queue: Queue) -> None:
    with pytest.raises(QueueError, match="item 99 is not in the annotation queue"):
        queue.heartbeat(99, "anna")


# --- finishing ---


def test_submitted_skipped_and_flagged_items_do_not_come_again(queue: Queue) -> None:
    a, b, c = (queue.claim(1, case_id, "anna") for case_id in "abc")
    queue.submit(a.item_id, "anna", verdict="accepted", seconds=90.5, note="easy")
    queue.skip(b.item_id, "anna", note="too much noise")
    queue.flag(c.item_id, "anna", note="two livers")
    assert queue.next("ben") is None
    done = queue.item(a.item_id)
    assert (done.state, done.user, done.verdict, done.seconds, done.note) == ("submitted", "anna", "accepted", 90.5, "easy")
    assert [(i.state, i.note) for i in queue.items(1)[1:]] == [("skipped", "too much noise"), ("flagged", "two livers")]
    assert [i.lease_expires for i in queue.items(1)] == [None] * 3
    assert [i.case_id for i in queue.items(1, state="flagged")] == ["c"]


def test_submitting_again_after_a_lost_answer_counts_once(queue: Queue) -> None:
    item = queue.claim(1, "a", "anna")
    first = queue.submit(item.item_id, "anna", seconds=60)
    assert queue.submit(item.item_id, "anna", seconds=60) == first
    assert first.seconds == 60


def test_a_submitted_item_can_be_reopened_and_its_time_adds_up(queue: Queue) -> None:
    item = queue.claim(1, "a", "anna")
    queue.submit(item.item_id, "anna", seconds=60)
    with pytest.raises(LeaseError, match="is submitted by anna"):
        queue.claim(1, "a", "ben")
    assert queue.reopen(item.item_id, "ben").state == "leased"
    assert queue.submit(item.item_id, "ben", seconds=30).seconds == 90


def test_only_what_is_closed_is_reopened(queue: Queue) -> None:
    with pytest.raises(LeaseError, match="anna cannot reopen it: case a of round 1 is waiting"):
        queue.reopen(queue.item((1, "a")).item_id, "anna")


def test_a_skipped_or_flagged_item_can_be_opened_on_purpose(queue: Queue) -> None:
    queue.skip(queue.claim(1, "a", "anna").item_id, "anna")
    queue.flag(queue.claim(1, "b", "anna").item_id, "anna", note="odd")
    assert [queue.claim(1, case_id, "ben").user for case_id in "ab"] == ["ben", "ben"]


def test_organs_that_nobody_got_to_are_not_handed_in(queue: Queue) -> None:
    item = queue.claim(1, "a", "anna")
    assert queue.submit(item.item_id, "anna", organs=["aorta"]).organs == ("aorta",)


def test_closing_and_opening_a_round_leaves_the_others_as_they_are(queue: Queue) -> None:
    queue.fill(2, entries("a", "b"))
    held = queue.claim(2, "a", "anna")
    assert queue.close_round(1, "abandon", note="over") == 3
    assert states(queue, 2) == {"a": "leased", "b": "waiting"}
    assert queue.item(held.item_id) == held
    assert queue.close_round(2, "abandon", note="over") == 2
    assert queue.item(held.item_id).lease_expires is None
    assert queue.open_round(1, "replay", note="over") == 3
    assert (states(queue, 1), states(queue, 2)) == (dict.fromkeys("abc", "waiting"), dict.fromkeys("ab", "skipped"))


def test_released_items_wait_again(queue: Queue) -> None:
    item = queue.claim(1, "a", "anna")
    released = queue.release(item.item_id, "anna")
    assert (released.state, released.user, released.lease_expires) == ("waiting", "anna", None)
    ben = queue.next("ben")
    assert ben is not None
    assert ben.case_id == "a"


def test_every_action_leaves_an_event(queue: Queue, clock: Clock) -> None:
    item = queue.next("anna")
    assert item is not None
    clock.pass_minutes(1)
    queue.heartbeat(item.item_id, "anna")
    queue.release(item.item_id, "anna")
    queue.claim(1, "a", "ben")
    queue.flag(item.item_id, "ben", note="metal")
    queue.comment(item.item_id, "rita", "look at the dome")
    queue.reopen(item.item_id, "carl")
    queue.submit(item.item_id, "carl", seconds=12, note="done")
    story = [(e.user, e.action, e.detail) for e in queue.events(item.item_id)]
    assert story == [
        ("anna", "lease", ""),
        ("anna", "heartbeat", ""),
        ("anna", "release", ""),
        ("ben", "lease", ""),
        ("ben", "flag", "metal"),
        ("rita", "comment", "look at the dome"),
        ("carl", "reopen", ""),
        ("carl", "submit", "fixed, 12 s: done"),
    ]
    assert queue.events(item.item_id)[1].created == "2026-01-05T08:01:00+00:00"
    assert queue.events()[0].detail == "3 listed, 3 new"


# --- several connections, several processes ---


def test_two_connections_that_saw_the_same_free_item_do_not_both_get_it(queue: Queue, url: str, clock: Clock) -> None:
    with open_database(url) as other:
        second = Queue(other, now=clock)
        free = queue._candidate(1, "anna")
        assert free is not None
        assert second._candidate(1, "ben") == free
        assert queue._take(free, "anna", queue._free_for("anna")) is not None
        assert second._take(free, "ben", second._free_for("ben")) is None
        ben = second.next("ben")
        assert ben is not None
        assert ben.case_id == "b"


def run_together(work: Callable[..., Any], url: str, users: Sequence[str]) -> list[Any]:
    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager, ProcessPoolExecutor(len(users), mp_context=context) as pool:
        barrier = manager.Barrier(len(users))
        return [future.result(300) for future in [pool.submit(work, url, barrier, user) for user in users]]


def test_racing_processes_never_hold_one_item_twice(queue: Queue, url: str) -> None:
    queue.fill(1, entries(*(f"case{n}" for n in range(40))))
    leased = run_together(lease_all, url, ["anna", "ben", "carl"])
    assert sorted(case_id for cases in leased for case_id in cases) == sorted(f"case{n}" for n in range(40))
    assert queue.counts(1) == {"leased": 40}


def test_of_racing_claims_on_one_case_exactly_one_wins(queue: Queue, url: str) -> None:
    queue.fill(1, entries("case0"))
    users = ["anna", "ben", "carl"]
    won = run_together(claim_one, url, users)
    assert won.count(True) == 1
    assert queue.item((1, "case0")).user == users[won.index(True)]


# --- configuration ---


def test_the_configuration_section() -> None:
    assert Annotation() == Annotation(database=None, lease_minutes=30, annotator=HumanAnnotator())
    section = Annotation.model_validate({"annotator": {"annotator": "oracle", "scope": "organ"}, "lease_minutes": 5})
    assert section.annotator == OracleAnnotator(scope="organ")
    reviewed = Annotation.model_validate({"second_reader_share": 0.1, "double_reading_share": 0.05})
    assert (reviewed.second_reader_share, reviewed.double_reading_share) == (0.1, 0.05)
    alone = [{"annotator": {"annotator": "oracle"}, f"{stage}_share": 0.1} for stage in ("second_reader", "double_reading")]
    for wrong in (
        {"lease_minutes": 0},
        {"annotator": {"annotator": "robot"}},
        {"databse": "x"},
        {"second_reader_share": 2},
        *alone,
    ):
        with pytest.raises(ValidationError):
            Annotation.model_validate(wrong)

"""The oracle goes through the queue and the store as a person does; what it leaves is what merging needs."""

import numpy as np
import numpy.typing as npt
import pytest
from annotation_helpers import Clock

from atlas_ray.annotation.database import Database
from atlas_ray.annotation.merge import merge_case
from atlas_ray.annotation.oracle import OracleAnnotator
from atlas_ray.annotation.queue import Queue, QueueEntry, WorkItem
from atlas_ray.annotation.revisions import Revisions
from atlas_ray.annotation.simulation import OracleInput, annotate_case, annotate_round
from atlas_ray.exceptions import CaseError
from atlas_ray.organs import Organs
from atlas_ray.records import AttentionComponent

#                0123456789   1 liver, 2 spleen, 3 aorta
DRAFT, TRUTH = "1100220033", "0111220333"


def row(digits: str) -> npt.NDArray[np.uint8]:
    return np.array([int(d) for d in digits], np.uint8).reshape(-1, 1, 1)


def component(organ: str, index: int, start: int, stop: int) -> AttentionComponent:
    return AttentionComponent(
        organ=organ,
        index=index,
        box=((start, stop), (0, 1), (0, 1)),
        peak=(start, 0, 0),
        voxels=stop - start,
        volume_mm3=float(stop - start),
        reason="inconsistency",
        criteria=("inconsistency",),
        score=1.0,
        mean_heat=1.0,
    )


def load(item: WorkItem) -> OracleInput:
    """Every case is the same: the liver is pointed at rightly at 2..3 and wrongly at 5, the aorta rightly at 7."""
    if item.case_id == "broken":
        raise CaseError("the image is cut off", case_id=item.case_id)
    liver, aorta = np.zeros((2, 10, 1, 1), bool)
    liver[[2, 3, 5]] = aorta[7] = True
    return OracleInput(
        draft=row(DRAFT),
        truth=row(TRUTH),
        organs_with_truth=("liver", "spleen", "aorta"),
        attention={"liver": liver, "aorta": aorta},
        components=(component("liver", 1, 2, 4), component("liver", 2, 5, 6), component("aorta", 1, 7, 8)),
        spacing=(1.0, 1.0, 1.0),
    )


@pytest.fixture
def queue(database: Database, clock: Clock) -> Queue:
    queue = Queue(database, now=clock)
    wanted = (("easy", ("aorta",)), ("broken", ("liver",)), ("hard", ("liver", "aorta")))
    queue.fill(1, [QueueEntry(case_id=c, organs=organs, rank=rank) for rank, (c, organs) in enumerate(wanted, 1)])
    return queue


@pytest.fixture
def revisions(database: Database, clock: Clock) -> Revisions:
    return Revisions(database, now=clock)


ORACLE = OracleAnnotator(dilation_mm=0, minutes_per_case=1, minutes_per_organ=2, minutes_per_component=0.5)


def test_a_round_is_worked_off_in_order(queue: Queue, revisions: Revisions, organs: Organs) -> None:
    seen: list[str] = []
    submitted = annotate_round(
        ORACLE, queue, revisions, organs, round_index=1, load=load, progress=lambda item: seen.append(item.case_id)
    )
    assert [item.case_id for item in submitted] == seen == ["easy", "hard"]
    assert [(i.case_id, i.state, i.seconds, i.verdict) for i in queue.items(1)] == [
        ("easy", "submitted", 60 * (1 + 2 + 0.5), "fixed"),
        ("broken", "flagged", 0.0, None),
        ("hard", "submitted", 60 * (1 + 4 + 1.5), "fixed"),
    ]
    assert queue.item((1, "broken")).note == "case broken: the image is cut off"
    assert annotate_round(ORACLE, queue, revisions, organs, round_index=1, load=load) == []


def test_only_listed_organs_are_revised_and_judged(queue: Queue, revisions: Revisions, organs: Organs) -> None:
    annotate_round(ORACLE, queue, revisions, organs, round_index=1, load=load)
    assert revisions.changed_organs(1, "easy") == ("aorta",)
    assert revisions.changed_organs(1, "hard") == ("aorta", "liver")
    assert {(v.organ, v.component): v.verdict for v in revisions.verdicts(1, "hard")} == {
        ("liver", 1): "fixed",
        ("liver", 2): "not_an_error",
        ("aorta", 1): "fixed",
    }
    assert [v.organ for v in revisions.verdicts(1, "easy")] == ["aorta"]


def test_what_it_saved_merges_into_the_annotation(queue: Queue, revisions: Revisions, organs: Organs) -> None:
    annotate_round(ORACLE, queue, revisions, organs, round_index=1, load=load)
    item = queue.item((1, "hard"))
    labels, provenance = merge_case(
        row(DRAFT),
        organs,
        case_id="hard",
        round_index=1,
        edits=revisions.edits(1, "hard"),
        reviewed=dict.fromkeys(item.organs, item.user or ""),
    )
    assert "".join(map(str, labels.ravel())) == "1111220333"  # 0 stays wrong: nothing pointed at it
    assert [(p.organ, p.source, p.users) for p in provenance.organs] == [
        ("liver", "revised", ("oracle",)),
        ("spleen", "pseudo", ()),
        ("aorta", "revised", ("oracle",)),
    ]


def test_the_limit_counts_submitted_cases(queue: Queue, revisions: Revisions, organs: Organs) -> None:
    assert len(annotate_round(ORACLE, queue, revisions, organs, round_index=1, load=load, limit=1)) == 1
    assert queue.counts(1) == {"submitted": 1, "waiting": 2}


def test_killed_between_save_and_submit_it_saves_nothing_twice(queue: Queue, revisions: Revisions, organs: Organs) -> None:
    class Killed(BaseException):
        pass

    def dies(*_: object, **__: object) -> WorkItem:
        raise Killed

    queue.submit, submit = dies, queue.submit  # type: ignore[method-assign]
    with pytest.raises(Killed):
        annotate_round(ORACLE, queue, revisions, organs, round_index=1, load=load)
    queue.submit = submit  # type: ignore[method-assign]
    assert queue.counts(1) == {"leased": 1, "waiting": 2}
    again = annotate_round(ORACLE, queue, revisions, organs, round_index=1, load=load, limit=1)
    assert [item.case_id for item in again] == ["easy"]
    assert [r.revision_id for r in revisions.history(1, "easy", "aorta")] == [1]


def test_a_case_without_an_error_is_accepted(queue: Queue, revisions: Revisions, organs: Organs) -> None:
    item = queue.claim(1, "hard", "oracle")
    case = load(item)
    right = OracleInput(case.truth, case.truth, case.organs_with_truth, case.attention, case.components, case.spacing)
    assert annotate_case(ORACLE, queue, revisions, organs, item, right).verdict == "accepted"
    assert revisions.edits(1, "hard") == []
    assert {v.verdict for v in revisions.verdicts(1, "hard")} == {"not_an_error"}


def test_with_the_time_up_the_pen_is_put_down_between_two_organs(queue: Queue, revisions: Revisions, organs: Organs) -> None:
    """Easy takes 3.5 minutes; hard has 1 to open and 2 + 2 * 0.5 for the liver: at 7 minutes the aorta is not begun."""
    submitted = annotate_round(ORACLE, queue, revisions, organs, round_index=1, load=load, minutes=7)
    assert [(item.case_id, item.organs, item.seconds) for item in submitted] == [
        ("easy", ("aorta",), 60 * 3.5),
        ("hard", ("liver",), 60 * 4.0),
    ]
    assert revisions.changed_organs(1, "hard") == ("liver",)
    assert annotate_round(ORACLE, queue, revisions, organs, round_index=1, load=load, minutes=7) == []  # 7.5 are spent


def test_of_a_component_item_only_those_are_looked_at(queue: Queue, revisions: Revisions, organs: Organs) -> None:
    queue.fill(2, [QueueEntry(case_id="hard", organs=("liver", "aorta"), components=(2, 3), rank=1)])
    (item,) = annotate_round(ORACLE, queue, revisions, organs, round_index=2, load=load)
    assert {(v.organ, v.component) for v in revisions.verdicts(2, "hard")} == {("liver", 2)}  # no third is the aorta's
    assert item.seconds == 60 * (1 + 2 + 0.5 + 2)


def test_times_are_logged_per_organ(queue: Queue, revisions: Revisions, organs: Organs) -> None:
    annotate_round(ORACLE, queue, revisions, organs, round_index=1, load=load)
    assert revisions.seconds(1, "hard") == {None: 60.0, "liver": 60 * 3.0, "aorta": 60 * 2.5}

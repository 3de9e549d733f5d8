"""Revisions: runs say exactly which voxels change, and the store never forgets or overwrites one."""

import gzip
import itertools
import multiprocessing
import signal
import struct
import time
import zlib
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from annotation_helpers import Clock, save_and_die, save_on_the_draft

from atlas_ray.annotation.database import Database, open_database
from atlas_ray.annotation.queue import Queue, QueueEntry
from atlas_ray.annotation.revisions import (
    RevisionConflict,
    Revisions,
    Step,
    TimeSpent,
    apply_runs,
    check_runs,
    decode_runs,
    diff_runs,
    encode_runs,
    expand_runs,
)
from atlas_ray.exceptions import RevisionError

Mask = npt.NDArray[np.bool_]


def mask_of(*indices: int, shape: tuple[int, int, int] = (3, 2, 2)) -> Mask:
    """A mask with these file-order voxels set; 3 x 2 x 2 has voxels 0 to 11."""
    flat = np.zeros(int(np.prod(shape)), bool)
    flat[list(indices)] = True
    return flat.reshape(shape, order="F")


def set_voxels(mask: Mask) -> list[int]:
    return np.flatnonzero(mask.ravel(order="F")).tolist()


# --- runs ---


def test_voxels_are_counted_with_x_fastest() -> None:
    after = np.zeros((3, 2, 2), bool)
    after[1, 0, 0] = after[2, 0, 0] = True  # 1, 2
    after[0, 1, 0] = True  # 3: the next row follows without a gap
    after[1, 1, 1] = True  # 1 + 3 * (1 + 2 * 1) = 10
    assert diff_runs(np.zeros_like(after), after).tolist() == [[1, 3, 1], [10, 1, 1]]


def test_a_run_ends_where_the_value_changes() -> None:
    #                  voxel  0 1 2 3 4 5
    before, after = mask_of(2, 3, 5), mask_of(1, 4, 5)  # 1 set, 2 and 3 cleared, 4 set, 5 kept
    runs = diff_runs(before, after)
    assert runs.tolist() == [[1, 1, 1], [2, 2, 0], [4, 1, 1]]
    assert runs.dtype == np.uint32
    assert set_voxels(apply_runs(before, runs)) == [1, 4, 5]


def test_equal_masks_differ_in_nothing() -> None:
    runs = diff_runs(mask_of(1, 2), mask_of(1, 2))
    assert runs.shape == (0, 3)
    assert np.array_equal(apply_runs(mask_of(1, 2), runs), mask_of(1, 2))


def test_the_whole_grid_is_one_run() -> None:
    assert diff_runs(mask_of(), ~mask_of()).tolist() == [[0, 12, 1]]


@pytest.mark.parametrize("shape", [(1, 1, 1), (7, 1, 1), (1, 1, 9), (5, 4, 3), (17, 13, 11)], ids=str)
@pytest.mark.parametrize("orders", ["CC", "CF", "FC", "FF"])
def test_any_mask_can_be_turned_into_any_other(shape: tuple[int, int, int], orders: str) -> None:
    rng = np.random.default_rng(1)
    for density in (0.0, 0.1, 0.5, 1.0):
        before, after = (np.array(rng.random(shape) < density, order=order) for order in orders)  # type: ignore[call-overload]
        kept = before.copy()
        runs = diff_runs(before, after)
        assert np.array_equal(apply_runs(before, runs), after)
        assert np.array_equal(before, kept)  # apply_runs gives a copy
        assert np.array_equal(decode_runs(encode_runs(runs)), runs)
        assert np.array_equal(expand_runs(runs)[0], np.flatnonzero((before != after).ravel(order="F")))


def test_a_label_map_slice_that_is_not_contiguous_is_read_right() -> None:
    big = np.random.default_rng(2).random((8, 9, 10)) < 0.4
    before, after = big[::2, 1:8, ::-1], big[1::2, 2:9, :]
    assert np.array_equal(apply_runs(before, diff_runs(before, after)), after)


def test_masks_of_two_grids_are_not_compared() -> None:
    with pytest.raises(RevisionError, match=r"\(3, 2, 2\) and \(2, 3, 2\)"):
        diff_runs(mask_of(), mask_of(shape=(2, 3, 2)))


@pytest.mark.parametrize(
    ("runs", "message"),
    [
        ([[0, 1, 2]], "run 0 is .* = (0, 1, 2); the value is 0 or 1"),
        ([[0, 0, 1]], "run 0 is .* length at least 1"),
        ([[-1, 2, 1]], "run 0 is .* start is at least 0"),
        ([[0, 1, 1], [11, 2, 1]], "run 1 is .* = (11, 2, 1); the grid has 12 voxels"),
        ([[4294967295, 4294967295, 1]], "the grid has 12 voxels"),
        ([[0, 3, 1], [2, 1, 0]], "run 1 is .* = (2, 1, 0); runs are sorted and do not overlap"),
        ([[5, 1, 1], [0, 1, 1]], "run 1 is .* sorted"),
        ([[5, 1, 1], [5, 1, 1]], "run 1 is .* do not overlap"),
        ([[0.5, 1, 1]], "integers [N, 3]"),
        ([0, 1, 1], "integers [N, 3]"),
        ([[0, 1]], "integers [N, 3]"),
    ],
)
def test_malformed_runs_are_refused_by_number(runs: npt.ArrayLike, message: str) -> None:
    pattern = message.replace("(", r"\(").replace(")", r"\)").replace("[", r"\[").replace("]", r"\]")
    with pytest.raises(RevisionError, match=pattern):
        apply_runs(mask_of(), runs)


def test_neighboring_runs_are_allowed() -> None:
    assert set_voxels(apply_runs(mask_of(), [[0, 2, 1], [2, 10, 1]])) == list(range(12))


def test_a_grid_beyond_32_bits_is_refused() -> None:
    with pytest.raises(RevisionError, match=r"at most 2\^32"):
        check_runs([[0, 1, 1]], size=(1 << 32) + 1)
    assert check_runs([[(1 << 32) - 1, 1, 1]]).tolist() == [[(1 << 32) - 1, 1, 1]]


# --- bytes ---


def test_bytes_are_little_endian_rows_and_may_come_from_a_browser() -> None:
    raw = struct.pack("<6I", 1, 2, 1, 70000, 5, 0)
    for data in (zlib.compress(raw), gzip.compress(raw)):
        assert decode_runs(data).tolist() == [[1, 2, 1], [70000, 5, 0]]
    assert zlib.decompress(encode_runs([[1, 2, 1], [70000, 5, 0]])) == raw


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "cut off"),
        (b"no runs", "neither zlib nor gzip"),
        (zlib.compress(b"12345678901"), "cut off"),
        (zlib.compress(bytes(24))[:-3], "cut off"),
        (zlib.compress(struct.pack("<3I", 0, 1, 1)) + b"tail", "followed by something else"),
        (zlib.compress(bytes(2000)), "more than the 1000 allowed"),
        (zlib.compress(struct.pack("<3I", 0, 1, 7)), "the value is 0 or 1"),
        (zlib.compress(struct.pack("<3I", 12, 1, 1)), "the grid has 12 voxels"),
    ],
)
def test_bad_bytes_are_refused(data: bytes, message: str) -> None:
    with pytest.raises(RevisionError, match=message):
        decode_runs(data, size=12, max_bytes=1000)


# --- the store ---

KEY = (1, "case0", "liver")


@pytest.fixture
def revisions(database: Database, clock: Clock) -> Revisions:
    return Revisions(database, now=clock)


def save(revisions: Revisions, before: Mask, after: Mask, *, user: str = "anna", seconds: float = 0.0) -> int:
    runs = diff_runs(before, after)
    parent_id = revisions.current(*KEY)
    return revisions.save(*KEY, user=user, parent_id=parent_id, runs=runs, seconds=seconds, size=before.size).revision_id


def test_every_saved_step_can_be_seen_again(revisions: Revisions, clock: Clock) -> None:
    draft, first, second = mask_of(0, 1, 2), mask_of(1, 2, 3), mask_of(7)
    assert save(revisions, draft, first, seconds=12) == 1
    clock.pass_minutes(2)
    assert save(revisions, first, second, user="ben", seconds=30) == 2
    assert [r.model_dump() for r in revisions.history(*KEY)] == [
        {
            "round": 1,
            "case_id": "case0",
            "reading": 1,
            "organ": "liver",
            "revision_id": 1,
            "parent_id": 0,
            "user": "anna",
            "created": "2026-01-05T08:00:00+00:00",
            "voxels": 2,  # 0 cleared, 3 set
            "seconds": 12.0,
            "name": "",
            "kind": "edit",
            "component": None,
        },
        {
            "round": 1,
            "case_id": "case0",
            "reading": 1,
            "organ": "liver",
            "revision_id": 2,
            "parent_id": 1,
            "user": "ben",
            "created": "2026-01-05T08:02:00+00:00",
            "voxels": 4,  # 1, 2, 3 cleared, 7 set
            "seconds": 30.0,
            "name": "",
            "kind": "edit",
            "component": None,
        },
    ]
    for at, mask in ((0, draft), (1, first), (2, second), (None, second)):
        assert np.array_equal(revisions.mask(draft, *KEY, at=at), mask)
    assert revisions.runs(revisions.history(*KEY)[0]).tolist() == [[0, 1, 0], [3, 1, 1]]


def test_random_histories_replay(revisions: Revisions) -> None:
    rng = np.random.default_rng(3)
    states = [rng.random((6, 5, 4)) < 0.5 for _ in range(8)]
    for before, after in itertools.pairwise(states):
        save(revisions, before, after)
    for at, state in enumerate(states):
        assert np.array_equal(revisions.mask(states[0], *KEY, at=at), state)


def test_revert_is_one_more_revision(revisions: Revisions) -> None:
    draft, first, second = mask_of(0), mask_of(0, 1), mask_of(5)
    save(revisions, draft, first)
    save(revisions, first, second)
    reverted = revisions.revert(draft, *KEY, to=1, user="carl")
    assert (reverted.revision_id, reverted.parent_id, reverted.user) == (3, 2, "carl")
    assert np.array_equal(revisions.mask(draft, *KEY), first)
    assert np.array_equal(revisions.mask(draft, *KEY, at=2), second)  # what was reverted is still there
    revisions.revert(draft, *KEY, to=0, user="carl")
    assert np.array_equal(revisions.mask(draft, *KEY), draft)
    revisions.revert(draft, *KEY, to=2, user="carl")  # and can be brought back
    assert np.array_equal(revisions.mask(draft, *KEY), second)


def test_unknown_revisions_are_named(revisions: Revisions) -> None:
    save(revisions, mask_of(), mask_of(1))
    saved = revisions.history(*KEY)[0]
    with pytest.raises(RevisionError, match="no revision 5; it has 0 to 1"):
        revisions.mask(mask_of(), *KEY, at=5)
    with pytest.raises(RevisionError, match="no revision 5"):
        revisions.revert(mask_of(), *KEY, to=5, user="anna")
    with pytest.raises(RevisionError, match="no revision 9"):
        revisions.runs(saved.model_copy(update={"revision_id": 9}))


def test_edits_of_another_grid_are_refused_on_replay_and_on_save(revisions: Revisions) -> None:
    with pytest.raises(RevisionError, match="the grid has 12 voxels"):
        revisions.save(*KEY, user="anna", parent_id=0, runs=[[11, 2, 1]], size=12)
    assert revisions.current(*KEY) == 0
    revisions.save(*KEY, user="anna", parent_id=0, runs=[[11, 2, 1]])
    with pytest.raises(RevisionError, match="the grid has 12 voxels"):
        revisions.mask(mask_of(), *KEY)


def test_organs_cases_and_rounds_have_their_own_histories(revisions: Revisions) -> None:
    for key in ((1, "case0", "liver"), (1, "case0", "aorta"), (1, "case1", "liver"), (2, "case0", "liver")):
        assert revisions.save(*key, user="anna", parent_id=0, runs=[[0, 1, 1]]).revision_id == 1
    revisions.save(1, "case0", "spleen", user="anna", parent_id=0, runs=[])  # looked at, unchanged
    assert revisions.changed_organs(1, "case0") == ("aorta", "liver")
    assert [e.revision.organ for e in revisions.edits(1, "case0")] == ["liver", "aorta", "spleen"]  # as saved
    assert [e.revision.organ for e in revisions.edits(1, "case0", "aorta")] == ["aorta"]


def test_edits_from_a_revision_on_and_the_newest_ones(revisions: Revisions) -> None:
    for parent_id in range(3):
        revisions.save(*KEY, user="anna", parent_id=parent_id, runs=[[parent_id, 1, 1]])
    assert [e.revision.revision_id for e in revisions.edits(*KEY, after=1)] == [2, 3]
    assert [e.revision.revision_id for e in revisions.edits(*KEY, last=2)] == [2, 3]
    assert revisions.edits(*KEY, after=3) == []


def test_steps_are_appended_one_upon_the_other(revisions: Revisions) -> None:
    steps = [
        Step(name="brush", runs=check_runs([[0, 2, 1]]), component=4, seconds=3),
        Step(name="fill", runs=check_runs([[9, 3, 0]])),
    ]
    save(revisions, mask_of(), mask_of(1))
    saved = revisions.append(*KEY, steps, user="anna", parent_id=1)
    assert saved == revisions.history(*KEY)[1:]
    assert [(r.revision_id, r.parent_id, r.name, r.component, r.seconds) for r in saved] == [
        (2, 1, "brush", 4, 3.0),
        (3, 2, "fill", None, 0.0),
    ]
    assert revisions.seconds_by_component(1, "case0") == {("liver", 4): 3.0, ("liver", None): 0.0}


# --- compare and set ---


def test_a_stale_save_is_refused_and_told_where_things_are(revisions: Revisions, url: str) -> None:
    with open_database(url) as other:
        ben = Revisions(other)
        parent_of_both = ben.current(*KEY)
        save(revisions, mask_of(), mask_of(4))
        with pytest.raises(RevisionConflict, match=r"liver of case case0, round 1, is at revision 1; this .* on 0") as conflict:
            ben.save(*KEY, user="ben", parent_id=parent_of_both, runs=[[0, 1, 1]])
        assert conflict.value.current_id == 1
        rebased = ben.save(*KEY, user="ben", parent_id=conflict.value.current_id, runs=[[0, 1, 1]])
        assert rebased.revision_id == 2
    assert set_voxels(revisions.mask(mask_of(), *KEY)) == [0, 4]  # both


def test_a_parent_from_the_future_is_refused(revisions: Revisions) -> None:
    with pytest.raises(RevisionConflict) as conflict:
        revisions.save(*KEY, user="anna", parent_id=7, runs=[[0, 1, 1]])
    assert conflict.value.current_id == 0


def test_of_racing_saves_on_one_parent_exactly_one_wins(url: str, revisions: Revisions) -> None:
    users = ["anna", "ben", "carl", "dora"]
    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager, ProcessPoolExecutor(len(users), mp_context=context) as pool:
        barrier = manager.Barrier(len(users))
        got = [f.result(300) for f in [pool.submit(save_on_the_draft, url, barrier, user) for user in users]]
    assert sorted(got) == [-1, -1, -1, 1]
    assert [r.user for r in revisions.history(*KEY)] == [users[got.index(1)]]


def test_a_killed_process_loses_nothing(url: str, database: Database, tmp_path: Path, clock: Clock) -> None:
    Queue(database).fill(1, [QueueEntry(case_id="case0", organs=("liver",), rank=1)])
    process = multiprocessing.get_context("spawn").Process(target=save_and_die, args=(url, tmp_path / "saved"))
    process.start()
    process.join(300)
    assert process.exitcode == -signal.SIGKILL
    assert (tmp_path / "saved").exists()
    started = time.monotonic()
    with open_database(url) as reopened:  # no lock is left behind
        revisions, queue = Revisions(reopened), Queue(reopened)
        assert set_voxels(revisions.mask(mask_of(), *KEY)) == [3, 4]
        assert revisions.seconds(1, "case0") == {"liver": 9.0}
        again = queue.next("anna")
        assert again is not None
        assert again.case_id == "case0"  # the same case, still hers
    assert time.monotonic() - started < 10


# --- verdicts and time ---


def test_the_last_verdict_counts_and_all_are_kept(revisions: Revisions, clock: Clock) -> None:
    revisions.judge(1, "case0", "liver", 1, "not_an_error", user="anna")
    clock.pass_minutes(1)
    revisions.judge(1, "case0", "liver", 2, "accepted", user="anna", note="thin")
    revisions.judge(1, "case0", "liver", 1, "fixed", user="ben")
    revisions.judge(1, "case1", "liver", 1, "fixed", user="ben")
    latest = {(v.organ, v.component): (v.verdict, v.user, v.created) for v in revisions.verdicts(1, "case0")}
    assert latest == {
        ("liver", 1): ("fixed", "ben", "2026-01-05T08:01:00+00:00"),
        ("liver", 2): ("accepted", "anna", "2026-01-05T08:01:00+00:00"),
    }
    assert [v.verdict for v in revisions.all_verdicts(1, "case0")] == ["not_an_error", "accepted", "fixed"]
    assert len(revisions.verdicts(1)) == 3
    assert revisions.verdicts(2) == []


def test_time_adds_up_per_organ(revisions: Revisions) -> None:
    save(revisions, mask_of(), mask_of(1), seconds=10)
    save(revisions, mask_of(1), mask_of(2), seconds=5)
    spent = [TimeSpent(seconds=2.5, organ="liver", component=1), TimeSpent(seconds=4, organ="aorta"), TimeSpent(seconds=1)]
    revisions.log_times(1, "case0", [*spent, TimeSpent(seconds=3, organ="liver")], user="anna")
    assert revisions.seconds(1, "case0") == {"liver": 20.5, "aorta": 4.0, None: 1.0}
    assert revisions.seconds(1, "case1") == {}

"""What people have done in an arm so far, counted by hand."""

from pathlib import Path

import pytest
from paper_workspace import fill_queue, make_campaign

from atlas_ray.annotation.database import open_database
from atlas_ray.annotation.queue import Queue
from atlas_ray.annotation.revisions import Revisions
from atlas_ray.config import Campaign
from atlas_ray.simulation.points import Work, work_before


@pytest.fixture
def campaign(tmp_path: Path) -> Campaign:
    """Round 0: a and b are handed in, c is still worked on, and one voxel of it is saved. Round 1: a once more."""
    campaign = make_campaign(tmp_path)
    for r in (0, 1):
        fill_queue(campaign, r, ["a", "b", "c"])
    with open_database(campaign.database_url) as database:
        queue, revisions = Queue(database), Revisions(database)
        for r, case_id, seconds in ((0, "a", 60), (0, "b", 90), (1, "a", 30)):
            queue.submit(queue.claim(r, case_id, "ada").item_id, "ada", seconds=seconds)
        queue.claim(0, "c", "ada")
        for case_id, organ, parent, runs in (
            ("a", "liver", 0, [[0, 4, 1]]),
            ("a", "liver", 1, [[0, 1, 0]]),
            ("a", "aorta", 0, [[5, 2, 1]]),
            ("c", "liver", 0, [[9, 1, 1]]),
        ):
            revisions.save(0, case_id, organ, user="ada", parent_id=parent, runs=runs)
        revisions.save(0, "b", "liver", user="ada", parent_id=0, runs=[[0, 3, 0]], reading=2)
        revisions.save(1, "a", "liver", user="ada", parent_id=0, runs=[[0, 100, 1]])
        for component, verdict in ((1, "not_an_error"), (1, "fixed"), (2, "fixed"), (3, "not_an_error"), (4, "accepted")):
            revisions.judge(0, "a", "liver", component, verdict, user="ada")
        revisions.judge(1, "a", "liver", 1, "not_an_error", user="ada")
    return campaign


def test_work_is_of_the_rounds_before(campaign: Campaign) -> None:
    """Voxels: 4 + 1 + 2 of a, 1 of c, 3 of b's second reading. Of the last verdicts two are errors, one is none, one is neither."""
    assert work_before(campaign, 0) == Work()
    assert work_before(campaign, 1) == Work(
        minutes=2.5, looked_at=("a", "b"), changed=("a", "c", "b"), organs=4, voxels=11, verdict_precision=2 / 3
    )


def test_a_case_of_two_rounds_is_one_case_and_its_work_adds_up(campaign: Campaign) -> None:
    assert work_before(campaign, 2) == Work(
        minutes=3.0, looked_at=("a", "b"), changed=("a", "c", "b"), organs=4, voxels=111, verdict_precision=2 / 4
    )

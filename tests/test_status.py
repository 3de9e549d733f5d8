"""Status: one case in every state, counted; reasons of failures; who is at work; what to do next."""

from pathlib import Path

import pytest
from paper_workspace import fill_queue, make_campaign, make_case, write_annotation, write_manifest, write_prediction

from atlas_ray.annotation.database import open_database
from atlas_ray.annotation.queue import Queue
from atlas_ray.config import Campaign
from atlas_ray.exceptions import WorkspaceError
from atlas_ray.lock import locked
from atlas_ray.records import Quarantined
from atlas_ray.status import next_command, read_status


@pytest.fixture
def campaign(tmp_path: Path) -> Campaign:
    """A case in each state, named after it."""
    campaign = make_campaign(tmp_path, cluster={"max_failed_fraction": 0.5})
    workspace, organs = campaign.open_workspace(), campaign.load_organs().names
    names = ["ingested", "failed", "predicted", "queued", "leased", "skipped", "submitted", "unsure", "merged"]
    write_manifest(
        campaign, [*(make_case(tmp_path, n) for n in names), make_case(tmp_path, "full", "train", labeled_organs=organs)]
    )
    for name in names[2:]:
        write_prediction(workspace, 0, name)
    workspace.add_to_quarantine(
        Quarantined(case_id="broken", step="ingest", reason="not a CT"),
        Quarantined(case_id="failed", step="predict-000", reason="out of memory"),
        Quarantined(case_id="predicted", step="predict-000", reason="was repaired since"),
    )
    fill_queue(campaign, 0, names[3:])
    with open_database(campaign.database_url) as database:
        queue = Queue(database)
        items = {item.case_id: item.item_id for item in queue.items(0)}
        for name in ("leased", "skipped", "submitted", "unsure", "merged"):
            queue.claim(0, name, "ada")
        queue.skip(items["skipped"], "ada", note="no organ")
        queue.submit(items["submitted"], "ada")
        queue.submit(items["unsure"], "ada", verdict="unsure")
        queue.submit(items["merged"], "ada")
    write_annotation(workspace, 0, "merged")
    workspace.start_step(0, "annotate", "2026-01-02T03:04:05+00:00")
    return campaign


def test_every_case_is_in_one_state(campaign: Campaign) -> None:
    status = read_status(campaign)
    assert status.states == {
        "ingested": "ingested",
        "failed": "failed",
        "predicted": "predicted",
        "queued": "queued",
        "leased": "leased",
        "skipped": "set aside",
        "submitted": "submitted",
        "unsure": "in review",
        "merged": "merged",
        "full": "complete",
        "broken": "quarantined",
    }
    assert list(status.counts.values()) == [1] * 11
    assert {q.case_id: q.reason for q in status.failures} == {"broken": "not a CT", "failed": "out of memory"}
    assert status.prediction_bytes == {0: 700}
    assert status.free_bytes


def test_another_round_knows_nothing_of_this_one(campaign: Campaign) -> None:
    states = read_status(campaign, 1).states
    assert set(states.values()) == {"ingested", "complete", "quarantined"}


def test_it_says_who_is_at_work_and_what_waits(campaign: Campaign) -> None:
    workspace = campaign.open_workspace()
    workspace.tracking_backlog.write_text("{}\n{}\n")
    status = read_status(campaign)
    assert (status.holder, status.backlog) == (None, 2)
    assert next_command(campaign, "c.yaml", status) == "python -m ui c.yaml --round 0"
    with locked(workspace, "jobs.predict"):
        assert next_command(campaign, "c.yaml", read_status(campaign)).startswith("wait: jobs.predict on ")


def test_what_to_do_next(tmp_path: Path) -> None:
    campaign = make_campaign(tmp_path)
    workspace = campaign.open_workspace()
    with pytest.raises(WorkspaceError, match=r"run `python -m jobs.ingest CONFIG` first"):
        read_status(campaign)
    write_manifest(campaign, [make_case(tmp_path, name) for name in "ab"])
    assert next_command(campaign, "c", read_status(campaign)) == "python -m jobs.run_round c --round 0"
    workspace.add_to_quarantine(Quarantined(case_id="a", step="predict-000", reason="disk full"))
    assert next_command(campaign, "c", read_status(campaign)) == "python -m jobs.predict c --round 0 --retry-failed"
    workspace.take_from_quarantine("predict-000", {"a"})
    workspace.finish_step(0, "check", "2026-01-02T03:04:05+00:00")
    assert next_command(campaign, "c", read_status(campaign)) == "python -m jobs.run_round c --round 1"

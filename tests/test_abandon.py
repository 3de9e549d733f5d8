"""A round given up, and taken up again: nothing is deleted, people's work stays, nobody is given a case of it meanwhile."""

from pathlib import Path

import pytest
from paper_workspace import fill_queue, make_campaign, make_case, write_annotation, write_manifest, write_prediction

from atlas_ray.annotation.database import open_database
from atlas_ray.annotation.queue import Queue
from atlas_ray.cluster import prediction
from atlas_ray.config import Campaign
from atlas_ray.exceptions import WorkspaceError
from atlas_ray.records import Quarantined
from atlas_ray.rounds import STEPS, run_round
from atlas_ray.steps.abandon import abandon_round, replay_from


@pytest.fixture
def campaign(tmp_path: Path) -> Campaign:
    """Round 0 is queued: a is submitted and merged, b is leased, c was skipped, d waits."""
    campaign = make_campaign(tmp_path)
    workspace = campaign.open_workspace()
    write_manifest(campaign, [make_case(tmp_path, name) for name in "abcd"])
    for name in "abcd":
        write_prediction(workspace, 0, name)
    fill_queue(campaign, 0, list("abcd"))
    with open_database(campaign.database_url) as database:
        queue = Queue(database)
        queue.submit(queue.claim(0, "a", "ada").item_id, "ada")
        queue.claim(0, "b", "ada")
        queue.skip(queue.claim(0, "c", "ada").item_id, "ada", note="no organ")
    write_annotation(workspace, 0, "a")
    for step in ("train", "predict", "evaluate", "prioritize"):
        workspace.start_step(0, step, "2026-01-01T00:00:00+00:00")
        workspace.finish_step(0, step, "2026-01-01T01:00:00+00:00")
    workspace.checkpoint(0, "unet").parent.mkdir(parents=True)
    workspace.checkpoint(0, "unet").write_bytes(b"weights")
    return campaign


def states(campaign: Campaign) -> dict[str, str]:
    with open_database(campaign.database_url) as database:
        return {item.case_id: item.state for item in Queue(database).items(0)}


def files(campaign: Campaign) -> dict[str, bytes]:
    root = campaign.open_workspace().root
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file() and "annotation.db" not in p.name}


def test_an_abandoned_round_is_closed_and_keeps_everything(campaign: Campaign) -> None:
    before = files(campaign)
    left = abandon_round(campaign, 0)
    assert (left.closed, left.submitted, left.merged, left.predicted) == (2, 1, 1, 4)
    assert states(campaign) == {"a": "submitted", "b": "skipped", "c": "skipped", "d": "skipped"}
    changed = {name for name, data in files(campaign).items() if before.get(name) != data}
    assert changed == {"rounds/000/state.json"}
    with open_database(campaign.database_url) as database:
        assert Queue(database).next("bob", round_index=0) is None
        assert [e.case_id for e in Queue(database).events() if e.action == "close"] == ["b", "d"]
    when = campaign.open_workspace().round_state(0).abandoned
    abandon_round(campaign, 0)
    assert campaign.open_workspace().round_state(0).abandoned == when, "the first time counts"
    with pytest.raises(WorkspaceError, match=r"round 0 was abandoned at .*; `--replay STEP` takes it up again"):
        run_round(campaign, 0)


def test_a_round_that_never_was(campaign: Campaign) -> None:
    with pytest.raises(WorkspaceError, match=r"round 7 was never started in .*; rounds there: 0"):
        abandon_round(campaign, 7)


def test_replay_takes_it_up_again(campaign: Campaign) -> None:
    abandon_round(campaign, 0)
    replay_from(campaign, 0, STEPS, "prioritize")
    workspace = campaign.open_workspace()
    assert workspace.round_state(0).abandoned is None
    assert list(workspace.finished_steps(0)) == ["train", "predict", "evaluate"]
    assert states(campaign) == {"a": "submitted", "b": "waiting", "c": "skipped", "d": "waiting"}, "c was skipped by a person"
    assert workspace.checkpoint(0, "unet").exists()
    assert workspace.predicted(0) == set("abcd")


def test_replaying_a_training_sets_the_networks_aside(campaign: Campaign) -> None:
    workspace = campaign.open_workspace()
    replay_from(campaign, 0, STEPS, "train")
    assert workspace.finished_steps(0) == {}
    assert not workspace.checkpoint(0, "unet").exists()
    (kept,) = (workspace.root / "checkpoints").rglob("unet.pt")
    assert kept.read_bytes() == b"weights"


def test_a_retry_that_is_killed_still_knows_what_it_was_to_do(campaign: Campaign, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed before the failure was forgotten: the next start predicts the case, instead of passing over the step."""
    workspace = campaign.open_workspace()
    workspace.add_to_quarantine(Quarantined(case_id="d", reason="no header", step="predict-000", path="d.nii.gz", key="k"))

    def killed(*_: object) -> int:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(prediction, "retry_failed", killed)
        with pytest.raises(KeyboardInterrupt):
            run_round(campaign, 0, retry=True)
    assert [entry.case_id for entry in workspace.quarantined()] == ["d"]
    assert "predict" not in workspace.finished_steps(0)
    assert "train" in workspace.finished_steps(0)

"""Garbage collection: what old rounds no longer need goes, and everything on the list of what is kept is kept."""

import os
import time
from pathlib import Path

import pytest
from paper_workspace import fill_queue, make_campaign, make_case, write_annotation, write_manifest, write_prediction

from atlas_ray.annotation.database import open_database
from atlas_ray.annotation.queue import Queue
from atlas_ray.config import Campaign
from atlas_ray.garbage import collect, find_garbage, old_rounds
from atlas_ray.verify import verify

HEAVY = ("heat.nii.gz", "attention/liver.nii.gz", "architectures/unet.nii.gz")


@pytest.fixture
def campaign(tmp_path: Path) -> Campaign:
    """Round 0 is merged, round 1 is queued, round 2 has only its holdout's predictions; case a was annotated in round 0."""
    campaign = make_campaign(tmp_path)
    workspace = campaign.open_workspace()
    write_manifest(campaign, [make_case(tmp_path, "a"), make_case(tmp_path, "b")])
    for r in (0, 1, 2):
        for case_id in ("a", "b"):
            write_prediction(workspace, r, case_id)
        workspace.checkpoint(r, "unet").parent.mkdir(parents=True)
        workspace.checkpoint(r, "unet").write_bytes(b"weights")
        (workspace.train_storage / f"paper-r{r:03d}-unet-x-y").mkdir(parents=True)
        (workspace.train_storage / f"paper-r{r:03d}-unet-x-y" / "state").write_bytes(b"1234")
    for r in (0, 1):
        fill_queue(campaign, r, ["a"])
        workspace.priority_csv(r).write_text("a,liver\n")
        workspace.start_step(r, "annotate", "2026-01-01T00:00:00+00:00")
    with open_database(campaign.database_url) as database:
        queue = Queue(database)
        queue.submit(queue.claim(0, "a", "ada").item_id, "ada")
    write_annotation(workspace, 0, "a")
    workspace.finish_step(0, "merge", "2026-01-01T00:00:00+00:00")
    return campaign


def files(campaign: Campaign) -> set[str]:
    root = campaign.open_workspace().root
    return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file() and not path.name.startswith("annotation.db")}


def free(campaign: Campaign) -> set[str]:
    """What a collection took away."""
    before = files(campaign)
    garbage = find_garbage(campaign)
    assert files(campaign) == before, "looking changes nothing"
    collect(campaign, garbage)
    return before - files(campaign)


def without_provenance(monkeypatch: pytest.MonkeyPatch) -> None:
    """These annotations are no real ones, so that nothing may ask what to train on."""
    monkeypatch.setattr("atlas_ray.garbage.cache_keys", lambda campaign, r: {f"of_{r}"})


def test_heavy_files_of_merged_rounds_go(campaign: Campaign, monkeypatch: pytest.MonkeyPatch) -> None:
    without_provenance(monkeypatch)
    workspace = campaign.open_workspace()
    for key in ("of_0", "of_1", "of_2"):  # round 1 is the last that was started: what its training reads, and the next one's
        workspace.cache(key, "a").mkdir(parents=True)
        (workspace.cache(key, "a") / "image").touch()
    partial = workspace.root / ".campaign.yaml.1.partial"
    partial.touch()
    os.utime(partial, (time.time() - 3600,) * 2)
    gone = {f"rounds/000/predictions/{case_id}/{name}" for case_id in ("a", "b") for name in HEAVY}
    gone -= {"rounds/000/predictions/a/attention/liver.nii.gz"}  # annotated: later trainings look there closer
    assert free(campaign) == gone | {"train/paper-r000-unet-x-y/state", "cache/of_0/a/image", ".campaign.yaml.1.partial"}
    assert free(campaign) == set(), "a second time there is nothing left"


def test_what_was_collected_is_not_missing(campaign: Campaign, monkeypatch: pytest.MonkeyPatch) -> None:
    without_provenance(monkeypatch)
    collect(campaign, find_garbage(campaign))
    workspace = campaign.open_workspace()
    problems = {f.path for f in verify(campaign, "c") if f.problem in ("missing", "altered")}
    assert problems == set()
    workspace.pseudo_label(0, "a").unlink()
    assert [f.path for f in verify(campaign, "c") if f.problem == "missing"] == [str(workspace.pseudo_label(0, "a"))]


def test_a_round_that_is_not_merged_is_kept_whole(campaign: Campaign) -> None:
    workspace = campaign.open_workspace()
    assert old_rounds(campaign) == [0]
    with open_database(campaign.database_url) as database:
        Queue(database).reopen(Queue(database).item((0, "a")).item_id, "ada")
    assert old_rounds(campaign) == [], "somebody works on it again"
    workspace.write_round_state(0, workspace.round_state(0).model_copy(update={"abandoned": "2026-01-01T00:00:00+00:00"}))
    assert old_rounds(campaign) == [0]


def test_the_newest_round_that_was_queued_is_kept_whole(campaign: Campaign) -> None:
    workspace = campaign.open_workspace()
    workspace.priority_csv(1).unlink()
    assert old_rounds(campaign) == []
    workspace.priority_csv(1).touch()
    workspace.write_round_state(1, workspace.round_state(1).model_copy(update={"abandoned": "2026-01-01T00:00:00+00:00"}))
    assert old_rounds(campaign) == [], "round 0 is the newest that goes on"


def test_a_round_is_kept_until_every_case_is_decided_and_what_was_handed_in_is_merged(campaign: Campaign) -> None:
    workspace = campaign.open_workspace()
    fill_queue(campaign, 0, ["a", "b"])
    with open_database(campaign.database_url) as database:
        queue = Queue(database)
        queue.flag(queue.claim(0, "b", "ada").item_id, "ada", note="two livers")
        assert old_rounds(campaign) == [], "somebody has to look at b"
        queue.skip(queue.claim(0, "b", "ada").item_id, "ada")
        assert old_rounds(campaign) == [0]
        workspace.write_round_state(0, workspace.round_state(0).model_copy(update={"finished": {}}))
        assert old_rounds(campaign) == [], "a is not merged"
        queue.skip(queue.reopen(queue.item((0, "a")).item_id, "ada").item_id, "ada")
        assert old_rounds(campaign) == [0], "there is nothing to merge"
    workspace.annotation_db.unlink()
    assert old_rounds(campaign) == [0], "nobody was asked"

"""Verify finds each thing that was tampered with, names it and the command that mends it, and finds nothing else."""

import os
import time
from pathlib import Path

import pytest
from paper_workspace import fill_queue, make_campaign, make_case, write_annotation, write_manifest, write_prediction

from atlas_ray.cluster.identity import Identity
from atlas_ray.config import Campaign
from atlas_ray.verify import folders_to_check, verify
from atlas_ray.workspace import SUMS, Workspace, file_sha256


@pytest.fixture
def campaign(tmp_path: Path) -> Campaign:
    campaign = make_campaign(tmp_path)
    workspace = campaign.open_workspace()
    cases = [make_case(tmp_path, name) for name in ("a", "b")]
    write_manifest(campaign, cases)
    checkpoint = workspace.checkpoint(0, "unet")
    checkpoint.parent.mkdir(parents=True)
    checkpoint.write_bytes(b"weights")
    identity = Identity.of(campaign, {"unet": file_sha256(checkpoint)})
    for case in cases:
        write_prediction(workspace, 0, case.case_id, key=identity.key(case))
    write_annotation(workspace, 0, "a")
    fill_queue(campaign, 0, ["a"])
    workspace.finish_step(0, "predict", "2026-01-02T03:04:05+00:00")
    return campaign


@pytest.fixture
def workspace(campaign: Campaign) -> Workspace:
    return campaign.open_workspace()


def found(campaign: Campaign, **options: bool) -> list[tuple[str, str, str]]:
    root = f"{campaign.open_workspace().root}/"
    return [(f.problem, f.path.removeprefix(root), f.mend) for f in verify(campaign, "c.yaml", **options)]


def test_nothing_wrong_nothing_said(campaign: Campaign) -> None:
    assert found(campaign, images=True) == []
    steps: list[int] = []
    verify(campaign, "c.yaml", progress=lambda: steps.append(1))
    assert len(steps) == folders_to_check(campaign) == 5


def test_altered_and_missing_files_of_a_prediction(campaign: Campaign, workspace: Workspace) -> None:
    workspace.pseudo_label(0, "a").write_bytes(b"one bit flipped")
    workspace.heat(0, "b").unlink()
    mend = "remove the folder, then python -m jobs.predict c.yaml --round 0"
    assert found(campaign) == [
        ("altered", "rounds/000/predictions/a/pseudo_label.nii.gz", mend),
        ("missing", "rounds/000/predictions/b/heat.nii.gz", mend),
    ]


def test_scores_that_were_edited_by_hand(campaign: Campaign, workspace: Workspace) -> None:
    path = workspace.scores(0, "a")
    path.write_text(path.read_text().replace('"attention_voxels":1', '"attention_voxels":9'))
    assert [(p, name) for p, name, _ in found(campaign)] == [("altered", "rounds/000/predictions/a/scores.json")]


def test_an_annotation_that_was_altered(campaign: Campaign, workspace: Workspace) -> None:
    workspace.annotation(0, "a").write_bytes(b"x")
    assert found(campaign) == [("altered", "rounds/000/annotations/a/label.nii.gz", "python -m jobs.merge c.yaml --round 0")]


def test_images_and_labels(campaign: Campaign, workspace: Workspace, tmp_path: Path) -> None:
    Path(workspace.case("a").image).write_bytes(b"another scan")
    assert found(campaign) == [], "images are read only when asked for"
    assert found(campaign, images=True) == [("altered", workspace.case("a").image, "python -m jobs.ingest c.yaml")]
    Path(workspace.case("b").image).unlink()
    assert ("missing", workspace.case("b").image, "bring it back") in found(campaign)
    write_manifest(campaign, [make_case(tmp_path, "a", "train", labeled_organs=("liver",)), make_case(tmp_path, "b")])
    assert ("missing", "labels/a.nii.gz", "python -m jobs.ingest c.yaml") in found(campaign)


def test_labels_and_references_that_were_altered(campaign: Campaign, workspace: Workspace, tmp_path: Path) -> None:
    for path in (label := workspace.label("a"), truth := workspace.truth("a")):
        path.parent.mkdir()
        path.write_bytes(b"as ingested")
    digest = "0" * 64
    write_manifest(campaign, [make_case(tmp_path, "a", "holdout", labeled_organs=("liver",), truth=str(truth))])
    assert [p for p, name, _ in found(campaign) if "/a.nii.gz" in name] == [], "an earlier version's manifest has no digests"
    digests = {"label_sha256": file_sha256(label), "truth_sha256": digest}
    write_manifest(campaign, [make_case(tmp_path, "a", "holdout", labeled_organs=("liver",), truth=str(truth), **digests)])
    altered = ("altered", "truth/a.nii.gz", "remove the file, then python -m jobs.ingest c.yaml")
    assert [f for f in found(campaign) if "/a.nii.gz" in f[1]] == [altered]


def test_other_weights_and_parameters_make_predictions_stale(campaign: Campaign, workspace: Workspace) -> None:
    stale = [("stale", f"rounds/000/predictions/{c}", "python -m jobs.predict c.yaml --round 0") for c in ("a", "b")]
    assert (
        found(campaign.model_copy(update={"attention": make_campaign(Path("/x"), attention={"mode": "faithful"}).attention}))
        == stale
    )
    workspace.checkpoint(0, "unet").write_bytes(b"other weights")
    assert found(campaign) == stale
    workspace.checkpoint(0, "unet").unlink()
    assert found(campaign) == [("missing", "checkpoints/000/unet.pt", "python -m jobs.train c.yaml --round 0")]


def test_predictions_of_other_code_say_so(campaign: Campaign, workspace: Workspace) -> None:
    inputs, _, _ = workspace.case_scores(0, "a").key.partition("-")
    write_prediction(workspace, 0, "a", key=f"{inputs}-00000000")
    write_prediction(workspace, 0, "b", key="0000000000000000-00000000")
    assert [(f.problem, f.detail) for f in verify(campaign, "c.yaml")] == [
        ("stale", "made by another version of the code"),
        ("stale", "made from another image, other weights or parameters"),
    ]


def test_a_round_that_is_over_is_not_stale(campaign: Campaign, workspace: Workspace) -> None:
    workspace.start_step(1, "predict", "2026-01-02T03:04:05+00:00")
    newer = workspace.checkpoint(1, "unet")
    newer.parent.mkdir()
    newer.write_bytes(b"newer weights")
    identity = Identity.of(campaign, {"unet": file_sha256(newer)})
    for case in workspace.cases():
        write_prediction(workspace, 1, case.case_id, key=identity.key(case))
    workspace.checkpoint(0, "unet").write_bytes(b"other weights")
    assert found(campaign) == []


def test_a_prediction_without_checksums(campaign: Campaign, workspace: Workspace) -> None:
    (workspace.prediction(0, "a") / SUMS).unlink()
    mend = "remove the folder, then python -m jobs.predict c.yaml --round 0"
    assert found(campaign) == [("missing", f"rounds/000/predictions/a/{SUMS}", mend)]


def test_a_case_that_should_be_predicted(campaign: Campaign, workspace: Workspace, tmp_path: Path) -> None:
    workspace.scores(0, "b").unlink()
    write_manifest(campaign, [*workspace.cases(), make_case(tmp_path, "c", "holdout")])
    mend = "python -m jobs.predict c.yaml --round 0"
    assert found(campaign) == [("missing", f"rounds/000/predictions/{case_id}", mend) for case_id in "bc"]


def test_a_broken_database_and_leftovers(campaign: Campaign, workspace: Workspace) -> None:
    data = bytearray(workspace.annotation_db.read_bytes())
    data[:16] = b"not a database.."
    workspace.annotation_db.write_bytes(data)
    partial = workspace.predictions(0) / ".c.123.partial"
    partial.mkdir()
    assert [p for p, *_ in found(campaign)] == ["altered"], "a young one may be somebody's"
    old = time.time() - 3600
    os.utime(partial, (old, old))
    assert [(p, name) for p, name, _ in found(campaign)] == [
        ("altered", "annotation.db"),
        ("leftover", "rounds/000/predictions/.c.123.partial"),
    ]

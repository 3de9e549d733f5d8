"""One whole small round as a user runs it: killed in the middle, started again, started once more, and what it leaves behind."""

import csv
import gzip
import re
import shutil
import subprocess
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from campaigns import NNUNET, UNET, job, phantoms, start, succeeded, write_campaign

from atlas_ray.annotation.drafts import read_draft, read_provenance
from atlas_ray.config import Campaign, load_config
from atlas_ray.records import RoundRecord
from atlas_ray.volume import read_volume
from atlas_ray.workspace import Workspace

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
LABELED = ("liver", "spleen", "aorta")


@dataclass(frozen=True)
class Finished:
    config: Path
    campaign: Campaign
    workspace: Workspace
    resumed: str  # stdout of the run after the kill


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Finished]:
    """A round that was killed while it predicted, and then finished by the same command."""
    for _ in range(3):  # a busy machine may let the killer look only when everything is predicted
        config = killed_while_it_predicts(tmp_path_factory.mktemp("round"))
        campaign = load_config(config)
        workspace = campaign.open_workspace()
        if "predict" not in workspace.finished_steps(0):
            break
    else:
        pytest.fail("killed too late to show anything, three times")
    yield Finished(config, campaign, workspace, succeeded(job("run_round", config, cwd=config.parent)))
    shutil.rmtree(workspace.root, ignore_errors=True)


def killed_while_it_predicts(folder: Path) -> Path:
    config = write_campaign(
        folder,
        architectures=[UNET, NNUNET],
        datasets=[
            phantoms("labeled", 2, "train", 1, labeled_organs=list(LABELED)),
            phantoms("pool", 2, "pool", 11),
            phantoms("holdout", 1, "holdout", 21),
        ],
    )
    workspace = load_config(config).open_workspace()
    first = start("run_round", config, cwd=folder)
    deadline = time.monotonic() + 600
    while not workspace.predicted(0) and first.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    first.kill()
    said = first.communicate()
    assert workspace.predicted(0), said
    return config


def test_started_again_after_a_kill_it_skips_what_was_done_and_finishes(finished):
    assert "skipped, done before: train" in finished.resumed
    assert "mean Dice" in finished.resumed
    assert re.search(r"round 0.*round 1", finished.resumed)
    assert "python -m ui" in finished.resumed
    assert "python -m jobs.run_round" in finished.resumed
    assert not list(finished.workspace.root.rglob("rounds/*/predictions/.*")), "half a prediction was left"


def test_it_leaves_a_record(finished):
    record = RoundRecord.model_validate_json(finished.workspace.record(0).read_bytes())
    assert record.round == 0
    assert record.mean_dice is not None
    assert record.cases_revised >= 1
    assert record.minutes == 15 * record.cases_revised


def test_a_third_start_skips_every_step_and_says_so(finished):
    before = {p: p.stat().st_mtime_ns for p in finished.workspace.root.rglob("*.nii.gz")}
    stdout = succeeded(job("run_round", finished.config, cwd=finished.config.parent))
    assert "skipped, done before: train, predict, evaluate, prioritize, annotate, merge, finetune, check" in stdout
    assert {p: p.stat().st_mtime_ns for p in finished.workspace.root.rglob("*.nii.gz")} == before


def test_mlflow_has_one_parent_run_and_its_children(finished):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # mlflow's own on import
        from mlflow import MlflowClient

        client = MlflowClient(finished.campaign.tracking_uri)
        experiment = client.get_experiment_by_name("small")
        runs = client.search_runs([experiment.experiment_id], max_results=100)
    (parent,) = [r for r in runs if r.data.tags["atlas_ray.key"] == "round-000"]
    children = {r.data.tags["atlas_ray.key"] for r in runs if r.data.tags.get("mlflow.parentRunId") == parent.info.run_id}
    steps = ("train-unet", "train-nnunet", "predict", "evaluate", "prioritize", "annotate", "merge")
    assert children == {f"round-000/{step}" for step in steps}
    assert {r.info.status for r in runs} == {"FINISHED"}
    assert parent.data.params["training.steps"] == "3"
    assert "dice/mean" in parent.data.metrics
    assert len({r.data.tags["atlas_ray.key"] for r in runs}) == len(runs)


def test_the_annotator_changed_voxels_only_where_attention_pointed(finished):
    workspace, organs = finished.workspace, finished.campaign.load_organs()
    annotated = [c for c in workspace.cases() if workspace.provenance(0, c.case_id).exists()]
    assert annotated
    changed_anything = False
    for case in annotated:
        draft = np.asarray(read_draft(workspace, 0, case, organs).voxels)
        annotation = read_volume(workspace.annotation(0, case.case_id))
        changed = draft != annotation.voxels
        attended = np.zeros(case.shape, bool)
        for name in organs.names:
            attended |= np.asarray(read_volume(workspace.attention(0, case.case_id, name)).voxels) > 0
        assert not np.any(changed & ~attended)
        assert np.array_equal(annotation.affine, read_volume(case.image).affine)
        changed_anything |= bool(changed.any())
    assert changed_anything


def contents(root: Path) -> dict[Path, bytes]:
    """Of every annotation, decompressed: a gzip header may hold the time it was written."""
    files = {p: p.read_bytes() for p in root.rglob("annotations/*/*")}
    return {p: gzip.decompress(data) if p.suffix == ".gz" else data for p, data in files.items()}


def test_merge_and_evaluate_can_be_run_again_alone(finished):
    annotations = contents(finished.workspace.root)
    assert "merged cases" in succeeded(job("merge", finished.config, cwd=finished.config.parent))
    assert contents(finished.workspace.root) == annotations
    assert "Dice on 1 holdout cases" in succeeded(job("evaluate", "dice", finished.config, cwd=finished.config.parent))


def test_export_releases_all_but_the_holdout_and_again_changes_nothing(finished, tmp_path):
    workspace, organs = finished.workspace, finished.campaign.load_organs()
    arguments = (finished.config, "--out", tmp_path / "release")
    out = tmp_path / "release"
    assert "4 cases" in succeeded(job("export", *arguments, cwd=tmp_path))

    expected = {c.case_id: c for c in workspace.cases() if c.split != "holdout"}
    assert {p.name for p in out.iterdir() if p.is_dir()} == {*expected, "provenance"}
    rows = {row["case"]: row for row in csv.DictReader((out / "dataset.csv").read_text().splitlines())}
    assert set(rows) == set(expected)
    for case_id, case in expected.items():
        combined, image = read_volume(out / case_id / "combined_labels.nii.gz"), read_volume(case.image)
        assert np.array_equal(combined.affine, image.affine)
        assert combined.shape == image.shape
        assert rows[case_id]["image_sha256"] == case.sha256
        for name in organs.names:
            mask = read_volume(out / case_id / "segmentations" / f"{name}.nii.gz")
            assert mask.voxels.dtype == np.uint8
            assert np.array_equal(mask.voxels == 1, organs.mask(combined.voxels, name))
            assert set(np.unique(mask.voxels)) <= {0, 1}
        if workspace.provenance(0, case_id).exists():
            truth = read_volume(workspace.annotation(0, case_id))
            sources = {e.organ: e.source for e in read_provenance(workspace, 0, case_id).organs}
        else:
            truth = read_draft(workspace, 0, case, organs)
            sources = {n: "original" if n in case.labeled_organs else "pseudo" for n in organs.names}
        assert np.array_equal(combined.voxels, truth.voxels)
        assert {n: rows[case_id][f"{n}_source"] for n in organs.names} == sources
    assert {(out / c / "ct.nii.gz").resolve() for c in expected} == {Path(c.image) for c in expected.values()}
    checked = subprocess.run(
        ["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=out, capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stdout

    before = {p: p.stat().st_mtime_ns for p in out.rglob("*.nii.gz")}
    assert "4 unchanged" in succeeded(job("export", *arguments, cwd=tmp_path))
    assert {p: p.stat().st_mtime_ns for p in out.rglob("*.nii.gz")} == before

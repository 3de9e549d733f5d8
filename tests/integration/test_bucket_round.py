"""A whole round in a bucket gives, bit for bit, what the same round gives on a disk."""

from pathlib import Path

import pytest
from campaigns import UNET, phantoms, write_campaign

from atlas_ray.config import load_config
from atlas_ray.rounds import RoundResult, run_round
from atlas_ray.storage import BucketPath
from atlas_ray.workspace import Workspace

DATASETS = [
    phantoms("train", 2, "train", 1, labeled_organs=["liver", "spleen"]),
    phantoms("pool", 2, "pool", 2),
    phantoms("holdout", 1, "holdout", 3),
]


def run(folder: Path, workspace: str | None = None) -> tuple[RoundResult, Workspace]:
    """Round 0 of a tiny campaign, everything in this process; databases are files beside it."""
    folder.mkdir(exist_ok=True)
    path = write_campaign(folder, datasets=DATASETS, architectures=[UNET])
    overrides = [f"annotation.database=sqlite:///{folder}/annotation.db", f"tracking.uri=sqlite:///{folder}/mlflow.db"]
    campaign = load_config(path, [*overrides, *([f"workspace={workspace}"] if workspace else [])])
    return run_round(campaign, 0), campaign.open_workspace()


@pytest.mark.slow
def test_a_round_in_a_bucket_equals_the_round_on_a_disk(
    in_this_process: None, bucket: BucketPath, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    disk_result, disk = run(tmp_path / "disk")
    bucket_result, remote = run(tmp_path / "bucket", f"{bucket}/campaign")
    assert str(remote.root).startswith("s3://")
    assert bucket_result.after is not None
    assert disk_result.after is not None
    assert bucket_result.after.organs == disk_result.after.organs
    assert [case.case_id for case in remote.cases()] == [case.case_id for case in disk.cases()]
    assert remote.predicted(0) == disk.predicted(0) == {"pool_0000", "pool_0001", "train_0000", "train_0001", "holdout_0000"}
    for case_id in sorted(disk.predicted(0)):
        assert remote.pseudo_label(0, case_id).read_bytes() == disk.pseudo_label(0, case_id).read_bytes()
        assert remote.components(0, case_id).read_bytes() == disk.components(0, case_id).read_bytes()
    merged = sorted(path.relative_to(disk.round(0)).as_posix() for path in disk.round(0).glob("annotations/*/label.nii.gz"))
    assert merged
    for name in merged:
        assert (remote.round(0) / name).read_bytes() == (disk.round(0) / name).read_bytes()

    again, _ = run(tmp_path / "bucket", f"{bucket}/campaign")
    assert set(again.skipped) >= {"train", "predict", "merge", "finetune"}
    assert not (tmp_path / "s3:").exists(), "a URL was taken for a path"

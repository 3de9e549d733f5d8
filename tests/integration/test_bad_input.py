"""One real ingest over a folder with bad cases: one clear line each, and the good ones finish."""

from pathlib import Path

import numpy as np
from campaigns import UNET, job, succeeded, write_campaign

from atlas_ray.volume import Volume, write_volume
from atlas_ray.workspace import Workspace

AFFINE = np.diag([2.0, 3.0, 5.0, 1.0])


def ct(shape: tuple[int, int, int], seed: int) -> Volume:
    """Air around a body of about 40 HU."""
    voxels = np.full(shape, -1000, np.int16)
    body = voxels[2:-2, 2:-2, 1:-1]
    body[:] = np.random.default_rng(seed).integers(20, 60, body.shape)
    return Volume(voxels, AFFINE)


def case(folder: Path, *, seed: int, label_shape: tuple[int, int, int] = (12, 10, 9)) -> None:
    write_volume(folder / "ct.nii.gz", ct((12, 10, 9), seed))
    write_volume(folder / "label.nii.gz", Volume(np.ones(label_shape, np.uint8), AFFINE))


def test_bad_cases_are_set_aside_with_a_line_each(tmp_path):
    data = tmp_path / "data"
    case(data / "labeled" / "good_1", seed=1)
    case(data / "labeled" / "good_2", seed=2)
    case(data / "labeled" / "wrong_label", seed=3, label_shape=(12, 10, 4))
    case(data / "labeled" / "corrupt", seed=4)
    image = data / "labeled" / "corrupt" / "ct.nii.gz"
    image.write_bytes(image.read_bytes()[:100])
    (data / "dicom" / "empty").mkdir(parents=True)
    files = {"source": "files", "images": "{case}/ct.nii.gz", "labels": "{case}/label.nii.gz", "ids": {1: "liver"}}
    config = write_campaign(
        tmp_path,
        data_root=str(data),
        architectures=[UNET],
        datasets=[
            {**files, "name": "labeled", "root": "labeled", "split": "train"},
            {"source": "dataset", "dataset": "dicom", "root": "dicom", "split": "pool", "license": "CC BY 4.0"},
        ],
    )

    result = job("ingest", config, cwd=tmp_path)

    stdout = succeeded(result)
    assert "2 cases, 0 unchanged, 3 quarantined" in stdout
    assert "Traceback" not in result.stderr
    workspace = Workspace(tmp_path / "workspace")
    assert [c.case_id for c in workspace.cases()] == ["good_1", "good_2"]
    reasons = {q.case_id: q.reason for q in workspace.quarantined()}
    assert set(reasons) == {"corrupt", "empty", "wrong_label"}
    assert "ct.nii.gz" in reasons["corrupt"]
    assert "holds no DICOM image" in reasons["empty"]
    assert "(12, 10, 4)" in reasons["wrong_label"]
    assert "(12, 10, 9)" in reasons["wrong_label"]
    for case_id, reason in reasons.items():
        assert "\n" not in reason
        lines = [line for line in result.stderr.splitlines() if case_id in line]
        assert len(lines) == 1, lines
        assert reason in lines[0]

"""The editor's modules that need no browser, under node."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import nibabel
import numpy as np
import pytest

HERE = Path(__file__).parent
NODE = shutil.which("node")
pytestmark = pytest.mark.skipif(NODE is None, reason="node is not installed")

OBLIQUE = np.array([[-0.79, 0.11, 0.3, 90.0], [0.1, 0.78, -0.42, -80.0], [-0.07, -0.13, 4.9, 30.0], [0, 0, 0, 1]])


def run_node(test_file: str, **environment: str) -> None:
    command = [str(NODE), "--test", str(HERE / test_file)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, env={**os.environ, **environment})
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("noun", ["runs", "edit", "region", "outbox", "controls"])
def test_without_a_browser(noun: str) -> None:
    run_node(f"{noun}.test.mjs")


def diagonal(*signed_spacing: float, order: tuple[int, int, int] = (0, 1, 2)) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] = np.diag(signed_spacing)[:, list(order)]
    affine[:3, 3] = (-31.0, 12.5, 7.0)
    return affine


def test_nifti_reader_agrees_with_nibabel(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    affines = {
        "ras": diagonal(0.7, 0.8, 2.5),
        "lps": diagonal(-0.7, -0.8, 2.5),
        "las": diagonal(-0.7, 0.8, 2.5),
        "pir": diagonal(0.7, -0.8, -2.5, order=(1, 2, 0)),
        "oblique": OBLIQUE,
    }
    cases = []
    for name, affine in affines.items():
        for kind, code in ((nibabel.Nifti1Image, "sform"), (nibabel.Nifti1Image, "qform"), (nibabel.Nifti2Image, "sform")):
            if code == "qform" and name == "oblique":
                continue  # this affine has a shear, which a quaternion cannot hold
            voxels = rng.integers(-1000, 1000, (5, 4, 6)).astype(np.int16) if code == "sform" else np.ones((5, 4, 6), np.uint8)
            image = kind(voxels, affine)
            image.header.set_sform(affine, code=int(code == "sform"))
            image.header.set_qform(affine, code=int(code == "qform"))
            path = tmp_path / f"{name}_{code}_{kind.__name__}.nii"
            nibabel.save(image, path)
            axes = "".join(nibabel.aff2axcodes(image.affine))
            facts = {"dims": voxels.shape, "affine": affine.tolist(), "axes": axes}
            cases.append({"file": str(path), **facts, "last": int(voxels[-1, -1, -1]), "sum": int(voxels.sum())})
    run_node("nifti.test.mjs", NIFTI_CASES=json.dumps(cases))

"""Real CT through the real jobs: whatever grid a scan comes on, its results lie on that grid, voxel for voxel.

The networks are the demo's architectures with weights that were never trained: what is checked here is geometry and memory, not
Dice.
"""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from atlas_ray.config import Campaign, load_config
from atlas_ray.segmentation.architectures import start_from_prior
from atlas_ray.segmentation.checkpoints import CheckpointHeader, Provenance, save_checkpoint
from atlas_ray.volume import read_volume

ROOT = Path(__file__).parents[2]
SOURCES = [
    {"source": "files", "name": "ts1", "root": "ts1", "images": "ct.nii.gz", "case_id": "ts1", "split": "pool"},
    {"source": "files", "name": "acrin", "root": "acrin_flt_001", "images": "ct.nii.gz", "case_id": "acrin", "split": "pool"},
    {"source": "files", "name": "cptac", "root": "cptac_pda_189", "images": "dicom/", "case_id": "cptac", "split": "pool"},
]


def campaign_file(folder: Path, shared_data: Path) -> Path:
    """The demo's configuration with three real scans in place of its patients."""
    content = yaml.safe_load((ROOT / "configs" / "demo.yaml").read_text())
    content |= {"name": "real", "workspace": str(folder / "workspace"), "data_root": str(shared_data), "datasets": SOURCES}
    path = folder / "real.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def save_untrained_networks(campaign: Campaign) -> None:
    organs = campaign.load_organs()
    for architecture in campaign.architectures:
        torch.manual_seed(0)
        network = architecture.build(len(organs))
        start_from_prior(network, architecture, prior=0.1)  # unsure here and there, as real networks are
        header = CheckpointHeader(
            architecture=architecture,
            organs=organs.names,
            spacing=campaign.preprocessing.spacing,
            window_hu=campaign.preprocessing.window_hu,
            provenance=Provenance(round=0, cases=0, data_key="none", steps=0, seed=0, created="2026-01-01T00:00:00Z"),
        )
        save_checkpoint(campaign.open_workspace().checkpoint(0, architecture.architecture), header, network.state_dict())


def run_job(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=900, check=False)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_nifti_and_dicom_results_lie_on_the_scans_own_grid(shared_data: Path, tmp_path: Path) -> None:
    config = campaign_file(tmp_path, shared_data)
    campaign = load_config(config)
    save_untrained_networks(campaign)
    ingest = run_job("jobs.ingest", str(config))
    assert ingest.returncode == 0, ingest.stderr
    predict = run_job("jobs.predict", str(config))
    assert predict.returncode == 0, predict.stderr
    assert "3 predicted" in predict.stdout
    assert "peak memory" in predict.stdout
    workspace, organs = campaign.open_workspace(), campaign.load_organs()
    for case in workspace.cases():
        image = read_volume(case.image)
        results = [workspace.pseudo_label(0, case.case_id), workspace.heat(0, case.case_id)]
        results += [workspace.attention(0, case.case_id, name) for name in organs.names]
        results += [workspace.architecture_label(0, case.case_id, name) for name in campaign.architecture_names]
        for path in results:
            result = read_volume(path)
            assert result.shape == image.shape, path
            assert np.allclose(result.affine, image.affine, atol=1e-4), path
            assert result.voxels.dtype == np.uint8
        for component in workspace.case_components(0, case.case_id):
            bits = read_volume(workspace.attention(0, case.case_id, component.organ)).voxels
            box = tuple(slice(start, stop) for start, stop in component.box)
            assert bits[component.peak] > 0
            assert np.count_nonzero(bits[box]) >= component.voxels
            assert component.volume_mm3 == pytest.approx(component.voxels * image.voxel_volume_mm3, rel=1e-4)

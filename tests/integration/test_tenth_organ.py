"""Adding an organ is one entry in a YAML file: ingest, train and predict follow without a change of code."""

import numpy as np
import pytest
import yaml
from campaigns import REPOSITORY, UNET, job, phantoms, succeeded, write_campaign

from atlas_ray.organs import load_organs
from atlas_ray.segmentation.checkpoints import read_checkpoint
from atlas_ray.volume import read_volume
from atlas_ray.workspace import Workspace


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_tenth_organ_runs_from_ingest_to_predict(tmp_path):
    content = yaml.safe_load((REPOSITORY / "configs" / "organs" / "abdomenatlas_1_0.yaml").read_text())
    content["name"] = "ten"
    content["organs"].append({"name": "esophagus", "label_id": 10, "color": "#67e5d0"})
    (tmp_path / "ten.yaml").write_text(yaml.safe_dump(content))
    config = write_campaign(
        tmp_path,
        organs="ten.yaml",
        architectures=[UNET],
        datasets=[phantoms("known", 1, "train", 1), phantoms("pool", 1, "pool", 2)],
    )

    for verb in ("ingest", "train", "predict"):
        succeeded(job(verb, config, cwd=tmp_path))

    workspace, organs = Workspace(tmp_path / "workspace"), load_organs(tmp_path / "ten.yaml")
    known, pool = workspace.cases()
    assert known.labeled_organs == organs.names
    assert organs.mask(np.asarray(read_volume(workspace.label(known.case_id)).voxels), "esophagus").sum() > 5
    header, state, _ = read_checkpoint(workspace.checkpoint(0, "unet"))
    assert header.organs == organs.names
    assert state["head.weight"].shape[0] == 10
    attention = read_volume(workspace.attention(0, pool.case_id, "esophagus"))
    assert attention.shape == pool.shape
    assert "esophagus" in [o.organ for o in workspace.case_scores(0, pool.case_id).organs]

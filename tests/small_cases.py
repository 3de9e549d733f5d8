"""Many small cases with a manifest and tiny networks, made in seconds: for tests and benchmarks of what surrounds the networks."""

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from atlas_ray.config import Campaign, load_config
from atlas_ray.data.ingest import sha256_of
from atlas_ray.records import Case
from atlas_ray.segmentation.checkpoints import CheckpointHeader, Provenance, save_checkpoint
from atlas_ray.volume import Volume, write_volume
from atlas_ray.workspace import write_lines

ORGANS = """
name: two
organs:
  - {name: liver, label_id: 6, color: "#c8604f"}
  - {name: spleen, label_id: 2, color: "#9b6bd6"}
"""
NETWORK = {"architecture": "unet", "features": [4, 8], "residual_units": 1}


def make_campaign(root: Path, *, workspace: Path, **fields: Any) -> Path:
    """A campaign's YAML in `root`."""
    root.mkdir(parents=True, exist_ok=True)
    (root / "two.yaml").write_text(ORGANS)
    content = {
        "name": "small",
        "workspace": str(workspace),
        "organs": str(root / "two.yaml"),
        "datasets": [{"source": "phantom", "name": "unused", "count": 1, "split": "pool"}],
        "preprocessing": {"spacing": [2, 2, 2]},
        "architectures": [NETWORK],
        "patches": {"patch": [16, 16, 16]},
        "inference": {"window": [32, 32, 32], "overlap": 0.25, "precision": "float32"},
        "attention": {"mode": "physical"},
        **fields,
    }
    path = root / "campaign.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def make_cases(root: Path, config: Path, count: int, *, edge: int = 24, distinct: int = 8, linked: bool = False) -> list[Case]:
    """CT of `edge`^3 voxels of 2 mm, a few of them distinct and the others copies under names of their own; manifest and network.

    The manifest says what ingest would say of the files as they are now.

    Args:
        linked: the copies share their bytes.
    """
    campaign = load_config(config)
    images = root / "images"
    images.mkdir(parents=True, exist_ok=True)
    written = [_write_image(images / f"case_{n:05d}.nii.gz", edge, seed=n) for n in range(min(distinct, count))]
    cases = []
    for n in range(count):
        path, (original, sha256) = images / f"case_{n:05d}.nii.gz", written[n % len(written)]
        if path != original:
            (os.link if linked else shutil.copyfile)(original, path)
        grid = {"shape": (edge,) * 3, "spacing": (2.0,) * 3, "orientation": "RAS"}
        case = {"case_id": path.name.partition(".")[0], "image": str(path), "sha256": sha256, **grid}
        cases.append(Case.model_validate({**case, "source": "here", "license": "CC0-1.0", "split": "pool"}))
    write_lines(campaign.open_workspace().manifest, cases)
    _save_network(campaign)
    return cases


def _write_image(path: Path, edge: int, *, seed: int) -> tuple[Path, str]:
    random = np.random.default_rng(seed)
    axes = np.meshgrid(*(np.arange(edge),) * 3, indexing="ij", sparse=True)
    center = random.uniform(0.35, 0.65, 3) * edge
    distance = np.sqrt(sum((axis - c) ** 2 for axis, c in zip(axes, center, strict=True)))
    voxels = np.where(distance < 0.3 * edge, 60, -100) + random.normal(0, 12, (edge,) * 3)
    write_volume(path, Volume(voxels.astype(np.int16), np.diag([2.0, 2.0, 2.0, 1.0])))
    return path, sha256_of(str(path), None)


def _save_network(campaign: Campaign) -> None:
    architecture, organs = campaign.architectures[0], campaign.load_organs()
    torch.manual_seed(0)
    network = architecture.build(len(organs))
    origin = Provenance(round=0, cases=1, data_key="none", steps=1, seed=0, created="2026-01-01T00:00:00+00:00")
    header = CheckpointHeader(
        architecture=architecture, organs=organs.names, spacing=(2, 2, 2), window_hu=(-175, 250), provenance=origin
    )
    save_checkpoint(campaign.open_workspace().checkpoint(0, architecture.architecture), header, network.state_dict())

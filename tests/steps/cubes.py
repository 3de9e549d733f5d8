"""Cases of 24^3 voxels with a bright and a dark cube, the same but for their noise: networks of a few hundred weights learn them in
seconds, and cannot tell one case from another."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from atlas_ray.config import Campaign
from atlas_ray.records import Case, Split
from atlas_ray.volume import Volume, write_volume
from atlas_ray.workspace import file_sha256

SHAPE = (24, 24, 24)
HU = {"liver": 220, "spleen": -140}  # background: 40; no other organ is in any image


def cube_campaign(root: Path, *organs: str, **fields: Any) -> Campaign:
    """A campaign without an ingest: its manifest is written by the test."""
    listed = [{"name": name, "label_id": k + 1, "color": "#c8604f"} for k, name in enumerate(organs)]
    path = root / "organs.yaml"
    path.write_text(yaml.safe_dump({"name": "cubes", "organs": listed}))
    schedule = {"batch": 2, "learning_rate": 0.02, "warmup_steps": 5, "precision": "float32", "validation_cases": 0}
    content = {
        "name": "cubes",
        "workspace": str(root / "workspace"),
        "organs": str(path),
        "datasets": [{"source": "phantom", "name": "none", "count": 1, "split": "train"}],
        "preprocessing": {"spacing": [1, 1, 1]},
        "architectures": [{"architecture": "unet", "features": [4, 8], "residual_units": 1}],
        "patches": {"patch": [16, 16, 16], "augmentation": {"affine_probability": 0}},
        "training": {"steps": 100, **schedule},
        "finetuning": {"steps": 60, **schedule},
        "inference": {"window": [16, 16, 16], "overlap": 0.25, "batch": 4, "precision": "float32"},
    }
    return Campaign.model_validate({**content, **fields})


def write_cubes(campaign: Campaign, name: str, split: Split, *, seed: int, labeled: Collection[str] = ()) -> Case:
    """One case; its label map holds the labeled organs only, the truth of the holdout holds all."""
    workspace, organs, rng = campaign.open_workspace(), campaign.load_organs(), np.random.default_rng(seed)
    truth, hu = np.zeros(SHAPE, np.uint8), np.full(SHAPE, 40.0)
    for k, organ in enumerate(organs):
        if organ.name in HU:
            box = (slice(1 + 12 * k, 9 + 12 * k), slice(8, 16), slice(8, 16))
            truth[box], hu[box] = organ.label_id, HU[organ.name]
    image = workspace.root / "images" / f"{name}.nii.gz"
    write(image, np.rint(hu + rng.normal(0, 10, SHAPE)).astype(np.int16))
    if split == "holdout":
        write(workspace.truth(name), truth)
    if labeled:
        write(workspace.label(name), np.where(np.isin(truth, [organs.label_id(n) for n in labeled]), truth, 0).astype(np.uint8))
    grid: dict[str, Any] = {"shape": SHAPE, "spacing": (1, 1, 1), "orientation": "RAS"}
    return Case(
        case_id=name,
        image=str(image),
        sha256=file_sha256(image),
        split=split,
        labeled_organs=tuple(n for n in organs.names if n in labeled),
        source="cubes",
        license="CC0-1.0",
        **grid,
    )


def write(path: Path, voxels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_volume(path, Volume(voxels, np.eye(4)))

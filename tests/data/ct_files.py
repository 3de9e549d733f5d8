"""Small CT and label files for the tests of sources and ingest."""

from pathlib import Path
from typing import Any

import numpy as np
import yaml
from pydantic import TypeAdapter

from atlas_ray.data.sources import Source
from atlas_ray.volume import Volume, write_volume

AFFINE = np.array([[2.0, 0, 0, -10], [0, 3, 0, -20], [0, 0, 5, 30], [0, 0, 0, 1]])
SHAPE = (12, 10, 8)


def source(**fields: Any) -> Source:
    """A source as a campaign's YAML gives it."""
    return TypeAdapter(Source).validate_python(yaml.safe_load(yaml.safe_dump(fields)))


def ct_voxels(seed: int = 0) -> np.ndarray:
    """Air around a body of about 40 HU, different for every seed."""
    voxels = np.full(SHAPE, -1000, np.int16)
    voxels[2:-2, 2:-2, 1:-1] = np.random.default_rng(seed).integers(20, 60, (8, 6, 6))
    return voxels


def save_ct(path: Path, *, seed: int = 0, voxels: np.ndarray | None = None, affine: np.ndarray = AFFINE) -> Path:
    write_volume(path, Volume(ct_voxels(seed) if voxels is None else voxels, affine))
    return path


def label_voxels(**ids_at: tuple[int, int, int]) -> np.ndarray:
    """Label map with single voxels: id_7=(x, y, z)."""
    voxels = np.zeros(SHAPE, np.uint8)
    for name, place in ids_at.items():
        voxels[place] = int(name.removeprefix("id_"))
    return voxels


def save_label(path: Path, voxels: np.ndarray, *, affine: np.ndarray = AFFINE) -> Path:
    write_volume(path, Volume(voxels, affine))
    return path

"""What the attention benchmarks look at: an ensemble's bytes on nine organs of one patient, and the same from drawn ellipsoids.

Around each organ of a label map the signed distance to its surface makes the logits; every architecture sees the organ moved a
little and its surface disturbed by smooth noise of about two millimeters, so that they disagree as networks do: along borders.
"""

from pathlib import Path

import numpy as np
import torch
from scipy import ndimage

from atlas_ray.volume import read_volume

LABELS = Path(__file__).resolve().parents[2] / "shared" / "data" / "btcv_labels" / "0001.nii.gz"
BTCV_IDS = (8, 4, 3, 2, 6, 11, 9, 1, 7)  # aorta, gall bladder, kidneys, liver, pancreas, postcava, spleen, stomach


def organ_bytes(size: int, *, architectures: int = 3, organs: int = 9) -> tuple[np.ndarray, str]:
    """uint8 [M, K, size, size, size], and where the organs come from."""
    half = size // 2  # distances are smooth: half the resolution is enough
    if LABELS.exists():
        label = read_volume(LABELS).voxels
        label, ids, source = (
            label[np.ix_(*(np.arange(half) * n // half for n in label.shape))],
            BTCV_IDS,
            "expert labels, BTCV 0001",
        )
    else:
        label, ids, source = _ellipsoids(half, organs), tuple(range(1, organs + 1)), "drawn ellipsoids"
    rng = np.random.default_rng(0)
    result = np.empty((architectures, organs, size, size, size), np.uint8)
    for k in range(organs):
        mask = label == ids[k % len(ids)]
        distance = _enlarged(2.0 * (ndimage.distance_transform_edt(mask) - ndimage.distance_transform_edt(~mask)), size)
        for m in range(architectures):
            noise = ndimage.gaussian_filter(rng.normal(size=(size // 8,) * 3), 1.5)
            moved = torch.roll(distance, tuple(int(v) for v in rng.integers(-1, 2, 3)), (0, 1, 2))
            logits = 1.2 * (moved + _enlarged(2.5 / noise.std() * noise, size))
            result[m, k] = torch.sigmoid(logits).mul_(255).round_().byte().numpy()
    return result, source


def _enlarged(volume: np.ndarray, size: int) -> torch.Tensor:
    tensor = torch.from_numpy(volume.astype(np.float32))[None, None]
    return torch.nn.functional.interpolate(tensor, size=(size,) * 3, mode="trilinear")[0, 0]


def _ellipsoids(size: int, organs: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    axes = np.meshgrid(*[np.arange(size)] * 3, indexing="ij", sparse=True)
    label = np.zeros((size,) * 3, np.uint8)
    for k in range(organs):
        center, radius = rng.uniform(0.25, 0.75, 3) * size, rng.uniform(0.05, 0.15, 3) * size
        label[sum(((a - c) / r) ** 2 for a, c, r in zip(axes, center, radius, strict=True)) < 1] = k + 1
    return label

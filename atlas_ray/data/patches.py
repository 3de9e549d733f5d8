"""Training patches: organ-balanced sampling from the cache, and augmentation.

Everything drawn depends only on (seed, step, worker), so a training that resumes draws what it would have drawn.
Axis letters: B batch, K organs, X Y Z.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from pydantic import Field

from atlas_ray.organs import LabelMap, Organs
from atlas_ray.schema import Fraction, IntTriple, Schema
from atlas_ray.storage import kept_local

if TYPE_CHECKING:
    import blosc2

AIR_HU = -1024


@dataclass(frozen=True, slots=True)
class CachedCase:
    """One training case.

    Args:
        image: int16 HU [X, Y, Z]; slicing it reads and inflates what the slices touch.
        label: uint8 label ids [X, Y, Z], likewise.
        foreground: int16 [K, N, 3], voxels of every organ, -1 beyond the last.
        known: bool [K], the organs it has ground truth for.
    """

    image: "npt.NDArray[np.int16] | blosc2.NDArray"
    label: "LabelMap | blosc2.NDArray"
    foreground: npt.NDArray[np.int16]
    known: npt.NDArray[np.bool_]


def open_cached(folder: Path, known: npt.NDArray[np.bool_]) -> CachedCase:
    """Open a cache entry; no voxel is read before a patch is."""
    import blosc2

    folder = kept_local(folder)
    image, label = (blosc2.open(str(folder / f"{name}.b2nd"), mode="r", dparams={"nthreads": 1}) for name in ("image", "label"))
    return CachedCase(image, label, np.load(folder / "foreground.npy", mmap_mode="r"), known)


class Augmentation(Schema):
    """Random changes of a patch. Nothing mirrors left and right: the organs' names would be wrong.

    Args:
        rotate_deg, scale: largest rotation about each axis and relative change of size.
        affine_probability: share of patches that are moved.
        shift_hu, gain: largest offset in HU and relative change of contrast.
        noise_hu: largest standard deviation of added noise.
    """

    rotate_deg: float = Field(default=10.0, ge=0)
    scale: Fraction = 0.1
    affine_probability: Fraction = 0.5
    shift_hu: float = Field(default=20.0, ge=0)
    gain: Fraction = 0.1
    noise_hu: float = Field(default=10.0, ge=0)


class PatchSampling(Schema):
    """Which patches are drawn.

    Args:
        patch: voxels per axis at the networks' spacing.
        foreground: share of patches centered on a voxel of a known organ, every organ equally often (the paper's 2:1).
    """

    patch: IntTriple = (96, 96, 96)
    foreground: Fraction = 0.67
    augmentation: Augmentation = Augmentation()


def draw_batch(
    cases: list[CachedCase], organs: Organs, sampling: PatchSampling, *, size: int, seed: int, step: int, worker: int
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.uint8], npt.NDArray[np.bool_]]:
    """One batch of patches.

    Returns:
        hu_B1XYZ float32, targets_BKXYZ uint8 (0 or 1), known_BK bool.
    """
    rng = np.random.default_rng((seed, step, worker))
    images, targets, known = [], [], []
    for _ in range(size):
        case = cases[int(rng.integers(len(cases)))]
        hu, label = _cut(case, _corner(case, sampling, rng), sampling.patch)
        hu, label = augment(hu, label, sampling.augmentation, rng)
        images.append(hu[None])
        targets.append(organs.channels(label).astype(np.uint8))
        known.append(case.known)
    return np.stack(images), np.stack(targets), np.stack(known)


def _corner(case: CachedCase, sampling: PatchSampling, rng: np.random.Generator) -> npt.NDArray[np.intp]:
    """First voxel of a patch; may lie outside where the volume is smaller than the patch."""
    shape, patch = np.array(case.image.shape), np.array(sampling.patch)
    present = np.flatnonzero(case.known & (case.foreground[:, 0, 0] >= 0))
    if len(present) and rng.random() < sampling.foreground:
        voxels = case.foreground[int(rng.choice(present))]
        count = int(np.searchsorted(voxels[:, 0] < 0, True))
        center = voxels[int(rng.integers(count))].astype(np.intp)
        corner = center - patch // 2 + rng.integers(-patch // 4, patch // 4 + 1)
    else:
        corner = rng.integers(np.minimum(0, shape - patch), np.maximum(1, shape - patch + 1))
    low, high = np.minimum(0, shape - patch), np.maximum(0, shape - patch)
    return np.asarray(np.clip(corner, low, high), np.intp)


def _cut(case: CachedCase, corner: npt.NDArray[np.intp], patch: IntTriple) -> tuple[npt.NDArray[np.float32], LabelMap]:
    """Read one patch; what lies outside the volume is air without organs."""
    hu = np.full(patch, AIR_HU, np.float32)
    label = np.zeros(patch, np.uint8)
    inside, target = [], []
    for start, edge, n in zip(corner, patch, case.image.shape, strict=True):
        low, high = max(0, int(start)), min(n, int(start) + edge)
        inside.append(slice(low, high))
        target.append(slice(low - int(start), high - int(start)))
    hu[tuple(target)] = case.image[tuple(inside)]
    label[tuple(target)] = case.label[tuple(inside)]
    return hu, label


def augment(
    hu_XYZ: npt.NDArray[np.float32], label_XYZ: LabelMap, settings: Augmentation, rng: np.random.Generator
) -> tuple[npt.NDArray[np.float32], LabelMap]:
    """Rotate, scale, shift and noise one patch; label and image move together."""
    if settings.affine_probability and rng.random() < settings.affine_probability:
        hu_XYZ, label_XYZ = _move(hu_XYZ, label_XYZ, settings, rng)
    gain = 1 + settings.gain * rng.uniform(-1, 1)
    shift = settings.shift_hu * rng.uniform(-1, 1)
    noise = rng.standard_normal(hu_XYZ.shape, np.float32) * np.float32(settings.noise_hu * rng.random())
    return np.asarray(hu_XYZ * np.float32(gain) + np.float32(shift) + noise, np.float32), label_XYZ


def _move(
    hu_XYZ: npt.NDArray[np.float32], label_XYZ: LabelMap, settings: Augmentation, rng: np.random.Generator
) -> tuple[npt.NDArray[np.float32], LabelMap]:
    import torch
    import torch.nn.functional as F
    from scipy.spatial.transform import Rotation

    rotation = Rotation.from_euler("xyz", settings.rotate_deg * rng.uniform(-1, 1, 3), degrees=True).as_matrix()
    matrix = rotation * (1 + settings.scale * rng.uniform(-1, 1, 3))
    edges = np.array(hu_XYZ.shape[::-1])  # grid_sample counts the last axis first, each axis from -1 to 1
    theta = np.zeros((1, 3, 4), np.float32)
    theta[0, :, :3] = matrix * edges[None, :] / edges[:, None]
    grid = F.affine_grid(torch.from_numpy(theta), [1, 1, *hu_XYZ.shape], align_corners=False)
    moved_hu, moved_label = (
        F.grid_sample(torch.from_numpy(array)[None, None], grid, mode=mode, padding_mode="border", align_corners=False)[
            0, 0
        ].numpy()
        for array, mode in ((hu_XYZ, "bilinear"), (label_XYZ.astype(np.float32), "nearest"))
    )
    return moved_hu, np.rint(moved_label).astype(np.uint8)

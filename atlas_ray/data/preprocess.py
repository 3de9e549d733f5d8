"""The training cache: every labeled case once at the networks' spacing, in compressed blocks that patches are read from.

Axis letters: K organs, N sampled voxels, X Y Z.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import model_validator

from atlas_ray.organs import LabelMap, Organs
from atlas_ray.records import Case
from atlas_ray.resampling import resample_image, resample_labels, shape_at_spacing
from atlas_ray.schema import Schema, Triple
from atlas_ray.storage import new_folder
from atlas_ray.volume import Volume, read_volume, reorient

FORMAT = "b2nd-1"  # part of the key: an entry of another format is never opened
CHUNK, BLOCK = (96, 96, 96), (16, 16, 32)  # a patch's size; the least that is inflated. Measured in benchmarks/cache.py
FOREGROUND_VOXELS = 4096  # per organ and case; enough that a patch center is rarely drawn twice
HU_RANGE = (-1024, 3071)  # 12-bit CT; padding such as -3024 becomes air


class Preprocessing(Schema):
    """How a CT is brought to the networks. Defaults are the paper's.

    Args:
        spacing: mm per voxel in RAS.
        window_hu: clipped to this and scaled to 0..1.
    """

    spacing: Triple = (1.5, 1.5, 1.5)
    window_hu: tuple[float, float] = (-175.0, 250.0)

    @model_validator(mode="after")
    def _ordered(self) -> "Preprocessing":
        low, high = self.window_hu
        if low >= high or min(self.spacing) <= 0:
            raise ValueError(f"window_hu {self.window_hu} must rise and spacing {self.spacing} be positive")
        return self


def to_network_grid(image: Volume, preprocessing: Preprocessing) -> Volume:
    """CT in RAS at the networks' spacing: int16 HU, 12-bit range. Covers exactly the image's extent."""
    ras = reorient(image)
    shape = shape_at_spacing(ras.shape, ras.spacing, preprocessing.spacing)
    resampled = resample_image(ras, shape, limits=HU_RANGE)
    if resampled.voxels.dtype == np.int16:
        return resampled
    return Volume(np.rint(resampled.voxels).astype(np.int16), resampled.affine)


def label_to_network_grid(label: Volume, preprocessing: Preprocessing) -> LabelMap:
    """Label map in RAS at the networks' spacing, [X, Y, Z] uint8; nearest, so no label is invented."""
    ras = reorient(label)
    shape = shape_at_spacing(ras.shape, ras.spacing, preprocessing.spacing)
    return np.asarray(resample_labels(ras, shape).voxels, np.uint8)


def cache_key(case: Case, label: Path, preprocessing: Preprocessing, organs: Organs, *, focus: Sequence[Path] = ()) -> str:
    """Name of a case's cache entry: changes with the image, the label, the focus, the spacing and the organ set.

    Files are identified by content, so that a rewritten annotation is never mistaken for the old one.
    """
    digest = hashlib.sha256()
    for part in (FORMAT, case.sha256, str(preprocessing.spacing), organs.model_dump_json()):
        digest.update(part.encode())
    for path in (label, *focus):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def write_cache(
    folder: Path, case: Case, label: Path, preprocessing: Preprocessing, organs: Organs, *, focus: Sequence[Path] = ()
) -> None:
    """Write image.b2nd (int16 HU), label.b2nd (uint8) and foreground.npy (int16 [K, N, 3], -1 where an organ has fewer voxels).

    Args:
        focus: maps on the image's grid; where one of them is not 0, focus.b2nd (uint8) is 1. Without any there is no such file.
            Not covered: which of them it was, so a voxel that only one organ's map shows counts for all of the case's.

    Raises:
        CaseError: the image or the label cannot be read.
    """
    image = to_network_grid(read_volume(case.image, series_uid=case.series_uid), preprocessing)
    labels = label_to_network_grid(read_volume(label), preprocessing)
    with new_folder(folder) as partial:
        write_blocks(partial / "image.b2nd", image.voxels)
        write_blocks(partial / "label.b2nd", labels)
        np.save(partial / "foreground.npy", _foreground(labels, organs))
        if focus:
            write_blocks(partial / "focus.b2nd", _union([read_volume(path) for path in focus], preprocessing))


def _union(maps: Sequence[Volume], preprocessing: Preprocessing) -> npt.NDArray[np.uint8]:
    shown = np.zeros(maps[0].shape, np.uint8)
    for one in maps:
        shown |= (one.voxels != 0).astype(np.uint8)
    return label_to_network_grid(maps[0].with_voxels(shown), preprocessing)


def write_blocks(path: Path, voxels: npt.NDArray[Any]) -> None:
    """One array in blocks, with LZ4 over its bits: less than half the size of the voxels of a CT, and 2 ms a patch."""
    import blosc2

    chunks = tuple(min(n, edge) for n, edge in zip(voxels.shape, CHUNK, strict=True))
    blocks = tuple(min(n, edge) for n, edge in zip(chunks, BLOCK, strict=True))
    packing = {"codec": blosc2.Codec.LZ4, "filters": [blosc2.Filter.BITSHUFFLE], "nthreads": 1}
    blosc2.asarray(voxels, chunks=chunks, blocks=blocks, urlpath=str(path), cparams=packing)


def _foreground(labels: LabelMap, organs: Organs) -> npt.NDArray[np.int16]:
    """Up to N voxels of every organ, evenly picked so that the choice depends on nothing but the label."""
    picked = np.full((len(organs), FOREGROUND_VOXELS, 3), -1, np.int16)
    for k, name in enumerate(organs.names):
        found: npt.NDArray[Any] = np.argwhere(organs.mask(labels, name))
        if len(found):
            keep = np.linspace(0, len(found) - 1, min(len(found), FOREGROUND_VOXELS)).astype(int)
            picked[k, : len(keep)] = found[keep]
    return picked

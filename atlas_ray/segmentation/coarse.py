"""A quick look for where the organs are, so that the ensemble need not see the rest, and the guards that keep it honest.

One cheap member slides over the volume without overlap, at the networks' own spacing; the ensemble then predicts the box of what it
found and a margin. The guards err on the side of the whole volume.

Axis letters: M architectures, K organs, X Y Z.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from pydantic import Field, NonNegativeFloat

from atlas_ray.schema import Fraction, IntTriple, Schema, Triple

Bytes = npt.NDArray[np.uint8]
Box = tuple[slice, slice, slice]


class Coarse(Schema):
    """How the organs' box is found.

    Args:
        architecture: the member that looks; the cheapest. It need not be good, only see every organ.
        overlap: of its windows.
        threshold: an organ is where its probability is above it.
        margin_mm: added on every side of the box.
        min_volume_ml: an organ smaller than this counts as not found.
    """

    architecture: str = "unet"
    overlap: float = Field(default=0.0, ge=0, lt=1)
    threshold: Fraction = 0.5
    margin_mm: NonNegativeFloat = 30.0
    min_volume_ml: NonNegativeFloat = 1.0


@dataclass(frozen=True, slots=True)
class Region:
    """The part of a volume that is predicted.

    Args:
        box: in voxels.
        why_whole: why it is the whole volume although a coarse pass was asked for; "" otherwise.
    """

    box: Box
    why_whole: str = ""

    @classmethod
    def whole(cls, shape: IntTriple, why: str = "") -> "Region":
        nx, ny, nz = shape
        return cls((slice(0, nx), slice(0, ny), slice(0, nz)), why)


def find_region(seen_KXYZ: Bytes, settings: Coarse, *, spacing: Triple, least: IntTriple) -> Region:
    """The box of all organs and a margin, or the whole volume where an organ was not found.

    An organ at the volume's own border is no reason for doubt: the box ends there too, nothing of it is cut off.

    Args:
        seen_KXYZ: bytes of probability from the coarse pass over the whole volume.
        spacing: mm per voxel.
        least: the box is made at least this large where the volume allows (a window), so that windows see image, not padding.
    """
    shape: IntTriple = seen_KXYZ.shape[1:]
    fewest = settings.min_volume_ml * 1000 / math.prod(spacing)
    union = np.zeros(shape, bool)
    for k, organ_XYZ in enumerate(seen_KXYZ):
        mask = organ_XYZ > settings.threshold * 255
        if (count := int(mask.sum())) < max(1, fewest):
            return Region.whole(shape, f"channel {k} has {count} voxels in the coarse pass, fewer than {settings.min_volume_ml} ml")
        union |= mask
    x, y, z = (
        _widened(np.any(union, axis=others, keepdims=True).ravel(), round(settings.margin_mm / spacing[axis]), least[axis])
        for axis, others in enumerate([(1, 2), (0, 2), (0, 1)])
    )
    return Region((x, y, z))


def _widened(occupied: npt.NDArray[np.bool_], margin: int, least: int) -> slice:
    """From the first to the last occupied voxel of an axis, with a margin, of `least` voxels or more."""
    size, where = len(occupied), np.flatnonzero(occupied)
    start, stop = max(0, int(where[0]) - margin), min(size, int(where[-1]) + 1 + margin)
    start = max(0, start - max(0, least - (stop - start)) // 2)
    stop = min(size, max(stop, start + least))
    return slice(max(0, min(start, stop - least)), stop)


def cut_off(bytes_MKXYZ: Bytes, box: Box, settings: Coarse) -> str:
    """Whether an organ reaches a face of the box that is not the volume's own border; which and where, or "".

    Args:
        bytes_MKXYZ: the ensemble's answer over the whole volume.
        box: where it was predicted.
    """
    inside = bytes_MKXYZ[(slice(None), slice(None), *box)]
    for axis, extent in enumerate(box):
        for face, at_border in ((0, extent.start == 0), (-1, extent.stop == bytes_MKXYZ.shape[2 + axis])):
            reached = (np.take(inside, face, axis=2 + axis) > settings.threshold * 255).any(axis=(0, 2, 3))
            if reached.any() and not at_border:
                return f"channel {int(np.argmax(reached))} reaches {'high' if face else 'low'} {'XYZ'[axis]} of the coarse box"
    return ""

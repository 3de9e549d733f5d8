"""Attention as what it is: a few voxels of a volume, and what was found beside it in the same pass.

Axes: K organs, M architectures, X Y Z voxels of the grid, N voxels with attention.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from atlas_ray.organs import LabelMap
from atlas_ray.schema import IntTriple

Span = tuple[int, int]  # first, one past the last


@dataclass(frozen=True, slots=True, eq=False)
class OrganAttention:
    """One organ's attention.

    Args:
        shape: of the grid.
        places_N: int64, flat positions in the grid, no position twice; `look` gives C order.
        bits_N: uint8, > 0; bit i is set where criterion i of the mode's `criterion_names` fired.
        heat_N: float64, not normalized.
        box: per axis the span that holds every voxel; None without voxels.
    """

    shape: IntTriple
    places_N: npt.NDArray[np.int64]
    bits_N: npt.NDArray[np.uint8]
    heat_N: npt.NDArray[np.float64]
    box: tuple[Span, Span, Span] | None

    @classmethod
    def of(cls, bits_XYZ: npt.NDArray[np.uint8], heat_XYZ: npt.NDArray[np.floating]) -> "OrganAttention":
        """From volumes, in any memory order."""
        x, y, z = (int(n) for n in bits_XYZ.shape)
        where = np.nonzero(bits_XYZ)
        places_N = np.ravel_multi_index(where, (x, y, z)).astype(np.int64)
        return cls.at((x, y, z), places_N, bits_XYZ[where], heat_XYZ[where].astype(np.float64))

    @classmethod
    def at(
        cls,
        shape: IntTriple,
        places_N: npt.NDArray[np.int64],
        bits_N: npt.NDArray[np.uint8],
        heat_N: npt.NDArray[np.float64],
    ) -> "OrganAttention":
        """From voxels, with the box around them."""
        return cls(shape, places_N, bits_N, heat_N, _box(np.unravel_index(places_N, shape)))

    def where(self, kept_N: npt.NDArray[np.bool_]) -> "OrganAttention":
        """Only some of the voxels."""
        return OrganAttention.at(self.shape, self.places_N[kept_N], self.bits_N[kept_N], self.heat_N[kept_N])

    def sliced(self, start: int, stop: int) -> "OrganAttention":
        """Slices start..stop of the last axis, on a grid of their own; what `joined` puts together."""
        row, z = np.divmod(self.places_N, self.shape[2])
        kept_N = (start <= z) & (z < stop)
        shape = (*self.shape[:2], stop - start)
        return OrganAttention.at(shape, (row * shape[2] + z - start)[kept_N], self.bits_N[kept_N], self.heat_N[kept_N])

    def turned(self, axes: IntTriple, flipped: tuple[bool, bool, bool]) -> "OrganAttention":
        """On the grid whose axis i is this one's axis axes[i], run through backwards where flipped[i].

        What numpy.flip(numpy.transpose(volume, axes)) does to a volume; the voxels' order stays.
        """
        shape = tuple(self.shape[a] for a in axes)
        where = np.unravel_index(self.places_N, self.shape)
        turned = tuple(n - 1 - where[a] if flip else where[a] for a, n, flip in zip(axes, shape, flipped, strict=True))
        x, y, z = shape
        places_N = np.ravel_multi_index(turned, (x, y, z)).astype(np.int64)
        return OrganAttention((x, y, z), places_N, self.bits_N, self.heat_N, _box(turned))

    @property
    def voxels(self) -> int:
        return len(self.places_N)

    def dense(self, values_N: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Values of the voxels, such as bits_N, as a volume [X, Y, Z] in file order (X fastest); 0 elsewhere."""
        volume = np.zeros(self.shape, values_N.dtype, order="F")
        volume[np.unravel_index(self.places_N, self.shape)] = values_N
        return volume


def _box(where: Sequence[npt.NDArray[np.intp]]) -> tuple[Span, Span, Span] | None:
    """Spans around voxels that are given by their index per axis."""
    if not len(where[0]):
        return None
    x, y, z = ((int(axis.min()), int(axis.max()) + 1) for axis in where)
    return x, y, z


@dataclass(frozen=True, slots=True, eq=False)
class GridAttention:
    """What a mode says of one grid.

    Args:
        organs: one for each channel, in order.
        label_XYZ: label ids; of the organs whose mean probability exceeds the threshold the most probable, the first of equal ones.
        own_labels_MXYZ: the same of each architecture by itself; of length 0 where it was not asked for.
        predicted_voxels_K: voxels of each organ's label.
    """

    organs: tuple[OrganAttention, ...]
    label_XYZ: LabelMap
    own_labels_MXYZ: npt.NDArray[np.uint8]
    predicted_voxels_K: npt.NDArray[np.int64]


def joined(parts: Sequence[OrganAttention], starts: Sequence[int], shape: IntTriple) -> OrganAttention:
    """One organ's attention in slabs along the last axis, as that of the whole; the voxels stay in the slabs' order.

    Args:
        parts: of each slab.
        starts: first slice of each slab.
        shape: of the whole.
    """
    places, boxes = [], []
    for part, start in zip(parts, starts, strict=True):
        row, z = np.divmod(part.places_N, part.shape[2])
        places.append(row * shape[2] + z + start)
        if part.box is not None:
            x, y, (low, high) = part.box
            boxes.append((x, y, (low + start, high + start)))
    return OrganAttention(
        shape,
        np.concatenate(places),
        np.concatenate([part.bits_N for part in parts]),
        np.concatenate([part.heat_N for part in parts]),
        _around(boxes) if boxes else None,
    )


def _around(boxes: Sequence[tuple[Span, Span, Span]]) -> tuple[Span, Span, Span]:
    x, y, z = ((min(low for low, _ in spans), max(high for _, high in spans)) for spans in zip(*boxes, strict=True))
    return x, y, z

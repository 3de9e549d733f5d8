"""A CT on a member's own grid, and its probabilities back on the campaign's.

Arrays a b c are the member's own axes, in its order and direction; X Y Z are RAS. Both cover the same extent, or the member's a box
of it. K organs.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from atlas_ray.resampling import linear_taps, nearest_indices
from atlas_ray.schema import IntTriple, Triple

Floats = npt.NDArray[np.float32]
Box = tuple[slice, slice, slice]
ANISOTROPIC = 3.0  # nnU-Net's: ratio of the largest to the smallest spacing from which on one axis is coarse


@dataclass(frozen=True, slots=True, eq=False)
class Placed:
    """A CT as a member wants to see it.

    Args:
        values: [a, b, c].
        prepare: from values to what the network takes.
        axes, flipped: the member's axis i is RAS axis axes[i], run through backwards where flipped[i].
        shape: of the whole image in RAS.
        box: what part of it, in its voxels and RAS, the values cover.
    """

    values: npt.NDArray[Any]
    prepare: Callable[[npt.NDArray[Any]], Floats]
    axes: IntTriple
    flipped: tuple[bool, bool, bool]
    shape: IntTriple
    box: Box

    def in_ras(self, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """An array over the member's grid with its axes turned to RAS, as a view."""
        ways = tuple(slice(None, None, -1) if flip else slice(None) for flip in self.flipped)
        turned: npt.NDArray[Any] = array[ways].transpose(np.argsort(self.axes))
        return turned


def onto_common_grid(bytes_abc: npt.NDArray[np.uint8], placed: Placed, result_XYZ: npt.NDArray[np.uint8]) -> None:
    """One organ's probabilities on the campaign's grid, linearly; what the member did not see is 0.

    Args:
        bytes_abc: round(255 p) on the member's grid.
        result_XYZ: zeros, is written.
    """
    from atlas_ray.loops import box_above, interpolate_bytes

    source_XYZ = placed.in_ras(bytes_abc)
    source_ZYX = np.ascontiguousarray(source_XYZ.T)
    shape = result_XYZ.shape
    taps = [
        linear_taps(n_in, n_out, (extent.start * n_out / whole, extent.stop * n_out / whole))
        for n_in, n_out, extent, whole in zip(source_XYZ.shape, shape, placed.box, placed.shape, strict=True)
    ]
    first, weights = tuple(tap[0] for tap in taps), tuple(tap[1] for tap in taps)
    mixed_XYZ = np.zeros(shape, np.uint8)
    interpolate_bytes(source_ZYX, box_above(source_ZYX, 0), first, weights, 0, mixed_XYZ)
    result_XYZ[:] = mixed_XYZ


def nonzero_box(values_abc: npt.NDArray[Any]) -> Box:
    """The smallest box around what is not 0, the whole where everything is; nnU-Net crops to it."""
    spans = []
    for axis in range(3):
        others = tuple(a for a in range(3) if a != axis)
        where = np.flatnonzero((values_abc != 0).any(axis=others))
        spans.append(slice(int(where[0]), int(where[-1]) + 1) if len(where) else slice(0, values_abc.shape[axis]))
    a, b, c = spans
    return a, b, c


def cubic(values_abc: Floats, shape: IntTriple, spacing: Triple, target: Triple, *, separate: bool | None) -> Floats:
    """A CT at another spacing as nnU-Net resamples it: cubic splines, half-voxel-centered, borders repeat, clipped to the values
    that were there; nearest along a coarse axis.

    Splines separate by axis and are linear, so every axis is one matrix: no copy in float64, where nnU-Net holds several.

    Args:
        values_abc: of `spacing`; is not changed.
        shape: voxels of the result; target: its spacing.
        separate: whether one axis is coarse; None lets the spacings decide.
    """
    if values_abc.shape == shape:
        return values_abc
    coarse = _coarse_axis(spacing, target, separate)
    together = tuple(axis for axis in range(3) if axis != coarse)
    low, high = values_abc.min(axis=together, keepdims=True), values_abc.max(axis=together, keepdims=True)
    result = values_abc
    for axis in together:
        if result.shape[axis] != shape[axis]:
            result = _mixed(result, axis, cubic_weights(result.shape[axis], shape[axis]))
    result = np.clip(result, low, high)
    if coarse is not None and result.shape[coarse] != shape[coarse]:
        result = result.take(nearest_indices(result.shape[coarse], shape[coarse]), axis=coarse)
    return np.ascontiguousarray(result)


def _coarse_axis(spacing: Triple, target: Triple, separate: bool | None) -> int | None:
    """The axis that is not interpolated: the coarsest of the first of the two spacings that is anisotropic."""
    if separate is False:
        return None
    for edges in (spacing, target):
        if separate or max(edges) / min(edges) > ANISOTROPIC:
            coarsest = [axis for axis, edge in enumerate(edges) if edge == max(edges)]
            return coarsest[0] if len(coarsest) == 1 else None
    return None


def cubic_weights(n_in: int, n_out: int) -> Floats:
    """Matrix [n_out, n_in] of cubic splines along one axis over the same extent."""
    from scipy.ndimage import zoom

    rows = [zoom(one, n_out / n_in, order=3, mode="nearest", grid_mode=True) for one in np.eye(n_in)]
    return np.asarray(np.stack(rows, axis=1), np.float32)


def _mixed(values_abc: Floats, axis: int, weights: Floats) -> Floats:
    """One axis through a matrix [n_out, n_in], a plane at a time."""
    moved = np.moveaxis(values_abc, axis, -1)
    result = np.empty((*moved.shape[:2], len(weights)), np.float32)
    for plane, mixed in zip(moved, result, strict=True):
        np.matmul(plane, weights.T, out=mixed)
    return np.moveaxis(result, -1, axis)

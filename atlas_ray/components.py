"""Connected regions of a label map, and two organs of a pair told apart by the side they lie on.

Sides are decided in RAS only, where the first axis grows toward the patient's right: a smaller first index is the patient's LEFT.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from atlas_ray.schema import Triple

Mask = npt.NDArray[np.bool_]

SURE_SHARE = 0.9  # of a component's voxels on one side of the midline; organs of a pair lie beside the spine, not across it
CUT_RATIO = 4.0  # the authors': two pieces are two organs where the larger is at most so many times the smaller
CRUMB_SHARE = 0.05  # of the largest component; what is smaller does not count as the other organ


def connected_components(values: npt.NDArray[np.uint8]) -> tuple[npt.NDArray[Any], int]:
    """Number every 26-connected region of one value from 1 on, in the order they are met; 0 stays 0. Three axes, C order."""
    import cc3d

    if 0 in values.shape:
        return values, 0
    is_line = sorted(values.shape)[1] == 1
    padded = np.pad(values, (0, 1)) if is_line else values  # cc3d 4.1.1 raises "maximum length exception" on lines such as 1 0 1
    parts, count = cc3d.connected_components(padded, connectivity=26, return_N=True)
    a, b, c = values.shape
    return np.ascontiguousarray(parts[:a, :b, :c]), int(count)


def box_of(mask_XYZ: Mask, margin: int = 0) -> tuple[slice, ...]:
    """The smallest box that holds a mask, widened by `margin` voxels where there is room; empty for an empty mask."""
    box = []
    for axis in range(3):
        found = np.flatnonzero(mask_XYZ.any(axis=tuple(a for a in range(3) if a != axis)))
        low, high = (found[0], found[-1] + 1) if len(found) else (margin, 0)
        box.append(slice(max(0, int(low) - margin), int(high) + margin if len(found) else 0))
    return tuple(box)


@dataclass(frozen=True, slots=True, eq=False)
class Sides:
    """A pair's mask told apart.

    Args:
        left_XYZ, right_XYZ: the patient's; both empty where it was refused.
        refused: why it was not, "" where it was.
    """

    left_XYZ: Mask
    right_XYZ: Mask
    refused: str = ""


def split_sides(
    mask_XYZ: Mask, midline: float | None = None, *, may_be_one: bool = False, cut_spacing: Triple | None = None
) -> Sides:
    """Tell the two organs of a pair apart that share one mask, each component by its side of the midline.

    Refused are: one component (the other organ is missing, or they touch), all components on one side, and a component that lies
    across the midline. An empty mask gives two empty ones.

    Args:
        mask_XYZ: in RAS.
        midline: index of the patient's midline along the first axis; None: halfway between the two largest components, so that
            two components on one side of the body are then told apart wrongly where they lie beside each other.
        may_be_one: where the midline is known, what lies on one side of it is that side's organ, and the other one is not there.
        cut_spacing: mm; where the midline is known, what lies across it is cut as `cut_in_two` does. None: it is refused.
    """
    nothing = np.zeros_like(mask_XYZ)
    box = box_of(mask_XYZ)
    inside = np.ascontiguousarray(mask_XYZ[box])
    parts, count = connected_components(inside.view(np.uint8))
    if not count:
        return Sides(nothing, nothing)
    x = np.arange(box[0].start, box[0].stop)
    columns_NX = _columns(parts, count)
    if midline is not None and cut_spacing is not None:
        largest_one = int(columns_NX.sum(axis=1).argmax())
        on_its_left = columns_NX[largest_one] @ (x < midline) / columns_NX[largest_one].sum()
        if 1 - SURE_SHARE < on_its_left < SURE_SHARE:
            cut = cut_in_two(parts == largest_one + 1, cut_spacing)
            if cut is not None:
                count += 1
                parts = np.where(cut == 2, count, parts)
                columns_NX = _columns(parts, count)
    sizes = columns_NX.sum(axis=1)
    centers = columns_NX @ x / sizes
    largest = np.argsort(-sizes, kind="stable")[:2]
    is_sure = may_be_one and midline is not None
    if not is_sure and (count == 1 or sizes[largest[1]] < CRUMB_SHARE * sizes[largest[0]]):
        return Sides(nothing, nothing, f"one component of {sizes[largest[0]]} voxels: the other is missing, or they touch")
    at = float(centers[largest].mean()) if midline is None else midline
    on_the_left = columns_NX @ (x < at) / sizes
    if across := np.flatnonzero((on_the_left > 1 - SURE_SHARE) & (on_the_left < SURE_SHARE)).tolist():
        share = 100 * float(on_the_left[across[0]])
        return Sides(
            nothing, nothing, f"a component of {sizes[across[0]]} voxels lies across the midline ({share:.0f} % on the left)"
        )
    is_left = np.concatenate([[False], on_the_left >= SURE_SHARE])
    is_right = np.concatenate([[False], on_the_left <= 1 - SURE_SHARE])
    smallest = CRUMB_SHARE * sizes.max()
    for side, other in ((is_left, "right"), (is_right, "left")):
        if not is_sure and sizes[side[1:]].sum() < smallest:
            return Sides(nothing, nothing, f"{count} components, all on the patient's {other}")
    left, right = nothing, nothing.copy()
    left[box], right[box] = is_left[parts], is_right[parts]
    return Sides(left, right)


def _columns(parts: npt.NDArray[Any], count: int) -> npt.NDArray[np.int64]:
    """[N, X]: voxels of every component in every plane across the first axis."""
    return np.stack([np.bincount(plane.ravel(), minlength=count + 1) for plane in parts], axis=1)[1:]


def cut_in_two(mask_XYZ: Mask, spacing: Triple) -> npt.NDArray[np.uint8] | None:
    """Two organs that touch in a thin place: eroded until two pieces are left, and every voxel goes to the piece it is nearest to.

    The authors' way with lungs (paper-algorithm a.5), in mm and not in voxels. It ends: every step erodes more.

    Args:
        mask_XYZ: one component.
        spacing: mm; erosion grows by the smallest of it.

    Returns:
        1 and 2, 0 outside the mask; None where erosion never leaves two pieces of which the larger is at most CUT_RATIO times the
        smaller.
    """
    from scipy.ndimage import distance_transform_edt

    depth = distance_transform_edt(np.pad(mask_XYZ, 1), sampling=spacing)[1:-1, 1:-1, 1:-1]
    step = min(spacing)
    for mm in np.arange(step, float(depth.max()), step):
        parts, count = connected_components(np.ascontiguousarray(depth > mm).view(np.uint8))
        sizes = np.bincount(parts.ravel(), minlength=count + 1)[1:]
        order = np.argsort(-sizes, kind="stable")
        if count >= 2 and sizes[order[0]] <= CUT_RATIO * sizes[order[1]]:
            seeds = np.where(parts == order[0] + 1, 1, np.where(parts == order[1] + 1, 2, 0)).astype(np.uint8)
            nearest = distance_transform_edt(seeds == 0, sampling=spacing, return_distances=False, return_indices=True)
            cut: npt.NDArray[np.uint8] = np.where(mask_XYZ, seeds[tuple(nearest)], np.uint8(0))
            return cut
    return None


def body_midline(image_XYZ: npt.NDArray[Any], mask_XYZ: Mask, *, skin_hu: float = -300.0) -> float | None:
    """Mean first index of the body, over the slices a mask lies in; None where nothing there is body.

    Args:
        image_XYZ: a CT in RAS.
        skin_hu: what is brighter is body. The table is, too, and lies in the middle.
    """
    low, high = box_of(mask_XYZ)[2].start, box_of(mask_XYZ)[2].stop
    columns = (image_XYZ[:, :, low:high] > skin_hu).sum(axis=(1, 2))
    return float(columns @ np.arange(len(columns)) / columns.sum()) if columns.sum() else None

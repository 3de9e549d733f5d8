"""Agreement of two readings of one case, organ by organ.

Dice            2 |A and B| / (|A| + |B|)
surface Dice    the share of both surfaces that lies within a tolerance of the other one (Nikolov et al., JMIR 2021)

Empty masks: both empty says nothing about how well people agree, so both numbers are None; one empty is 0.

Not covered: the surface is counted in voxels (those with a face neighbor outside the mask, or at the end of the volume), not in
mm2, so on anisotropic voxels the flat faces weigh less than they should.
"""

import numpy as np
import numpy.typing as npt

from atlas_ray.organs import LabelMap, Organs
from atlas_ray.schema import Millimeters, Schema, Triple

Mask = npt.NDArray[np.bool_]
TOLERANCE_MM = 2.0


class OrganAgreement(Schema):
    """One organ in two readings; ml is its volume in each."""

    organ: str
    dice: float | None
    surface_dice: float | None
    tolerance_mm: Millimeters
    ml: tuple[float, float]


def agreement(
    first: LabelMap, second: LabelMap, organs: Organs, spacing: Triple, *, tolerance_mm: float = TOLERANCE_MM
) -> list[OrganAgreement]:
    """Every organ that one of two label maps [X, Y, Z] of one grid has, in the set's order.

    Args:
        spacing: mm, array-axis order.
        tolerance_mm: how far a surface may be off and still agree.

    Raises:
        ValueError: label maps of different shapes.
    """
    if first.shape != second.shape:
        raise ValueError(f"readings of shape {first.shape} and {second.shape} cannot be compared; they share one grid")
    rows = []
    ml = float(np.prod(spacing)) / 1000
    present = {*organs.present(first), *organs.present(second)}
    for name in (name for name in organs.names if name in present):
        a, b = organs.mask(first, name), organs.mask(second, name)
        rows.append(
            OrganAgreement(
                organ=name,
                dice=dice(a, b),
                surface_dice=surface_dice(a, b, spacing, tolerance_mm=tolerance_mm),
                tolerance_mm=tolerance_mm,
                ml=(int(a.sum()) * ml, int(b.sum()) * ml),
            )
        )
    return rows


def dice(a: Mask, b: Mask) -> float | None:
    """Of two masks of one shape; None where both are empty."""
    size = int(a.sum()) + int(b.sum())
    return 2 * int(np.logical_and(a, b).sum()) / size if size else None


def surface_dice(a: Mask, b: Mask, spacing: Triple, *, tolerance_mm: float) -> float | None:
    """Of two masks [X, Y, Z]; None where both are empty, 0 where one is."""
    window = _window(a | b)
    if window is None:
        return None
    surfaces = [_surface(mask[window]) for mask in (a, b)]
    if not all(surface.any() for surface in surfaces):
        return 0.0
    near = 0
    for own, other in (surfaces, surfaces[::-1]):
        near += int(np.count_nonzero(_distance_mm(other, spacing)[own] <= tolerance_mm + 1e-6))
    return near / sum(int(surface.sum()) for surface in surfaces)


def _window(mask: Mask) -> tuple[slice, ...] | None:
    """The mask's bounding box, None where it is empty."""
    filled = [np.flatnonzero(mask.any(axis=tuple(a for a in range(3) if a != axis))) for axis in range(3)]
    return tuple(slice(f[0], f[-1] + 1) for f in filled) if filled[0].size else None


def _surface(mask: Mask) -> Mask:
    """Voxels with a face neighbor that is not in the mask; what lies beyond the array is not."""
    from scipy.ndimage import binary_erosion

    surface: Mask = mask & ~binary_erosion(mask)
    return surface


def _distance_mm(surface: Mask, spacing: Triple) -> npt.NDArray[np.float64]:
    """From each voxel to the nearest one of the surface."""
    from scipy.ndimage import distance_transform_edt

    distance: npt.NDArray[np.float64] = distance_transform_edt(~surface, sampling=spacing)
    return distance

"""Surface Dice: the share of two surfaces, in mm2, that lies within a tolerance of the other one (Nikolov et al., JMIR 2021).

A surface runs between voxel centers, so each 2 x 2 x 2 neighborhood that is neither full nor empty holds a piece of it. A piece's
area is that of marching cubes on the eight corners, in mm, so flat voxels weigh what they should; its place is the
neighborhood's middle. DeepMind's `surface-distance` and MONAI (`use_subvoxels=True`) define it the same way; tests hold us to both.
"""

from functools import lru_cache

import numpy as np
import numpy.typing as npt

from atlas_ray.components import box_of
from atlas_ray.evaluation.components import Mask
from atlas_ray.schema import Triple

CORNERS = tuple((x, y, z) for x in (0, 1) for y in (0, 1) for z in (0, 1))  # bit b of a code is corner b
FULL = 255
SLACK_MM = 1e-6  # a distance that is the tolerance counts as within it, whatever the last bit says


def surface_dice(a_XYZ: Mask, b_XYZ: Mask, spacing: Triple, *, tolerance_mm: float) -> float | None:
    """Of two masks on one grid. None where both are empty, 0 where one is. Raises ValueError where the shapes differ.

    Args:
        spacing: mm, array-axis order.
        tolerance_mm: how far a surface may be off and still count.
    """
    if a_XYZ.shape != b_XYZ.shape:
        raise ValueError(f"masks of shape {a_XYZ.shape} and {b_XYZ.shape} cannot be compared")
    window = box_of(a_XYZ | b_XYZ)
    codes = [_codes(mask[window]) for mask in (a_XYZ, b_XYZ)]
    if not all(code.any() for code in codes):
        return 0.0 if any(code.any() for code in codes) else None
    areas = _areas(spacing)
    near_mm2, all_mm2 = 0.0, 0.0
    for own, other in (codes, codes[::-1]):
        pieces = _holds_surface(own)
        piece_mm2 = areas[own[pieces]]
        within = _within(pieces, _holds_surface(other), spacing, tolerance_mm + SLACK_MM)
        near_mm2 += float(piece_mm2[within].sum())
        all_mm2 += float(piece_mm2.sum())
    return near_mm2 / all_mm2


def _codes(mask_XYZ: Mask) -> npt.NDArray[np.uint8]:
    """Corner bits of every neighborhood, [X + 1, Y + 1, Z + 1]; outside the array is outside the mask."""
    padded = np.pad(mask_XYZ, 1).astype(np.uint8)
    x, y, z = (n + 1 for n in mask_XYZ.shape)
    codes = np.zeros((x, y, z), np.uint8)
    for bit, (dx, dy, dz) in enumerate(CORNERS):
        codes |= padded[dx : dx + x, dy : dy + y, dz : dz + z] << bit
    return codes


def _holds_surface(codes: npt.NDArray[np.uint8]) -> Mask:
    pieces: Mask = (codes != 0) & (codes != FULL)
    return pieces


def _within(pieces: Mask, others: Mask, spacing: Triple, reach_mm: float) -> npt.NDArray[np.bool_]:
    """Of each piece, in the array's order, whether another surface's piece lies within reach.

    Most lie where the other surface has one too. Only the rest looks around, among the surface's pieces: a surface has few of them
    beside the voxels of its box, of all of which a distance transform would ask.
    """
    from scipy.spatial import KDTree

    within: npt.NDArray[np.bool_] = others[pieces]
    away = np.argwhere(pieces & ~others) * np.asarray(spacing)
    distance_mm, _ = KDTree(np.argwhere(others) * np.asarray(spacing)).query(
        away, distance_upper_bound=np.nextafter(reach_mm, np.inf)
    )
    within[~within] = distance_mm <= reach_mm
    return within


@lru_cache(maxsize=64)
def _areas(spacing: Triple) -> npt.NDArray[np.float64]:
    """mm2 of surface for each of the 256 codes (Lorensen and Cline, SIGGRAPH 1987). A set and its complement share their surface,
    so the code with fewer corners is asked: that decides the cases that marching cubes leaves ambiguous."""
    from skimage.measure import marching_cubes, mesh_surface_area

    areas = np.zeros(FULL + 1)
    for code in range(1, FULL):
        asked = code if code.bit_count() <= 4 else FULL - code
        cube = np.array([asked >> bit & 1 for bit in range(8)], np.float32).reshape(2, 2, 2)
        corners, triangles, _, _ = marching_cubes(cube, 0.5, spacing=spacing, method="lorensen")
        areas[code] = mesh_surface_area(corners, triangles)
    return areas

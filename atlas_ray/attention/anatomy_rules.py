"""Where a predicted label is anatomically implausible, whatever the networks think of it: a source of attention of its own.

Each rule looks at one organ's mask in RAS and gives regions; a detector (attention.detector) decides which of them are shown.

What is not covered: organs that are rightly in several pieces, mirrored anatomy (situs inversus) and organs that are missing
altogether: there is no place to point at.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
from pydantic import NonNegativeFloat, PositiveFloat
from scipy import ndimage

from atlas_ray.components import box_of, connected_components
from atlas_ray.schema import Fraction, Schema, Triple

Mask = npt.NDArray[np.bool_]  # [X, Y, Z] in RAS
Rule = Literal["missing_slice", "pieces", "sides", "cohort"]
RULES: tuple[Rule, ...] = ("missing_slice", "pieces", "sides", "cohort")
MAD_TO_SD = 1.4826  # of a normal distribution: standard deviation over median absolute deviation
CUBE = np.ones((3, 3, 3), bool)


class OrganShape(Schema):
    """What of an organ is compared with other patients.

    Args:
        log_ml: natural logarithm of 1 + its volume in ml.
        center_mm: its centroid from the middle of all organs' centroids in the case; zeros where the organ is absent.
    """

    log_ml: float
    center_mm: Triple

    @classmethod
    def absent(cls) -> "OrganShape":
        return cls(log_ml=0.0, center_mm=(0.0, 0.0, 0.0))


class OrganCohort(Schema):
    """Median and robust spread of an organ over a cohort; its volume's logarithm first, then its center's three axes."""

    medians: tuple[float, float, float, float]
    spreads: tuple[float, float, float, float]

    @classmethod
    def of(cls, shapes: Sequence[OrganShape], *, min_cases: int = 5) -> "OrganCohort | None":
        """Of the cases that have the organ; None where there are too few.

        Spreads are not below 10 % of the volume and 3 mm: a cohort of look-alikes makes nobody an outlier.
        """
        rows_N4 = np.array([(s.log_ml, *s.center_mm) for s in shapes if s.log_ml > 0], float).reshape(-1, 4)
        if len(rows_N4) < min_cases:
            return None
        medians = np.median(rows_N4, axis=0)
        spreads = np.maximum(MAD_TO_SD * np.median(np.abs(rows_N4 - medians), axis=0), (0.1, 3.0, 3.0, 3.0))
        return cls(medians=tuple(medians.tolist()), spreads=tuple(spreads.tolist()))

    def outlying(self, shape: OrganShape) -> tuple[float, float]:
        """Robust z of the volume, and the largest absolute one of the center's axes (0 where the organ is absent)."""
        z = (np.array((shape.log_ml, *shape.center_mm)) - self.medians) / self.spreads
        return float(z[0]), float(np.abs(z[1:]).max()) if shape.log_ml > 0 else 0.0


class AnatomyRules(Schema):
    """What counts as implausible.

    Args:
        max_gap_mm: a longer stretch of slices without the organ lies between two separate things.
        min_piece_mm3, min_piece_share: size of a second piece, and its share of the largest, from which on it is one too many.
        max_volume_z, max_center_z: robust z from which on an organ is an outlier of its cohort.
    """

    max_gap_mm: PositiveFloat = 20.0
    min_piece_mm3: NonNegativeFloat = 500.0
    min_piece_share: Fraction = 0.02
    max_volume_z: PositiveFloat = 3.5
    max_center_z: PositiveFloat = 4.0

    def regions(self, mask_XYZ: Mask, mirror_XYZ: Mask | None, spacing: Triple) -> Iterator[tuple[Rule, npt.NDArray[np.int64]]]:
        """Every implausible region of one organ: its rule, and its voxels as flat positions in C order.

        A piece of the other organ of a pair on this one's side is a region of both. The cohort's region, the organ's surface, is
        always given; `is_outlier` says whether it counts.

        Args:
            mirror_XYZ: the same organ on the body's other side, where there is one.
        """
        window = box_of(mask_XYZ, margin=2)
        mask = np.ascontiguousarray(mask_XYZ[window])
        if not mask.any():
            return
        found: list[tuple[Rule, Mask]] = [("missing_slice", r) for r in missing_slices(mask, self.max_gap_mm / spacing[2])]
        smallest = self.min_piece_mm3 / math.prod(spacing)
        found += [("pieces", region) for region in extra_pieces(mask, smallest, self.min_piece_share)]
        found.append(("cohort", surface(mask)))
        for rule, region in found:
            where = np.nonzero(region)
            if len(where[0]):
                moved = tuple(axis + side.start for axis, side in zip(where, window, strict=True))
                yield rule, np.ravel_multi_index(moved, mask_XYZ.shape).astype(np.int64)
        if mirror_XYZ is not None:
            for region in (*wrong_sides(mask_XYZ, mirror_XYZ), *wrong_sides(mirror_XYZ, mask_XYZ)):
                yield "sides", np.flatnonzero(region)

    def is_outlier(self, volume_z: float, center_z: float) -> bool:
        return abs(volume_z) > self.max_volume_z or center_z > self.max_center_z


def missing_slices(mask_XYZ: Mask, max_slices: float) -> Iterator[Mask]:
    """Each run of axial slices without the organ between slices with it: what both neighbors have, or either where they share
    nothing."""
    present = np.flatnonzero(mask_XYZ.any(axis=(0, 1)))
    for low, high in zip(present[:-1].tolist(), present[1:].tolist(), strict=True):
        if 1 < high - low <= max_slices + 1:
            below, above = mask_XYZ[..., low], mask_XYZ[..., high]
            shared = below & above
            region = np.zeros_like(mask_XYZ)
            region[..., low + 1 : high] = (shared if shared.any() else below | above)[..., None]
            yield region


def extra_pieces(mask_XYZ: Mask, min_voxels: float, min_share: float) -> Iterator[Mask]:
    """Connected pieces (26 neighbors) beside the largest that are large themselves."""
    parts, count = connected_components(mask_XYZ.view(np.uint8))
    sizes = np.bincount(parts.ravel(), minlength=count + 1)[1:]
    for piece in np.argsort(-sizes, kind="stable")[1:].tolist():
        if sizes[piece] >= max(1, min_voxels, min_share * sizes.max()):
            yield parts == piece + 1


def wrong_sides(mask_XYZ: Mask, mirror_XYZ: Mask) -> Iterator[Mask]:
    """Where one organ of a pair meets the other, and its pieces on the other's side of the middle between them."""
    if not (mask_XYZ.any() and mirror_XYZ.any()):
        return
    window = box_of(mask_XYZ | mirror_XYZ)
    mask, mirror = np.ascontiguousarray(mask_XYZ[window]), mirror_XYZ[window]
    parts, count = connected_components(mask.view(np.uint8))
    planes_PX = np.stack([np.bincount(plane.ravel(), minlength=count + 1)[1:] for plane in parts], axis=1)
    sizes, x = planes_PX.sum(axis=1), np.arange(len(parts))
    centers = planes_PX @ x / sizes
    own, columns = centers[sizes.argmax()], np.count_nonzero(mirror, axis=(1, 2))
    other = float(columns @ x / columns.sum())
    beyond = [parts == piece + 1 for piece in range(count) if abs(centers[piece] - other) < abs(centers[piece] - own)]
    for region in (mask & ndimage.binary_dilation(mirror, CUBE), *beyond):
        if region.any():
            whole = np.zeros_like(mask_XYZ)
            whole[window] = region
            yield whole


def surface(mask_XYZ: Mask) -> Mask:
    """The organ's outermost voxels and those around it."""
    result: Mask = ndimage.binary_dilation(mask_XYZ) & ~ndimage.binary_erosion(mask_XYZ)
    return result


def organ_shapes(masks: Mapping[str, Mask], spacing: Triple) -> dict[str, OrganShape]:
    """Volume and place of every organ of a case, absent ones included."""
    voxel_ml, centers = math.prod(spacing) / 1000, {}
    for name, mask in masks.items():
        if mask.any():
            sums = [np.count_nonzero(mask, axis=tuple(a for a in range(3) if a != axis)) for axis in range(3)]
            centers[name] = np.array([s @ np.arange(len(s)) / s.sum() for s in sums]) * spacing
    middle = np.mean(list(centers.values()), axis=0) if centers else np.zeros(3)
    shapes = {name: OrganShape.absent() for name in masks}
    for name, center in centers.items():
        x, y, z = (center - middle).tolist()
        shapes[name] = OrganShape(log_ml=math.log1p(np.count_nonzero(masks[name]) * voxel_ml), center_mm=(x, y, z))
    return shapes

"""Does the attention find the errors? Regions of error against regions of attention (paper section 3.1, table 1).

An error is a voxel where pseudo-label and truth differ for an organ, in either direction. Errors and attention are cut into
connected regions (26 neighbors). The authors published no code for this metric (paper-algorithm a.8); what they leave open is
stated in `Rules`.

    sensitivity   error regions that attention covers, of all error regions
    precision     attention regions that lie on an error, of all attention regions

and the same two counted in voxels, which asks much more: attention is a hint and not a mask.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt

from atlas_ray.components import box_of, connected_components
from atlas_ray.schema import Fraction, Millimeters, Schema, Triple

Mask = npt.NDArray[np.bool_]  # [X, Y, Z]
Box = tuple[slice, ...]


class Rules(Schema):
    """How predictions are measured against a reference.

    Args:
        min_error_mm3: smaller error regions are not asked for: nobody would correct them. 64 is a 4 mm cube.
        min_attention_mm3: smaller attention regions are not counted; the attention's own minimum comes before it.
        min_overlap: share of a region that must lie in the other map. 0: one voxel is enough, the paper's "once an error is
            detected, it counts as a hit".
        min_false_positive_mm3: smaller pieces of an organ that is not there are not counted; 0: the paper counts any.
        tolerance_mm: of surface Dice.
        resamples: of the bootstrap over cases; confidence of its intervals; seed.
    """

    min_error_mm3: NonNegativeFloat = 64.0
    min_attention_mm3: NonNegativeFloat = 0.0
    min_overlap: Fraction = 0.0
    min_false_positive_mm3: NonNegativeFloat = 0.0
    tolerance_mm: Millimeters = 2.0
    resamples: PositiveInt = 2000
    confidence: float = Field(default=0.95, gt=0, lt=1)
    seed: NonNegativeInt = 0


class Detection(Schema):
    """One organ of one case, or a sum of them.

    Args:
        errors, hit: error regions, and how many of them attention covers.
        regions, right: attention regions, and how many of them lie on an error.
        error_voxels, attention_voxels, shared_voxels: of both maps, whatever the regions' size.
        asked_voxels, missed_voxels: of the error regions that are large enough, and of those that attention does not cover.
    """

    errors: int = 0
    hit: int = 0
    regions: int = 0
    right: int = 0
    error_voxels: int = 0
    attention_voxels: int = 0
    shared_voxels: int = 0
    asked_voxels: int = 0
    missed_voxels: int = 0

    @property
    def sensitivity(self) -> float | None:
        """None where there is no error to find."""
        return ratio(self.hit, self.errors)

    @property
    def precision(self) -> float | None:
        """None where there is no attention."""
        return ratio(self.right, self.regions)

    @property
    def missed_share(self) -> float | None:
        """Of the error volume, how much lies in regions that attention does not cover; what calibrated attention promises."""
        return ratio(self.missed_voxels, self.asked_voxels)

    @property
    def voxel_sensitivity(self) -> float | None:
        return ratio(self.shared_voxels, self.error_voxels)

    @property
    def voxel_precision(self) -> float | None:
        return ratio(self.shared_voxels, self.attention_voxels)


def detect(error_XYZ: Mask, attention_XYZ: Mask, spacing: Triple, rules: Rules) -> Detection:
    """Compare one organ's errors with its attention, on one grid. Raises ValueError where the shapes differ.

    Args:
        spacing: mm, array-axis order.
    """
    if error_XYZ.shape != attention_XYZ.shape:
        raise ValueError(f"errors of shape {error_XYZ.shape} and attention of shape {attention_XYZ.shape} cannot be compared")
    window = box_of(error_XYZ | attention_XYZ)
    error, attention = error_XYZ[window], attention_XYZ[window]
    voxel_mm3 = float(np.prod(spacing))
    errors, hit, asked, missed = _covered(error, attention, rules.min_error_mm3 / voxel_mm3, rules.min_overlap)
    regions, right, _, _ = _covered(attention, error, rules.min_attention_mm3 / voxel_mm3, rules.min_overlap)
    return Detection(
        errors=errors,
        hit=hit,
        regions=regions,
        right=right,
        error_voxels=int(np.count_nonzero(error)),
        attention_voxels=int(np.count_nonzero(attention)),
        shared_voxels=int(np.count_nonzero(error & attention)),
        asked_voxels=asked,
        missed_voxels=missed,
    )


def total(detections: Sequence[Detection]) -> Detection:
    """Regions and voxels added up."""
    return Detection(**{name: sum(getattr(d, name) for d in detections) for name in Detection.model_fields})


def regions_of(mask_XYZ: Mask) -> tuple[npt.NDArray[np.integer], int]:
    """Number of each voxel's connected region (26 neighbors), 1..C, 0 outside; and C."""
    return connected_components(np.ascontiguousarray(mask_XYZ).view(np.uint8))


def ratio(part: float, whole: float) -> float | None:
    return part / whole if whole else None


def _covered(own: Mask, other: Mask, min_voxels: float, min_overlap: float) -> tuple[int, int, int, int]:
    """How many regions of `own` are large enough, how many of those `other` covers by `min_overlap` or more, or touches; and the
    voxels of the former, and of those that are not covered."""
    labels, count = regions_of(own)
    sizes = np.bincount(labels.ravel(), minlength=count + 1)[1:]
    shared = np.bincount(labels[other & own], minlength=count + 1)[1:]
    large = sizes >= max(1, min_voxels)
    covered = large & (shared > 0) & (shared >= min_overlap * sizes)
    return int(large.sum()), int(covered.sum()), int(sizes[large].sum()), int(sizes[large & ~covered].sum())

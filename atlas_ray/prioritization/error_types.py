"""What kind of error an attention component points at, from its record and the predicted mask alone.

A first taxonomy, coarse on purpose; the first type that matches names the component. What is not covered: the paper's causes
(disease, image quality, protocol; figure 3), which need the CT or a person, and a missing part, which no label map shows.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, Literal

import cc3d
import numpy as np
import numpy.typing as npt
from pydantic import Field, NonNegativeFloat, PositiveFloat
from scipy import ndimage

from atlas_ray.records import AttentionComponent
from atlas_ray.schema import Schema, Triple

Mask = npt.NDArray[np.bool_]  # [X, Y, Z]
Box = tuple[slice, slice, slice]


@dataclass(frozen=True, eq=False)
class PredictedOrgan:
    """One organ's predicted mask with what several types ask of it, worked out once (no slots: the islands are kept).

    Args:
        mask_XYZ: the whole volume, on the components' grid.
        spacing: mm.
    """

    mask_XYZ: Mask
    spacing: Triple

    @cached_property
    def is_absent(self) -> bool:
        return not self.mask_XYZ.any()

    @cached_property
    def islands_XYZ(self) -> npt.NDArray[Any]:
        """Island numbers (26 neighbors), 0 is background."""
        labels: npt.NDArray[Any] = cc3d.connected_components(np.ascontiguousarray(self.mask_XYZ), connectivity=26)
        return labels

    @cached_property
    def largest(self) -> int:
        """Number of the largest island."""
        return int(np.bincount(self.islands_XYZ.ravel())[1:].argmax()) + 1

    @cached_property
    def boxes(self) -> list[Box]:
        """Box of each island; entry 0 is the background's."""
        return list(cc3d.statistics(self.islands_XYZ)["bounding_boxes"])


class AbsentOrgan(Schema):
    """Attention for an organ that is predicted nowhere: removed, out of the field of view, or missed altogether."""

    error: Literal["absent_organ"] = "absent_organ"

    def matches(self, component: AttentionComponent, organ: PredictedOrgan) -> bool:
        return organ.is_absent


class Island(Schema):
    """Touches a predicted piece that lies apart from the organ's largest one.

    Args:
        min_gap_mm: nearer pieces count as the organ itself, torn by a thin gap.
    """

    error: Literal["island"] = "island"
    min_gap_mm: PositiveFloat = 10.0

    def matches(self, component: AttentionComponent, organ: PredictedOrgan) -> bool:
        if organ.is_absent:
            return False
        touched = set(np.unique(organ.islands_XYZ[_slices(component, margin=1)]).tolist()) - {0}
        # A component that also reaches the largest piece is about the organ, not about the speck beside it.
        return bool(touched) and organ.largest not in touched and any(self._is_apart(organ, island) for island in touched)

    def _is_apart(self, organ: PredictedOrgan, island: int) -> bool:
        """Whether no voxel of the largest piece lies within the gap; looks only at the island's surroundings."""
        reach = tuple(math.ceil(self.min_gap_mm / edge) + 1 for edge in organ.spacing)
        around = tuple(slice(max(0, s.start - r), s.stop + r) for s, r in zip(organ.boxes[island], reach, strict=True))
        nearby = organ.islands_XYZ[around]
        if not (nearby == organ.largest).any():
            return True
        gaps_mm = ndimage.distance_transform_edt(nearby != organ.largest, sampling=organ.spacing)
        return float(gaps_mm[nearby == island].min()) >= self.min_gap_mm


class Spill(Schema):
    """Two organs claim the region: on most of its voxels the overlap criterion fired."""

    error: Literal["spill"] = "spill"
    criterion: str = "overlap"

    def matches(self, component: AttentionComponent, organ: PredictedOrgan) -> bool:
        return component.reason == self.criterion


class BoundaryShift(Schema):
    """A thin band along the organ's surface: the border is placed a little too far in or out.

    The band's mean thickness is its volume over the area of the organ's surface inside its box. A box also holds surface that
    the component does not follow, so the thickness is at most underestimated; a voxel surface counts up to 1.5 times the
    smooth one, which underestimates it further.

    Args:
        max_thickness_mm: thicker regions are something else.
        min_area_mm2: of surface; a region that barely meets the organ is no band.
    """

    error: Literal["boundary_shift"] = "boundary_shift"
    max_thickness_mm: PositiveFloat = 6.0
    min_area_mm2: NonNegativeFloat = 25.0

    def matches(self, component: AttentionComponent, organ: PredictedOrgan) -> bool:
        area_mm2 = surface_area_mm2(organ.mask_XYZ[_slices(component, margin=1)], organ.spacing)
        return area_mm2 > self.min_area_mm2 and component.volume_mm3 / area_mm2 <= self.max_thickness_mm


ErrorType = Annotated[AbsentOrgan | Island | Spill | BoundaryShift, Field(discriminator="error")]
DEFAULT_ERROR_TYPES: tuple[ErrorType, ...] = (AbsentOrgan(), Island(), Spill(), BoundaryShift())
UNKNOWN = "unknown"


def error_type_of(component: AttentionComponent, organ: PredictedOrgan, types: Sequence[ErrorType] = DEFAULT_ERROR_TYPES) -> str:
    """Name of the first type that matches, "unknown" where none does.

    Args:
        component: of that organ.
        organ: its predicted mask; made once per organ and case.
        types: asked in this order.
    """
    return next((t.error for t in types if t.matches(component, organ)), UNKNOWN)


def surface_area_mm2(mask_XYZ: Mask, spacing: Triple) -> float:
    """Area of the voxel faces between the mask and its outside, inside the array."""
    x, y, z = spacing
    faces = (np.count_nonzero(np.diff(mask_XYZ, axis=axis)) for axis in range(3))
    return float(sum(count * area for count, area in zip(faces, (y * z, x * z, x * y), strict=True)))


def _slices(component: AttentionComponent, *, margin: int) -> Box:
    x, y, z = (slice(max(0, start - margin), stop + margin) for start, stop in component.box)
    return x, y, z

"""What kind of error it is (paper figures 3b and 7).

Of a region where prediction and truth are known to differ (`fits`); and, before anybody has looked, of an attention component, from
its record and the predicted mask alone (`matches`). The first type that fits names it. The second is a guess: a box stands for the
component's voxels, and where the organ really is nobody knows yet.
What is not covered: the paper's causes (disease, image quality, protocol), which need the CT or a person.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, Literal

import cc3d
import numpy as np
import numpy.typing as npt
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from scipy import ndimage

from atlas_ray.organs import LabelMap
from atlas_ray.records import AttentionComponent
from atlas_ray.schema import Fraction, Schema, Triple

Mask = npt.NDArray[np.bool_]  # [X, Y, Z]
Box = tuple[slice, slice, slice]


@dataclass(frozen=True, eq=False)
class PredictedOrgan:
    """One organ's predicted mask with what several types ask of it, worked out once (no slots: the islands are kept).

    Args:
        mask_XYZ: on the components' grid: the whole volume, or a crop of it that leaves a margin around the organ and its
            components wherever the volume goes on.
        spacing: mm.
        mirror_XYZ: the predicted mask of the same organ on the body's other side, where it has one.
    """

    mask_XYZ: Mask
    spacing: Triple
    mirror_XYZ: Mask | None = None

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
        return int(self._statistics["voxel_counts"][1:].argmax()) + 1

    @cached_property
    def boxes(self) -> list[Box]:
        """Box of each island; entry 0 is the background's."""
        return list(self._statistics["bounding_boxes"])

    def touched(self, box: Box) -> set[int]:
        """Islands with a voxel in the box; plane by plane: sorting a box as large as the volume takes gigabytes."""
        seen = np.zeros(len(self._statistics["voxel_counts"]), bool)
        for plane in self.islands_XYZ[box]:
            seen[plane] = True
        return set(np.flatnonzero(seen).tolist()) - {0}

    @cached_property
    def _statistics(self) -> Mapping[str, Any]:
        """Counted by cc3d: numpy's bincount would first make a copy of eight bytes a voxel."""
        found: Mapping[str, Any] = cc3d.statistics(self.islands_XYZ)
        return found


@dataclass(frozen=True, eq=False)
class ErrorRegion:
    """One connected region where an organ's prediction and truth differ, in a box around it.

    Args:
        region_XYZ: its voxels.
        predicted_XYZ, truth_XYZ: both label maps in the box.
        label_id, mirror_id: of the organ and of the same one on the body's other side; None where it has none.
        spacing: mm.
        is_predicted, is_true: whether the organ is anywhere in either map, outside the box included.
        at_end: whether the region lies at an end of the volume.
    """

    region_XYZ: Mask
    predicted_XYZ: LabelMap
    truth_XYZ: LabelMap
    label_id: int
    mirror_id: int | None
    spacing: Triple
    is_predicted: bool
    is_true: bool
    at_end: bool

    @cached_property
    def voxels(self) -> int:
        return int(np.count_nonzero(self.region_XYZ))

    @cached_property
    def false_positive(self) -> float:
        """Share of its voxels that are predicted and not true; the others are missed."""
        return float((self.predicted_XYZ[self.region_XYZ] == self.label_id).mean())

    @cached_property
    def agreed_XYZ(self) -> Mask:
        """Where both maps have the organ."""
        agreed: Mask = (self.predicted_XYZ == self.label_id) & (self.truth_XYZ == self.label_id)
        return agreed

    @cached_property
    def shell_XYZ(self) -> Mask:
        """Voxels around the region (26 neighbors)."""
        shell: Mask = ndimage.binary_dilation(self.region_XYZ, np.ones((3, 3, 3), bool)) & ~self.region_XYZ
        return shell

    @cached_property
    def thickness_mm(self) -> float:
        """Of its thickest place, between voxel centers plus one smallest edge: a slab's, or one voxel less."""
        deepest = ndimage.distance_transform_edt(np.pad(self.region_XYZ, 1), sampling=self.spacing).max()
        return float(2 * deepest - min(self.spacing))


class AbsentOrgan(Schema):
    """The organ is in one of the two maps only: missed or invented altogether; as a guess, attention for an organ that is predicted
    nowhere: removed, out of the field of view, or missed."""

    error: Literal["absent_organ"] = "absent_organ"

    def fits(self, error: ErrorRegion) -> bool:
        return not (error.is_predicted and error.is_true)

    def matches(self, component: AttentionComponent, organ: PredictedOrgan) -> bool:
        return organ.is_absent


class LeftRightSwap(Schema):
    """One of a pair is labeled as the other one.

    Args:
        min_share: of the region's voxels; as a guess, of the component's, in whose box the other one is predicted.
    """

    error: Literal["left_right_swap"] = "left_right_swap"
    min_share: Fraction = 0.5

    def fits(self, error: ErrorRegion) -> bool:
        if error.mirror_id is None:
            return False
        other = np.where(error.predicted_XYZ == error.label_id, error.truth_XYZ, error.predicted_XYZ)
        return bool((other[error.region_XYZ] == error.mirror_id).mean() >= self.min_share)

    def matches(self, component: AttentionComponent, organ: PredictedOrgan) -> bool:
        if organ.mirror_XYZ is None:
            return False
        inside = np.count_nonzero(organ.mirror_XYZ[_slices(component, margin=0)])
        return bool(inside >= self.min_share * component.voxels)


class Truncation(Schema):
    """At an end of the field of view that cuts the organ."""

    error: Literal["truncation"] = "truncation"

    def fits(self, error: ErrorRegion) -> bool:
        return error.at_end

    def matches(self, component: AttentionComponent, organ: PredictedOrgan) -> bool:
        for axis, (start, stop) in enumerate(component.box):
            for end, is_there in ((0, start == 0), (-1, stop == organ.mask_XYZ.shape[axis])):
                if is_there and organ.mask_XYZ.take(end, axis).any():
                    return True
        return False


class Island(Schema):
    """A predicted piece apart from the organ; as a guess, attention that touches one apart from the organ's largest.

    Args:
        min_gap_mm: nearer pieces count as the organ itself, torn by a thin gap.
    """

    error: Literal["island"] = "island"
    min_gap_mm: PositiveFloat = 10.0

    def fits(self, error: ErrorRegion) -> bool:
        """Looks as far as the region's box reaches: its margin must be wider than the gap."""
        if error.false_positive < 1:
            return False
        organ = error.truth_XYZ == error.label_id
        if not organ.any():
            return True
        gaps_mm = ndimage.distance_transform_edt(~organ, sampling=error.spacing)
        return float(gaps_mm[error.region_XYZ].min()) >= self.min_gap_mm

    def matches(self, component: AttentionComponent, organ: PredictedOrgan) -> bool:
        if organ.is_absent:
            return False
        touched = organ.touched(_slices(component, margin=1))
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


class Cavity(Schema):
    """A hole in the prediction where the organ goes on, such as gas inside it; as a guess, attention within the predicted organ.

    Args:
        min_enclosed: share of what surrounds the region that is the organ in both maps; as a guess, of the shell around the
            component's box that is predicted.
    """

    error: Literal["cavity"] = "cavity"
    min_enclosed: Fraction = 0.8

    def fits(self, error: ErrorRegion) -> bool:
        return error.false_positive == 0 and float(error.agreed_XYZ[error.shell_XYZ].mean()) >= self.min_enclosed

    def matches(self, component: AttentionComponent, organ: PredictedOrgan) -> bool:
        around, inside = (organ.mask_XYZ[_slices(component, margin=margin)] for margin in (1, 0))
        shell = around.size - inside.size
        return shell > 0 and bool(np.count_nonzero(around) - np.count_nonzero(inside) >= self.min_enclosed * shell)


class Resolution(Schema):
    """No higher than a slice on thick slices: finer than the scan.

    Args:
        coarse_mm: an axis counts as coarse from this edge on.
        max_slices: along the coarsest axis, at every place of the region.
    """

    error: Literal["resolution"] = "resolution"
    coarse_mm: PositiveFloat = 4.0
    max_slices: PositiveInt = 1

    def fits(self, error: ErrorRegion) -> bool:
        axis = self._coarse_axis(error.spacing)
        return axis is not None and int(np.count_nonzero(error.region_XYZ, axis=axis).max()) <= self.max_slices

    def matches(self, component: AttentionComponent, organ: PredictedOrgan) -> bool:
        axis = self._coarse_axis(organ.spacing)
        return axis is not None and component.box[axis][1] - component.box[axis][0] <= self.max_slices

    def _coarse_axis(self, spacing: Triple) -> int | None:
        """The one axis that is coarser than the others; None where there is none."""
        axis = int(np.argmax(spacing))
        others = [edge for i, edge in enumerate(spacing) if i != axis]
        return axis if spacing[axis] >= self.coarse_mm and spacing[axis] > max(others) else None


class Spill(Schema):
    """Thick, and predicted where another organ or none is; as a guess, two organs claim the region, on most of its voxels the
    overlap criterion fired.

    Args:
        min_thickness_mm: thinner regions shift a boundary.
    """

    error: Literal["spill"] = "spill"
    criterion: str = "overlap"
    min_thickness_mm: PositiveFloat = 6.0

    def fits(self, error: ErrorRegion) -> bool:
        return error.false_positive >= 0.5 and error.thickness_mm > self.min_thickness_mm

    def matches(self, component: AttentionComponent, organ: PredictedOrgan) -> bool:
        return component.reason == self.criterion


class BoundaryShift(Schema):
    """A thin band along the organ's surface: the border is placed a little too far in or out.

    As a guess, the band's mean thickness is its volume over the area of the organ's surface inside its box. A box also holds
    surface that the component does not follow, so the thickness is at most underestimated; a voxel surface counts up to 1.5 times
    the smooth one, which underestimates it further.

    Args:
        max_thickness_mm: thicker regions are something else.
        min_area_mm2: of surface; a component that barely meets the organ is no band.
    """

    error: Literal["boundary_shift"] = "boundary_shift"
    max_thickness_mm: PositiveFloat = 6.0
    min_area_mm2: NonNegativeFloat = 25.0

    def fits(self, error: ErrorRegion) -> bool:
        return error.thickness_mm <= self.max_thickness_mm and bool((error.agreed_XYZ & error.shell_XYZ).any())

    def matches(self, component: AttentionComponent, organ: PredictedOrgan) -> bool:
        area_mm2 = surface_area_mm2(organ.mask_XYZ[_slices(component, margin=1)], organ.spacing)
        return area_mm2 > self.min_area_mm2 and component.volume_mm3 / area_mm2 <= self.max_thickness_mm


class MissingPart(Schema):
    """The organ goes on where nothing is predicted; as a guess, attention that starts at the organ's largest piece and lies mostly
    outside it."""

    error: Literal["missing_part"] = "missing_part"

    def fits(self, error: ErrorRegion) -> bool:
        return error.false_positive < 0.5

    def matches(self, component: AttentionComponent, organ: PredictedOrgan) -> bool:
        if organ.is_absent:
            return False
        box = _slices(component, margin=0)
        touches = organ.largest in organ.touched(_slices(component, margin=1))
        return touches and float(organ.mask_XYZ[box].mean()) < 0.5


ErrorType = Annotated[
    AbsentOrgan | LeftRightSwap | Truncation | Island | Cavity | Resolution | Spill | BoundaryShift | MissingPart,
    Field(discriminator="error"),
]
DEFAULT_ERROR_TYPES: tuple[ErrorType, ...] = (
    AbsentOrgan(),
    LeftRightSwap(),
    Truncation(),
    Island(),
    Cavity(),
    Resolution(),
    Spill(),
    BoundaryShift(),
    MissingPart(),
)
UNKNOWN = "unknown"
MARGIN_MM = 12.0  # to be left around a region or component: wider than the gap that makes an island


def error_type_of(component: AttentionComponent, organ: PredictedOrgan, types: Sequence[ErrorType] = DEFAULT_ERROR_TYPES) -> str:
    """Name of the first type that matches, "unknown" where none does.

    Args:
        component: of that organ.
        organ: its predicted mask; made once per organ and case.
        types: asked in this order.
    """
    return next((t.error for t in types if t.matches(component, organ)), UNKNOWN)


def type_of(error: ErrorRegion, types: Sequence[ErrorType] = DEFAULT_ERROR_TYPES) -> str:
    """Name of the first type that fits a known error, "unknown" where none does."""
    return next((t.error for t in types if t.fits(error)), UNKNOWN)


def surface_area_mm2(mask_XYZ: Mask, spacing: Triple) -> float:
    """Area of the voxel faces between the mask and its outside, inside the array."""
    x, y, z = spacing
    faces = (np.count_nonzero(np.diff(mask_XYZ, axis=axis)) for axis in range(3))
    return float(sum(count * area for count, area in zip(faces, (y * z, x * z, x * y), strict=True)))


def _slices(component: AttentionComponent, *, margin: int) -> Box:
    x, y, z = (slice(max(0, start - margin), stop + margin) for start, stop in component.box)
    return x, y, z

"""Error types on one cube of an organ and things beside it."""

import numpy as np
import pytest
from pydantic import TypeAdapter

from atlas_ray.prioritization.error_types import BoundaryShift, ErrorType, Island, PredictedOrgan, error_type_of, surface_area_mm2
from atlas_ray.records import AttentionComponent

SPACING = (1.0, 1.0, 2.0)


def component(box, *, voxels: int | None = None, reason: str = "uncertainty") -> AttentionComponent:
    filled = int(np.prod([stop - start for start, stop in box]))
    voxels = filled if voxels is None else voxels
    return AttentionComponent(
        organ="solid_a",
        index=1,
        box=box,
        peak=tuple(start for start, _ in box),
        voxels=voxels,
        volume_mm3=voxels * 2.0,
        reason=reason,
        criteria=(reason,),
        score=1.0,
        mean_heat=0.5,
    )


@pytest.fixture
def organ() -> PredictedOrgan:
    """A cube of 10 x 10 x 10 voxels, a speck 2 voxels beside it and one 20 voxels away."""
    mask = np.zeros((40, 20, 20), bool)
    mask[5:15, 5:15, 5:15] = True
    mask[17, 7, 7] = True
    mask[35, 7, 7] = True
    return PredictedOrgan(mask, SPACING)


def test_faces_by_hand():
    mask = np.zeros((5, 5, 5), bool)
    mask[1:3, 1:4, 2:4] = True  # 2 x 3 x 2 voxels of 1 x 1 x 2 mm: faces 2 * (6 * 2 + 4 * 2 + 6 * 1)
    assert surface_area_mm2(mask, SPACING) == 52.0
    assert surface_area_mm2(mask[:2], SPACING) == 6 * 2 + 2 * (2 * 2 + 3)  # cut: the open end is no surface
    assert surface_area_mm2(np.ones((2, 2, 2), bool), SPACING) == 0.0


@pytest.mark.parametrize(
    ("box", "reason", "expected"),
    [
        (((35, 37), (6, 9), (6, 9)), "uncertainty", "island"),  # on the far speck
        (((36, 38), (6, 9), (6, 9)), "uncertainty", "island"),  # beside it
        (((17, 18), (7, 8), (7, 8)), "uncertainty", "unknown"),  # on the near speck, 3 mm from the organ: no island, and tiny
        (((14, 17), (5, 15), (5, 15)), "inconsistency", "boundary_shift"),  # 3 mm thick along one face
        (((14, 17), (5, 15), (5, 15)), "overlap", "spill"),
        (((25, 28), (12, 15), (12, 15)), "uncertainty", "unknown"),  # beside nothing
        (((7, 12), (7, 12), (7, 12)), "uncertainty", "unknown"),  # deep inside
        (((15, 39), (3, 17), (3, 17)), "uncertainty", "unknown"),  # thick, and it reaches the organ: not about the speck
    ],
)
def test_types_of_regions(organ, box, reason, expected):
    assert error_type_of(component(box, reason=reason), organ) == expected


def test_absent_organ_comes_first():
    nothing = PredictedOrgan(np.zeros((4, 4, 4), bool), SPACING)
    region = component(((0, 2), (0, 2), (0, 2)), reason="overlap")
    assert error_type_of(region, nothing) == "absent_organ"
    assert not Island().matches(region, nothing)


def test_gap_and_thickness_are_in_mm(organ):
    near = component(((17, 18), (7, 8), (7, 8)))
    assert Island(min_gap_mm=3.0).matches(near, organ)  # voxels 14 and 17 are 3 mm apart
    assert not Island(min_gap_mm=3.1).matches(near, organ)
    face = component(((14, 17), (5, 15), (5, 15)))  # 600 mm3
    assert BoundaryShift(max_thickness_mm=6.0).matches(face, organ)
    assert not BoundaryShift(max_thickness_mm=1.0).matches(face, organ)
    assert not BoundaryShift(min_area_mm2=10_000).matches(face, organ)


def test_types_are_chosen_by_name_and_order():
    chosen = TypeAdapter(list[ErrorType]).validate_python([{"error": "boundary_shift"}, {"error": "spill"}])
    assert [t.error for t in chosen] == ["boundary_shift", "spill"]
    mask = np.zeros((20, 20, 20), bool)
    mask[5:15, 5:15, 5:15] = True
    face = component(((14, 17), (5, 15), (5, 15)), reason="overlap")
    assert error_type_of(face, PredictedOrgan(mask, SPACING), chosen) == "boundary_shift"

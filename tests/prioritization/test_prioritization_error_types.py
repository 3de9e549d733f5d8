"""Error types on one cube of an organ and things beside it."""

import numpy as np
import pytest
from pydantic import TypeAdapter

from atlas_ray.prioritization.error_types import (
    BoundaryShift,
    Cavity,
    ErrorRegion,
    ErrorType,
    Island,
    LeftRightSwap,
    PredictedOrgan,
    Resolution,
    Spill,
    error_type_of,
    surface_area_mm2,
    type_of,
)
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
        (((7, 12), (7, 12), (7, 12)), "uncertainty", "cavity"),  # deep inside
        (((15, 39), (3, 17), (3, 17)), "uncertainty", "missing_part"),  # thick, and it reaches the organ: not about the speck
    ],
)
def test_types_of_regions(organ, box, reason, expected):
    assert error_type_of(component(box, reason=reason), organ) == expected


def test_absent_organ_comes_first():
    nothing = PredictedOrgan(np.zeros((4, 4, 4), bool), SPACING)
    region = component(((0, 2), (0, 2), (0, 2)), reason="overlap")
    assert error_type_of(region, nothing) == "absent_organ"
    assert not Island().matches(region, nothing)


def test_guesses_that_need_more_than_the_mask():
    mask = np.zeros((20, 20, 20), bool)
    mask[5:15, 5:15, :6] = True  # cut by the lowest slice
    organ = PredictedOrgan(mask, (1.0, 1.0, 5.0), mirror_XYZ=mask[::-1])
    assert error_type_of(component(((5, 15), (5, 15), (0, 3))), PredictedOrgan(mask, SPACING)) == "truncation"
    assert error_type_of(component(((0, 3), (0, 3), (0, 3))), PredictedOrgan(mask, SPACING)) == "truncation"  # at the organ's end
    assert error_type_of(component(((0, 3), (0, 3), (12, 15))), PredictedOrgan(mask, SPACING)) == "unknown"  # at another
    assert error_type_of(component(((5, 15), (5, 15), (6, 7))), organ) == "resolution"  # a slice of 5 mm
    assert error_type_of(component(((5, 15), (5, 15), (3, 5))), organ) == "left_right_swap"
    assert not LeftRightSwap().matches(component(((5, 15), (5, 15), (6, 12))), organ)


ORGAN, MIRROR, NEIGHBOR = 1, 2, 3


def known(change, *, spacing=(2.0, 2.0, 2.0), **fields) -> ErrorRegion:
    """A cube of 10 voxels' edge in both maps, and what `change` does to (prediction, truth)."""
    predicted, truth = np.zeros((30, 16, 16), np.uint8), np.zeros((30, 16, 16), np.uint8)
    predicted[3:13, 3:13, 3:13] = truth[3:13, 3:13, 3:13] = ORGAN
    change(predicted, truth)
    region = (predicted == ORGAN) != (truth == ORGAN)
    assert region.any()
    there = {"is_predicted": True, "is_true": True, "at_end": False, "mirror_id": MIRROR} | fields
    return ErrorRegion(region, predicted, truth, ORGAN, spacing=spacing, **there)


def paint(which: str, x, y, z, label: int):
    def change(predicted, truth):
        {"predicted": predicted, "truth": truth}[which][slice(*x), slice(*y), slice(*z)] = label

    return change


def both(*changes):
    def change(predicted, truth):
        for one in changes:
            one(predicted, truth)

    return change


ALL = (3, 13)
KNOWN = {
    "boundary_shift": known(paint("truth", (13, 15), ALL, ALL, ORGAN)),  # 4 mm missed along one face
    "missing_part": known(paint("truth", (13, 21), ALL, ALL, ORGAN)),  # 16 mm missed
    "spill": known(paint("predicted", (13, 21), ALL, ALL, ORGAN)),  # 16 mm too many
    "cavity": known(paint("predicted", (6, 9), (6, 9), (6, 9), 0)),
    "island": known(paint("predicted", (22, 24), (3, 5), (3, 5), ORGAN)),
    "left_right_swap": known(both(paint("truth", (13, 21), ALL, ALL, ORGAN), paint("predicted", (13, 21), ALL, ALL, MIRROR))),
    "truncation": known(paint("truth", (13, 21), ALL, ALL, ORGAN), at_end=True),
    "absent_organ": known(paint("truth", (13, 21), ALL, ALL, ORGAN), is_predicted=False),
    "resolution": known(paint("truth", ALL, ALL, (13, 14), ORGAN), spacing=(1.0, 1.0, 5.0)),
}


@pytest.mark.parametrize("expected", KNOWN)
def test_types_of_known_errors(expected):
    assert type_of(KNOWN[expected]) == expected


def test_every_type_is_shown_here():
    assert {t.error for t in TypeAdapter(list[ErrorType]).validate_python([{"error": name} for name in KNOWN])} == set(KNOWN)


def test_what_decides_a_known_error():
    swapped_back = known(both(paint("predicted", (13, 21), ALL, ALL, ORGAN), paint("truth", (13, 21), ALL, ALL, MIRROR)))
    assert type_of(swapped_back) == "left_right_swap"
    neighbor = known(both(paint("predicted", (13, 21), ALL, ALL, ORGAN), paint("truth", (13, 21), ALL, ALL, NEIGHBOR)))
    assert type_of(neighbor) == "spill"
    unpaired = known(paint("truth", (13, 21), ALL, ALL, ORGAN), mirror_id=None)
    assert not LeftRightSwap().fits(unpaired)
    assert not Resolution().fits(KNOWN["boundary_shift"])
    assert not Cavity().fits(KNOWN["boundary_shift"])  # open to one side


def test_thickness_and_gap_of_known_errors_are_in_mm():
    assert KNOWN["boundary_shift"].thickness_mm == 2.0  # 4 mm: two voxels are taken for one, as stated
    assert KNOWN["missing_part"].thickness_mm == 14.0  # 16 mm
    one = known(paint("truth", (13, 14), (3, 4), (3, 4), ORGAN))
    assert (one.voxels, one.thickness_mm, one.false_positive) == (1, 2.0, 0.0)
    assert Island(min_gap_mm=20).fits(KNOWN["island"])  # voxels 12 and 22 are 20 mm apart
    assert not Island(min_gap_mm=20.1).fits(KNOWN["island"])
    assert not Spill(min_thickness_mm=14).fits(KNOWN["spill"])


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

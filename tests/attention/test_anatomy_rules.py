"""Each rule on a label map made by hand. The first axis grows to the right, the last to the head; voxels are 10 mm cubes."""

import numpy as np
import pytest

from atlas_ray.attention.anatomy_rules import (
    AnatomyRules,
    OrganCohort,
    OrganShape,
    extra_pieces,
    missing_slices,
    organ_shapes,
    surface,
    wrong_sides,
)

CUBE_MM = (10.0, 10.0, 10.0)


def mask(shape: tuple[int, int, int], *boxes: tuple[slice, slice, slice]) -> np.ndarray:
    result = np.zeros(shape, bool)
    for box in boxes:
        result[box] = True
    return result


def test_missing_slices_are_what_both_neighbors_have() -> None:
    organ = mask((4, 1, 6), (slice(0, 3), slice(0, 1), slice(0, 2)), (slice(1, 4), slice(0, 1), slice(4, 6)))
    (region,) = missing_slices(organ, 2)
    assert np.argwhere(region).tolist() == [[1, 0, 2], [1, 0, 3], [2, 0, 2], [2, 0, 3]]


def test_missing_slices_between_parts_that_share_nothing_are_either() -> None:
    organ = mask((4, 1, 3), (slice(0, 1), slice(0, 1), slice(0, 1)), (slice(3, 4), slice(0, 1), slice(2, 3)))
    (region,) = missing_slices(organ, 1)
    assert np.argwhere(region).tolist() == [[0, 0, 1], [3, 0, 1]]


def test_a_long_gap_lies_between_two_things() -> None:
    organ = mask((1, 1, 8), (slice(0, 1), slice(0, 1), slice(0, 2)), (slice(0, 1), slice(0, 1), slice(6, 8)))
    assert list(missing_slices(organ, 3)) == []
    assert len(list(missing_slices(organ, 4))) == 1


def test_the_largest_piece_and_crumbs_are_no_extra_pieces() -> None:
    organ = mask(
        (12, 2, 2),
        (slice(0, 4), slice(0, 2), slice(0, 2)),  # 16 voxels: the organ
        (slice(6, 8), slice(0, 2), slice(0, 2)),  # 8 voxels
        (slice(10, 11), slice(0, 1), slice(0, 1)),  # 1 voxel
    )
    (region,) = extra_pieces(organ, 2, 0.02)
    assert np.flatnonzero(region.any(axis=(1, 2))).tolist() == [6, 7]
    assert len(list(extra_pieces(organ, 1, 0.02))) == 2
    assert len(list(extra_pieces(organ, 1, 0.5))) == 1  # half of the largest
    assert list(extra_pieces(organ, 1, 0.6)) == []


def test_gaps_are_mm_along_the_body_and_pieces_mm3() -> None:
    """Voxels of 1 x 1 x 5 mm: gaps of four slices and of five, and a piece of two voxels beside one of three."""
    rules = AnatomyRules(max_gap_mm=20, min_piece_mm3=10, min_piece_share=0)
    for gap, found in ((4, {"missing_slice", "pieces", "cohort"}), (5, {"pieces", "cohort"})):
        organ = mask((1, 1, 12), (slice(0, 1), slice(0, 1), slice(0, 3)), (slice(0, 1), slice(0, 1), slice(3 + gap, 5 + gap)))
        assert {rule for rule, _ in rules.regions(organ, None, (1.0, 1.0, 5.0))} == found
    single = mask((1, 1, 12), (slice(0, 1), slice(0, 1), slice(0, 3)), (slice(0, 1), slice(0, 1), slice(9, 10)))
    assert {rule for rule, _ in rules.regions(single, None, (1.0, 1.0, 5.0))} == {"cohort"}


def test_sides_piece_beyond_the_middle_and_contact() -> None:
    """Left organ at 0..2 with a piece at 9; the right one at 7 and 8, so that the piece touches it, too."""
    left = mask((10, 1, 3), (slice(0, 3), slice(0, 1), slice(0, 3)), (slice(9, 10), slice(0, 1), slice(0, 2)))
    right = mask((10, 1, 3), (slice(7, 9), slice(0, 1), slice(0, 3)))
    contact, piece = wrong_sides(left, right)
    assert np.argwhere(contact).tolist() == [[9, 0, 0], [9, 0, 1]]
    assert np.argwhere(piece).tolist() == [[9, 0, 0], [9, 0, 1]]
    both = [
        np.unravel_index(p, left.shape)
        for rule, places in AnatomyRules().regions(right, left, CUBE_MM)
        if rule == "sides"
        for p in places
    ]
    assert {tuple(int(i) for i in at) for at in both} >= {
        (9, 0, 0),
        (9, 0, 1),
        (8, 0, 0),
    }  # the left one's piece is the right one's, too
    assert list(wrong_sides(left[:6], right[:6])) == []


@pytest.mark.parametrize(("x", "pieces"), [(5, 0), (6, 1)])
def test_the_middle_lies_between_the_larger_piece_and_the_other_organ(x: int, pieces: int) -> None:
    """The left one's center is at 1, the right one's at 10: the middle at 5.5."""
    left = mask((12, 1, 1), (slice(0, 3), slice(0, 1), slice(0, 1)), (slice(x, x + 1), slice(0, 1), slice(0, 1)))
    right = mask((12, 1, 1), (slice(9, 12), slice(0, 1), slice(0, 1)))
    assert len(list(wrong_sides(left, right))) == pieces


def test_organs_of_a_pair_touch_at_a_corner_too() -> None:
    left, right = (mask((3, 3, 3), (slice(n, n + 1),) * 3) for n in (0, 1))
    (contact,) = wrong_sides(left, right)
    assert np.argwhere(contact).tolist() == [[0, 0, 0]]


def test_surface_is_both_sides_of_the_border() -> None:
    assert surface(mask((7, 1, 1), (slice(2, 5), slice(0, 1), slice(0, 1))))[:, 0, 0].tolist() == [0, 1, 1, 1, 1, 1, 0]


def shape_of(log_ml: float, z: float = 0.0) -> OrganShape:
    return OrganShape(log_ml=log_ml, center_mm=(0.0, 0.0, z))


def test_outliers_are_measured_against_median_and_spread() -> None:
    """Volumes 5, 6, 7, 8, 9: median 7, absolute deviations 2 1 0 1 2 with median 1. Centers all alike: 3 mm is the least spread."""
    cohort = OrganCohort.of([shape_of(v) for v in (5, 6, 7, 8, 9)])
    assert cohort is not None
    assert cohort.medians == (7, 0, 0, 0)
    assert cohort.outlying(shape_of(7 + 2 * 1.4826, z=-6)) == pytest.approx((2, 2))
    assert cohort.outlying(OrganShape.absent())[1] == 0
    rules = AnatomyRules(max_volume_z=3, max_center_z=3)
    assert rules.is_outlier(-3.1, 0)
    assert rules.is_outlier(0, 3.1)
    assert not rules.is_outlier(2.9, 2.9)


def test_a_cohort_of_look_alikes_makes_nobody_an_outlier() -> None:
    cohort = OrganCohort.of([shape_of(7)] * 5)
    assert cohort is not None
    assert cohort.spreads == (0.1, 3, 3, 3)


def test_few_cases_are_no_cohort() -> None:
    assert OrganCohort.of([shape_of(7)] * 4 + [OrganShape.absent()]) is None


def test_volume_and_place_of_organs() -> None:
    """Two organs of 1 and 2 voxels of 1 ml; the middle of their centers is at x = 20 mm."""
    first, second = (
        mask((5, 1, 1), (slice(0, 1), slice(0, 1), slice(0, 1))),
        mask((5, 1, 1), (slice(3, 5), slice(0, 1), slice(0, 1))),
    )
    shapes = organ_shapes({"a": first, "b": second, "c": first & second}, CUBE_MM)
    assert shapes["a"].log_ml == pytest.approx(np.log(2))
    assert shapes["a"].center_mm == (-17.5, 0, 0)
    assert shapes["b"].center_mm == (17.5, 0, 0)
    assert shapes["c"] == OrganShape.absent()
    low, high = (mask((1, 1, 3), (slice(0, 1), slice(0, 1), slice(z, z + 1))) for z in (0, 2))
    assert organ_shapes({"a": low, "b": high}, (1.0, 2.0, 5.0))["b"].center_mm == (0, 0, 5)  # half of 10 mm


def test_regions_are_flat_positions_in_the_whole_volume() -> None:
    organ = mask((6, 6, 9), (slice(4, 5), slice(5, 6), slice(2, 4)), (slice(4, 5), slice(5, 6), slice(6, 8)))
    found = dict(AnatomyRules(min_piece_mm3=10_000).regions(organ, None, CUBE_MM))
    assert set(found) == {"missing_slice", "cohort"}
    assert [np.unravel_index(p, organ.shape) for p in found["missing_slice"]] == [(4, 5, 4), (4, 5, 5)]
    ((rule, places),) = AnatomyRules().regions(mask((5, 5, 5), (slice(2, 3),) * 3), None, CUBE_MM)
    assert (rule, len(places)) == ("cohort", 7)  # a voxel, and one on each of its six sides
    assert list(AnatomyRules().regions(np.zeros((3, 3, 3), bool), None, CUBE_MM)) == []

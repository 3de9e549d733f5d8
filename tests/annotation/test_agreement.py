"""Agreement by hand: rows of voxels, a digit per voxel. 1 is the liver, 2 the spleen, 3 the aorta, 0 nothing."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from atlas_ray.annotation.agreement import agreement, dice, surface_dice
from atlas_ray.organs import Organs

UNIT = (1.0, 1.0, 1.0)


def row(digits: str) -> np.ndarray:
    """One voxel after the other along x; the row is one voxel wide and high, so every voxel of an organ is on its surface."""
    return np.array([int(d) for d in digits], np.uint8).reshape(-1, 1, 1)


def masks(first: str, second: str) -> tuple[np.ndarray, np.ndarray]:
    return row(first) == 1, row(second) == 1


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ("0110", "0110", 1.0),
        ("0110", "0011", 0.5),  # one voxel in common, two in each
        ("1000", "0111", 0.0),
        ("1111", "1000", 0.4),  # 2 * 1 / (4 + 1)
        ("0000", "0000", None),
        ("0000", "0100", 0.0),
    ],
)
def test_dice(first: str, second: str, expected: float | None) -> None:
    assert dice(*masks(first, second)) == expected


@pytest.mark.parametrize(
    ("first", "second", "spacing", "tolerance", "expected"),
    [
        ("0100", "0100", UNIT, 0.5, 1.0),  # one voxel each, the same one
        ("0100", "0010", UNIT, 0.9, 0.0),  # neighbors, 1 mm apart
        ("0100", "0010", UNIT, 1.0, 1.0),
        ("0100", "0010", (3.0, 1.0, 1.0), 2.9, 0.0),  # neighbors, 3 mm apart
        ("0100", "0010", (3.0, 1.0, 1.0), 3.0, 1.0),
        ("1111", "1000", UNIT, 1.0, 0.6),  # of the first, voxels 0 and 1 are near; of the second, its only one: 3 of 5
        ("0000", "0000", UNIT, 1.0, None),
        ("0000", "0100", UNIT, 1.0, 0.0),
        ("0100", "0000", UNIT, 100.0, 0.0),
    ],
)
def test_surface_dice(first: str, second: str, spacing: tuple, tolerance: float, expected: float | None) -> None:
    assert surface_dice(*masks(first, second), spacing, tolerance_mm=tolerance) == expected


def test_the_inside_of_an_organ_does_not_count() -> None:
    """A cube of 5 x 5 x 5 voxels has 125 - 27 = 98 on its surface, one of 3 x 3 x 3 in its middle 26.

    Every surface voxel of the small cube lies 1 mm from the large one's surface. Of the large one's 98, the 9 in the middle of each
    of the 6 faces lie 1 mm from the small one; edges and corners lie sqrt(2) and sqrt(3) mm away.
    """
    large, small = np.zeros((7, 7, 7), bool), np.zeros((7, 7, 7), bool)
    large[1:6, 1:6, 1:6] = True
    small[2:5, 2:5, 2:5] = True
    assert surface_dice(large, small, UNIT, tolerance_mm=1.0) == pytest.approx((26 + 54) / (98 + 26))
    assert surface_dice(large, small, UNIT, tolerance_mm=1.8) == 1.0


def test_distances_are_millimeters_along_each_axis() -> None:
    first, second = np.zeros((3, 3, 3), bool), np.zeros((3, 3, 3), bool)
    first[1, 1, 0], second[1, 1, 2] = True, True  # two slices of 5 mm apart
    assert surface_dice(first, second, (0.7, 0.7, 5.0), tolerance_mm=9.9) == 0.0
    assert surface_dice(first, second, (0.7, 0.7, 5.0), tolerance_mm=10.0) == 1.0


@given(st.integers(0, 2**24 - 1), st.integers(0, 2**24 - 1), st.floats(0.1, 4))
def test_agreement_has_no_direction(a: int, b: int, tolerance: float) -> None:
    first, second = (np.array([n >> i & 1 for i in range(24)], bool).reshape(2, 3, 4) for n in (a, b))
    spacing = (1.0, 0.8, 2.5)
    there = surface_dice(first, second, spacing, tolerance_mm=tolerance)
    assert there == surface_dice(second, first, spacing, tolerance_mm=tolerance)
    assert there is None or 0 <= there <= 1
    assert surface_dice(first, first, spacing, tolerance_mm=tolerance) in (1.0, None)


def test_every_organ_one_of_the_readings_has(organs: Organs) -> None:
    rows = agreement(row("1100200"), row("0110000"), organs, (10.0, 10.0, 10.0), tolerance_mm=1)
    assert [(r.organ, r.dice, r.surface_dice, r.ml) for r in rows] == [
        ("liver", 0.5, 0.5, (2.0, 2.0)),
        ("spleen", 0.0, 0.0, (1.0, 0.0)),
    ]
    with pytest.raises(ValueError, match="share one grid"):
        agreement(row("11"), row("111"), organs, UNIT)

"""Errors against attention, on rows of voxels that can be counted by eye."""

import numpy as np
import pytest

from atlas_ray.evaluation.components import Detection, Rules, detect, regions_of, total

EVERY_SIZE = Rules(min_error_mm3=0)
UNIT = (1.0, 1.0, 1.0)


def row(text: str) -> np.ndarray:
    """A line of voxels: # is set."""
    return np.array([c == "#" for c in text])[:, None, None]


def test_regions_found_missed_and_beside_an_error():
    error = row("##..#...####....")
    attention = row(".#......#..#..##")
    found = detect(error, attention, UNIT, EVERY_SIZE)
    assert (found.errors, found.hit) == (3, 2)  # the single voxel at 4 is missed
    assert (found.regions, found.right) == (4, 3)  # the last one lies on nothing
    assert (found.error_voxels, found.attention_voxels, found.shared_voxels) == (7, 5, 3)
    assert found.sensitivity == pytest.approx(2 / 3)
    assert found.precision == 3 / 4
    assert found.voxel_sensitivity == pytest.approx(3 / 7)
    assert found.voxel_precision == 3 / 5


def test_touching_is_not_overlapping():
    found = detect(row("##.."), row("..##"), UNIT, EVERY_SIZE)
    assert (found.hit, found.right) == (0, 0)


def test_more_overlap_can_be_asked_for():
    error, attention = row("####"), row("#...")
    assert detect(error, attention, UNIT, Rules(min_error_mm3=0, min_overlap=0.25)).hit == 1
    assert detect(error, attention, UNIT, Rules(min_error_mm3=0, min_overlap=0.26)).hit == 0
    assert detect(error, attention, UNIT, Rules(min_error_mm3=0, min_overlap=0.26)).right == 1  # all of the attention lies on it


@pytest.mark.parametrize(("spacing", "errors"), [((1.0, 1.0, 1.0), 1), ((2.0, 2.0, 1.0), 2), ((0.5, 1.0, 1.0), 0)])
def test_the_smallest_error_is_a_volume(spacing, errors):
    """One voxel and two voxels, where 2 mm3 are asked for."""
    found = detect(row("#..##"), row("#####"), spacing, Rules(min_error_mm3=2))
    assert (found.errors, found.hit) == (errors, errors)
    assert found.regions == 1
    assert found.right == 1  # it lies on an error, if only on a small one


@pytest.mark.parametrize(("min_error_mm3", "asked", "missed"), [(0, 8, 5), (6, 7, 4), (12, 7, 4), (14, 4, 4), (100, 0, 0)])
def test_missed_share_is_of_the_volume_of_the_errors_that_are_asked_for(min_error_mm3, asked, missed):
    """Errors of 3, 1 and 4 voxels of 4 mm3; attention lies on the first."""
    found = detect(row("###.#.####"), row("#........."), (2.0, 1.0, 2.0), Rules(min_error_mm3=min_error_mm3))
    assert (found.asked_voxels, found.missed_voxels) == (asked, missed)
    assert found.missed_share == (missed / asked if asked else None)
    assert found.error_voxels == 8


def test_small_attention_is_not_counted_where_so_asked():
    assert detect(row("#..##"), row("#..##"), UNIT, Rules(min_error_mm3=0, min_attention_mm3=2)).regions == 1


def test_nothing_says_nothing():
    empty, one = row("...."), row(".#..")
    assert detect(empty, empty, UNIT, EVERY_SIZE) == Detection()
    assert Detection().sensitivity is None
    assert Detection().precision is None
    assert Detection().voxel_sensitivity is None
    assert detect(one, empty, UNIT, EVERY_SIZE).sensitivity == 0
    assert detect(one, empty, UNIT, EVERY_SIZE).precision is None
    assert detect(empty, one, UNIT, EVERY_SIZE).precision == 0


def test_corners_connect():
    mask = np.zeros((3, 3, 3), bool)
    mask[0, 0, 0] = mask[1, 1, 1] = True
    assert regions_of(mask)[1] == 1
    mask[1, 1, 1], mask[2, 2, 2] = False, True
    labels, count = regions_of(mask)
    assert count == 2
    assert labels.shape == mask.shape


def test_totals_add_up():
    both = total([Detection(errors=2, hit=1, regions=3, right=3), Detection(errors=1, hit=1)])
    assert both.sensitivity == pytest.approx(2 / 3)
    assert both.precision == 1
    assert total([]) == Detection()


def test_maps_of_two_grids_are_refused():
    with pytest.raises(ValueError, match=r"\(2, 1, 1\) and attention of shape \(3, 1, 1\)"):
        detect(row("##"), row("###"), UNIT, EVERY_SIZE)

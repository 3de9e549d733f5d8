"""Dice and volume error, against numbers worked out by hand."""

import numpy as np
import pytest

from atlas_ray.organs import load_organs
from atlas_ray.records import OrganDice
from atlas_ray.segmentation.metrics import dice, false_volume_ml, mean_organ_dice, mean_over_organs, organ_dice


def test_dice_of_two_and_three_voxels_that_share_one() -> None:
    a, b = np.array([1, 1, 0, 0, 0], bool), np.array([0, 1, 1, 1, 0], bool)
    assert dice(a, b) == pytest.approx(2 * 1 / (2 + 3))


def test_an_absent_organ_says_nothing() -> None:
    empty, some = np.zeros(4, bool), np.array([1, 0, 0, 0], bool)
    assert dice(some, empty) is None
    assert dice(empty, empty) is None
    assert dice(empty, some) == 0


def test_dice_of_every_organ_of_a_label_map() -> None:
    """The first organ is shifted by one of its two voxels, the second is one voxel and right, the third is invented."""
    organs = load_organs("abdomenatlas_1_0")
    ids = [organs[name].label_id for name in organs.names[:3]]
    truth = np.array([ids[0], ids[0], 0, ids[1], 0], np.uint8).reshape(5, 1, 1)
    predicted = np.array([0, ids[0], ids[0], ids[1], ids[2]], np.uint8).reshape(5, 1, 1)
    found = organ_dice(predicted, truth, organs)
    assert [found[name] for name in organs.names[:4]] == [0.5, 1, None, None]


def test_false_volume_counts_both_kinds_of_error() -> None:
    a, b = np.array([1, 1, 0, 0], bool), np.array([0, 1, 1, 0], bool)
    assert false_volume_ml(a, b, voxel_mm3=500) == 1.0
    assert false_volume_ml(a, a, voxel_mm3=500) == 0
    assert false_volume_ml(a, a & False, voxel_mm3=0.5 * 0.8 * 3) == pytest.approx(0.0024)  # two voxels of 1.2 mm3


def test_mean_is_per_organ_first_and_leaves_out_absent_ones() -> None:
    organs = load_organs("abdomenatlas_1_0")
    first, second = organs.names[:2]
    rows = mean_organ_dice([{first: 0.8, second: None}, {first: 0.6, second: 0.5}], organs)
    assert (rows[0].organ, rows[0].cases) == (first, 2)
    assert rows[0].dice == pytest.approx(0.7)
    assert rows[1] == OrganDice(organ=second, dice=0.5, cases=1)
    assert rows[2].dice is None
    assert mean_over_organs(rows) == pytest.approx(0.6)


def test_label_maps_of_different_shape_are_refused() -> None:
    organs = load_organs("abdomenatlas_1_0")
    with pytest.raises(ValueError, match=r"\(2, 2, 2\).*\(2, 2, 3\)"):
        organ_dice(np.zeros((2, 2, 2), np.uint8), np.zeros((2, 2, 3), np.uint8), organs)

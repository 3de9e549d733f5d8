"""The box of a coarse pass and its guards."""

import numpy as np
import pytest

from atlas_ray.segmentation.coarse import Coarse, Region, cut_off, find_region

SETTINGS = Coarse(margin_mm=4, min_volume_ml=0.001)  # 2 voxels of 2 mm; one mm3
SPACING = (2.0, 2.0, 2.0)
SHAPE = (40, 30, 50)
Box = tuple[slice, slice, slice]


def seen(*boxes: Box) -> np.ndarray:
    """One channel per box, certain inside it."""
    result = np.zeros((len(boxes), *SHAPE), np.uint8)
    for channel, box in zip(result, boxes, strict=True):
        channel[box] = 255
    return result


FIRST, SECOND = (slice(10, 20), slice(5, 12), slice(20, 30)), (slice(15, 25), slice(8, 9), slice(28, 40))
AROUND_BOTH = (slice(8, 27), slice(3, 14), slice(18, 42))


def test_box_holds_every_organ_and_the_margin() -> None:
    assert find_region(seen(FIRST, SECOND), SETTINGS, spacing=SPACING, least=(1, 1, 1)) == Region(AROUND_BOTH)


def test_margin_is_in_millimeters_and_ends_at_the_border() -> None:
    region = find_region(seen((slice(1, 5), slice(10, 12), slice(40, 49))), SETTINGS, spacing=(2.0, 1.0, 4.0), least=(1, 1, 1))
    assert region.box == (slice(0, 7), slice(6, 16), slice(39, 50))


@pytest.mark.parametrize(
    ("occupied", "expected"),
    [((10, 12), slice(7, 15)), ((0, 2), slice(0, 8)), ((29, 30), slice(22, 30)), ((3, 28), slice(1, 30))],
)
def test_box_is_no_smaller_than_a_window(occupied: tuple[int, int], expected: slice) -> None:
    box = (slice(10, 20), slice(*occupied), slice(10, 20))
    assert find_region(seen(box), SETTINGS, spacing=SPACING, least=(8, 8, 8)).box[1] == expected


def test_window_larger_than_the_volume_is_the_volume() -> None:
    assert find_region(seen(FIRST), SETTINGS, spacing=SPACING, least=(99, 99, 99)).box == Region.whole(SHAPE).box


def test_a_missing_organ_means_the_whole_volume() -> None:
    nothing = (slice(0, 0),) * 3
    region = find_region(seen(FIRST, nothing), SETTINGS, spacing=SPACING, least=(1, 1, 1))
    assert region.box == Region.whole(SHAPE).box
    assert region.why_whole == "channel 1 has 0 voxels in the coarse pass, fewer than 0.001 ml"


def test_an_organ_too_small_to_be_one_counts_as_missing() -> None:
    """10 x 7 x 10 voxels of 8 mm3 are 5.6 ml."""
    assert find_region(seen(FIRST), Coarse(min_volume_ml=5.5), spacing=SPACING, least=(1, 1, 1)).why_whole == ""
    assert find_region(seen(FIRST), Coarse(min_volume_ml=5.7), spacing=SPACING, least=(1, 1, 1)).why_whole


def test_threshold_is_a_probability() -> None:
    faint = seen(FIRST) // 4  # 63 of 255
    assert find_region(faint, Coarse(min_volume_ml=0, threshold=0.2), spacing=SPACING, least=(1, 1, 1)).why_whole == ""
    assert find_region(faint, Coarse(min_volume_ml=0, threshold=0.3), spacing=SPACING, least=(1, 1, 1)).why_whole


def test_an_organ_within_the_box_is_not_cut_off() -> None:
    assert cut_off(seen(FIRST, SECOND)[None], AROUND_BOTH, SETTINGS) == ""


@pytest.mark.parametrize(("axis", "side"), [(axis, side) for axis in range(3) for side in ("low", "high")])
def test_an_organ_at_a_face_is_cut_off(axis: int, side: str) -> None:
    fine = np.concatenate([seen(FIRST, SECOND)[None], seen(FIRST, SECOND)[None]])
    voxel = [12, 6, 25]
    voxel[axis] = AROUND_BOTH[axis].start if side == "low" else AROUND_BOTH[axis].stop - 1
    fine[1, 1, *voxel] = 200  # one member is enough
    assert cut_off(fine, AROUND_BOTH, SETTINGS) == f"channel 1 reaches {side} {'XYZ'[axis]} of the coarse box"


def test_an_organ_at_the_border_of_the_volume_is_not_cut_off() -> None:
    tall = (slice(10, 20), slice(5, 12), slice(0, 50))
    region = find_region(seen(tall), SETTINGS, spacing=SPACING, least=(1, 1, 1))
    assert region.box[2] == slice(0, 50)
    assert cut_off(seen(tall)[None], region.box, SETTINGS) == ""

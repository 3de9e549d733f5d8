"""Two organs of a pair are told apart by side, or it is said why not. Rows are written from the patient's left to the right."""

import numpy as np
import pytest

from atlas_ray.components import body_midline, box_of, cut_in_two, split_sides
from atlas_ray.volume import read_volume, reorient


def row(text: str) -> np.ndarray:
    """[X, 1, 1]; "#" is the pair."""
    return (np.array(list(text)) == "#")[:, None, None]


def told(text: str, midline: float | None = None, *, may_be_one: bool = False) -> str:
    """The same row with L and R in place of "#", or the reason."""
    sides = split_sides(row(text), midline, may_be_one=may_be_one)
    both = np.where(sides.left_XYZ, "L", np.where(sides.right_XYZ, "R", "."))
    return sides.refused or "".join(both[:, 0, 0])


@pytest.mark.parametrize("midline", [None, 5.5])
def test_two_components_are_left_and_right(midline: float | None) -> None:
    assert told("..###..####.", midline) == "..LLL..RRRR."  # a smaller first index is the patient's left


def test_nothing_is_nothing_on_both_sides() -> None:
    assert told("............") == "............"


def test_one_component_is_refused() -> None:
    assert told("..###.......", 5.5) == "one component of 3 voxels: the other is missing, or they touch"
    assert told("...######...", 5.5) == "one component of 6 voxels: the other is missing, or they touch"


def test_a_crumb_is_not_the_other_organ() -> None:
    assert told("#" * 40 + "." * 20 + "#" + "." * 19, 40) == "one component of 40 voxels: the other is missing, or they touch"


def test_three_components_go_to_their_sides() -> None:
    assert told(".##.###.......####..", 9.5) == ".LL.LLL.......RRRR.."


def test_both_on_one_side_is_refused_only_with_a_midline() -> None:
    assert told(".##..###............", 9.5) == "2 components, all on the patient's left"
    assert told("...........##...###.", 9.5) == "2 components, all on the patient's right"


def test_a_component_across_the_midline_is_refused() -> None:
    assert told(".###...######.......", 9.5) == "a component of 6 voxels lies across the midline (50 % on the left)"


def test_components_above_each_other_are_not_sides() -> None:
    mask = np.zeros((8, 1, 9), bool)
    mask[2:6, 0, 0:3] = mask[2:6, 0, 5:9] = True  # both poles of one kidney
    assert "lies across the midline" in split_sides(mask).refused


def test_one_alone_is_told_by_the_midline_where_one_may_be_missing() -> None:
    assert told("..###.......", 5.5, may_be_one=True) == "..LLL......."
    assert told("........##.#", 5.5, may_be_one=True) == "........RR.R"
    assert "the other is missing" in told("..###.......", None, may_be_one=True)
    assert "lies across the midline" in told("....#####...", 5.5, may_be_one=True)


def dumbbell() -> np.ndarray:
    """Two blocks of 6 x 5 x 5 voxels, and one voxel between them."""
    mask = np.zeros((15, 7, 7), bool)
    mask[1:7, 1:6, 1:6] = mask[8:14, 1:6, 1:6] = True
    mask[7, 3, 3] = True
    return mask


def test_two_that_touch_in_a_thin_place_are_cut_there() -> None:
    mask = dumbbell()
    assert "the other is missing, or they touch" in split_sides(mask, 7.0).refused
    sides = split_sides(mask, 7.0, cut_spacing=(1.0, 1.0, 1.0))
    assert not sides.refused
    assert np.array_equal(sides.left_XYZ | sides.right_XYZ, mask), "what erosion took away is given back"
    assert not (sides.left_XYZ & sides.right_XYZ).any()
    assert sides.left_XYZ[:7].sum() == sides.right_XYZ[8:].sum() == 150


def test_what_has_no_thin_place_or_lies_on_one_side_is_not_cut() -> None:
    block = np.zeros((15, 7, 7), bool)
    block[2:13, 1:6, 1:6] = True
    assert split_sides(block, 7.0, cut_spacing=(1.0, 1.0, 1.0)).refused
    assert split_sides(dumbbell(), 20.0, cut_spacing=(1.0, 1.0, 1.0)).refused, "one lung with a waist"
    assert split_sides(dumbbell(), None, cut_spacing=(1.0, 1.0, 1.0)).refused, "nobody knows on which side"
    assert cut_in_two(block, (1.0, 1.0, 1.0)) is None


def test_a_piece_much_smaller_than_the_other_is_no_organ() -> None:
    mask = np.zeros((20, 9, 9), bool)
    mask[1:12, 1:8, 1:8] = True
    mask[12, 4, 4] = mask[13:16, 3:6, 3:6] = True  # 27 voxels at 539
    assert cut_in_two(mask, (1.0, 1.0, 1.0)) is None


def test_no_order_of_memory_matters() -> None:
    mask = np.zeros((9, 4, 5), bool)
    mask[1:3, 1:3, 1:4] = mask[6:8, 1:3, 1:4] = True
    for given in (mask, np.asfortranarray(mask), np.ascontiguousarray(mask[::-1])[::-1]):
        sides = split_sides(given, 4.0)
        assert (sides.left_XYZ.sum(), sides.right_XYZ.sum()) == (12, 12)
        assert sides.left_XYZ[1:3, 1:3, 1:4].all()


def test_the_midline_is_the_bodys_where_the_mask_is() -> None:
    image = np.full((10, 4, 3), -1000, np.int16)
    image[2:8, 1:3, 0:2] = 40  # symmetric about 4.5 where the mask lies
    image[8:10, :, 2] = 40
    mask = np.zeros(image.shape, bool)
    mask[3, 1, 0:2] = True
    assert body_midline(image, mask) == 4.5
    assert body_midline(np.full((4, 4, 3), -1000), mask[:4]) is None


def test_a_box_has_its_margin_and_may_be_empty() -> None:
    mask = np.zeros((5, 6, 7), bool)
    assert mask[box_of(mask, margin=1)].size == 0
    mask[0, 3, 2:4] = True
    assert box_of(mask, margin=1) == (slice(0, 2), slice(2, 5), slice(1, 5))


PAIRS = [(2, 3), (12, 13)]  # right and left kidney, right and left adrenal gland in BTCV's numbering


@pytest.mark.parametrize("case", ["0001", "0008", "0009", "0023"])
def test_real_pairs_are_told_apart_as_the_experts_did(case: str, shared_data: object) -> None:
    """Kidneys and adrenal glands of real patients; 0008 has very small kidneys. The midline is the great vessels'."""
    labels = reorient(read_volume(f"{shared_data}/btcv_labels/{case}.nii.gz")).voxels
    midline = float(np.argwhere(np.isin(labels, (8, 9)))[:, 0].mean())
    for right, left in PAIRS:
        sides = split_sides(np.isin(labels, (right, left)), midline)
        assert not sides.refused
        assert np.array_equal(sides.right_XYZ, labels == right)
        assert np.array_equal(sides.left_XYZ, labels == left)

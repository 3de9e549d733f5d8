"""FaithfulAttention on bytes small enough to check by eye. Against the authors' rules on whole volumes: test_attention_look.py."""

import numpy as np
import pytest
from attention_oracle import bits_of, heat_of

from atlas_ray.attention.criteria import FaithfulAttention
from atlas_ray.attention.sparse import GridAttention
from atlas_ray.organs import Organ, Organs


def look(values: np.ndarray, support: np.ndarray | None = None) -> GridAttention:
    organs = tuple(Organ(name=f"o{k}", label_id=k + 1, color="#000000") for k in range(values.shape[1]))
    return FaithfulAttention().look(values, support_MXYZ=support, organs=Organs(name="set", organs=organs), spacing=(0.8, 0.8, 2.5))


def attention_of(mask: np.ndarray) -> np.ndarray:
    """Where one organ has attention that two of three architectures are sure of inside `mask`, and all are sure is not outside."""
    sure = mask * np.uint8(255)
    return bits_of(look(np.stack([sure, sure, np.zeros_like(sure)])[:, None]))[0] > 0


@pytest.mark.parametrize(("thickness", "kept"), [(1, 0), (4, 0), (5, 5), (6, 6)])
@pytest.mark.parametrize("start", [0, 7])
def test_a_slab_needs_five_voxels(thickness, kept, start):
    mask = np.zeros((20, 20, 20), bool)
    mask[:, :, start : start + thickness] = True
    assert np.array_equal(attention_of(mask), mask if kept else np.zeros_like(mask))


def test_a_ball_of_radius_three_is_erased():
    x, y, z = np.meshgrid(*[np.arange(15) - 7] * 3, indexing="ij")
    ball = x**2 + y**2 + z**2 <= 9
    assert ball.sum() == 123
    assert not attention_of(ball).any()


def test_a_volume_of_four_slices_is_erased():
    assert not attention_of(np.ones((20, 20, 4), bool)).any()
    assert attention_of(np.ones((20, 20, 5), bool)).all()


def test_one_architecture_has_no_inconsistency():
    found = look(np.full((1, 1, 7, 7, 7), 102, np.uint8))  # p = 0.4
    assert np.unique(bits_of(found)).tolist() == [0b010]
    # -0.4 ln 0.4 = 0.3665; 255 * 0.3665 = 93.46
    assert np.unique(heat_of(found)).tolist() == [93 / 255]


def test_heat_is_the_sum_of_the_three():
    values = np.zeros((3, 2, 5, 5, 5), np.uint8)
    values[:2] = 255  # both organs are claimed by two of three: mean 2/3, deviation 0.4714
    found = look(values)
    assert np.unique(bits_of(found)).tolist() == [0b101]
    assert np.unique(heat_of(found)).tolist() == pytest.approx([1.4714], abs=1e-4)


def test_support_zeroes_soft_predictions_but_not_entropy():
    values = np.full((2, 1, 5, 5, 5), 229, np.uint8)  # p = 0.898, -p ln p = 0.0966, 24 / 255 rounded down
    support = np.ones((2, 5, 5, 5), np.uint32)
    support[1] = 0  # 229 against 0: a deviation of 229 / 255 / 2
    found = look(values, support)
    assert np.unique(bits_of(found)).tolist() == [0b011]
    assert np.unique(heat_of(found)).tolist() == pytest.approx([229 / 255 / 2 + 24 / 255])

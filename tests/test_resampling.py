"""Resampling: what the weights are, and that the compiled loops compute what they say."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atlas_ray.resampling import linear_taps, linear_weights, nearest_indices, resample_image, resample_labels, shape_at_spacing
from atlas_ray.volume import Volume, reorient

AFFINE = np.array([[2.0, 0, 0, -10], [0, 3, 0, -20], [0, 0, 5, 30], [0, 0, 0, 1]])
SHAPES = st.tuples(*[st.integers(1, 20)] * 3)


def line(values: list[float]) -> Volume:
    return Volume(np.array(values, np.float32)[:, None, None], np.eye(4))


def by_matrices(voxels: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The definition, in float64."""
    x, y, z = (linear_weights(n_in, n_out).astype(np.float64) for n_in, n_out in zip(voxels.shape, shape, strict=True))
    mixed: np.ndarray = np.einsum("ai,bj,ck,ijk->abc", x, y, z, voxels.astype(np.float64), optimize=True)
    return mixed


# --- weights --------------------------------------------------------------------------------------------------------


def test_twice_as_many_voxels_are_centered_by_half_a_voxel() -> None:
    up = resample_image(line([0, 1, 2, 3]), (8, 1, 1))
    assert up.voxels[:, 0, 0] == pytest.approx([0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3])
    assert up.spacing == (0.5, 1, 1)
    assert up.affine[0, 3] == -0.25  # the first small voxel's center


def test_half_as_many_voxels_are_averaged_by_a_triangle() -> None:
    # centers at 0.5, 2.5, 4.5; half-width 2: weights 1/4, 3/4, 3/4, 1/4 of their sum; what sticks out is left off
    down = resample_image(line([0, 0, 8, 0, 0, 0]), (3, 1, 1))
    assert down.voxels[:, 0, 0] == pytest.approx([8 * 0.25 / 1.75, 8 * 0.75 / 2, 0])
    assert down.affine[0, 3] == 0.5


def test_interpolation_between_three_voxels_and_two() -> None:
    # scale 1.5: centers at 0.25 and 1.75, triangle of half-width 1.5: (5/6, 1/2, 0) and (0, 1/2, 5/6), each over their sum
    weights = linear_weights(3, 2)
    assert weights == pytest.approx(np.array([[0.625, 0.375, 0], [0, 0.375, 0.625]]))


@given(n_in=st.integers(1, 40), n_out=st.integers(1, 40))
def test_taps_are_the_weights_without_their_zeros(n_in: int, n_out: int) -> None:
    first, weights = linear_taps(n_in, n_out)
    dense = np.zeros((n_out, n_in), np.float32)
    for i in range(n_out):
        dense[i, first[i] : first[i] + weights.shape[1]] = weights[i]
    np.testing.assert_array_equal(dense, linear_weights(n_in, n_out))
    assert (np.diff(first) >= 0).all()


def test_nearest_takes_the_voxel_under_the_center() -> None:
    assert nearest_indices(4, 8).tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert nearest_indices(6, 3).tolist() == [1, 3, 5]  # centers at 1, 3, 5 lie on a border; the later voxel has them
    assert nearest_indices(5, 3).tolist() == [0, 2, 4]
    assert nearest_indices(1, 4).tolist() == [0, 0, 0, 0]


# --- volumes --------------------------------------------------------------------------------------------------------


@settings(max_examples=40)
@given(old=SHAPES, new=SHAPES, seed=st.integers(0, 99), orientation=st.sampled_from(["RAS", "LPS", "SRA", "IPL"]))
def test_a_ct_is_mixed_by_the_weights_and_rounded(
    old: tuple[int, int, int], new: tuple[int, int, int], seed: int, orientation: str
) -> None:
    """Whatever way the axes lie in memory, and clipped before anything is mixed."""
    stored = Volume(np.random.default_rng(seed).integers(-3024, 4000, old).astype(np.int16), AFFINE)
    image = reorient(stored, orientation)
    result = resample_image(image, new, limits=(-1024, 3071))
    assert result.voxels.dtype == np.int16
    assert result.voxels.flags.c_contiguous
    exact = by_matrices(image.voxels.clip(-1024, 3071), new)
    assert np.abs(result.voxels - exact).max() <= 0.501


@settings(max_examples=20)
@given(old=SHAPES, new=SHAPES, seed=st.integers(0, 99))
def test_another_type_becomes_float32(old: tuple[int, int, int], new: tuple[int, int, int], seed: int) -> None:
    voxels = np.random.default_rng(seed).normal(size=old)
    result = resample_image(Volume(voxels, AFFINE), new)
    assert result.voxels.dtype == np.float32
    np.testing.assert_allclose(result.voxels, by_matrices(voxels, new), atol=1e-5)


@pytest.mark.parametrize("dtype", [np.int16, np.float32])
def test_the_same_shape_is_left_as_it_is(dtype: Any) -> None:
    voxels = np.random.default_rng(0).integers(-1000, 1000, (5, 40, 33)).astype(dtype)
    np.testing.assert_array_equal(resample_image(Volume(voxels, AFFINE), voxels.shape).voxels, voxels)


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 9, 4), (17, 5, 2), (7, 6, 5)])
def test_a_constant_stays_constant(shape: tuple[int, int, int]) -> None:
    constant = Volume(np.full((7, 6, 5), -1000, np.int16), AFFINE)
    assert np.array_equal(resample_image(constant, shape).voxels, np.full(shape, -1000))
    assert np.array_equal(resample_labels(constant, shape).voxels, np.full(shape, -1000))


def test_resampling_keeps_the_extent() -> None:
    volume = Volume(np.zeros((3, 4, 5), np.int16), AFFINE)
    edge, far = np.array([-0.5, -0.5, -0.5, 1]), [6.5, 8.5, 10.5, 1]
    for up in (resample_image(volume, (7, 9, 11)), resample_labels(volume, (7, 9, 11))):
        assert np.allclose(up.affine @ edge, AFFINE @ edge)
        assert np.allclose(up.affine @ far, AFFINE @ [2.5, 3.5, 4.5, 1])


def test_labels_keep_their_type_and_ids() -> None:
    labels = Volume(np.array([[[0, 200]], [[7, 9]]], np.uint8), np.eye(4))
    up = resample_labels(labels, (4, 1, 3))
    assert up.voxels.dtype == np.uint8
    assert up.voxels[:, 0].tolist() == [[0, 200, 200], [0, 200, 200], [7, 9, 9], [7, 9, 9]]


def test_shape_at_spacing_covers_the_extent() -> None:
    assert shape_at_spacing((512, 512, 99), (0.9, 0.9, 4.25), (1.5, 1.5, 1.5)) == (307, 307, 280)  # 307.2, 280.5 to even
    assert shape_at_spacing((3, 3, 1), (1, 1, 1), (10, 10, 10)) == (1, 1, 1)

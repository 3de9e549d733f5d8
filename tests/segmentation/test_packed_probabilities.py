"""Packed probabilities read like the array they were made of, and are small where organs are."""

import numpy as np
import pytest

from atlas_ray.segmentation.packed_probabilities import PackedProbabilities, pack


@pytest.fixture
def bytes_MKXYZ() -> np.ndarray:
    """Two architectures, three organs: one fills a corner, one is a single voxel, one is absent."""
    values = np.zeros((2, 3, 7, 6, 5), np.uint8)
    values[:, 0, 3:, 2:, 1:] = np.random.default_rng(0).integers(0, 256, (2, 4, 4, 4))
    values[1, 1, 6, 5, 4] = 255
    return values


def test_every_piece_is_what_the_array_holds(bytes_MKXYZ: np.ndarray) -> None:
    packed = PackedProbabilities([pack(one) for one in bytes_MKXYZ])
    assert packed.shape == (2, 3, 7, 6, 5)
    assert packed.grid == (7, 6, 5)
    everything = (slice(None), slice(None), slice(None))
    part = (slice(2, 7), slice(0, 3), slice(4, 5))
    for m, k in np.ndindex(2, 3):
        np.testing.assert_array_equal(packed[(m, k, *everything)], bytes_MKXYZ[m, k])
        np.testing.assert_array_equal(packed[(m, k, *part)], bytes_MKXYZ[(m, k, *part)])


def test_memory_order_does_not_matter(bytes_MKXYZ: np.ndarray) -> None:
    z_slowest = np.asfortranarray(bytes_MKXYZ[0].T).T
    assert pack(np.asfortranarray(bytes_MKXYZ[0])) == pack(bytes_MKXYZ[0]) == pack(z_slowest)


def test_an_organ_in_a_large_volume_packs_to_a_fraction() -> None:
    volume = np.zeros((1, 128, 128, 128), np.uint8)
    volume[0, 40:70, 50:80, 30:60] = 250
    assert len(pack(volume)) < volume.nbytes / 50

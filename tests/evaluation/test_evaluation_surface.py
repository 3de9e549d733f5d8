"""Surface Dice by hand, and against DeepMind's package and MONAI."""

import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from atlas_ray.evaluation.surface import surface_dice

UNIT = (1.0, 1.0, 1.0)


def box(shape: tuple[int, int, int], *spans: tuple[int, int]) -> np.ndarray:
    mask = np.zeros(shape, bool)
    mask[tuple(slice(*span) for span in spans)] = True
    return mask


def test_empty_masks():
    empty, one = np.zeros((3, 3, 3), bool), box((3, 3, 3), (1, 2), (1, 2), (1, 2))
    assert surface_dice(empty, empty, UNIT, tolerance_mm=1) is None
    assert surface_dice(one, empty, UNIT, tolerance_mm=100) == 0
    assert surface_dice(empty, one, UNIT, tolerance_mm=100) == 0
    assert surface_dice(one, one, UNIT, tolerance_mm=0) == 1


def test_one_voxel_and_its_neighbor():
    """Eight pieces of equal area each; they share the four between them, the other four are one voxel apart."""
    a, b = box((4, 3, 3), (1, 2), (1, 2), (1, 2)), box((4, 3, 3), (2, 3), (1, 2), (1, 2))
    assert surface_dice(a, b, UNIT, tolerance_mm=0) == pytest.approx(0.5)
    assert surface_dice(a, b, UNIT, tolerance_mm=1) == 1
    assert surface_dice(a, b, (3.0, 1.0, 1.0), tolerance_mm=2.9) == pytest.approx(0.5)
    assert surface_dice(a, b, (3.0, 1.0, 1.0), tolerance_mm=3.0) == 1


def test_tolerance_is_in_mm_on_every_axis():
    """Two plates, two voxels apart along z: flat faces of 5 mm voxels are 10 mm apart."""
    a, b = box((9, 9, 9), (0, 9), (0, 9), (2, 3)), box((9, 9, 9), (0, 9), (0, 9), (4, 5))
    assert surface_dice(a, b, (1.0, 1.0, 5.0), tolerance_mm=10) == 1
    assert surface_dice(a, b, (1.0, 1.0, 5.0), tolerance_mm=9.9) < 0.6


def test_a_distance_that_is_the_tolerance_counts_whatever_its_last_bit() -> None:
    a, b = box((6, 3, 3), (1, 2), (1, 2), (1, 2)), box((6, 3, 3), (4, 5), (1, 2), (1, 2))
    assert 5 * 0.1 - 2 * 0.1 == 0.3 < 4 * 0.1 - 1 * 0.1
    assert surface_dice(a, b, (0.1, 1.0, 1.0), tolerance_mm=0.3) == 1


def test_areas_weigh():
    """Two thin plates of 10 x 10 and 11 x 10 voxels. Of a face of n x m voxels a piece inside weighs 1, on its rim 1/2, at a
    corner 1/8: 81 + 36 / 2 + 4 / 8 and 90 + 38 / 2 + 4 / 8. Only the new rim, 9 / 2 + 2 / 8, is not near the other plate."""
    a, b = box((12, 12, 5), (1, 11), (1, 11), (2, 3)), box((12, 12, 5), (1, 12), (1, 11), (2, 3))
    thin = surface_dice(a, b, (1.0, 1.0, 0.01), tolerance_mm=0.001)
    assert thin == pytest.approx((99.5 + 109.5 - 4.75) / (99.5 + 109.5), abs=1e-3)


def test_one_voxel_against_two_of_unequal_edges():
    """Voxels of 1 x 2 x 2 mm; the second one lies along x. A corner's piece is a triangle through the middles of three edges, a
    long edge's a rectangle through those of two. Only the far end's four corners are off, by 1 mm."""
    corner = ((0.5 * 1) ** 2 + (0.5 * 1) ** 2 + (1 * 1) ** 2) ** 0.5 / 2  # half the root of the products' squares: 0.612 mm2
    edge = 1 * 2**0.5  # 1 mm by the diagonal of 1 and 1 mm
    one, two = box((4, 3, 3), (1, 2), (1, 2), (1, 2)), box((4, 3, 3), (1, 3), (1, 2), (1, 2))
    expected = (8 * corner + 4 * corner + 4 * edge) / (8 * corner + 8 * corner + 4 * edge)
    assert expected == pytest.approx(0.8415, abs=1e-4)
    assert surface_dice(one, two, (1.0, 2.0, 2.0), tolerance_mm=0.9) == pytest.approx(expected)
    assert surface_dice(one, two, (1.0, 2.0, 2.0), tolerance_mm=1) == 1


def pairs():
    random = np.random.default_rng(3)
    yield box((20, 20, 20), (3, 12), (4, 13), (5, 14)), box((20, 20, 20), (5, 13), (4, 12), (2, 13))
    yield box((6, 6, 6), (0, 6), (0, 6), (0, 3)), box((6, 6, 6), (0, 6), (0, 6), (0, 4))  # up to the volume's end
    yield random.random((9, 10, 11)) < 0.3, random.random((9, 10, 11)) < 0.3  # every code there is
    yield box((5, 5, 5), (2, 3), (2, 3), (2, 3)), box((5, 5, 5), (1, 4), (2, 3), (2, 3))


@pytest.mark.parametrize("spacing", [UNIT, (0.7, 0.9, 3.0), (2.0, 1.0, 5.0)])
@pytest.mark.parametrize("tolerance_mm", [0.5, 1.0, 2.05])
def test_agrees_with_deepmind_and_monai(spacing, tolerance_mm):
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # their names of scipy's functions are old
        peer = pytest.importorskip("surface_distance", reason="tests/requirements-nodeps.txt brings it")
        from monai.metrics.surface_dice import compute_surface_dice

        for a, b in pairs():
            ours = surface_dice(a, b, spacing, tolerance_mm=tolerance_mm)
            distances = peer.compute_surface_distances(a, b, spacing)
            assert ours == pytest.approx(peer.compute_surface_dice_at_tolerance(distances, tolerance_mm), abs=1e-3)
            tensors = [torch.from_numpy(mask)[None, None] for mask in (a, b)]
            theirs = compute_surface_dice(
                *tensors, class_thresholds=[tolerance_mm], include_background=True, spacing=spacing, use_subvoxels=True
            )
            assert ours == pytest.approx(float(theirs), abs=1e-3)


@given(st.integers(0, 2**24 - 1), st.integers(0, 2**24 - 1), st.floats(0.1, 4))
def test_it_has_no_direction(a: int, b: int, tolerance: float) -> None:
    first, second = (np.array([n >> i & 1 for i in range(24)], bool).reshape(2, 3, 4) for n in (a, b))
    spacing = (1.0, 0.8, 2.5)
    there = surface_dice(first, second, spacing, tolerance_mm=tolerance)
    assert there == pytest.approx(surface_dice(second, first, spacing, tolerance_mm=tolerance))
    assert there is None or 0 <= there <= 1
    assert surface_dice(first, first, spacing, tolerance_mm=tolerance) in (1.0, None)


def test_masks_of_two_grids_are_refused():
    with pytest.raises(ValueError, match="cannot be compared"):
        surface_dice(np.ones((2, 2, 2), bool), np.ones((2, 2, 3), bool), UNIT, tolerance_mm=1)

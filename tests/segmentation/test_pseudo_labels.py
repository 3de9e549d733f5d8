"""From probabilities at the networks' spacing to labels on the image's grid."""

import numpy as np
import torch

from atlas_ray.organs import load_organs
from atlas_ray.segmentation.pseudo_labels import PseudoLabels, clean_label_map, keep_largest, label_map, native_slabs, support

ORGANS = load_organs("abdomenatlas_1_0")


def probabilities(shape: tuple[int, ...], seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)).half()


def test_the_more_probable_organ_has_the_voxel_and_below_the_threshold_nobody_has_it() -> None:
    p = torch.zeros(9, 1, 1, 4)
    p[0, 0, 0] = torch.tensor([0.9, 0.6, 0.5, 0.1])
    p[1, 0, 0] = torch.tensor([0.6, 0.9, 0.4, 0.2])
    first, second = ORGANS.label_ids[:2]
    assert label_map(p, ORGANS, 0.5)[0, 0].tolist() == [first, second, 0, 0]


def test_only_the_largest_component_stays() -> None:
    mask = np.array([1, 1, 0, 1, 1, 1, 0, 1], bool).reshape(8, 1, 1)
    assert keep_largest(mask).ravel().tolist() == [False, False, False, True, True, True, False, False]
    assert not keep_largest(np.zeros((2, 2, 2), bool)).any()
    labels = np.where(mask, ORGANS.label_ids[2], 0).astype(np.uint8)
    assert clean_label_map(labels, ORGANS).astype(bool).ravel().tolist() == keep_largest(mask).ravel().tolist()


def test_a_soft_prediction_counts_one_voxel_around_the_mask() -> None:
    p = torch.zeros(1, 1, 5, 5, 5)
    p[0, 0, 2, 2, 2] = 0.9
    counted = support(p, PseudoLabels())[0, 0]
    expected = torch.zeros(5, 5, 5, dtype=torch.bool)
    expected[1:4, 1:4, 1:4] = True
    assert torch.equal(counted, expected)


def test_slabs_put_together_are_the_whole_volume() -> None:
    """Odd shapes, down- and upsampling, context at both borders: what a slab says of its own slices does not depend on the cut."""
    p = probabilities((2, 3, 7, 9, 8))
    counted = p > 0.3
    shape = (13, 5, 21)
    (whole,) = native_slabs(p, counted, shape, halo=2, memory_mb=1e6)
    assert whole.probabilities_MKXYZ.shape == (2, 3, *shape)
    slabs = list(native_slabs(p, counted, shape, halo=2, memory_mb=0.0))
    assert [s.stop - s.start for s in slabs] == [4, 4, 4, 4, 4, 1]
    together = torch.cat([s.inner(s.probabilities_MKXYZ) for s in slabs], dim=-1)
    assert torch.allclose(together, whole.probabilities_MKXYZ, atol=1e-6)
    assert torch.equal(torch.cat([s.inner(s.support_MKXYZ) for s in slabs], dim=-1), whole.support_MKXYZ)


def test_the_same_grid_is_left_as_it_is() -> None:
    p = probabilities((1, 2, 4, 5, 6))
    (slab,) = native_slabs(p, p > 0.5, (4, 5, 6), halo=0, memory_mb=1e6)
    assert torch.allclose(slab.probabilities_MKXYZ, p.float(), atol=1e-6)

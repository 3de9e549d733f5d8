"""From probabilities at the networks' spacing to labels on the image's grid."""

from collections import deque
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from atlas_ray.exceptions import LabelError
from atlas_ray.organs import load_organs
from atlas_ray.resampling import linear_weights, nearest_indices
from atlas_ray.segmentation.pseudo_labels import PseudoLabels, clean_label_map, label_map, native_slabs, support

ORGANS = load_organs("abdomenatlas_1_0")
LIVER, SPLEEN = ORGANS.label_id("liver"), ORGANS.label_id("spleen")
SHAPES = st.tuples(*[st.integers(1, 9)] * 3)


def blobs(shape: tuple[int, ...], seed: int = 0, share: float = 0.3) -> np.ndarray:
    """Bytes [M, K, X, Y, Z], most of them zero, X fastest in memory, as predictions are."""
    rng = np.random.default_rng(seed)
    values = rng.integers(0, 256, shape) * (rng.random(shape) < share)
    return values.astype(np.uint8).swapaxes(2, 4).copy().swapaxes(2, 4)


def test_the_more_probable_organ_has_the_voxel_and_below_the_threshold_nobody_has_it() -> None:
    p = torch.zeros(9, 1, 1, 4)
    p[0, 0, 0] = torch.tensor([0.9, 0.6, 0.5, 0.1])
    p[1, 0, 0] = torch.tensor([0.6, 0.9, 0.4, 0.2])
    first, second = ORGANS.label_ids[:2]
    assert label_map(p, ORGANS, 0.5)[0, 0].tolist() == [first, second, 0, 0]


# --- components -----------------------------------------------------------------------------------------------------


def largest_by_flood(mask: np.ndarray) -> np.ndarray:
    """The largest region of 26 neighbors, the first met in C order of equal ones: by walking from voxel to voxel."""
    left = {tuple(v) for v in np.argwhere(mask)}
    best: list[tuple[int, ...]] = []
    for start in map(tuple, np.argwhere(mask)):
        if start not in left:
            continue
        left.remove(start)
        region, waiting = [start], deque([start])
        while waiting:
            here = waiting.popleft()
            for step in product((-1, 0, 1), repeat=3):
                there = tuple(h + s for h, s in zip(here, step, strict=True))
                if there in left:
                    left.remove(there)
                    region.append(there)
                    waiting.append(there)
        if len(region) > len(best):
            best = region
    result = np.zeros(mask.shape, bool)
    if best:
        result[tuple(np.array(best).T)] = True
    return result


def test_only_the_largest_component_stays() -> None:
    line = np.array([LIVER, LIVER, 0, LIVER, LIVER, LIVER, SPLEEN, LIVER, 0, 200], np.uint8)
    cleaned = clean_label_map(line.reshape(10, 1, 1), ORGANS)  # 200 is no organ of the set and is left alone
    assert cleaned.ravel().tolist() == [0, 0, 0, LIVER, LIVER, LIVER, SPLEEN, 0, 0, 200]
    assert line[0] == LIVER
    assert not clean_label_map(np.zeros((2, 3, 4), np.uint8), ORGANS).any()


@pytest.mark.parametrize("shape", [(3, 1, 1), (1, 3, 1), (1, 1, 3)])
def test_two_voxels_with_one_between_are_two_components(shape: tuple[int, int, int]) -> None:
    assert clean_label_map(np.array([1, 0, 1], np.uint8).reshape(shape), ORGANS).ravel().tolist() == [1, 0, 0]


@settings(max_examples=60)
@given(shape=SHAPES, seed=st.integers(0, 99), order=st.sampled_from("CF"))
def test_every_organ_keeps_what_it_would_keep_alone(shape: tuple[int, int, int], seed: int, order: str) -> None:
    rng = np.random.default_rng(seed)
    labels = np.array(rng.choice([0, 0, 0, 1, 2, 3], shape), np.uint8, order=order)
    cleaned = clean_label_map(labels, ORGANS)
    assert cleaned.flags[f"{order}_CONTIGUOUS"]
    for label_id in (1, 2, 3):
        kept, alone = cleaned == label_id, labels == label_id
        assert kept.sum() == largest_by_flood(alone).sum()
        np.testing.assert_array_equal(kept, largest_by_flood(kept))  # in one piece
        assert not (kept & ~alone).any()
        if order == "C":
            np.testing.assert_array_equal(kept, largest_by_flood(alone))


# --- where predictions count ----------------------------------------------------------------------------------------


def test_a_soft_prediction_counts_one_voxel_around_the_mask() -> None:
    p = np.zeros((1, 3, 5, 5, 5), np.uint8)
    p[0, 1, 2, 2, 2] = 230
    p[0, 2, 0, 0, 4] = 128  # round(255 * 0.501...), the least above one half
    p[0, 0, 2, 2, 2] = 127
    expected = np.zeros((5, 5, 5), np.uint32)
    expected[1:4, 1:4, 1:4] = 2
    expected[:2, :2, 3:] += 4
    np.testing.assert_array_equal(support(p, PseudoLabels())[0], expected)


@settings(max_examples=60)
@given(shape=SHAPES, seed=st.integers(0, 99), largest=st.booleans(), share=st.sampled_from([0.05, 0.5]))
def test_support_is_the_cleaned_mask_dilated(shape: tuple[int, int, int], seed: int, largest: bool, share: float) -> None:
    p = blobs((2, 3, *shape), seed, share)
    words = support(p, PseudoLabels(largest_component=largest))
    assert words.dtype == np.uint32
    for m, k in np.ndindex(2, 3):
        mask = p[m, k] > 127.5
        mask = largest_by_flood(mask.T).T if largest else mask  # of equal ones the first in memory
        padded = np.pad(mask, 1)
        grown = np.any([np.roll(padded, step, (0, 1, 2)) for step in product((-1, 0, 1), repeat=3)], axis=0)
        np.testing.assert_array_equal(words[m] >> k & 1, grown[1:-1, 1:-1, 1:-1])


def test_a_word_has_32_bits() -> None:
    p = np.zeros((1, 32, 1, 1, 1), np.uint8)
    p[0, 31] = 255
    assert support(p, PseudoLabels()).ravel().tolist() == [2**31]
    with pytest.raises(LabelError, match="33 organs do not fit"):
        support(np.zeros((1, 33, 1, 1, 1), np.uint8), PseudoLabels())


# --- onto the image's grid ------------------------------------------------------------------------------------------


def naive(p: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """All organs at once, the whole volume, float32: z, y, x by the matrices, one column of weights after the other."""
    mixed = p.astype(np.float32)
    for axis in (4, 3, 2):
        weights = linear_weights(mixed.shape[axis], shape[axis - 2])
        total = np.zeros((*mixed.shape[:axis], shape[axis - 2], *mixed.shape[axis + 1 :]), np.float32)
        for j in range(mixed.shape[axis]):
            column = weights[:, j].reshape(-1, *[1] * (4 - axis))
            total += column * mixed.take([j], axis=axis)
        mixed = total
    return np.floor(mixed + np.float32(0.5)).astype(np.uint8)


def together(slabs: list, name: str) -> np.ndarray:
    return np.concatenate([slab.inner(getattr(slab, name)) for slab in slabs], axis=-1)


@settings(max_examples=80)
@given(old=SHAPES, new=SHAPES, seed=st.integers(0, 99), halo=st.integers(0, 2), share=st.sampled_from([0.02, 0.5]))
def test_boxes_and_slabs_change_no_voxel(
    old: tuple[int, int, int], new: tuple[int, int, int], seed: int, halo: int, share: float
) -> None:
    """Up and down, organs at the border, a single voxel, none at all: the same bytes as the naive way."""
    p = blobs((2, 3, *old), seed, share)
    p[0, 1] = 0
    words = support(p, PseudoLabels())
    for memory_mb in (0.0, 1e6):
        slabs = list(native_slabs(p, words, new, halo=halo, memory_mb=memory_mb))
        for slab in slabs:
            assert slab.bytes_MKXYZ.flags.c_contiguous
            assert slab.bytes_MKXYZ.shape[:2] + slab.support_MXYZ.shape[1:] == (2, 3, *slab.bytes_MKXYZ.shape[2:])
        np.testing.assert_array_equal(together(slabs, "bytes_MKXYZ"), naive(p, new))
        x, y, z = (nearest_indices(n, out) for n, out in zip(old, new, strict=True))
        np.testing.assert_array_equal(together(slabs, "support_MXYZ"), words[:, x][:, :, y][..., z])


def test_slabs_are_as_deep_as_memory_and_context_allow() -> None:
    p = blobs((2, 3, 7, 9, 8))
    slabs = list(native_slabs(p, support(p, PseudoLabels()), (13, 5, 21), halo=2, memory_mb=0.0))
    assert [s.stop - s.start for s in slabs] == [4, 4, 4, 4, 4, 1]
    assert [s.context for s in slabs] == [0, 2, 2, 2, 2, 2]
    assert [s.bytes_MKXYZ.shape[-1] for s in slabs] == [6, 8, 8, 8, 7, 3]
    # 2 * (3 bytes + a word of 4) * 13 * 5 = 910 bytes a slice
    assert [s.stop - s.start for s in native_slabs(p, support(p, PseudoLabels()), (13, 5, 21), halo=0, memory_mb=7281 / 2**20)] == [
        8,
        8,
        5,
    ]


def test_the_same_grid_is_left_as_it_is() -> None:
    p = blobs((1, 2, 4, 5, 6))
    for laid_out in (p, np.ascontiguousarray(p)):
        (slab,) = native_slabs(laid_out, support(laid_out, PseudoLabels()), (4, 5, 6), halo=0)
        np.testing.assert_array_equal(slab.bytes_MKXYZ, p)


def test_a_memory_map_serves_as_well(tmp_path: Path) -> None:
    p = blobs((1, 2, 4, 5, 6))
    np.save(tmp_path / "p.npy", p)
    mapped = np.load(tmp_path / "p.npy", mmap_mode="r")
    words = support(p, PseudoLabels())
    np.testing.assert_array_equal(support(mapped, PseudoLabels()), words)
    (slab,) = native_slabs(mapped, words, (9, 9, 9), halo=0)
    np.testing.assert_array_equal(slab.bytes_MKXYZ, naive(p, (9, 9, 9)))

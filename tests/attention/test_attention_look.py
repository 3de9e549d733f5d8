"""Both modes' `look` against the oracle: masks, labels, sizes, boxes and heat, to the last byte."""

import attention_oracle as oracle
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from atlas_ray.attention.criteria import (
    Disagreement,
    FaithfulAttention,
    Inconsistency,
    Overlap,
    PhysicalAttention,
    PredictiveEntropy,
    Uncertainty,
)
from atlas_ray.attention.scoring import quantized_heat
from atlas_ray.attention.sparse import GridAttention, joined
from atlas_ray.exceptions import LabelError
from atlas_ray.organs import Organ, Organs

SPACING = (0.8, 0.8, 2.5)
ALL_FIVE = (Inconsistency(), Uncertainty(), PredictiveEntropy(), Disagreement(), Overlap())
IDS = (7, 3, 200, 1, 5, 6, 2, 8, 9)


def organ_set(count: int) -> Organs:
    """Organs whose ids are in no order; the third is a tube, the second may touch the fourth."""
    touching = {1: ("o3",), 3: ("o1",)} if count > 3 else {}
    organs = (
        Organ(name=f"o{k}", label_id=IDS[k], color="#000000", overlap_partner=k != 2, may_touch=touching.get(k, ()))
        for k in range(count)
    )
    return Organs(name=f"set of {count}", organs=tuple(organs))


def partners(count: int) -> list[list[int]]:
    apart = [{1, 3}] if count > 3 else []
    return [[o for o in range(count) if o not in (k, 2) and {k, o} not in apart] for k in range(count)]


def probabilities(seed: int, architectures: int, organs: int, shape, *, contrast: float = 5) -> np.ndarray:
    """Blobs that the architectures share, each with its own deviation. uint8 [M, K, X, Y, Z]."""
    rng = np.random.default_rng(seed)
    shared = ndimage.gaussian_filter(rng.normal(size=(organs, *shape)), (0, 3, 3, 3), mode="wrap")
    own = ndimage.gaussian_filter(rng.normal(size=(architectures, organs, *shape)), (0, 0, 3, 3, 3), mode="wrap")
    logits = contrast * shared / (shared.std() or 1) + 0.8 * contrast * own / (own.std() or 1) - 1
    return np.rint(255 / (1 + np.exp(-logits.clip(-80, 80)))).astype(np.uint8)


def packed(support_MKXYZ: np.ndarray) -> np.ndarray:
    bits = np.uint32(1) << np.arange(support_MKXYZ.shape[1], dtype=np.uint32)
    return np.einsum("mkxyz,k->mxyz", support_MKXYZ.astype(np.uint32), bits).astype(np.uint32)


def supported(values: np.ndarray) -> np.ndarray:
    return ndimage.binary_dilation(values > 127, oracle.FULL[None, None])


def check(found: GridAttention, expected: oracle.Answer) -> None:
    assert np.array_equal(found.label_XYZ, expected.label)
    assert np.array_equal(found.own_labels_MXYZ, expected.own)
    assert found.predicted_voxels_K.tolist() == expected.sizes.tolist()
    for organ, bits, heat in zip(found.organs, expected.bits, expected.heat, strict=True):
        assert np.array_equal(organ.dense(organ.bits_N), bits)
        assert organ.voxels == np.count_nonzero(bits)
        assert np.all(np.diff(organ.places_N) > 0)
        assert np.array_equal(organ.dense(organ.heat_N), heat)
        assert np.array_equal(organ.dense(quantized_heat(organ.heat_N)), oracle.as_bytes(heat))
        (box,) = ndimage.find_objects((bits > 0).astype(np.uint8)) or [None]
        assert organ.box == (box and tuple((s.start, s.stop) for s in box))


def faithful(values: np.ndarray, support: np.ndarray | None = None, **kwargs) -> GridAttention:
    return FaithfulAttention().look(
        values,
        support_MXYZ=None if support is None else packed(support),
        organs=organ_set(values.shape[1]),
        spacing=SPACING,
        own_labels=True,
        **kwargs,
    )


def expected_faithful(values: np.ndarray, support: np.ndarray | None = None) -> oracle.Answer:
    K = values.shape[1]
    return oracle.faithful(values, support, partners(K), ids=IDS[:K])


# --- faithful -------------------------------------------------------------------------------------------------------


@settings(max_examples=50)
@given(
    seed=st.integers(0, 2**32 - 1),
    architectures=st.integers(1, 4),
    organs=st.integers(1, 9),
    shape=st.tuples(st.integers(1, 17), st.integers(1, 17), st.integers(1, 17) | st.integers(62, 67)),
    contrast=st.sampled_from([0.5, 5.0, 30.0]),
    masked=st.booleans(),
    threads=st.integers(1, 2),
)
def test_equals_the_authors_rules_to_the_last_byte(seed, architectures, organs, shape, contrast, masked, threads):
    values = probabilities(seed, architectures, organs, shape, contrast=contrast)
    support = supported(values) if masked else None
    check(faithful(values, support, threads=threads), expected_faithful(values, support))


@pytest.mark.parametrize("architectures", [1, 2, 3, 4])
def test_every_criterion_fires_on_a_large_volume(architectures):
    values = probabilities(9, architectures, 4, (23, 39, 70))
    expected = expected_faithful(values)
    shares = [(expected.bits >> i & 1).mean() for i in range(3)]
    assert all(share > 0.01 for share in shares[0 if architectures > 1 else 1 :]), shares
    check(faithful(values), expected)


@pytest.mark.parametrize("value", [0, 1, 127, 128, 255])
@pytest.mark.parametrize("shape", [(1, 1, 1), (5, 5, 5), (6, 5, 130)])
def test_one_value_everywhere(value, shape):
    values = np.full((2, 2, *shape), value, np.uint8)
    check(faithful(values), expected_faithful(values))


@pytest.mark.parametrize("architectures", [2, 3, 4, 5])
def test_at_the_threshold_numpys_rounding_decides(architectures):
    """Random bytes in 5-voxel cubes: every combination that ties with a threshold (51 apart, means of one half) comes up."""
    rng = np.random.default_rng(architectures)
    low = rng.integers(0, 205, (6, 6, 6))
    first = rng.integers(0, 2, (architectures, 6, 6, 6))
    first[0], first[1] = 0, 1
    cubes = low + 51 * first
    half = rng.integers(0, 128, (architectures // 2, 6, 6, 6))
    halves = np.concatenate([half, 255 - half, np.full((architectures % 2, 6, 6, 6), 127)])
    values = np.stack([cubes, halves], axis=1).astype(np.uint8).repeat(5, 2).repeat(5, 3).repeat(5, 4)
    check(faithful(values), expected_faithful(values))


def test_skipped_organs_are_silent_but_stay_partners():
    values = np.full((2, 2, 6, 6, 6), 255, np.uint8)
    found = faithful(values, skip=frozenset({"o1"}))
    assert np.unique(found.organs[0].bits_N).tolist() == [0b100]
    assert found.organs[0].voxels == 216
    assert found.organs[1].voxels == 0
    assert found.organs[1].box is None
    assert found.predicted_voxels_K.tolist() == [216, 0]  # of equal ones the first


# --- physical -------------------------------------------------------------------------------------------------------


def check_physical(values: np.ndarray, support: np.ndarray | None, mode: PhysicalAttention, spacing) -> None:
    K = values.shape[1]
    criteria = [(c.criterion, c.threshold) for c in mode.criteria]
    expected = oracle.physical(values, support, partners(K), criteria, radius=mode.opening_radius_mm, spacing=spacing, ids=IDS[:K])
    words = None if support is None else packed(support)
    found = mode.look(values, support_MXYZ=words, organs=organ_set(K), spacing=spacing, own_labels=True)
    for organ, heat in zip(found.organs, expected.heat, strict=True):
        assert np.abs(organ.dense(organ.heat_N) - heat).max() < 1e-12
        levels = organ.dense(quantized_heat(organ.heat_N)).astype(int) - oracle.as_bytes(heat)
        assert np.count_nonzero(levels) <= 1e-3 * organ.voxels  # the logarithms are not the same library's
        assert np.abs(levels).max() <= 1
        organ.heat_N[:] = heat.ravel()[organ.places_N]
    check(found, expected)


@settings(max_examples=25)
@given(
    seed=st.integers(0, 2**32 - 1),
    architectures=st.integers(1, 4),
    organs=st.integers(1, 5),
    shape=st.tuples(st.integers(1, 15), st.integers(1, 15), st.integers(1, 15) | st.integers(62, 67)),
    contrast=st.sampled_from([0.5, 5.0]),
    masked=st.booleans(),
    criteria=st.lists(st.sampled_from(ALL_FIVE), min_size=1, max_size=5, unique=True),
    radius=st.sampled_from([0.0, 1.0, 3.0]),
    spacing=st.sampled_from([SPACING, (1.0, 2.0, 0.7)]),
)
def test_physical_equals_its_formulas(seed, architectures, organs, shape, contrast, masked, criteria, radius, spacing):
    values = probabilities(seed, architectures, organs, shape, contrast=contrast)
    mode = PhysicalAttention(criteria=tuple(criteria), opening_radius_mm=radius)
    check_physical(values, supported(values) if masked else None, mode, spacing)


# --- slabs, and what is refused -------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [FaithfulAttention(), PhysicalAttention(), PhysicalAttention(opening_radius_mm=5.0)])
@pytest.mark.parametrize("step", [1, 7, 30])
def test_slabs_with_their_halo_join_to_the_whole(mode, step):
    values = probabilities(8, 3, 3, (14, 17, 75))
    support = packed(supported(values))

    def look(low: int, high: int, inner: slice) -> GridAttention:
        part, words = values[..., low:high], np.ascontiguousarray(support[..., low:high])
        return mode.look(part, support_MXYZ=words, organs=organ_set(3), spacing=SPACING, own_labels=True, inner=inner)

    whole, halo = look(0, 75, slice(None)), mode.halo(SPACING)[2]
    slabs, starts = [], range(0, 75, step)
    for start in starts:
        stop, low = min(start + step, 75), max(0, start - halo)
        slabs.append(look(low, min(75, stop + halo), slice(start - low, stop - low)))
    assert np.array_equal(np.concatenate([slab.label_XYZ for slab in slabs], axis=2), whole.label_XYZ)
    assert np.array_equal(np.concatenate([slab.own_labels_MXYZ for slab in slabs], axis=3), whole.own_labels_MXYZ)
    assert sum(slab.predicted_voxels_K for slab in slabs).tolist() == whole.predicted_voxels_K.tolist()
    for k, theirs in enumerate(whole.organs):
        ours = joined([slab.organs[k] for slab in slabs], starts, (14, 17, 75))
        assert theirs.voxels > 0
        assert ours.box == theirs.box
        order = np.argsort(ours.places_N)
        assert np.array_equal(ours.places_N[order], theirs.places_N)
        assert np.array_equal(ours.bits_N[order], theirs.bits_N)
        assert np.array_equal(ours.heat_N[order], theirs.heat_N)


def test_what_does_not_fit_is_refused():
    mode, organs, values = FaithfulAttention(), organ_set(2), np.zeros((1, 2, 3, 4, 5), np.uint8)
    with pytest.raises(LabelError, match=r"uint8 \[M, 2, X, Y, Z\]"):
        mode.look(values.astype(np.float32), organs=organs, spacing=SPACING)
    with pytest.raises(LabelError, match=r"uint8 \[M, 2, X, Y, Z\]"):
        mode.look(values[:, :1], organs=organs, spacing=SPACING)
    with pytest.raises(LabelError, match=r"uint32 \(1, 3, 4, 5\)"):
        mode.look(values, support_MXYZ=np.zeros((1, 3, 4), np.uint32), organs=organs, spacing=SPACING)
    with pytest.raises(LabelError, match="nothing_such"):
        mode.look(values, organs=organs, spacing=SPACING, skip=frozenset({"nothing_such"}))

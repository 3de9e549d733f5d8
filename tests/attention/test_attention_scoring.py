"""Components and scores on hand-made maps."""

import numpy as np
import pytest

from atlas_ray.attention.scoring import case_scores, find_components, organ_scores, quantized_heat, raise_heat, rank_components
from atlas_ray.attention.sparse import OrganAttention
from atlas_ray.records import AttentionComponent

NAMES = ("inconsistency", "uncertainty", "overlap")
SPACING = (1.0, 2.0, 5.0)  # a voxel is 10 mm3


@pytest.fixture
def maps():
    """Three regions in a 6 x 5 x 4 grid: an L of 3 voxels, a diagonal pair (26-connected), and one voxel at the far corner."""
    bits, heat = np.zeros((6, 5, 4), np.uint8), np.zeros((6, 5, 4), np.float32)
    for place, b, h in [
        ((1, 1, 1), 0b001, 0.25),
        ((2, 1, 1), 0b011, 0.75),
        ((2, 2, 1), 0b010, 0.5),
        ((4, 3, 2), 0b110, 1.0),
        ((5, 4, 3), 0b100, 1.0),
        ((0, 4, 3), 0b100, 0.125),
    ]:
        bits[place], heat[place] = b, h
    return bits, heat


def components_of(maps, **kwargs) -> list[AttentionComponent]:
    _, components = find_components(OrganAttention.of(*maps), organ="solid_a", criterion_names=NAMES, spacing=SPACING, **kwargs)
    return components


def test_components_written_out(maps):
    pair, ell, corner = rank_components(components_of(maps))
    assert pair == AttentionComponent(
        organ="solid_a",
        index=1,
        box=((4, 6), (3, 5), (2, 4)),
        peak=(4, 3, 2),  # the first of two equal ones
        voxels=2,
        volume_mm3=20.0,
        reason="overlap",
        criteria=("uncertainty", "overlap"),
        score=20.0,
        mean_heat=1.0,
    )
    assert ell == AttentionComponent(
        organ="solid_a",
        index=2,
        box=((1, 3), (1, 3), (1, 2)),
        peak=(2, 1, 1),
        voxels=3,
        volume_mm3=30.0,
        reason="inconsistency",  # two voxels each: the first listed
        criteria=("inconsistency", "uncertainty"),
        score=15.0,
        mean_heat=0.5,
    )
    assert (corner.index, corner.peak, corner.volume_mm3, corner.score) == (3, (0, 4, 3), 10.0, 1.25)


def test_memory_order_does_not_matter(maps):
    fortran = tuple(np.asfortranarray(m) for m in maps)
    assert rank_components(components_of(fortran)) == rank_components(components_of(maps))


def test_empty_attention_has_no_components():
    nothing = np.zeros((3, 1, 2), np.uint8), np.zeros((3, 1, 2), np.float32)
    assert components_of(nothing) == []
    assert rank_components([]) == []


def test_small_components_are_left_out_of_list_and_maps(maps):
    everything = OrganAttention.of(*maps)
    kept, components = find_components(everything, organ="solid_a", criterion_names=NAMES, spacing=SPACING, min_volume_mm3=20.0)
    assert sorted(c.voxels for c in components) == [2, 3]
    bits, heat = kept.dense(kept.bits_N), kept.dense(kept.heat_N)
    assert bits[0, 4, 3] == heat[0, 4, 3] == 0
    assert np.count_nonzero(bits) == np.count_nonzero(heat) == kept.voxels == 5
    assert kept.box == ((1, 6), (1, 5), (1, 4))
    assert everything.voxels == 6  # the caller's is left as it was
    same, _ = find_components(everything, organ="solid_a", criterion_names=NAMES, spacing=SPACING, min_volume_mm3=10.0)
    assert same is everything


def test_components_of_shuffled_voxels_are_the_same(maps):
    sparse = OrganAttention.of(*maps)
    order = np.random.default_rng(1).permutation(sparse.voxels)
    shuffled = OrganAttention(sparse.shape, sparse.places_N[order], sparse.bits_N[order], sparse.heat_N[order], sparse.box)
    _, components = find_components(shuffled, organ="solid_a", criterion_names=NAMES, spacing=SPACING)
    assert rank_components(components) == rank_components(components_of(maps))


@pytest.mark.parametrize("axes", [(0, 1, 2), (2, 0, 1), (1, 0, 2)])
@pytest.mark.parametrize("flipped", [(False, False, False), (True, False, True)])
def test_turning_voxels_is_turning_volumes(maps, axes, flipped):
    def turned(volume):
        return np.flip(np.transpose(volume, axes), [i for i in range(3) if flipped[i]])

    ours, expected = OrganAttention.of(*maps).turned(axes, flipped), OrganAttention.of(turned(maps[0]), turned(maps[1]))
    assert ours.box == expected.box
    assert np.array_equal(ours.dense(ours.bits_N), turned(maps[0]))
    assert np.array_equal(ours.dense(ours.heat_N), turned(maps[1]))


def test_strongest_heat_by_hand(maps):
    other = np.zeros_like(maps[0]), np.zeros_like(maps[1])
    other[0][1, 1, 1], other[1][1, 1, 1] = 1, 0.1
    other[0][2, 1, 1], other[1][2, 1, 1] = 1, 0.05
    strongest = np.zeros(maps[0].shape, np.uint8, order="F")
    for organ in (maps, other):
        raise_heat(strongest, OrganAttention.of(*organ))
    assert strongest[1, 1, 1] == 255  # of the other; the first has 0.25 of 1
    assert strongest[2, 1, 1] == 191  # 0.75 of 1, against 0.05 of 0.1
    assert np.count_nonzero(strongest) == 6


def test_many_components_agree_with_a_loop_over_them():
    rng = np.random.default_rng(3)
    bits = (rng.random((30, 31, 17)) < 0.03).astype(np.uint8) * rng.integers(1, 8, (30, 31, 17)).astype(np.uint8)
    heat = (rng.random(bits.shape) * (bits > 0)).astype(np.float32)
    found = components_of((bits, heat))
    assert len(found) > 100
    assert sum(c.voxels for c in found) == np.count_nonzero(bits)
    assert sum(c.score for c in found) == pytest.approx(float(heat.sum()) * 10)
    for c in found:
        inside = tuple(slice(*edge) for edge in c.box)
        assert bits[c.peak] > 0
        assert all(low <= p < high for p, (low, high) in zip(c.peak, c.box, strict=True))
        assert heat[c.peak] <= heat[inside].max()
        assert c.mean_heat <= heat[c.peak]
        if np.count_nonzero(bits[inside]) == c.voxels:  # no other component reaches into the box
            assert heat[c.peak] == heat[inside].max()
            assert c.score == pytest.approx(float(heat[inside].sum()) * 10, rel=1e-5)
            assert c.criteria == tuple(n for i, n in enumerate(NAMES) if (bits[inside] >> i & 1).any())


def test_ties_are_ranked_by_organ_then_box(maps):
    bits, heat = np.zeros((5, 1, 1), np.uint8), np.zeros((5, 1, 1), np.float32)
    bits[[0, 2, 4]] = 1
    heat[[0, 2, 4]] = 0.5
    sparse = OrganAttention.of(bits, heat)
    both = [
        c for organ in ("zz", "aa") for c in find_components(sparse, organ=organ, criterion_names=NAMES, spacing=SPACING)[1][::-1]
    ]
    ranked = [(c.index, c.organ, c.box[0][0]) for c in rank_components(both)]
    assert ranked == [(1, "aa", 0), (2, "aa", 2), (3, "aa", 4), (4, "zz", 0), (5, "zz", 2), (6, "zz", 4)]


def test_quantized_heat_by_hand():
    heat = np.array([[[0.0, 0.5, 1.0, 2.0]]], np.float32)
    assert quantized_heat(heat).tolist() == [[[0, 63, 127, 255]]]  # rounded down
    assert quantized_heat(np.zeros((2, 1, 1), np.float32)).tolist() == [[[0]], [[0]]]
    assert quantized_heat(heat).dtype == np.uint8


def test_scores_of_organ_and_case(maps):
    organ = organ_scores(
        OrganAttention.of(*maps), organ="solid_a", spacing=SPACING, predicted_voxels=500, components=3, entropy=0.25
    )
    assert (organ.attention_voxels, organ.attention_mm3, organ.predicted_ml) == (6, 60.0, 5.0)
    assert organ.heat_sum == 63 + 191 + 127 + 255 + 255 + 31
    assert (organ.components, organ.entropy) == (3, 0.25)
    other = organ.model_copy(update={"organ": "solid_b", "attention_voxels": 4, "attention_mm3": 40.0})
    case = case_scores(
        "case_1", [organ, other], round_index=2, checkpoints={"u_net": "ab"}, attention_mode="faithful", criteria=["overlap"],
        seconds=1.5,
    )  # fmt: skip
    assert case.criteria == ("overlap",)
    assert (case.attention_voxels, case.attention_mm3) == (10, 100.0)
    assert [o.organ for o in case.organs] == ["solid_a", "solid_b"]

"""FaithfulAttention against an independent oracle: numpy float64, uint8 storage, scipy.ndimage, as paper-algorithm a.3 and a.4
describe the authors' files. The oracle shares no code with the mode; keep it slow and plain."""

import itertools

import numpy as np
import pytest
import torch
from scipy import ndimage
from scipy.special import entr

from atlas_ray.attention.criteria import Attention, FaithfulAttention, PhysicalAttention
from atlas_ray.attention.morphology import bounding_box, opened
from atlas_ray.attention.scoring import quantized_heat
from atlas_ray.organs import Organ, Organs

SPACING = (0.8, 0.8, 2.5)
FULL = ndimage.generate_binary_structure(3, 3)


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def organ_set(count: int) -> Organs:
    """Organs "o0".. of which the third is a tube, and the second may touch the fourth."""
    return Organs(
        name=f"set of {count}",
        organs=tuple(
            Organ(
                name=f"o{k}",
                label_id=k + 1,
                color="#000000",
                overlap_partner=k != 2,
                may_touch={1: ("o3",), 3: ("o1",)}.get(k, ()) if count > 3 else (),
            )
            for k in range(count)
        ),
    )


# The partners of organ_set, by hand.
PARTNERS = {1: [[]], 2: [[1], [0]], 3: [[1], [0], [0, 1]], 4: [[1, 3], [0], [0, 1, 3], [0]]}


def smooth_probabilities(rng: np.random.Generator, architectures: int, organs: int, shape) -> np.ndarray:
    """Blobs that the architectures share, each with its own deviation; many touch the border. [M, K, X, Y, Z] float32."""
    shared = ndimage.gaussian_filter(rng.normal(size=(organs, *shape)), (0, 4, 4, 3), mode="wrap")
    own = ndimage.gaussian_filter(rng.normal(size=(architectures, organs, *shape)), (0, 0, 4, 4, 3), mode="wrap")
    logits = 5 * shared / shared.std() + 4 * own / own.std() - 2
    return (1 / (1 + np.exp(-logits))).astype(np.float32)


def oracle(probabilities: np.ndarray, support: np.ndarray | None, partners: list[list[int]]):
    """bits [K, X, Y, Z], heat [K, X, Y, Z] float64."""
    p = probabilities.astype(np.float64)
    soft = (p * 255).astype(np.uint8)
    if support is not None:
        soft[~support] = 0
    entropy = (entr(p) * 255).astype(np.uint8)
    average = (soft / 255).sum(axis=0) / len(soft) > 0.5
    if len(soft) == 1:
        average = (p[0] > 0.5) & (True if support is None else support[0])
    bits, heats = [], []
    for k, others in enumerate(partners):
        std = np.std(soft[:, k] / 255, axis=0)
        unc = (entropy[:, k] / 255).sum(axis=0) / len(entropy)
        std_bin, unc_bin = post(std > 0.1), post(unc > 0.05)
        overlap = np.zeros(std.shape, bool)
        for other in others:
            overlap |= average[k].astype(int) + average[other].astype(int) > 1
        bits.append(std_bin + 2 * unc_bin + 4 * overlap)
        heats.append(std * std_bin + unc * unc_bin + overlap)
    return np.stack(bits).astype(np.uint8), np.stack(heats)


def as_bytes(heat: np.ndarray) -> np.ndarray:
    return (heat / heat.max() * 255).astype(np.uint8) if heat.any() else np.zeros(heat.shape, np.uint8)


def post(mask: np.ndarray) -> np.ndarray:
    eroded = ndimage.binary_erosion(mask, structure=FULL, iterations=2)
    return ndimage.binary_dilation(eroded, structure=FULL, iterations=2)


CASES = [*itertools.product((1, 2, 3), (1, 2, 3, 4), [(23, 19, 17)]), (3, 2, (31, 5, 9)), (2, 2, (40, 37, 4)), (3, 3, (1, 1, 1))]


@pytest.mark.parametrize(("architectures", "organs", "shape"), CASES)
@pytest.mark.parametrize("masked", [False, True])
def test_equals_the_authors_rules_bit_for_bit(architectures, organs, shape, masked):
    rng = np.random.default_rng([architectures, organs, *shape])
    probabilities = smooth_probabilities(rng, architectures, organs, shape)
    support = ndimage.binary_dilation(probabilities > 0.5, FULL[None, None]) if masked else None
    bits, heat = oracle(probabilities, support, PARTNERS[organs])

    maps = FaithfulAttention()(
        torch.from_numpy(probabilities),
        support_MKXYZ=None if support is None else torch.from_numpy(support),
        organs=organ_set(organs),
        spacing=SPACING,
    )

    assert np.array_equal(maps.bits_KXYZ.numpy(), bits)
    assert np.abs(maps.heat_KXYZ.numpy() - heat).max() <= 1e-6
    for ours, theirs in zip(maps.heat_KXYZ.numpy(), heat, strict=True):
        assert np.array_equal(quantized_heat(ours), as_bytes(theirs.astype(np.float32).astype(np.float64)))
        # Against the heat never stored as float32: one level apart at most, where 255 * heat / max is a whole number.
        levels = np.abs(quantized_heat(ours).astype(int) - as_bytes(theirs))
        assert levels.max() <= 1
        assert np.count_nonzero(levels) <= 0.03 * max(1, np.count_nonzero(theirs))


def test_the_random_volumes_exercise_every_criterion():
    """Else the comparison above would compare zeros."""
    probabilities = smooth_probabilities(np.random.default_rng([3, 4, 23, 19, 17]), 3, 4, (23, 19, 17))
    bits, _ = oracle(probabilities, None, PARTNERS[4])
    shares = [(bits >> i & 1).mean() for i in range(3)]
    assert all(0.01 < share < 0.9 for share in shares), shares


def test_half_precision_probabilities_are_taken_as_they_are():
    half = smooth_probabilities(np.random.default_rng(5), 2, 2, (15, 15, 15)).astype(np.float16)
    bits, _ = oracle(half, None, PARTNERS[2])
    maps = FaithfulAttention()(torch.from_numpy(half), support_MKXYZ=None, organs=organ_set(2), spacing=SPACING)
    assert np.array_equal(maps.bits_KXYZ.numpy(), bits)


# --- small expectations, by hand ------------------------------------------------------------------------------------


def attention_of(mask: torch.Tensor) -> torch.Tensor:
    """Bits of one organ that two of three architectures are sure of inside `mask`, and all are sure is not outside."""
    probabilities = torch.stack([mask, mask, torch.zeros_like(mask)]).float()[:, None]
    return FaithfulAttention()(probabilities, support_MKXYZ=None, organs=organ_set(1), spacing=SPACING).bits_KXYZ[0]


@pytest.mark.parametrize(("thickness", "kept"), [(1, 0), (4, 0), (5, 5), (6, 6)])
@pytest.mark.parametrize("start", [0, 7])
def test_a_slab_needs_five_voxels(thickness, kept, start):
    mask = torch.zeros(20, 20, 20, dtype=torch.bool)
    mask[:, :, start : start + thickness] = True
    assert torch.equal(attention_of(mask) > 0, mask if kept else torch.zeros_like(mask))


def test_a_ball_of_radius_three_is_erased():
    x, y, z = torch.meshgrid(*[torch.arange(15) - 7] * 3, indexing="ij")
    ball = x**2 + y**2 + z**2 <= 9
    assert int(ball.sum()) == 123
    assert not attention_of(ball).any()


def test_a_volume_of_four_slices_is_erased():
    assert not attention_of(torch.ones(20, 20, 4, dtype=torch.bool)).any()
    assert attention_of(torch.ones(20, 20, 5, dtype=torch.bool)).all()


def test_one_architecture_has_no_inconsistency():
    undecided = torch.full((1, 1, 7, 7, 7), 0.4)
    maps = FaithfulAttention()(undecided, support_MKXYZ=None, organs=organ_set(1), spacing=SPACING)
    assert maps.bits_KXYZ.unique().tolist() == [0b010]
    # -0.4 ln 0.4 = 0.3665; 255 * 0.3665 = 93.46
    assert maps.heat_KXYZ.unique().tolist() == pytest.approx([93 / 255])


def test_heat_is_the_sum_of_the_three():
    probabilities = torch.zeros(3, 2, 5, 5, 5)
    probabilities[:2] = 1.0  # both organs are claimed by two of three: mean 2/3, deviation 0.4714
    maps = FaithfulAttention()(probabilities, support_MKXYZ=None, organs=organ_set(2), spacing=SPACING)
    assert maps.bits_KXYZ.unique().tolist() == [0b101]
    assert maps.heat_KXYZ.unique().tolist() == pytest.approx([1.4714], abs=1e-4)


def test_support_zeroes_soft_predictions_but_not_entropy():
    probabilities = torch.full((2, 1, 5, 5, 5), 0.9)  # -0.9 ln 0.9 = 0.0948
    support = torch.ones_like(probabilities, dtype=torch.bool)
    support[1] = False  # 0.9 against 0: deviation 0.45 (229 / 255 / 2)
    maps = FaithfulAttention()(probabilities, support_MKXYZ=support, organs=organ_set(1), spacing=SPACING)
    assert maps.bits_KXYZ.unique().tolist() == [0b011]
    assert maps.heat_KXYZ.unique().tolist() == pytest.approx([229 / 255 / 2 + 24 / 255])


# --- slabs ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("mode", [FaithfulAttention(), PhysicalAttention(), PhysicalAttention(opening_radius_mm=3.0)])
def test_slabs_with_their_halo_equal_the_whole(mode: Attention, axis: int):
    organs = organ_set(3)
    probabilities = torch.from_numpy(smooth_probabilities(np.random.default_rng(8), 3, 3, (21, 23, 22)))
    support = probabilities > 0.05

    def look(part):
        values, where = probabilities[(slice(None), slice(None), *part)], support[(slice(None), slice(None), *part)]
        return mode(values, support_MKXYZ=where, organs=organs, spacing=SPACING)

    whole = look((slice(None),) * 3)
    halo, length = mode.halo(SPACING)[axis], probabilities.shape[2 + axis]
    assert whole.bits_KXYZ.any()
    for start in range(0, length, 6):
        stop, low = min(start + 6, length), max(0, start - halo)
        part = [slice(None)] * 3
        part[axis] = slice(low, min(length, stop + halo))
        slab = look(tuple(part))
        for ours, theirs in ((slab.bits_KXYZ, whole.bits_KXYZ), (slab.heat_KXYZ, whole.heat_KXYZ)):
            assert torch.equal(ours.narrow(1 + axis, start - low, stop - start), theirs.narrow(1 + axis, start, stop - start))


# --- morphology -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 9, 5), (13, 4, 11)])
@pytest.mark.parametrize("steps", [(0, 0, 0), (1, 0, 2), (2, 2, 2)])
def test_opening_equals_scipys(shape, steps):
    mask = np.random.default_rng(sum(shape)).random(shape) < 0.93
    box = np.ones([2 * n + 1 for n in steps], bool)
    expected = ndimage.binary_dilation(ndimage.binary_erosion(mask, box), box)
    assert np.array_equal(opened(torch.from_numpy(mask), steps).numpy(), expected)


def test_bounding_box_by_hand():
    mask = torch.zeros(4, 5, 6, dtype=torch.bool)
    assert bounding_box(mask) is None
    mask[1, 2, 5] = mask[3, 0, 4] = True
    assert bounding_box(mask) == (slice(1, 4), slice(0, 3), slice(4, 6))

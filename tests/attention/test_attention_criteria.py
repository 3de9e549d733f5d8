"""The criteria and the physical mode, on numbers small enough to check by eye. Faithful mode: test_attention_faithful.py."""

import math

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from atlas_ray.attention.criteria import (
    Attention,
    Disagreement,
    FaithfulAttention,
    Inconsistency,
    Overlap,
    PhysicalAttention,
    PredictiveEntropy,
    Uncertainty,
)
from atlas_ray.exceptions import LabelError
from atlas_ray.organs import Organ, Organs

FINE = (0.7, 0.7, 0.7)
THICK = (0.7, 0.7, 5.0)


@pytest.fixture
def three() -> Organs:
    """Two solid organs and a tube; the tube is never a partner, the solids are."""
    return Organs(
        name="three",
        organs=(
            Organ(name="solid_a", label_id=1, color="#000001"),
            Organ(name="solid_b", label_id=2, color="#000002"),
            Organ(name="tube", label_id=3, color="#000003", overlap_partner=False),
        ),
    )


@pytest.fixture
def one() -> Organs:
    return Organs(name="one", organs=(Organ(name="solid_a", label_id=1, color="#000001"),))


def voxel(*per_architecture: float) -> torch.Tensor:
    """One voxel of one organ, [M, 1, 1, 1, 1]."""
    return torch.tensor(per_architecture, dtype=torch.float64).reshape(-1, 1, 1, 1, 1)


# --- criteria -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("criterion", "probabilities", "expected"),
    [
        (Inconsistency(), (1, 1, 0), 0.4714),
        (Inconsistency(), (0.9, 0.8, 0.65), 0.1027),
        (Inconsistency(), (1, 0), 0.5),
        (Inconsistency(), (0.3,), 0.0),
        (Inconsistency(), (math.nan, 0.2), 0.0),
        (Uncertainty(levels=None), (0.5,), 0.34657),  # 0.5 ln 2, one term only
        (Uncertainty(levels=None), (1 / math.e,), 0.36788),
        (Uncertainty(), (1 / math.e,), 93 / 255),
        (Uncertainty(), (0.5, 1.0), 44 / 255),  # (88 + 0) / 2 / 255
        (Uncertainty(), (0.0, 1.0), 0.0),
        (Uncertainty(), (math.nan, 0.0, 0.0), 31 / 255),
        (PredictiveEntropy(), (0.5, 0.5), 0.69315),
        (PredictiveEntropy(), (1, 1, 0), 0.63651),
        (PredictiveEntropy(), (1, 1, 1), 0.0),
        (PredictiveEntropy(), (math.nan, 0, 0), 0.69315),
        (Disagreement(), (1, 0), 0.69315),
        (Disagreement(), (0.5, 0.5), 0.0),
        (Disagreement(), (0.9, 0.9, 0.3), 0.19055),
        (Disagreement(), (0.9, 0.8, 0.65), 0.03168),
        (Disagreement(), (0.4,), 0.0),
        (Disagreement(), (math.nan, 0.4), 0.0),
    ],
)
def test_evidence_of_one_voxel(criterion, probabilities, expected):
    evidence = criterion(voxel(*probabilities))
    assert evidence.shape == (1, 1, 1, 1)
    assert float(evidence) == pytest.approx(expected, abs=5e-5)


def test_two_bytes_51_apart_deviate_as_numpy_says():
    """Their deviation is 0.1 up to rounding, so the comparison with the threshold must round as numpy does."""
    low = np.arange(205)
    pairs = np.stack([low, low + 51]) / 255
    ours = Inconsistency()(torch.from_numpy(pairs).reshape(2, 1, 205, 1, 1)).numpy().ravel()
    assert ours.tolist() == np.std(pairs, axis=0).tolist()


@pytest.mark.parametrize(
    ("threshold", "criterion", "low", "high"),
    [
        (0.05, Uncertainty(), 0.0114, 0.9476),  # paper-algorithm a.3, after the authors' rounding to bytes
        (0.05, Uncertainty(levels=None), 0.0111, 0.9487),
        (0.6, PredictiveEntropy(), 0.2876, 0.7124),
    ],
)
def test_band_of_probabilities_that_fires(threshold, criterion, low, high):
    assert criterion.threshold == threshold
    p = torch.arange(100_000, dtype=torch.float64) / 100_000
    fires = criterion(p.reshape(1, 1, -1, 1, 1)).ravel() > criterion.threshold
    inside = p[fires]
    assert float(inside.min()) == pytest.approx(low, abs=6e-5)
    assert float(inside.max()) == pytest.approx(high, abs=6e-5)
    assert len(inside) == pytest.approx((high - low) * 1e5, abs=20)  # one unbroken band


def test_overlap_asks_partners_only(three):
    # voxels along X: a and b | a and tube | b alone | a at 0.5 and b, which is no claim
    a, b, tube = [0.9, 0.9, 0.1, 0.5], [0.8, 0.1, 0.9, 0.9], [0.0, 0.9, 0.0, 0.0]
    probabilities = torch.tensor([a, b, tube]).reshape(1, 3, 4, 1, 1)
    assert Overlap()(probabilities, organs=three).reshape(3, 4).tolist() == [
        [1, 0, 0, 0],
        [1, 0, 0, 0],
        [0, 1, 0, 0],  # a tube is tested against its solid partners, it is only never one itself
    ]


def test_overlap_respects_allowed_contact():
    organs = Organs(
        name="touching",
        organs=(
            Organ(name="outer", label_id=1, color="#000001", may_touch=("inner",)),
            Organ(name="inner", label_id=2, color="#000002", may_touch=("outer",)),
        ),
    )
    assert not Overlap()(torch.ones(1, 2, 2, 2, 2), organs=organs).any()


# --- the union ------------------------------------------------------------------------------------------------------


def test_modes_are_chosen_by_name():
    adapter = TypeAdapter(Attention)
    assert adapter.validate_python({"mode": "faithful"}).criterion_names == ("inconsistency", "uncertainty", "overlap")
    physical = adapter.validate_python({"mode": "physical", "criteria": [{"criterion": "overlap"}, {"criterion": "disagreement"}]})
    assert physical.criterion_names == ("overlap", "disagreement")
    with pytest.raises(ValidationError, match="listed twice"):
        PhysicalAttention(criteria=(Overlap(), Overlap()))


def test_halo_is_erosion_plus_dilation():
    assert FaithfulAttention().halo(THICK) == (4, 4, 4)
    assert PhysicalAttention().halo(THICK) == (2, 2, 0)
    assert PhysicalAttention(opening_radius_mm=0).halo(FINE) == (0, 0, 0)


@pytest.mark.parametrize("mode", [FaithfulAttention(), PhysicalAttention()])
def test_wrong_shapes_and_names_are_refused(mode, three):
    good = torch.zeros(1, 3, 2, 2, 2)
    with pytest.raises(LabelError, match=r"\[M, 3, X, Y, Z\]"):
        mode(good[:, :2], support_MKXYZ=None, organs=three, spacing=FINE)
    with pytest.raises(LabelError, match="support of shape"):
        mode(good, support_MKXYZ=good[:, :, 1:] > 0, organs=three, spacing=FINE)
    with pytest.raises(LabelError, match="nothing_such"):
        mode(good, support_MKXYZ=None, organs=three, spacing=FINE, skip=frozenset({"nothing_such"}))


@pytest.mark.parametrize("mode", [FaithfulAttention(), PhysicalAttention()])
@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 7, 2), (5, 5, 5)])
def test_empty_masks_give_empty_maps(mode, three, shape):
    maps = mode(torch.zeros(2, 3, *shape), support_MKXYZ=None, organs=three, spacing=FINE)
    assert maps.bits_KXYZ.shape == maps.heat_KXYZ.shape == (3, *shape)
    assert maps.bits_KXYZ.dtype == torch.uint8
    assert maps.heat_KXYZ.dtype == torch.float32
    assert not maps.bits_KXYZ.any()
    assert not maps.heat_KXYZ.any()


@pytest.mark.parametrize("mode", [FaithfulAttention(), PhysicalAttention()])
def test_skipped_organ_is_silent_but_still_a_partner(mode, three):
    probabilities = torch.zeros(2, 3, 6, 6, 6)
    probabilities[:, :2] = 1.0  # solid_a and solid_b claim everything
    maps = mode(probabilities, support_MKXYZ=None, organs=three, spacing=FINE, skip=frozenset({"solid_b"}))
    overlap = 1 << mode.criterion_names.index("overlap")
    assert maps.bits_KXYZ[0].unique().tolist() == [overlap]
    assert not maps.bits_KXYZ[1].any()
    assert not maps.heat_KXYZ[1].any()


@pytest.mark.parametrize("mode", [FaithfulAttention(), PhysicalAttention()])
def test_nan_is_worth_attention_and_spoils_nothing_else(mode, one):
    probabilities = torch.zeros(3, 1, 15, 15, 15)
    probabilities[1, 0, 5:10, 5:10, 5:10] = math.nan
    maps = mode(probabilities, support_MKXYZ=None, organs=one, spacing=FINE)
    expected = torch.zeros(15, 15, 15, dtype=torch.bool)
    expected[5:10, 5:10, 5:10] = True
    assert torch.equal(maps.bits_KXYZ[0] > 0, expected)
    assert torch.isfinite(maps.heat_KXYZ).all()
    undecided = 1 << mode.criterion_names.index("uncertainty" if mode.mode == "faithful" else "predictive_entropy")
    assert maps.bits_KXYZ.max() == undecided


# --- physical -------------------------------------------------------------------------------------------------------


def disagreement_in(box: tuple[slice, slice, slice], shape: tuple[int, int, int]) -> torch.Tensor:
    """Two architectures see an organ in the box, the third does not; [3, 1, X, Y, Z]."""
    probabilities = torch.zeros(3, 1, *shape)
    probabilities[(slice(0, 2), 0, *box)] = 1.0
    return probabilities


def test_one_thick_slice_of_disagreement_survives(one):
    probabilities = disagreement_in((slice(10, 20), slice(10, 20), slice(3, 4)), (30, 30, 7))
    physical = PhysicalAttention()(probabilities, support_MKXYZ=None, organs=one, spacing=THICK)
    faithful = FaithfulAttention()(probabilities, support_MKXYZ=None, organs=one, spacing=THICK)
    assert int((physical.bits_KXYZ > 0).sum()) == 100
    assert int((faithful.bits_KXYZ > 0).sum()) == 0


@pytest.mark.parametrize(("width", "kept"), [(1, 0), (2, 0), (3, 3)])
def test_rim_of_two_fine_voxels_is_opened_away(one, width, kept):
    probabilities = disagreement_in((slice(5, 5 + width), slice(0, 20), slice(0, 9)), (20, 20, 9))
    bits = PhysicalAttention()(probabilities, support_MKXYZ=None, organs=one, spacing=FINE).bits_KXYZ
    assert int((bits > 0).sum()) == kept * 20 * 9


def test_heat_is_the_strongest_share(three):
    probabilities = torch.zeros(2, 3, 5, 5, 1)
    probabilities[0, 0] = 1.0  # the two architectures contradict each other on solid_a: entropy and disagreement are maximal
    probabilities[:, 1] = 0.7  # solid_b: mean 0.7, entropy 0.6109 nats, no disagreement
    maps = PhysicalAttention()(probabilities, support_MKXYZ=None, organs=three, spacing=THICK)
    assert maps.bits_KXYZ[:, 2, 2, 0].tolist() == [0b011, 0b001, 0]
    assert maps.heat_KXYZ[:, 2, 2, 0].tolist() == pytest.approx([1.0, 0.61086 / 0.69315, 0.0], abs=1e-4)


def test_support_limits_what_an_organ_claims(three):
    probabilities = torch.zeros(1, 3, 1, 1, 2)
    probabilities[:, :2] = 1.0
    support = torch.ones_like(probabilities, dtype=torch.bool)
    support[0, 1, 0, 0, 1] = False  # post-processing dropped solid_b at the second voxel
    bits = PhysicalAttention()(probabilities, support_MKXYZ=support, organs=three, spacing=THICK).bits_KXYZ
    assert bits.reshape(3, 2).tolist() == [[0b100, 0], [0b100, 0], [0, 0]]


def ball_of_doubt(spacing: tuple[float, float, float]) -> torch.Tensor:
    """A ball of 20 mm radius that one of three architectures misses, in a cube of 60 mm; [3, 1, X, Y, Z]."""
    axes = [(torch.arange(round(60 / s)) + 0.5) * s - 30 for s in spacing]
    x, y, z = torch.meshgrid(*axes, indexing="ij")
    inside = x**2 + y**2 + z**2 < 20**2
    return torch.stack([inside, inside, torch.zeros_like(inside)]).float()[:, None]


def test_attention_in_mm3_hardly_depends_on_the_grid(one):
    true_mm3 = 4 / 3 * math.pi * 20**3
    for spacing in [(1.0, 1.0, 1.0), (0.7, 0.7, 2.5), (2.0, 2.0, 5.0)]:
        bits = PhysicalAttention()(ball_of_doubt(spacing), support_MKXYZ=None, organs=one, spacing=spacing).bits_KXYZ
        assert int((bits > 0).sum()) * math.prod(spacing) == pytest.approx(true_mm3, rel=0.05), spacing

"""The criteria and the physical mode, on bytes small enough to check by eye. Faithful mode: test_attention_faithful.py."""

import math
import subprocess
import sys

import numpy as np
import pytest
from attention_oracle import bits_of, heat_of
from pydantic import TypeAdapter, ValidationError

from atlas_ray.attention.criteria import (
    MIN_THRESHOLD,
    Attention,
    Criterion,
    Disagreement,
    FaithfulAttention,
    Inconsistency,
    Overlap,
    PhysicalAttention,
    PredictiveEntropy,
    Uncertainty,
)
from atlas_ray.attention.sparse import OrganAttention
from atlas_ray.organs import Organ, Organs

FINE = (0.7, 0.7, 0.7)
THICK = (0.7, 0.7, 5.0)
ONE = Organs(name="one", organs=(Organ(name="solid_a", label_id=1, color="#000001"),))


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
    return ONE


def fired(criterion: Criterion, bytes_MN: np.ndarray) -> OrganAttention:
    """Voxels of one organ in a row, [M, N], where this criterion alone fires."""
    mode = PhysicalAttention(criteria=(criterion,), opening_radius_mm=0)
    return mode.look(bytes_MN.astype(np.uint8)[:, None, :, None, None], organs=ONE, spacing=FINE).organs[0]


# --- criteria -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("criterion", "bytes_M", "expected"),
    [
        (Inconsistency(), (255, 255, 0), 0.47140),
        (Inconsistency(), (230, 204, 166), 0.10306),
        (Inconsistency(), (255, 0), 0.5),
        (Inconsistency(), (77,), 0.0),
        (Uncertainty(levels=None), (94,), 0.36788),  # 1/e, one term only; 94 / 255 = 0.3686
        (Uncertainty(levels=None), (128,), 0.34598),  # 0.502 ln 1.992
        (Uncertainty(), (94,), 93 / 255),
        (Uncertainty(), (128, 255), 44 / 255),  # (88 + 0) / 2 / 255
        (Uncertainty(), (0, 255), 0.0),
        (PredictiveEntropy(), (127, 128), 0.69315),
        (PredictiveEntropy(), (255, 255, 0), 0.63651),
        (PredictiveEntropy(), (255, 255, 255), 0.0),
        (Disagreement(), (255, 0), 0.69315),
        (Disagreement(), (128, 128), 0.0),
        (Disagreement(), (204, 204, 51), 0.17261),  # p = 0.8, 0.8, 0.2: mean 0.6, 0.67301 - 0.50040
        (Disagreement(), (230, 204, 166), 0.03206),
        (Disagreement(), (102,), 0.0),
    ],
)
def test_evidence_of_one_voxel(criterion, bytes_M, expected):
    found = fired(criterion.model_copy(update={"threshold": MIN_THRESHOLD}), np.array(bytes_M)[:, None])
    assert found.heat_N.tolist() == ([] if expected == 0 else [pytest.approx(expected / criterion.MAXIMUM, abs=5e-5)])


def test_two_bytes_51_apart_deviate_as_numpy_says():
    """Their deviation is 0.1 up to rounding, so the comparison with the threshold must round as numpy does."""
    low = np.arange(205)
    pairs = np.stack([low, low + 51])
    expected = np.std(pairs / 255, axis=0)
    found = fired(Inconsistency(), pairs)
    assert 0 < found.voxels < 205
    assert found.places_N.tolist() == np.flatnonzero(expected > 0.1).tolist()
    assert (found.heat_N * Inconsistency.MAXIMUM).tolist() == expected[expected > 0.1].tolist()


@pytest.mark.parametrize(
    ("threshold", "criterion", "first", "last"),
    [
        (0.05, Uncertainty(), 3, 241),  # p of 0.0118 to 0.9451; 0.0114..0.9476 in paper-algorithm a.3
        (0.05, Uncertainty(levels=None), 3, 241),
        (0.6, PredictiveEntropy(), 74, 181),  # 0.2902 to 0.7098
    ],
)
def test_band_of_bytes_that_fires(threshold, criterion, first, last):
    assert criterion.threshold == threshold
    assert fired(criterion, np.arange(256)[None]).places_N.tolist() == list(range(first, last + 1))


def test_overlap_asks_partners_only(three):
    # voxels along X: a and b | a and tube | b alone | a at 127 and b, which is no claim
    values = np.array([[230, 230, 26, 127], [204, 26, 230, 230], [0, 230, 0, 0]], np.uint8).reshape(1, 3, 4, 1, 1)
    found = PhysicalAttention(criteria=(Overlap(),)).look(values, organs=three, spacing=FINE)
    assert bits_of(found).reshape(3, 4).tolist() == [
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
    found = PhysicalAttention().look(np.full((1, 2, 2, 2, 2), 255, np.uint8), organs=organs, spacing=FINE)
    assert not bits_of(found).any()


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
    assert PhysicalAttention().halo((1.5, 2.0, 2.1)) == (2, 2, 0)  # half a voxel of 2 mm does not exceed the radius
    assert PhysicalAttention(opening_radius_mm=0).halo(FINE) == (0, 0, 0)


def test_reading_a_configuration_loads_neither_torch_nor_numba():
    """Every --help waits for it."""
    script = "import atlas_ray.config, sys; print(*{'torch', 'numba'} & sys.modules.keys())"
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert loaded.split() == []


@pytest.mark.parametrize("mode", [FaithfulAttention(), PhysicalAttention()])
@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 7, 2), (5, 5, 5)])
def test_nothing_predicted_gives_nothing(mode, three, shape):
    found = mode.look(np.zeros((2, 3, *shape), np.uint8), organs=three, spacing=FINE)
    assert [(organ.voxels, organ.box) for organ in found.organs] == [(0, None)] * 3
    assert found.label_XYZ.shape == shape
    assert not found.label_XYZ.any()


@pytest.mark.parametrize("mode", [FaithfulAttention(), PhysicalAttention()])
def test_skipped_organ_is_silent_but_still_a_partner(mode, three):
    values = np.zeros((2, 3, 6, 6, 6), np.uint8)
    values[:, :2] = 255  # solid_a and solid_b claim everything
    found = mode.look(values, organs=three, spacing=FINE, skip=frozenset({"solid_b"}))
    overlap = 1 << mode.criterion_names.index("overlap")
    assert np.unique(bits_of(found)[0]).tolist() == [overlap]
    assert found.organs[1].voxels == 0


# --- physical -------------------------------------------------------------------------------------------------------


def disagreement_in(box: tuple[slice, slice, slice], shape: tuple[int, int, int]) -> np.ndarray:
    """Two architectures see an organ in the box, the third does not; [3, 1, X, Y, Z]."""
    values = np.zeros((3, 1, *shape), np.uint8)
    values[(slice(0, 2), 0, *box)] = 255
    return values


def test_one_thick_slice_of_disagreement_survives(one):
    values = disagreement_in((slice(10, 20), slice(10, 20), slice(3, 4)), (30, 30, 7))
    assert PhysicalAttention().look(values, organs=one, spacing=THICK).organs[0].voxels == 100
    assert FaithfulAttention().look(values, organs=one, spacing=THICK).organs[0].voxels == 0


@pytest.mark.parametrize(("width", "kept"), [(1, 0), (2, 0), (3, 3)])
def test_rim_of_two_fine_voxels_is_opened_away(one, width, kept):
    values = disagreement_in((slice(5, 5 + width), slice(0, 20), slice(0, 9)), (20, 20, 9))
    assert PhysicalAttention().look(values, organs=one, spacing=FINE).organs[0].voxels == kept * 20 * 9


def test_heat_is_the_strongest_share(three):
    values = np.zeros((2, 3, 5, 5, 1), np.uint8)
    values[0, 0] = 255  # the two architectures contradict each other on solid_a: entropy and disagreement are maximal
    values[:, 1] = 178  # solid_b: mean 0.698, entropy 0.6125 nats, no disagreement
    found = PhysicalAttention().look(values, organs=three, spacing=THICK)
    assert bits_of(found)[:, 2, 2, 0].tolist() == [0b011, 0b001, 0]
    assert heat_of(found)[:, 2, 2, 0].tolist() == pytest.approx([1.0, 0.61250 / 0.69315, 0.0], abs=1e-4)


def test_support_limits_what_an_organ_claims(three):
    values = np.zeros((1, 3, 1, 1, 2), np.uint8)
    values[:, :2] = 255
    support = np.array([0b111, 0b101], np.uint32).reshape(1, 1, 1, 2)  # post-processing dropped solid_b at the second voxel
    found = PhysicalAttention().look(values, support_MXYZ=support, organs=three, spacing=THICK)
    assert bits_of(found).reshape(3, 2).tolist() == [[0b100, 0], [0b100, 0], [0, 0]]


def ball_of_doubt(spacing: tuple[float, float, float]) -> np.ndarray:
    """A ball of 20 mm radius that one of three architectures misses, in a cube of 60 mm; [3, 1, X, Y, Z]."""
    axes = [(np.arange(round(60 / s)) + 0.5) * s - 30 for s in spacing]
    x, y, z = np.meshgrid(*axes, indexing="ij")
    inside = (x**2 + y**2 + z**2 < 20**2) * np.uint8(255)
    return np.stack([inside, inside, np.zeros_like(inside)])[:, None]


def test_attention_in_mm3_hardly_depends_on_the_grid(one):
    true_mm3 = 4 / 3 * math.pi * 20**3
    for spacing in [(1.0, 1.0, 1.0), (0.7, 0.7, 2.5), (2.0, 2.0, 5.0)]:
        found = PhysicalAttention().look(ball_of_doubt(spacing), organs=one, spacing=spacing).organs[0]
        assert found.voxels * math.prod(spacing) == pytest.approx(true_mm3, rel=0.05), spacing

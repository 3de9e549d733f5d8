"""An organ is judged by the members that know it, and by nobody else."""

import numpy as np
import pytest

from atlas_ray.attention.absent import known_by, look_among, own_label, voices
from atlas_ray.attention.criteria import FaithfulAttention, PhysicalAttention
from atlas_ray.exceptions import ConfigError
from atlas_ray.organs import Organs

ORGANS = Organs.model_validate(
    {
        "name": "two",
        "organs": [
            {"name": "liver", "label_id": 6, "color": "#c8604f"},
            {"name": "spleen", "label_id": 2, "color": "#9b6bd6"},
        ],
    }
)
ALL, NOTHING = np.uint32(3), np.uint32(0)


def test_voices_are_as_many_for_every_organ() -> None:
    known = known_by(("a", "b", "c"), {"c": ("liver",)}, ORGANS)
    assert known.tolist() == [[True, True], [True, True], [False, True]]
    assert voices(known).T.tolist() == [[0, 0, 0, 1, 1, 1], [0, 0, 1, 1, 2, 2]]
    assert voices(np.ones((3, 2), bool)).T.tolist() == [[0, 1, 2], [0, 1, 2]]
    nobody = known_by(("a", "b"), {"a": ("liver",), "b": ("liver",)}, ORGANS)
    assert voices(nobody).T.tolist() == [[0, 0], [0, 1]]


def test_too_many_voices_are_refused() -> None:
    known = np.tril(np.ones((7, 7), bool))  # organs known by 7, 6, 5, ... 1
    with pytest.raises(ConfigError, match="known by 1, 2, 3, 4, 5, 6, 7 of 7 networks, which takes 420 voices; 256 are allowed"):
        voices(known)


@pytest.mark.parametrize("mode", [FaithfulAttention(opening_voxels=0), PhysicalAttention(opening_radius_mm=0, min_component_mm3=0)])
def test_an_organ_is_judged_as_by_an_ensemble_of_those_who_know_it(mode: FaithfulAttention | PhysicalAttention) -> None:
    """Three members, the third without the liver: the liver is as of the first two alone, the spleen as of all three."""
    rng = np.random.default_rng(0)
    bytes_MKXYZ = rng.integers(0, 256, (3, 2, 5, 4, 70), dtype=np.uint8)
    bytes_MKXYZ[2, 0] = 0
    support = rng.integers(0, 4, (3, 5, 4, 70), dtype=np.uint32)
    support[2] &= 2
    known = known_by(("a", "b", "c"), {"c": ("liver",)}, ORGANS)
    settings = {"organs": ORGANS, "spacing": (1.0, 1.0, 1.0), "label_threshold": 0.5, "inner": slice(2, 68), "threads": 1}
    found = look_among(mode.look, known, bytes_MKXYZ, support_MXYZ=support, own_labels=True, **settings)
    for k, members in enumerate(([0, 1], [0, 1, 2])):
        alone = mode.look(np.ascontiguousarray(bytes_MKXYZ[members]), support_MXYZ=support[members], **settings)
        here, there = (dict(zip(o.places_N.tolist(), o.bits_N & 3, strict=True)) for o in (found.organs[k], alone.organs[k]))
        assert {place for place, bits in here.items() if bits} == {place for place, bits in there.items() if bits}
        assert all(there[place] == bits for place, bits in here.items() if bits)
    whole = mode.look(bytes_MKXYZ, support_MXYZ=support, own_labels=True, **settings)
    np.testing.assert_array_equal(found.own_labels_MXYZ, whole.own_labels_MXYZ)


def test_a_label_is_the_mean_of_those_who_know_and_one_alone_never_disagrees() -> None:
    """Liver 0.8 by its only member: a label, and nothing inconsistent; with a second one who says 0 there would be neither."""
    bytes_MKXYZ = np.zeros((2, 2, 1, 1, 1), np.uint8)
    bytes_MKXYZ[0, 0] = 204
    support = np.full((2, 1, 1, 1), ALL)
    mode = FaithfulAttention(opening_voxels=0)
    settings = {"organs": ORGANS, "spacing": (1.0, 1.0, 1.0), "label_threshold": 0.5, "inner": slice(None)}
    known = known_by(("a", "b"), {"b": ("liver",)}, ORGANS)
    found = look_among(mode.look, known, bytes_MKXYZ, support_MXYZ=support, **settings)
    assert found.label_XYZ.item() == 6
    assert found.organs[0].bits_N.tolist() == [2]  # uncertain, bit 1: -0.8 ln 0.8 = 0.18; not inconsistent, bit 0
    denied = mode.look(bytes_MKXYZ, support_MXYZ=support, **settings)
    assert denied.label_XYZ.item() == 0
    assert denied.organs[0].bits_N.tolist() == [3]


def test_own_label_is_the_largest_that_counts() -> None:
    bytes_KXYZ = np.array([[200, 200, 127, 128], [200, 201, 250, 0]], np.uint8).reshape(2, 1, 1, 4)
    support = np.array([3, 3, 1, 3], np.uint32).reshape(1, 1, 4)
    assert own_label(bytes_KXYZ, support, ORGANS, 0.5).ravel().tolist() == [6, 2, 0, 6]
